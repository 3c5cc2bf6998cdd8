"""Fashion-MNIST, 70,000 grey pictures of 28 x 28 in 10 classes of clothing, from its four IDX files."""

from typing import TYPE_CHECKING, Any

from pydantic import Field

from edgepack.core.errors import RecipeError
from edgepack.core.files import digest
from edgepack.core.frozen import Frozen
from edgepack.core.signature import Signature, TensorSpec
from edgepack.data.datasets import _fashion_files
from edgepack.data.partition import drawn
from edgepack.data.pictures.moving import moved
from edgepack.data.splits import Data, Split

if TYPE_CHECKING:
    import numpy
    from torch import Generator, Tensor

    Bytes = numpy.typing.NDArray[numpy.uint8]

LICENCE = _fashion_files.LICENCE
_SIDE = _fashion_files.SIDE
_SHIFT = 2  # pixels
_SPLITS = {"validation": 0.1}  # from the training files; the test files are the test split


class Config(Frozen):
    folder: str | None = Field(
        default=None, description="folder of the four IDX files, .gz or not; default: searched for, or downloaded"
    )
    size: int = Field(default=_SIDE, ge=_SIDE, le=224, description="side of the picture in pixels, scaled bilinearly")
    augment: bool = Field(default=False, description="mirror training pictures and shift them by up to 2 pixels")
    samples: int | None = Field(
        default=None, ge=20, description="number of training pictures, the same for every class; default: all"
    )


def describe(config: Config) -> Signature:
    """Raises RecipeError if the folder named in the recipe does not contain the files."""
    _fashion_files.check(config.folder)
    steps: dict[str, Any] = {"color": "grey, light clothes on black", "scale": {"from": [0, 255], "to": [0, 1]}}
    if config.size != _SIDE:
        to, source = [config.size, config.size], [_SIDE, _SIDE]
        steps["resize"] = {"to": to, "from": source, "interpolation": "bilinear"}
    picture = TensorSpec(name="input", shape=(1, config.size, config.size))
    return Signature(inputs=(picture,), labels=_fashion_files.LABELS, preprocessing=steps)


def fingerprint(config: Config) -> str:
    """Return a digest that depends on neither the location nor the packing of the files, and needs no download."""
    content = _fashion_files.content(config.folder)
    return digest({"content": content, "splits": _SPLITS, **config.model_dump(exclude={"folder"})})


def load(config: Config) -> Data:
    """Split the training files with a fixed seed and equal shares of every class; test files are the test split."""
    import torch

    (pictures, targets), test = _fashion_files.read(config.folder)
    parts = drawn(targets.tolist(), _SPLITS)
    if config.samples is not None:
        parts["train"] = _fewer(parts["train"], targets, config.samples)

    def split(pictures: "Bytes", targets: "Bytes", *, train: bool = False) -> Split:
        return Split(
            inputs=(torch.from_numpy(pictures)[:, None],),
            targets=torch.from_numpy(targets).long(),
            prepare=lambda inputs: (_prepared(inputs[0], config.size),),
            augment=_augmented if train and config.augment else None,
        )

    return Data(
        train=split(pictures[parts["train"]], targets[parts["train"]], train=True),
        validation=split(pictures[parts["validation"]], targets[parts["validation"]]),
        test=split(*test),
    )


def _prepared(pictures: "Tensor", size: int) -> "Tensor":
    from torch.nn.functional import interpolate

    scaled = pictures / 255
    if size == _SIDE:
        return scaled
    resized: Tensor = interpolate(scaled, size=size, mode="bilinear", align_corners=False)
    return resized


def _augmented(inputs: "tuple[Tensor, ...]", random: "Generator") -> "tuple[Tensor, ...]":
    from torch.nn.functional import pad

    return (moved(pad(inputs[0], [_SHIFT] * 4), _SIDE, random),)


def _fewer(part: Any, targets: "Bytes", samples: int) -> Any:
    """Return the first samples of `part`, equally many of every class, in their order."""
    import numpy

    if samples > len(part):
        raise RecipeError(f"samples is {samples}, but there are only {len(part)} training pictures", "leave it out")
    wanted = [samples // 10 + (label < samples % 10) for label in range(10)]
    kept = [numpy.flatnonzero(targets[part] == label)[:count] for label, count in enumerate(wanted)]
    return part[numpy.sort(numpy.concatenate(kept))]
