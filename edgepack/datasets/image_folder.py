"""Your own pictures: one folder a class, split here or already in folders train, validation and test.

pets/cat/1.jpg pets/dog/1.jpg   or   pets/train/cat/1.jpg pets/validation/cat/2.jpg pets/test/cat/3.jpg
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from edgepack.config import Frozen
from edgepack.datasets import Data, Signature, Split, TensorSpec
from edgepack.datasets._digests import digests
from edgepack.datasets._pictures import moved
from edgepack.datasets._splits import Files, Kind, drawn, enough, listed, missing, possible, unreadable
from edgepack.errors import RecipeError
from edgepack.provenance import threads, versions
from edgepack.store import digest
from edgepack.units import SIZE, Share

if TYPE_CHECKING:
    from PIL import Image
    from torch import Generator, Tensor

_ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_NORMAL = {"rgb": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), "grey": ((0.449,), (0.226,))}  # ImageNet's
_PICTURES = Kind(
    noun="picture",
    example="cat/1.jpg",
    known=", ".join(ending.removeprefix(".") for ending in _ENDINGS),
    accepts=lambda file: file.suffix.lower() in _ENDINGS,
)

Channels = Annotated[tuple[float, ...], Field(min_length=1, max_length=3)]


class Config(Frozen):
    folder: str = Field(description="holds a folder for each class, or train, validation and test with those in them")
    size: int = Field(default=224, ge=8, le=1024, description="side of the square picture in pixels")
    resize: int | None = Field(
        default=None, ge=8, le=2048, description="the shorter side before the crop; default: 256/224 of size"
    )
    color: Literal["rgb", "grey"] = "rgb"
    mean: Channels | None = Field(default=None, description="subtracted from each channel; default: ImageNet's")
    std: Channels | None = Field(default=None, description="each channel is divided by it; default: ImageNet's")
    augment: bool = Field(default=True, description="crop training pictures at random places and mirror them")
    validation: Share = Field(default=0.15, description="share of each class, where no folder holds this split")
    test: Share = Field(default=0.15, description="share of each class, where no folder holds this split")

    @model_validator(mode="after")
    def _possible(self) -> "Config":
        possible(self.validation, self.test, "pictures")
        if self.shorter_side < self.size:
            raise ValueError(f"resize is {self.resize}, less than the {self.size} pixels that are cut out of it")
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
    def normal(self) -> tuple[Sequence[float], Sequence[float]]:
        mean, std = _NORMAL[self.color]
        return self.mean or mean, self.std or std


def describe(config: Config) -> Signature:
    """Raises RecipeError for all that is wrong with the folders; the pictures themselves are opened when loaded."""
    found = _listed(config)
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


def fingerprint(config: Config) -> str:
    """Of the names and contents of all pictures; where the folder is and when it was written do not matter."""
    root = Path(config.folder)
    files = {
        str(file.relative_to(root).as_posix()): file
        for classes in _listed(config).values()
        for pictures in classes.values()
        for file in pictures
    }
    settings = config.model_dump(mode="json", exclude={"folder"})
    return digest({"files": digests(files, of=str(root.resolve())), "config": settings, "versions": versions("pillow")})


def load(config: Config) -> Data:
    """Every picture decoded and resized once, held as bytes. Raises RecipeError naming those that cannot be read."""
    labels, files = _split(config)
    room = config.shorter_side if config.augment else config.size
    sides = {"train": room, "validation": config.size, "test": config.size}
    _fits_in_memory(sum(len(files[part]) * side * side * config.channels for part, side in sides.items()))
    unread: list[str] = []
    pictures = {part: _decoded(files[part], config, side, unread) for part, side in sides.items()}
    if unread:
        raise unreadable(unread, "picture", "cannot be read", "mend, convert or remove them")

    def split(part: str, augment: Any = None) -> Split:
        import torch

        prepare = partial(_prepared, config=config)
        return Split(inputs=(pictures[part],), targets=torch.tensor(labels[part]), prepare=prepare, augment=augment)

    augment = partial(_augmented, size=config.size) if config.augment else None
    return Data(train=split("train", augment), validation=split("validation"), test=split("test"))


def _prepared(inputs: "tuple[Tensor, ...]", config: Config) -> "tuple[Tensor, ...]":
    import torch

    start = (inputs[0].shape[-1] - config.size) // 2  # what is kept for shifts is more than the model takes
    end = start + config.size
    mean, std = (torch.tensor(values)[:, None, None] for values in config.normal)
    return ((inputs[0][:, :, start:end, start:end] / 255 - mean) / std,)


def _augmented(inputs: "tuple[Tensor, ...]", random: "Generator", size: int) -> "tuple[Tensor, ...]":
    return (moved(inputs[0], size, random),)


def _split(config: Config) -> tuple[dict[str, list[int]], dict[str, list[Path]]]:
    """The labels and files of each part, shuffled: what needs only some samples takes the first ones."""
    found = _listed(config)
    shares = missing(found, config.shares)
    labels: dict[str, list[int]] = {}
    files: dict[str, list[Path]] = {}
    for part, classes in found.items():
        pictures = [(label, file) for label, group in enumerate(classes.values()) for file in group]
        for name, chosen in drawn([label for label, _ in pictures], shares if part == "train" else {}).items():
            where = name if part == "train" else part
            labels[where] = [pictures[i][0] for i in chosen]
            files[where] = [pictures[i][1] for i in chosen]
    return labels, files


def _fits_in_memory(needed: int) -> None:
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise RecipeError(
            f"the pictures need {SIZE.format(needed)} of memory, and this machine has {SIZE.format(there)}",
            "use a smaller size, or fewer pictures",
        )


def _decoded(files: Sequence[Path], config: Config, side: int, unread: list[str]) -> "Tensor":
    """[n, channels, side, side] of bytes; why a file cannot be read is added to `unread`."""
    import numpy
    import torch

    pixels = torch.empty((len(files), config.channels, side, side), dtype=torch.uint8)

    def decode(place: int) -> str:
        try:
            picture = numpy.array(_picture(files[place], config, side))
        except Exception as error:  # each decoder fails in its own way
            return f"{files[place]}: {error}"
        pixels[place] = torch.from_numpy(picture.reshape(side, side, config.channels)).permute(2, 0, 1)
        return ""

    with ThreadPoolExecutor(threads()) as pool:
        unread += [problem for problem in pool.map(decode, range(len(files))) if problem]
    return pixels


def _picture(file: Path, config: Config, side: int) -> "Image.Image":
    """Upright, in the wanted colours, its shorter side as asked, the middle `side` x `side` of it."""
    from PIL import Image, ImageOps

    with Image.open(file) as opened:
        if opened.mode.startswith(("I", "F")):
            raise ValueError(f"it has more than 8 bits a channel (mode {opened.mode})")
        picture = ImageOps.exif_transpose(opened).convert("RGB" if config.color == "rgb" else "L")
    scale = config.shorter_side / min(picture.size)
    shape = [max(config.shorter_side, round(length * scale)) for length in picture.size]
    start = [(length - side) // 2 for length in shape]
    # The crop is said in pixels of the original, so that a long, thin picture is not blown up to be cut.
    per_pixel = [length / scaled for length, scaled in zip(picture.size, shape, strict=True)]
    left, top, right, bottom = ((start[axis] + end) * per_pixel[axis] for end in (0, side) for axis in (0, 1))
    return picture.resize((side, side), Image.Resampling.BILINEAR, box=(left, top, right, bottom))


def _listed(config: Config) -> dict[str, Files]:
    """The pictures by split and class, sorted. Raises RecipeError for the first thing that is wrong."""
    found = listed(Path(config.folder), _PICTURES)
    counts = {name: len(pictures) for name, pictures in found["train"].items()}
    enough(counts, missing(found, config.shares), "picture")
    return found
