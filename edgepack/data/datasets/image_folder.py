"""Your own pictures: one folder per class, in one folder or in train, validation and test.

pets/cat/1.jpg pets/dog/1.jpg   or   pets/train/cat/1.jpg pets/validation/cat/2.jpg pets/test/cat/3.jpg
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from edgepack.core.errors import RecipeError
from edgepack.core.files import digest, digests
from edgepack.core.frozen import Frozen
from edgepack.core.provenance import versions
from edgepack.core.signature import Signature, TensorSpec
from edgepack.core.units import SIZE, Share
from edgepack.data.decoding import ENDINGS, Decoded, Frame, all_decoded, libraries, needed, reads
from edgepack.data.folders import Kind, Listing, counted, listed, shown
from edgepack.data.partition import ONCE, copied, drawn, enough, missing, possible, whereabouts
from edgepack.data.pictures import moved
from edgepack.data.splits import Data, Split

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from edgepack.data.decoding import Bytes

_VERSION = 2  # bump when the same files would give other splits or pixels
_PARTS = ("test", "validation", "train")  # a picture in two parts stays in the first of these
_NORMAL = {"rgb": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), "grey": ((0.449,), (0.226,))}  # ImageNet's
_PICTURES = Kind(
    noun="picture",
    example="cat/1.jpg",
    known=", ".join(ending.removeprefix(".") for ending in ENDINGS),
    accepts=reads,
    advice=needed,
)

Lost = dict[tuple[str, int], list[str]]  # why pictures were dropped, by part and label
Channels = Annotated[tuple[float, ...], Field(min_length=1, max_length=3)]


class Config(Frozen):
    folder: str = Field(
        description="folder with one subfolder per class, or with train, validation and test that have those"
    )
    size: int = Field(default=224, ge=8, le=1024, description="side of the square picture in pixels")
    resize: int | None = Field(
        default=None, ge=8, le=2048, description="the shorter side before the crop; default: 256/224 of size"
    )
    color: Literal["rgb", "grey"] = "rgb"
    mean: Channels | None = Field(default=None, description="mean subtracted from each channel; default: ImageNet's")
    std: Channels | None = Field(
        default=None, description="standard deviation that each channel is divided by; default: ImageNet's"
    )
    augment: bool = Field(default=True, description="randomly crop and mirror training pictures")
    validation: Share = Field(
        default=0.15, description="fraction of each class for this split, if it has no folder of its own"
    )
    test: Share = Field(
        default=0.15, description="fraction of each class for this split, if it has no folder of its own"
    )

    @model_validator(mode="after")
    def _possible(self) -> "Config":
        possible(self.validation, self.test, "pictures")
        if self.shorter_side < self.size:
            raise ValueError(f"resize is {self.resize}, less than the {self.size} pixels of the crop")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != self.channels:
                raise ValueError(f"{name} has {len(values)} values, but a {self.color} picture has {self.channels}")
        if self.std and min(self.std) <= 0:
            raise ValueError("std must be above 0")
        return self

    @property
    def channels(self) -> int:
        return len(_NORMAL[self.color][0])

    @property
    def shares(self) -> dict[str, float]:
        return {"validation": self.validation, "test": self.test}

    @property
    def shorter_side(self) -> int:
        return self.resize or round(self.size * 256 / 224)

    @property
    def frame(self) -> Frame:
        """Return what is kept of each picture: more than the model takes if training crops at random places."""
        side = self.shorter_side if self.augment else self.size
        return Frame(mode="RGB" if self.color == "rgb" else "L", shorter_side=self.shorter_side, side=side)

    @property
    def normal(self) -> tuple[Sequence[float], Sequence[float]]:
        mean, std = _NORMAL[self.color]
        return self.mean or mean, self.std or std


def describe(config: Config) -> Signature:
    """Raises RecipeError for all problems of the folders; the pictures themselves are opened by `load`."""
    found = _listed(config).parts
    mean, std = config.normal
    steps = {
        "orientation": "as the picture's EXIF data says",
        "color": config.color,
        "resize": {"shorter_side": config.shorter_side, "interpolation": "bilinear, antialiased"},
        "crop": {"to": [config.size, config.size], "from": "the centre"},
        "scale": {"from": [0, 255], "to": [0, 1]},
        "normalize": {"mean": list(mean), "std": list(std)},
    }
    picture = TensorSpec(name="input", shape=(config.channels, config.size, config.size))
    return Signature(inputs=(picture,), labels=tuple(found["train"]), preprocessing=steps)


def notes(config: Config) -> tuple[str, ...]:
    """Return what is left out of the folders."""
    return _listed(config).notes


def fingerprint(config: Config) -> str:
    """Return a digest of names and contents of all pictures; the folder's path and times do not matter."""
    settings = config.model_dump(mode="json", exclude={"folder"})
    files = _digests(config, _listed(config))
    made_by = {"versions": versions(*libraries(files)), "version": _VERSION}
    return digest({"files": files, "config": settings, **made_by})


