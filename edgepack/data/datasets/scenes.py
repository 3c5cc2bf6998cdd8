"""Scenes composed of the clothes of Fashion-MNIST, with a mask of the class of every pixel: for segmentation.

They are no photographs: several real pictures on a background of soft noise, see _scenes.py. Scenes of each split hold
clothes of that split alone, so that none is tested that was trained on. There are as many as `samples` to train on,
and a quarter of them for validation and for the test.
"""

from typing import TYPE_CHECKING

from pydantic import Field

from edgepack.core.files import digest
from edgepack.core.frozen import Frozen
from edgepack.core.provenance import versions
from edgepack.core.signature import Signature, TensorSpec
from edgepack.data.datasets import _fashion_files, _scenes
from edgepack.data.partition import drawn
from edgepack.data.splits import Data, Split

if TYPE_CHECKING:
    from torch import Tensor

    from edgepack.data.datasets._fashion_files import Bytes

LICENCE = _fashion_files.LICENCE
_SHARE = 4  # scenes to train on, for each of validation and of the test
_SPLITS = {"validation": 0.1}  # of the training clothes


class Config(Frozen):
    folder: str | None = Field(
        default=None, description="folder of the IDX files of Fashion-MNIST; default: searched for, or downloaded"
    )
    size: int = Field(default=96, ge=32, le=512, description="side of the square scene in pixels")
    objects: int = Field(default=4, ge=1, le=20, description="most clothes in a scene")
    samples: int = Field(default=3000, ge=8, description="number of scenes to train on")


def describe(config: Config) -> Signature:
    """Raises RecipeError if the folder named in the recipe does not contain the files."""
    _fashion_files.check(config.folder)
    scene = TensorSpec(name="input", shape=(1, config.size, config.size))
    steps = {"color": "grey", "scale": {"from": [0, 255], "to": [0, 1]}}
    return Signature(inputs=(scene,), labels=("background", *_fashion_files.LABELS), preprocessing=steps)


def fingerprint(config: Config) -> str:
    made_by = {"version": _scenes.VERSION, "versions": versions("pillow")}
    return digest(
        {"content": _fashion_files.content(config.folder), **made_by, **config.model_dump(exclude={"folder"})}
    )


def load(config: Config) -> Data:
    train, test = _fashion_files.read(config.folder)
    parts = drawn(train[1].tolist(), _SPLITS)
    few = config.samples // _SHARE

    def split(clothes: "Bytes", labels: "Bytes", count: int, seed: int) -> Split:
        import torch

        found = _scenes.composed(clothes, labels, count=count, side=config.size, most=config.objects, seed=seed)
        pictures, masks = torch.from_numpy(found.pictures), torch.from_numpy(found.masks)
        return Split(inputs=(pictures,), targets=masks, prepare=_prepared)

    own, kept = parts["train"], parts["validation"]
    return Data(
        train=split(train[0][own], train[1][own], config.samples, 0),
        validation=split(train[0][kept], train[1][kept], few, 1),
        test=split(test[0], test[1], few, 2),
    )


def _prepared(inputs: "tuple[Tensor, ...]") -> "tuple[Tensor, ...]":
    return (inputs[0] / 255,)
