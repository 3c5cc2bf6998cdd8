"""Your own pictures with boxes, in COCO's format: a folder of pictures and a file of annotations.

images/1.jpg images/2.jpg ... and instances.json, from which the splits are drawn, or a file for each split.

Pictures are resized to a square, whatever their shape was, and their boxes with them.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from edgepack.core.errors import RecipeError, listed
from edgepack.core.files import digest, digests
from edgepack.core.files.unchanged import remembered
from edgepack.core.frozen import Json
from edgepack.core.provenance import versions
from edgepack.core.signature import Signature, TensorSpec
from edgepack.data.contract import Loading
from edgepack.data.datasets.coco.instances import Pictured, read
from edgepack.data.folders import counted, shown
from edgepack.data.partition import ONCE, drawn, missing, unreadable
from edgepack.data.pictures import collection
from edgepack.data.pictures.boxed import Boxed
from edgepack.data.pictures.decoding import Decoded, Frame, libraries
from edgepack.data.pictures.encoded import Encoded
from edgepack.data.pictures.keeping import pixels
from edgepack.data.splits import PARTS, Data, Split

if TYPE_CHECKING:
    from edgepack.data.pictures.samples import Pixels

KEEPS = True
VERSION = 2  # bump when the same files would give other splits or boxes
_COUNTS = {"picture": "names", "box": "boxes"}  # in `_checked`, what a split cannot do without
_FIX = "fix or remove them, or leave some out: bad_samples: {skip: 20}"


_Row = tuple[int, Pictured]  # where its pixels are, the same for equal ones, and what is known of it
# What samples depend on besides the files.
_SETTINGS = ("size", "color", "mean", "std", "augment", "bad_samples", "validation", "test")


class Config(collection.Plain):
    images: str = Field(description="folder with the pictures")
    annotations: str = Field(description="JSON file with their boxes, as instances_train2017.json")
    validation_images: str | None = Field(default=None, description="folder; default: images")
    validation_annotations: str | None = Field(default=None, description="file; default: drawn from annotations")
    test_images: str | None = Field(default=None, description="folder; default: images")
    test_annotations: str | None = Field(default=None, description="file; default: drawn from annotations")
    size: int = Field(default=320, ge=8, le=1024, description="side in pixels of the square that pictures become")
    augment: bool = Field(default=True, description="mirror half of the training pictures")

    @model_validator(mode="after")
    def _annotated(self) -> "Config":
        for part in ("validation", "test"):
            if getattr(self, f"{part}_images") and not getattr(self, f"{part}_annotations"):
                raise ValueError(f"{part}_images needs {part}_annotations")
        return self

    @property
    def files(self) -> dict[str, tuple[Path, Path]]:
        """Return the file with the annotations of each split that has one, and the folder of its pictures."""
        given = {"train": (self.annotations, self.images)} | {
            part: (getattr(self, f"{part}_annotations"), getattr(self, f"{part}_images") or self.images)
            for part in ("validation", "test")
        }
        return {part: (Path(file), Path(folder)) for part, (file, folder) in given.items() if file}

    @property
    def frame(self) -> Frame:
        return Frame(mode=self.mode, shorter_side=self.size, side=self.size, whole=True)


def describe(config: Config) -> Signature:
    """Raises RecipeError for all problems of the annotations; the pictures themselves are opened by `load`."""
    mean, std = config.normal
    steps = {
        "orientation": "as the picture's EXIF data says",
        "color": config.color,
        "resize": {"to": [config.size, config.size], "interpolation": "bilinear, antialiased", "shape": "stretched"},
        "scale": {"from": [0, 255], "to": [0, 1]},
        "normalize": {"mean": list(mean), "std": list(std)},
    }
    picture = TensorSpec(name="input", shape=(config.channels, config.size, config.size))
    return Signature(inputs=(picture,), labels=tuple(_checked(config)["train"]["labels"]), preprocessing=steps)


def notes(config: Config) -> tuple[str, ...]:
    """Return what is left out of the annotations."""
    crowds = sum(each["crowds"] for each in _checked(config).values())
    return (f"{counted(crowds, 'crowd')} left out: such a box holds many objects",) if crowds else ()


def fingerprint(config: Config) -> str:
    """Return a digest of the annotations and the contents of all pictures; where they are does not matter."""
    facts = _checked(config)
    shas = _digests(config, {part: each["names"] for part, each in facts.items()})
    settings = config.model_dump(mode="json", exclude={*Config.model_fields} - {*_SETTINGS})
    annotated = {part: each["sha"] for part, each in facts.items()}
    made_by = versions(*libraries({Path(name).suffix.lower() for name in shas}))
    return digest({"files": [*shas.values()], "annotations": annotated, "settings": settings, "versions": made_by})


def load(config: Config, loading: Loading | None = None) -> Data:
    """Decode every picture once. Raises RecipeError naming those that cannot be read, or are of another size than the
    annotations say.
    """
    found = {part: read(*place) for part, place in config.files.items()}
    shas = _digests(config, {part: [each.name for each in of.pictures] for part, of in found.items()})
    files: dict[Encoded, str] = {Path(name): sha for name, sha in shas.items()}
    stored, seen = pixels(files, config.frame, config.cache, loading or Loading())
    first: dict[str, int] = {}  # row of each content: equal pictures have the same one
    decoded = ((row, sha, one) for row, (sha, one) in enumerate(seen.items()) if isinstance(one, Decoded))
    rows = {sha: first.setdefault(one.content, row) for row, sha, one in decoded}
    good: dict[str, list[_Row]] = {part: [] for part in found}
    problems = [each for of in found.values() for each in of.problems]
    for part, (_, folder) in config.files.items():
        for each in found[part].pictures:
            sha = shas[str(folder / each.name)]
            if why := _flaw(seen[sha], each):
                problems.append(f"{shown(folder / each.name)}: {why}")
            else:
                good[part].append((rows[sha], each))
    _allow(problems, config)
    splits = _parts(_different(good), config)
    left = [f"{len(problems)} items are left out, such as {problems[0]}"] if problems else []
    every, kept = (sum(map(len, each.values())) for each in (good, splits))
    left += [f"{every - kept} of {every} pictures are copies of others: one of each is kept"] if kept < every else []
    train, validation, test = (_split(stored, splits[part], part, config) for part in PARTS)
    told = (*notes(config), *left, *_absent(splits, found["train"].labels))
    return Data(train=train, validation=validation, test=test, notes=told)


def _checked(config: Config) -> dict[str, Json]:
    """Return labels, names of pictures, numbers of boxes and crowds, and the sha256 of each split's own file."""
    facts = {part: _facts(*place) for part, place in config.files.items()}
    labels = facts["train"]["labels"]
    for part, each in facts.items():
        if each["labels"] != labels:
            odd = sorted({*each["labels"]} ^ {*labels}) or each["labels"]
            message = (
                f"{shown(config.files[part][0])} has other categories than {config.annotations}, such as {odd[0]!r}"
            )
            raise RecipeError(message, "all splits need the same categories, with the same ids")
    if not labels:
        raise RecipeError(f"{config.annotations} has no category")
    _allow([problem for each in facts.values() for problem in each["problems"]], config)
    for part, each in facts.items():
        if lacking := [what for what, name in _COUNTS.items() if not each[name]]:
            raise RecipeError(f"{shown(config.files[part][0])} has no {lacking[0]} that can be used")
    return facts