def load(config: Config) -> Data:
    """Decode and resize every picture once, stored as bytes; of equal pictures one is kept.

    Raises RecipeError naming the pictures that cannot be read.
    """
    listing = _listed(config)
    pictures = _pictures(listing, _digests(config, listing), Path(config.folder))
    files = {picture.file: picture.sha for picture in pictures}
    stored = _allocated(len({*files.values()}), config)
    read = all_decoded(files, config.frame, stored)
    kept, notes = _deduplicated(pictures, read)
    parts = _drawn(config, kept, listing, _lost(pictures, read, [*listing.parts["train"]]))
    rows = {sha: row for row, sha in enumerate(read)}
    bring_forward(stored, [rows[picture.sha] for part in parts.values() for picture in part])
    ends = dict(zip(parts, accumulate(map(len, parts.values())), strict=True))

    def split(part: str, augment: Any = None) -> Split:
        import torch

        labels = torch.tensor([picture.label for picture in parts[part]])
        own = stored[ends[part] - len(labels) : ends[part]]
        if part != "train":
            own = _cut(own, [read[picture.sha].size for picture in parts[part]], config)
        inputs = (torch.from_numpy(own),)
        return Split(inputs=inputs, targets=labels, prepare=partial(_prepared, config=config), augment=augment)

    augment = partial(_augmented, size=config.size) if config.augment else None
    return Data(
        train=split("train", augment),
        validation=split("validation"),
        test=split("test"),
        notes=(*listing.notes, *notes),
    )


def _prepared(inputs: "tuple[Tensor, ...]", config: Config) -> "tuple[Tensor, ...]":
    import torch

    start = (inputs[0].shape[-1] - config.size) // 2  # more is kept than the model takes, for shifts
    end = start + config.size
    mean, std = (torch.tensor(values)[:, None, None] for values in config.normal)
    return ((inputs[0][:, :, start:end, start:end] / 255 - mean) / std,)


def _augmented(inputs: "tuple[Tensor, ...]", random: "Generator", size: int) -> "tuple[Tensor, ...]":
    return (moved(inputs[0], size, random),)


@dataclass(frozen=True, kw_only=True)
class _Picture:
    part: str
    label: int
    file: Path
    sha: str  # of the file


def _digests(config: Config, listing: Listing) -> dict[str, str]:
    """Return the sha256 of every picture by its name relative to the folder."""
    root = Path(config.folder)
    every = (file for classes in listing.parts.values() for files in classes.values() for file in files)
    return digests({file.relative_to(root).as_posix(): file for file in every}, of=str(root.resolve()))


def _pictures(listing: Listing, shas: Mapping[str, str], root: Path) -> list[_Picture]:
    """Return all pictures; if two parts have copies, those that are kept come first."""
    return [
        _Picture(part=part, label=label, file=file, sha=shas[file.relative_to(root).as_posix()])
        for part in _PARTS
        for label, files in enumerate(listing.parts.get(part, {}).values())
        for file in files
    ]


def _deduplicated(pictures: Sequence[_Picture], read: Mapping[str, Decoded]) -> tuple[list[_Picture], list[str]]:
    """Return one of all pictures with equal pixels, or none if their labels differ, and remarks on the dropped ones."""
    same: dict[str, list[_Picture]] = {}
    for picture in pictures:
        same.setdefault(read[picture.sha].content, []).append(picture)
    clear = [group for group in same.values() if len({each.label for each in group}) == 1]
    doubtful = [group for group in same.values() if len({each.label for each in group}) > 1]
    kept = [group[0] for group in clear]
    return kept, [
        *_copies(sum(map(len, clear)) - len(kept), len(pictures)),
        *_contradictions(doubtful, len(pictures)),
        *_transparent(sum(read[each.sha].transparent for each in kept)),
        *_several(sum(read[each.sha].several for each in kept)),
    ]


def _copies(count: int, of: int) -> Iterator[str]:
    if count:
        yield f"{count} of {of} pictures are copies of others: one of each is kept"


