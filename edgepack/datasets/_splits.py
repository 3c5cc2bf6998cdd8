"""How splits are drawn, and how a folder that holds a folder for each class is read and checked."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.errors import RecipeError

if TYPE_CHECKING:
    import numpy

    Indices = numpy.typing.NDArray[numpy.int64]

_PARTS = {"train": ("train",), "validation": ("validation", "valid", "val"), "test": ("test",)}
_NAMED = 5  # samples, in an error about many

Files = dict[str, tuple[Path, ...]]  # the files of each class


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What the samples are called, and which files hold one."""

    noun: str
    example: str  # a class and a file of it
    known: str  # the endings, for people
    accepts: Callable[[Path], bool]


def drawn(classes: Sequence[int], shares: Mapping[str, float]) -> "dict[str, Indices]":
    """Where the samples of each part stand: about this share of every class, one at least, and the rest as "train".

    Drawn and shuffled by numpy's legacy generator, whose stream never changes from version to version.
    """
    import numpy

    random = numpy.random.RandomState(0)
    known = numpy.asarray(classes)
    parts: dict[str, list[Any]] = {"train": [], **{name: [] for name in shares}}
    for label in numpy.unique(known):
        members = random.permutation(numpy.flatnonzero(known == label))
        ends = numpy.cumsum([quota(len(members), share) for share in shares.values()])
        for name, part in zip((*shares, "train"), numpy.split(members, ends), strict=True):
            parts[name].append(part)
    return {name: random.permutation(numpy.concatenate(members)) for name, members in parts.items()}


def quota(samples: int, share: float) -> int:
    """How many of a class's samples a part gets.

    >>> quota(100, 0.15), quota(3, 0.15)
    (15, 1)
    """
    return max(1, round(samples * share))


def possible(validation: float, test: float, nouns: str) -> None:
    """Raises ValueError when such shares leave a split empty."""
    if not (validation > 0 and test > 0 and validation + test < 1):
        raise ValueError(f"validation and test are shares above 0 % that leave some {nouns} for training")


def missing(found: Iterable[str], shares: Mapping[str, float]) -> dict[str, float]:
    """The shares of the parts that are still to be drawn from train."""
    return {part: share for part, share in shares.items() if part not in found}


def listed(root: Path, kind: Kind) -> dict[str, Files]:
    """The files by split and class, sorted. Raises RecipeError for the first thing that is wrong with the folders."""
    if not root.is_dir():
        raise RecipeError(f"there is no folder '{root}'", "name the folder that holds a folder for each class")
    found = {part: _classes(folder, kind) for part, folder in _part_folders(root).items()}
    for part, classes in found.items():
        same_classes(f"of {root}", part, found["train"], classes)
    return found


def enough(counts: Mapping[str, int], shares: Mapping[str, float], noun: str) -> None:
    """Whether every class of train has a sample for each split that is still to be drawn, and one to train on."""
    for name, count in counts.items():
        if count <= sum(quota(count, share) for share in shares.values()):
            raise RecipeError(
                f"the class {name!r} has {count} {noun if count == 1 else f'{noun}s'}, "
                + (f"too few to be split into train, {' and '.join(shares)}" if shares else "too few to train on"),
                f"add {noun}s, or remove the class",
            )


def same_classes(whose: str, part: str, train: Iterable[str], classes: Iterable[str]) -> None:
    if lacking := sorted({*train} - {*classes}):
        raise RecipeError(f"the {part} split {whose} lacks the class {lacking[0]!r}, which train has")
    if extra := sorted({*classes} - {*train}):
        raise RecipeError(f"the {part} split {whose} has the class {extra[0]!r}, which train lacks")


def unreadable(problems: Sequence[str], noun: str, what: str, advice: str) -> RecipeError:
    """The first of the problems, and how many there are."""
    more = [f"and {len(problems) - _NAMED} more"] if len(problems) > _NAMED else []
    count = f"one {noun}" if len(problems) == 1 else f"{len(problems)} {noun}s"
    lines = "\n  ".join([*problems[:_NAMED], *more])
    return RecipeError(f"{count} {what}:\n  {lines}", advice)


def _part_folders(root: Path) -> dict[str, Path]:
    """A folder `train` that holds folders itself is no class: the splits are made already."""
    if not (root / "train").is_dir() or not _folders(root / "train"):
        return {"train": root}
    present = {part: [root / name for name in names if (root / name).is_dir()] for part, names in _PARTS.items()}
    for part, folders in present.items():
        if len(folders) > 1:
            raise RecipeError(
                f"both {folders[0]} and {folders[1]} may be the {part} split", "keep one of them, or rename it"
            )
    return {part: folders[0] for part, folders in present.items() if folders}


def _classes(folder: Path, kind: Kind) -> Files:
    names = _folders(folder)
    if not names:
        raise RecipeError(
            f"{folder} holds no folders: each class needs one with its {kind.noun}s",
            f"for example {folder}/{kind.example}",
        )
    if len(names) == 1:
        raise RecipeError(f"{folder} holds one class only, {names[0]!r}: there is nothing to tell apart")
    found = {name: _files(folder / name, kind) for name in names}
    for name, files in found.items():
        if not files:
            raise RecipeError(f"there is no {kind.noun} in {folder / name}", f"known are {kind.known}")
    return found


def _folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _files(folder: Path, kind: Kind) -> tuple[Path, ...]:
    files = (file for file in folder.rglob("*") if kind.accepts(file) and not file.name.startswith("."))
    return tuple(sorted(file for file in files if file.is_file()))
