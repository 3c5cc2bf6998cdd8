"""Pictures with masks, which say the class of each pixel: both are cut and moved alike, and masks not interpolated."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from edgepack.core.errors import RecipeError, listed
from edgepack.core.signature.labels import problem
from edgepack.data.contract import Loading
from edgepack.data.pictures import collection
from edgepack.data.pictures.augmentation import Augmentation, changed_each
from edgepack.data.pictures.choosing import chosen, every
from edgepack.data.pictures.decoding import NUMBERS, Decoded, Frame
from edgepack.data.pictures.encoded import Encoded, place
from edgepack.data.pictures.keeping import pixels
from edgepack.data.pictures.moving import moved_each
from edgepack.data.pictures.samples import Pictures
from edgepack.data.splits import PARTS, Data, Split

if TYPE_CHECKING:
    from torch import Tensor

    from edgepack.data.pictures.decoding import Bytes
    from edgepack.data.pictures.samples import Moving, Pixels, Places

NO_CLASS = 255  # in targets: a pixel that is neither learned nor scored
_ALL = "all"  # pictures have no class of their own


class Settings(collection.Settings):
    """Settings of every data set of pictures with masks."""

    labels: tuple[str, ...] = Field(min_length=2, max_length=NO_CLASS, description="names of the classes 0, 1, ...")
    ignore: int = Field(default=NO_CLASS, ge=0, le=255, description="number in masks of pixels that have no class")

    @model_validator(mode="after")
    def _of_masks(self) -> "Settings":
        if why := problem(self.labels):
            raise ValueError(why)
        if self.ignore < len(self.labels):
            raise ValueError(f"ignore is {self.ignore}, but the classes are 0 to {len(self.labels) - 1}")
        if isinstance(self.augment, Augmentation) and (self.augment.rand_augment or self.augment.erase):
            name = "rand_augment" if self.augment.rand_augment else "erase"
            raise ValueError(f"augment.{name} changes pictures without their masks: remove it")
        return self


@dataclass(frozen=True, kw_only=True)
class Masked:
    """Pictures of a split, and their masks as targets: what moves either depends on its seed alone, which is the same.

    `classes` has for each of the 256 numbers in a mask its class, uint8 [256].
    """

    pictures: Pictures
    masks: Pictures
    classes: "Bytes"

    @property
    def augmented(self) -> bool:
        return self.pictures.augmented

    @property
    def held(self) -> bool:
        return self.pictures.held and self.masks.held

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, indices: "Tensor", seeds: "Tensor | None") -> "tuple[Tensor, ...]":
        """Return pictures [n, channels, size, size] and masks [n, size, size], both uint8."""
        import torch

        (pictures,), (masks,) = self.pictures.read(indices, seeds), self.masks.read(indices, seeds)
        start, size = (masks.shape[-1] - self.masks.size) // 2, self.masks.size  # more is kept, for shifts
        middle = slice(start, start + size)
        return pictures[..., middle, middle], torch.from_numpy(self.classes[masks[:, 0, middle, middle].numpy()])


def load(
    config: Settings,
    parts: Mapping[str, Mapping[Path, Path]],
    shas: Mapping[Encoded, str],
    notes: Sequence[str],
    loading: Loading,
    lost: Sequence[str] = (),
) -> Data:
    """Decode every picture and mask once, to see that both can be read and fit together.

    `parts` are the masks by picture and split, and `shas` the hashes of all files; `lost` are problems of pictures that
    are left out already. Of equal pictures one is kept. Raises RecipeError naming those that cannot be used.
    """
    mask_of: dict[Encoded, Path] = {picture: mask for each in parts.values() for picture, mask in each.items()}
    files = {part: {_ALL: [*each]} for part, each in parts.items()}
    pictures = every(files, shas)
    stored = _Stored.of([*mask_of], shas, config, config.frame, loading)
    masks = _Stored.of([*mask_of.values()], shas, config, replace(config.frame, mode=NUMBERS), loading)
    unfit = {
        picture: f"{place(mask)}: {why}"
        for picture, mask in mask_of.items()
        if (why := _problem(config, stored.found[shas[picture]], masks.found[shas[mask]], picture))
    }
    problems = [*lost, *collection.unreadable_ones(pictures, stored.found), *unfit.values()]
    bad = collection.left_out(problems, len(pictures) + len(lost), config.bad_samples)
    read = {sha: each for sha, each in stored.found.items() if isinstance(each, Decoded)}
    splits, more = chosen(files, [each for each in pictures if each.file not in unfit], read, config.shares)

    def split(part: str) -> Split:
        import torch

        own = [each.sha for each in splits[part]]
        starts = None if part == "train" else collection.starts(config, [read[sha].size for sha in own])
        moving, following = _moving(config) if part == "train" else (None, None)
        samples = Masked(
            pictures=stored.chosen(own, config, moving, starts),
            masks=masks.chosen([shas[mask_of[each.file]] for each in splits[part]], config, following, starts),
            classes=_classes(config),
        )
        targets = torch.zeros(len(own), dtype=torch.int64)
        return Split(
            samples=samples, targets=targets, prepare=partial(collection.prepared, config=config), labelled=True
        )

    present = {
        part: {number for each in of for number in _numbers(masks.found[shas[mask_of[each.file]]])}
        for part, of in splits.items()
    }
    told = (*notes, *bad, *more, *_absent(present, config.labels))
    return Data(train=split("train"), validation=split("validation"), test=split("test"), notes=told)


def _numbers(mask: Decoded | str) -> Sequence[int]:
    return mask.numbers if isinstance(mask, Decoded) else ()


def _absent(present: Mapping[str, Collection[int]], labels: Sequence[str]) -> Iterator[str]:
    """Yield remarks on classes that no mask of a split has. Raises RecipeError for a split without any class."""
    for part in PARTS:
        absent = [repr(label) for number, label in enumerate(labels) if number not in present[part]]
        if len(absent) == len(labels):
            raise RecipeError(
                f"no mask of the {part} split has a pixel with a class: all are ignored",
                "masks hold the number of a class in each pixel, from 0",
            )
        if absent:
            yield f"the {part} split has no pixel of {listed(absent)}"


@dataclass(frozen=True)
class _Stored:
    """Pixels row by row, and what was found in each, by its hash in the order of rows."""

    pixels: "Pixels"
    found: Mapping[str, Decoded | str]

    @classmethod
    def of(
        cls, files: Sequence[Encoded], shas: Mapping[Encoded, str], config: Settings, frame: Frame, loading: Loading
    ) -> "_Stored":
        return cls(*pixels({file: shas[file] for file in files}, frame, config.cache, loading))

    def chosen(
        self, shas: Sequence[str], config: Settings, moving: "Moving | None", starts: "Places | None"
    ) -> Pictures:
        import numpy

        at = {sha: row for row, sha in enumerate(self.found)}
        rows = numpy.array([at[sha] for sha in shas], numpy.int32)
        return Pictures(pixels=self.pixels, rows=rows, size=config.size, moving=moving, starts=starts)


def _moving(config: Settings) -> "tuple[Moving | None, Moving | None]":
    """Return what changes pictures at random, given their seeds, and what moves their masks, given the same ones."""
    change = collection.moving(config)
    if isinstance(config.augment, Augmentation):
        return change, partial(changed_each, transform=config.augment.transform_of_masks(config.size))
    return change, partial(moved_each, size=config.size) if config.augment else None


def _classes(config: Settings) -> "Bytes":
    import numpy

    classes = numpy.arange(256, dtype=numpy.uint8)
    classes[config.ignore] = NO_CLASS
    return classes


def _problem(config: Settings, picture: Decoded | str, mask: Decoded | str, file: Encoded) -> str:
    """Return why a mask cannot be used, or ""; nothing for a picture that is told already."""
    if isinstance(picture, str):
        return ""
    if isinstance(mask, str):
        return mask
    if mask.size != picture.size:
        sizes = [" x ".join(map(str, each.size)) for each in (mask, picture)]
        return f"it is {sizes[0]}, but its picture {place(file)} is {sizes[1]}"
    return next(_unknown(config, mask.numbers), "")


def _unknown(config: Settings, numbers: Sequence[int]) -> Iterator[str]:
    for number in numbers:
        if number >= len(config.labels) and number != config.ignore:
            yield f"it has the class {number}, but the labels are 0 to {len(config.labels) - 1}"