def _contradictions(groups: Sequence[Sequence[_Picture]], of: int) -> Iterator[str]:
    if groups:
        first = groups[0][0]
        other = next(each for each in groups[0] if each.label != first.label)
        which = f"such as {shown(first.file)} and {shown(other.file)}"
        yield f"{sum(map(len, groups))} of {of} pictures have copies with another label, {which}: none of them is used"


def _transparent(count: int) -> Iterator[str]:
    if count:
        yield f"{counted(count, 'picture')} partly transparent: the colours stored there are used"


def _several(count: int) -> Iterator[str]:
    if count:
        yield f"{counted(count, 'picture')} with several frames or pages: the first is used"


def _lost(pictures: Sequence[_Picture], read: Mapping[str, Decoded], labels: Sequence[str]) -> Lost:
    """Return what became of the pictures that are not kept."""
    same: dict[str, list[_Picture]] = {}
    for picture in pictures:
        same.setdefault(read[picture.sha].content, []).append(picture)
    lost: Lost = {}
    for group in same.values():
        known = {each.label for each in group}
        for each in group if len(known) > 1 else group[1:]:
            other = min(known - {each.label}, default=None)
            fate = copied(each.part, group[0].part) if other is None else f"under the label {labels[other]!r} too"
            lost.setdefault((each.part, each.label), []).append(fate)
    return lost


def _drawn(config: Config, pictures: Sequence[_Picture], listing: Listing, lost: Lost) -> dict[str, list[_Picture]]:
    """Return the pictures of each part, shuffled, so that the first samples are a fair choice."""
    given = {part: [each for each in pictures if each.part == part] for part in listing.parts}
    shares = missing(given, config.shares)
    counts, classes = Counter(picture.label for picture in given["train"]), listing.parts["train"]
    gone = {
        name: whereabouts(lost["train", i], len(files), "picture")
        for i, (name, files) in enumerate(classes.items())
        if ("train", i) in lost
    }
    enough({name: counts[i] for i, name in enumerate(classes)}, shares, "different picture", gone)
    parts: dict[str, list[_Picture]] = {}
    for part, members in given.items():
        if not members:
            fates = [fate for (where, _), each in lost.items() if where == part for fate in each]
            reason = whereabouts(fates, len(fates), "picture")
            raise RecipeError(f"the {part} split has no picture that other splits lack: {reason}", ONCE)
        chosen = drawn([each.label for each in members], shares if part == "train" else {})
        # If nothing is drawn from it, the whole part comes back under the name train.
        parts |= {part if name == "train" else name: [members[i] for i in where] for name, where in chosen.items()}
    return parts


def _allocated(count: int, config: Config) -> "Bytes":
    """Allocate memory for the pixels of `count` pictures. All splits are views of it, so nothing is stored twice."""
    import numpy

    shape = (count, config.channels, config.frame.side, config.frame.side)
    _fits_in_memory(prod(shape))
    return numpy.empty(shape, dtype=numpy.uint8)


def _fits_in_memory(needed: int) -> None:
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise RecipeError(
            f"the pictures need {SIZE.format(needed)} of memory, and this machine has {SIZE.format(there)}",
            "use a smaller size, or fewer pictures",
        )


def bring_forward(stored: "Bytes", rows: Sequence[int]) -> None:
    """Sort an array in place, so that it begins with these rows, each named once, in this order.

    >>> import numpy
    >>> letters = numpy.array(["a", "b", "c", "d"])
    >>> bring_forward(letters, [3, 0, 1])
    >>> print(letters)
    ['d' 'a' 'b' 'c']
    """
    held = [*range(len(stored))]  # row that is in each place now
    places = [*range(len(stored))]  # place of each row now
    for place, row in enumerate(rows):
        there, other = places[row], held[place]
        stored[[place, there]] = stored[[there, place]]
        held[there], places[other] = other, there


def _cut(stored: "Bytes", sizes: Sequence[tuple[int, int]], config: Config) -> "Bytes":
    """Cut the middle of each picture [channels, side, side] in place, as if it had been cut to this size at once."""
    side = config.size
    for row, size in zip(stored, sizes, strict=True):
        inner, outer = replace(config.frame, side=side).start(size), config.frame.start(size)
        left, top = inner[0] - outer[0], inner[1] - outer[1]
        row[:, :side, :side] = row[:, top : top + side, left : left + side]
    return stored[:, :, :side, :side]


def _listed(config: Config) -> Listing:
    """Return the pictures by split and class, sorted. Raises RecipeError for the first problem."""
    listing = listed(Path(config.folder), _PICTURES)
    counts = {name: len(pictures) for name, pictures in listing.parts["train"].items()}
    enough(counts, missing(listing.parts, config.shares), "picture")
    return listing
