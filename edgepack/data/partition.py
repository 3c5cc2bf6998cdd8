"""Draw splits, and check that each class has enough samples."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgepack.core.errors import RecipeError
from edgepack.core.signature.labels import twin

if TYPE_CHECKING:
    import numpy

    Indices = numpy.typing.NDArray[numpy.int64]

ONCE = "remove copies, so that each is in one split and one class"
_NAMED = 5  # samples that an error lists


def drawn(classes: Sequence[int], shares: Mapping[str, float]) -> "dict[str, Indices]":
    """Return the indices of each part: this share of every class, at least one sample, and the rest as "train".

    Uses numpy's legacy generator, whose stream is the same in all versions.
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


def fewer(classes: Sequence[int], samples: int, first: int = 0) -> "Indices":
    """Return the indices of so many samples, in their order: the same share of every class, at least one of each.

    The `first` ones are preferred. `samples` are at least as many as there are classes.
    """
    import numpy

    random = numpy.random.RandomState(0)
    known = numpy.asarray(classes)
    labels, counts = numpy.unique(known, return_counts=True)
    kept = []
    for label, count in zip(labels, _quotas(counts, samples), strict=True):
        members = random.permutation(numpy.flatnonzero(known == label))
        kept.append(members[numpy.argsort(numpy.minimum(members, first), kind="stable")][:count])
    return numpy.sort(numpy.concatenate(kept))


def _quotas(counts: "Indices", samples: int) -> "Indices":
    """Return how many samples of each class to keep: largest remainders first, but one of each."""
    import numpy

    exact = counts * samples / counts.sum()
    found: Indices = numpy.maximum(1, numpy.floor(exact)).astype(numpy.int64)
    while found.sum() < samples:
        found[numpy.argmax(exact - found)] += 1
    while found.sum() > samples:
        found[numpy.argmax(numpy.where(found > 1, found - exact, -1))] -= 1
    return found


def quota(samples: int, share: float) -> int:
    """Return how many of a class's samples a part gets.

    >>> quota(100, 0.15), quota(3, 0.15)
    (15, 1)
    """
    return max(1, round(samples * share))


def possible(validation: float, test: float, nouns: str) -> None:
    """Raises ValueError if such shares leave a split empty."""
    if not (validation > 0 and test > 0 and validation + test < 1):
        raise ValueError(f"validation and test must be above 0 % and leave some {nouns} for training")


def missing(found: Iterable[str], shares: Mapping[str, float]) -> dict[str, float]:
    """Return the shares of the parts that must be drawn from train."""
    return {part: share for part, share in shares.items() if part not in found}


def enough(counts: Mapping[str, int], shares: Mapping[str, float], noun: str, gone: Mapping[str, str] = {}) -> None:
    """Raises RecipeError if a class has too few samples for training and for each split to be drawn; `gone` says why
    samples of a class were dropped.
    """
    into = f"{', '.join(['train', *shares][:-1])} and {[*shares][-1]}" if shares else ""
    for name, count in counts.items():
        if count <= sum(quota(count, share) for share in shares.values()):
            raise RecipeError(
                f"{f'the class {name!r}' if name else 'the data'} has {count} {noun if count == 1 else f'{noun}s'}, "
                + (f"too few to be split into {into}" if shares else "too few to train on")
                + (f": {gone[name]}" if name in gone else ""),
                f"{f'{ONCE}; or ' if name in gone else ''}add {noun}s{', or remove the class' if name else ''}",
            )


def whereabouts(fates: Sequence[str], of: int, noun: str) -> str:
    """Return what happened to copies, given each one's fate and the number of all samples.

    >>> whereabouts(["in the test split too", "in the test split too"], 2, "picture")
    'all 2 pictures are in the test split too'
    >>> whereabouts(["in the test split too", "there more than once"], 3, "picture")
    '1 of 3 pictures is in the test split too, 1 of 3 pictures is there more than once'
    """

    def which(count: int) -> str:
        share = f"all {count}" if count == of else f"{count} of {of}"
        return f"the only {noun} is" if of == 1 else f"{share} {noun}s {'is' if count == 1 else 'are'}"

    return ", ".join(f"{which(count)} {fate}" for fate, count in Counter(fates).items())


def copied(part: str, kept: str) -> str:
    """Return the fate of a copy in one part, if another copy is kept in `kept`."""
    return "there more than once" if part == kept else f"in the {kept} split too"


def same_classes(whose: str, part: str, train: Iterable[str], classes: Iterable[str]) -> None:
    lacking, extra = sorted({*train} - {*classes}), sorted({*classes} - {*train})
    for label in lacking:
        if other := twin(label, extra):
            raise RecipeError(f"the {part} split {whose} has the class {label!a} as {other!a}", "write both the same")
    if lacking:
        raise RecipeError(f"the {part} split {whose} lacks the class {lacking[0]!r}, which train has")
    if extra:
        raise RecipeError(f"the {part} split {whose} has the class {extra[0]!r}, which train lacks")


def unreadable(problems: Sequence[str], noun: str, what: str, advice: str) -> RecipeError:
    """Return an error with the first problems and their number."""
    more = [f"and {len(problems) - _NAMED} more"] if len(problems) > _NAMED else []
    count = f"one {noun}" if len(problems) == 1 else f"{len(problems)} {noun}s"
    lines = "\n  ".join([*problems[:_NAMED], *more])
    return RecipeError(f"{count} {what}:\n  {lines}", advice)
