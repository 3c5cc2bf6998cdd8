"""Your own pictures: one folder per class, in one folder or in train, validation and test.

pets/cat/1.jpg pets/dog/1.jpg   or   pets/train/cat/1.jpg pets/validation/cat/2.jpg pets/test/cat/3.jpg
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from edgepack.core.files import digest, digests
from edgepack.core.frozen import Frozen
from edgepack.core.provenance import versions
from edgepack.core.signature import Signature, TensorSpec
from edgepack.core.units import Share
from edgepack.data.contract import Loading
from edgepack.data.folders import Kind, Listing, listed
from edgepack.data.partition import enough, missing, possible
from edgepack.data.pictures.choosing import chosen, every
from edgepack.data.pictures.decoding import ENDINGS, Frame, libraries, needed, reads
from edgepack.data.pictures.keeping import Cache, pixels
from edgepack.data.pictures.samples import Pictures
from edgepack.data.splits import Data, Split

if TYPE_CHECKING:
    from torch import Tensor

    from edgepack.data.pictures.samples import Places

KEEPS = True
_VERSION = 3  # bump when the same files would give other splits or pixels
_NORMAL = {"rgb": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), "grey": ((0.449,), (0.226,))}  # ImageNet's
_PICTURES = Kind(
    noun="picture",
    example="cat/1.jpg",
    known=", ".join(ending.removeprefix(".") for ending in ENDINGS),
    accepts=reads,
    advice=needed,
)

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
    cache: Cache = Field(
        default="auto",
        description="where decoded pictures are kept: memory, disk (in the store), or none (decoded each time)",
    )
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
    settings = config.model_dump(mode="json", exclude={"folder", "cache"})  # all caches give the same samples
    files = _digests(config, _listed(config))
    made_by = {"versions": versions(*libraries(files)), "version": _VERSION}
    return digest({"files": files, "config": settings, **made_by})


def load(config: Config, loading: Loading | None = None) -> Data:
    """Decode every picture once, to see that it can be read and which are equal; of equal pictures one is kept.

    Raises RecipeError naming the pictures that cannot be read.
    """
    listing = _listed(config)
    shas = _digests(config, listing)
    root = Path(config.folder)
    pictures = every(listing.parts, {root / name: sha for name, sha in shas.items()})
    files = {picture.file: picture.sha for picture in pictures}
    stored, read = pixels(files, config.frame, config.cache, loading or Loading())
    parts, notes = chosen(listing.parts, pictures, read, config.shares)
    rows = {sha: row for row, sha in enumerate(read)}

    def split(part: str) -> Split:
        import numpy
        import torch

        samples = Pictures(
            pixels=stored,
            rows=numpy.array([rows[picture.sha] for picture in parts[part]], numpy.int32),
            size=config.size,
            moving=config.augment and part == "train",
            starts=None if part == "train" else _starts(config, [read[picture.sha].size for picture in parts[part]]),
        )
        labels = torch.tensor([picture.label for picture in parts[part]])
        return Split(samples=samples, targets=labels, prepare=partial(_prepared, config=config))

    return Data(
        train=split("train"), validation=split("validation"), test=split("test"), notes=(*listing.notes, *notes)
    )


def _prepared(inputs: "tuple[Tensor, ...]", config: Config) -> "tuple[Tensor, ...]":
    """Look the value of each of the 256 bytes up: half the time of computing it for each pixel."""
    import numpy
    import torch

    start = (inputs[0].shape[-1] - config.size) // 2  # more is kept than the model takes, for shifts
    end = start + config.size
    pixels = inputs[0][:, :, start:end, start:end].numpy()
    mean, std = (torch.tensor(values)[:, None] for values in config.normal)
    values = ((torch.arange(256) / 255 - mean) / std).numpy()
    found = numpy.empty(pixels.shape, numpy.float32)
    for channel in range(config.channels):
        numpy.take(values[channel], pixels[:, channel], out=found[:, channel], mode="clip")
    return (torch.from_numpy(found),)


def _digests(config: Config, listing: Listing) -> dict[str, str]:
    """Return the sha256 of every picture by its name relative to the folder."""
    root = Path(config.folder)
    files = (file for classes in listing.parts.values() for files in classes.values() for file in files)
    return digests({file.relative_to(root).as_posix(): file for file in files}, of=str(root.resolve()))


def _starts(config: Config, sizes: Sequence[tuple[int, int]]) -> "Places":
    """Return where the middle of each stored picture begins, left and top, [n, 2]."""
    import numpy

    inner, outer = replace(config.frame, side=config.size), config.frame
    found = []
    for size in map(outer.scaled, sizes):
        (left, top), (before, above) = inner.start(size), outer.start(size)
        found.append((left - before, top - above))
    return numpy.array(found, numpy.int32)


def _listed(config: Config) -> Listing:
    """Return the pictures by split and class, sorted. Raises RecipeError for the first problem."""
    listing = listed(Path(config.folder), _PICTURES)
    counts = {name: len(pictures) for name, pictures in listing.parts["train"].items()}
    enough(counts, missing(listing.parts, config.shares), "picture")
    return listing
