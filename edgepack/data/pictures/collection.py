"""Share code of picture data sets: settings, signature, fingerprint, splits of decoded pictures."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from edgepack.core.files import digest
from edgepack.core.frozen import Frozen
from edgepack.core.provenance import versions
from edgepack.core.signature import Signature, TensorSpec
from edgepack.core.units import Share
from edgepack.data.contract import Loading
from edgepack.data.partition import possible, unreadable
from edgepack.data.pictures.augmentation import Augmentation, changed_each
from edgepack.data.pictures.choosing import Classes, Picture, chosen, every
from edgepack.data.pictures.decoding import Decoded, Frame, libraries
from edgepack.data.pictures.encoded import Encoded, place
from edgepack.data.pictures.keeping import Cache, pixels
from edgepack.data.pictures.moving import moved_each
from edgepack.data.pictures.samples import Pictures
from edgepack.data.splits import Data, Split
from edgepack.data.texts.targets import Target, as_tensor

if TYPE_CHECKING:
    from torch import Tensor

    from edgepack.data.pictures.samples import Moving, Places

_FIX = "fix, convert or remove them, or leave some out: bad_samples: {skip: 20}"
VERSION = 3  # bump when the same files would give other splits or pixels
_NORMAL = {"rgb": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), "grey": ((0.449,), (0.226,))}  # ImageNet's
Channels = Annotated[tuple[float, ...], Field(min_length=1, max_length=3)]


class Skip(Frozen):
    """How many pictures may be left out since they cannot be read."""

    skip: int = Field(ge=1)


class Plain(Frozen):
    """Settings of every picture data set."""

    size: int = Field(default=224, ge=8, le=1024, description="side of the square picture in pixels")
    color: Literal["rgb", "grey"] = "rgb"
    mean: Channels | None = Field(default=None, description="mean subtracted from each channel; default: ImageNet's")
    std: Channels | None = Field(
        default=None, description="standard deviation that each channel is divided by; default: ImageNet's"
    )
    cache: Cache = Field(
        default="auto",
        exclude=True,  # of what a key, a bundle or a report tells: all give the same samples
        description="where decoded pictures are kept: memory, disk (in the store), or none (decoded each time)",
    )
    bad_samples: Literal["fail"] | Skip = Field(
        default="fail", description="fail if a picture cannot be read, or {skip: 20}: leave out as many at most"
    )
    validation: Share = Field(default=0.15, description="fraction of each class for this split, unless it is given")
    test: Share = Field(default=0.15, description="fraction of each class for this split, unless it is given")

    @model_validator(mode="after")
    def _consistent(self) -> "Plain":
        possible(self.validation, self.test, "pictures")
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
    def mode(self) -> str:
        return "RGB" if self.color == "rgb" else "L"

    @property
    def shares(self) -> dict[str, float]:
        return {"validation": self.validation, "test": self.test}

    @property
    def normal(self) -> tuple[Sequence[float], Sequence[float]]:
        mean, std = _NORMAL[self.color]
        return self.mean or mean, self.std or std


class Settings(Plain):
    """Settings of pictures of which the middle is shown."""

    resize: int | None = Field(
        default=None, ge=8, le=2048, description="the shorter side before the crop; default: 256/224 of size"
    )
    augment: bool | Augmentation = Field(
        default=True,
        description="true: cut training pictures out at random places and mirror half of them; or settings of crop, "
        "flip, rand_augment, magnitude, color and erase",
    )

    @model_validator(mode="after")
    def _large_enough(self) -> "Settings":
        if self.shorter_side < self.size:
            raise ValueError(f"resize is {self.resize}, less than the {self.size} pixels of the crop")
        return self

    @property
    def shorter_side(self) -> int:
        return self.resize or round(self.size * 256 / 224)

    @property
    def frame(self) -> Frame:
        """Return what is kept of each picture: more than the model takes if training crops at random places."""
        side = self.shorter_side if self.augment else self.size
        return Frame(mode=self.mode, shorter_side=self.shorter_side, side=side)


def describe(config: Settings, labels: Iterable[str]) -> Signature:
    """Return the input, the labels, and how an app makes the input from a picture."""
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
    return Signature(inputs=(picture,), labels=tuple(labels), preprocessing=steps)


def fingerprint(config: Settings, files: Mapping[str, str], exclude: set[str], **settings: Any) -> str:
    """Return a digest of the settings but for `exclude`, and of the hash of each picture by its name."""
    plain = config.model_dump(mode="json", exclude=exclude)
    augmented_by = ("torchvision",) if isinstance(config.augment, Augmentation) else ()
    made_by = {"versions": versions(*libraries(files), *augmented_by), "version": VERSION}
    return digest({"files": files, "config": plain, **made_by, **settings})


def load(
    config: Settings,
    parts: Mapping[str, Classes],
    shas: Mapping[Encoded, str],
    notes: Sequence[str],
    loading: Loading,
    lost: Sequence[str] = (),
    targets: Mapping[Encoded, Target] = {},
    names: Sequence[str] = (),
) -> Data:
    """Decode every picture once, to see that it can be read and which are equal; of equal pictures one is kept.

    `parts` are the files of each class by split, and `shas` the hashes of all of them; `lost` are problems of pictures
    that are left out already. Pictures that are of no class have `targets`, whose numbers or tags have these `names`,
    and are all of the class "". Raises RecipeError naming the pictures that cannot be read.
    """
    pictures = every(parts, shas, targets)
    stored, found = pixels({picture.file: picture.sha for picture in pictures}, config.frame, config.cache, loading)
    rows = {sha: row for row, sha in enumerate(found)}
    read = {sha: each for sha, each in found.items() if isinstance(each, Decoded)}
    bad = left_out([*lost, *unreadable_ones(pictures, found)], len(pictures) + len(lost), config.bad_samples)
    splits, more = chosen(parts, pictures, read, config.shares)
    change = moving(config)

    def split(part: str) -> Split:
        import numpy
        import torch

        samples = Pictures(
            pixels=stored,
            rows=numpy.array([rows[picture.sha] for picture in splits[part]], numpy.int32),
            size=config.size,
            moving=change if part == "train" else None,
            starts=None if part == "train" else starts(config, [read[each.sha].size for each in splits[part]]),
        )
        rights = [targets[picture.file] for picture in splits[part]] if targets else []
        found = as_tensor(rights, names) if rights else torch.tensor([picture.label for picture in splits[part]])
        return Split(samples=samples, targets=found, prepare=partial(prepared, config=config))

    return Data(train=split("train"), validation=split("validation"), test=split("test"), notes=(*notes, *bad, *more))


def unreadable_ones(pictures: Iterable[Picture], found: Mapping[str, Decoded | str]) -> Iterator[str]:
    """Yield each picture that could not be read, and why."""
    return (f"{place(each.file)}: {why}" for each in pictures if isinstance(why := found[each.sha], str))


def left_out(problems: Sequence[str], of: int, allowed: "Literal['fail'] | Skip") -> list[str]:
    """Return a note on pictures that cannot be read. Raises RecipeError if there are more than the recipe allows."""
    check_bad(problems, allowed)
    count = f"{len(problems)} of {of} pictures cannot be read, and are left out, such as"
    return [f"{count} {problems[0]}"] if problems else []


def check_bad(problems: Sequence[str], allowed: "Literal['fail'] | Skip", noun: str = "picture") -> None:
    """Raises RecipeError if there are more problems of samples than the recipe allows."""
    if allowed == "fail" and problems:
        raise unreadable(problems, noun, "cannot be read", _FIX)
    if allowed != "fail" and len(problems) > allowed.skip:
        more = f"cannot be read, more than the {allowed.skip} that bad_samples leaves out"
        raise unreadable(problems, noun, more, _FIX)


def moving(config: Settings) -> "Moving | None":
    """Return what changes training pictures at random, given their seeds."""
    if isinstance(config.augment, Augmentation):
        return partial(changed_each, transform=config.augment.transform(config.size, config.normal[0]))
    return partial(moved_each, size=config.size) if config.augment else None


def prepared(inputs: "tuple[Tensor, ...]", config: Plain) -> "tuple[Tensor, ...]":
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


def starts(config: Settings, sizes: Sequence[tuple[int, int]]) -> "Places":
    """Return where the middle of each stored picture begins, left and top, [n, 2]."""
    import numpy

    inner, outer = replace(config.frame, side=config.size), config.frame
    found = []
    for size in map(outer.scaled, sizes):
        (left, top), (before, above) = inner.start(size), outer.start(size)
        found.append((left - before, top - above))
    return numpy.array(found, numpy.int32)
