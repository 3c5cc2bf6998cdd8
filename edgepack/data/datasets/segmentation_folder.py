"""Your own pictures with a mask for each, in two folders with the same names: a PNG with the class of every pixel.

images/1.jpg and masks/1.png   or   images/train/1.jpg, images/validation/2.jpg ... and masks/train/1.png ...
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from edgepack.core.errors import RecipeError
from edgepack.core.files import digests
from edgepack.core.signature import Signature
from edgepack.data.contract import Loading
from edgepack.data.folders import Kind, Listing, counted, listed_without_classes, shown
from edgepack.data.partition import missing, quota
from edgepack.data.pictures import collection, masks
from edgepack.data.pictures.decoding import ENDINGS, needed, reads
from edgepack.data.pictures.encoded import Encoded
from edgepack.data.splits import Data

KEEPS = True
_PICTURES = Kind(
    noun="picture",
    example="1.jpg",
    known=", ".join(ending.removeprefix(".") for ending in ENDINGS),
    accepts=reads,
    advice=needed,
)
_MASKS = Kind(
    noun="mask",
    example="1.png",
    known="png",
    accepts=lambda ending: ending == ".png",
    advice=lambda ending: "masks are PNG files" if ending in ENDINGS else "",
)


class Config(masks.Settings):
    images: str = Field(description="folder of pictures, or with train, validation and test that have them")
    masks: str = Field(description="folder of masks, with the names of their pictures and .png at the end")


def describe(config: Config) -> Signature:
    """Raises RecipeError for all problems of the folders; the files themselves are opened by `load`."""
    _found(config)
    return collection.describe(config, config.labels)


def notes(config: Config) -> tuple[str, ...]:
    """Return what is left out of the folders."""
    return _found(config).notes


def fingerprint(config: Config) -> str:
    """Return a digest of names and contents of all pictures and masks; where the folders are does not matter."""
    return collection.fingerprint(config, _digests(config, _found(config)), {"images", "masks"})


def load(config: Config, loading: Loading | None = None) -> Data:
    found = _found(config)
    files, known = found.files, _digests(config, found)
    parts: dict[str, dict[Path, Path]] = {}
    for pair in found.pairs:
        parts.setdefault(pair.part, {})[pair.picture] = pair.mask
    shas: dict[Encoded, str] = {files[name]: sha for name, sha in known.items()}
    return masks.load(config, parts, shas, found.notes, loading or Loading(), found.lost)


@dataclass(frozen=True)
class _Pair:
    part: str
    name: str  # of the picture, relative to the folder of the split
    picture: Path
    mask: Path


@dataclass(frozen=True, kw_only=True)
class _Found:
    """The pictures that have a mask, notes, and the problems of those that have none."""

    pairs: tuple[_Pair, ...]
    notes: tuple[str, ...]
    lost: tuple[str, ...]

    @property
    def files(self) -> dict[str, Path]:
        """Return pictures and masks by names that do not depend on where the folders are."""
        pictures = {f"{pair.part}/{pair.name}": pair.picture for pair in self.pairs}
        return pictures | {f"mask of {pair.part}/{pair.name}": pair.mask for pair in self.pairs}


def _found(config: Config) -> _Found:
    """Raises RecipeError for the first problem of the folders, or for all pictures without a mask."""
    pictures = listed_without_classes(Path(config.images), _PICTURES)
    truths = listed_without_classes(Path(config.masks), _MASKS)
    if {*pictures.parts} != {*truths.parts}:
        own, its = (" and ".join(each.parts) for each in (pictures, truths))
        message = f"{config.images} has pictures for {own}, but {config.masks} has masks for {its}"
        raise RecipeError(message, "make the same folders in both")
    there = {mask for classes in truths.parts.values() for mask in classes[""]}
    pairs = tuple(_pairs(pictures, truths))
    good = tuple(pair for pair in pairs if pair.mask in there)
    lost = tuple(f"{shown(pair.picture)}: there is no {shown(pair.mask)}" for pair in pairs if pair.mask not in there)
    collection.check_bad(lost, config.bad_samples)
    _enough(config, good, pictures.parts)
    spare = len(there - {pair.mask for pair in good})
    more = (f"{counted(spare, 'mask')} left out: no picture has its name",) if spare else ()
    return _Found(pairs=good, notes=(*pictures.notes, *truths.notes, *more), lost=lost)


def _pairs(pictures: Listing, truths: Listing) -> Iterator[_Pair]:
    """Yield each picture with the path where its mask should be."""
    for part, classes in pictures.parts.items():
        for picture in classes[""]:
            name = picture.relative_to(pictures.folders[part])
            yield _Pair(part, name.as_posix(), picture, truths.folders[part] / name.with_suffix(".png"))


def _enough(config: Config, pairs: Sequence[_Pair], parts: Iterable[str]) -> None:
    """Raises RecipeError if a split has no picture with a mask, or too few for others to be drawn from it."""
    counts = Counter(pair.part for pair in pairs)
    drawn = missing(parts, config.shares)
    for part in parts:
        least = sum(quota(counts[part], share) for share in drawn.values()) if part == "train" else 0
        if counts[part] <= least:
            into = f"too few to be split into {', '.join(['train', *drawn])}" if least else "too few"
            message = f"the {part} split of {config.images} has {counts[part]} pictures with a mask, {into}"
            raise RecipeError(message, "add pictures with masks")


def _digests(config: Config, found: _Found) -> dict[str, str]:
    """Return the sha256 of every picture and mask by its name."""
    return digests(found.files, of=f"{Path(config.images).resolve()} {Path(config.masks).resolve()}")