def _facts(file: Path, folder: Path) -> Json:
    sha = _sha(file)

    def find() -> Json:
        found = read(file, folder)
        names = [each.name for each in found.pictures]
        boxes = sum(len(each.boxes) for each in found.pictures)
        told = {"labels": found.labels, "problems": found.problems, "crowds": found.crowds}
        return {**told, "names": names, "boxes": boxes, "sha": sha}

    return remembered(folder, ["coco", sha, VERSION, versions("edgepack", "pillow-heif")], find)


def _sha(file: Path) -> str:
    return digests({"file": file}, of=f"annotations {file.absolute()}")["file"]


def _digests(config: Config, names: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return the sha256 of every picture by its path."""
    paths = [config.files[part][1] / name for part, each in names.items() for name in each]
    return digests({str(path): path for path in paths}, of=f"pictures {Path(config.annotations).absolute()}")


def _allow(problems: Sequence[str], config: Config) -> None:
    """Raises RecipeError if there are more problems than the recipe allows."""
    allowed = 0 if config.bad_samples == "fail" else config.bad_samples.skip
    if len(problems) > allowed:
        more = f", more than the {allowed} that bad_samples leaves out" if allowed else ""
        raise unreadable(problems, "item", f"cannot be used{more}", _FIX)


def _flaw(seen: Decoded | str, each: Pictured) -> str:
    """Return why a picture that was opened cannot be used, or ""."""
    if isinstance(seen, str) or seen.size == each.size:
        return seen if isinstance(seen, str) else ""
    sizes = (f"{width} x {height}" for width, height in (seen.size, each.size))
    return f"it is {next(sizes)} pixels, but the annotations say {next(sizes)}"


def _different(found: "Mapping[str, list[_Row]]") -> "dict[str, list[_Row]]":
    """Return one of each group of equal pictures: that of the test split, else of the validation split, if any.

    Raises RecipeError for a split that has none left.
    """
    seen: set[int] = set()
    kept: dict[str, list[_Row]] = {}
    for part in (part for part in reversed(PARTS) if found.get(part)):
        first: dict[int, _Row] = {}
        for each in found[part]:
            first.setdefault(each[0], each)
        kept[part] = [each for row, each in first.items() if row not in seen]
        seen |= {*first}
        if not kept[part]:
            raise RecipeError(f"the {part} split has no picture that other splits lack", ONCE)
    return {part: kept.get(part, []) for part in found}


def _parts(found: Mapping[str, "list[_Row]"], config: Config) -> "dict[str, list[_Row]]":
    """Return the pictures of each split, in a random order: those without a file of annotations are drawn from train's.

    Raises RecipeError if there are too few pictures.
    """
    shares = missing(found, config.shares)
    splits: dict[str, list[_Row]] = {}
    for part, rows in found.items():
        chosen = drawn([0] * len(rows), shares if part == "train" else {})
        splits |= {part if name == "train" else name: [rows[i] for i in where] for name, where in chosen.items()}
    if few := [part for part in PARTS if len(splits[part]) < (2 if part == "train" else 1)]:
        raise RecipeError(f"the {few[0]} split has {len(splits[few[0]])} pictures: too few", "add pictures")
    return splits


def _split(stored: "Pixels", rows: "Sequence[_Row]", part: str, config: Config) -> Split:
    import numpy
    import torch

    most = max(1, *(len(each.boxes) for _, each in rows), 1)
    targets = torch.zeros(len(rows), most, 5)
    targets[:, :, 4] = -1
    for target, (_, each) in zip(targets, rows, strict=True):
        if each.boxes:
            scales = [config.size / each.size[0], config.size / each.size[1]] * 2
            target[: len(each.boxes)] = torch.tensor(each.boxes) * torch.tensor([*scales, 1])
    samples = Boxed(
        pixels=stored,
        rows=numpy.array([row for row, _ in rows], numpy.int32),
        targets=targets,
        mirror=part == "train" and config.augment,
    )
    classes = torch.zeros(len(rows), dtype=torch.int64)
    return Split(samples=samples, targets=classes, prepare=partial(collection.prepared, config=config), labelled=True)


def _absent(splits: "Mapping[str, Sequence[_Row]]", labels: Sequence[str]) -> Iterator[str]:
    for part, rows in splits.items():
        there = {box[4] for _, each in rows for box in each.boxes}
        if absent := [repr(label) for number, label in enumerate(labels) if number not in there]:
            yield f"the {part} split has no object of {listed(absent)}"
