"""Scenes composed of the pictures of another data set, to try a task without data of its own.

    data: {object_scenes: {of: {fashion_mnist: {}}, size: 96, most: 4}}
    data: {object_scenes: {of: {fashion_mnist: {}}, targets: tags}}

They have the box of each object, the class of each pixel, the classes that are there, or the number of objects. Each
split is composed of pictures of the same split. They are synthetic: see _scenes.py.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PlainSerializer, PlainValidator, WithJsonSchema

from edgepack.config.plugins import Choice, choose
from edgepack.core.errors import RecipeError
from edgepack.core.files import digest
from edgepack.core.frozen import Frozen
from edgepack.core.provenance import versions
from edgepack.core.signature import Signature, TensorSpec
from edgepack.data.contract import Loading
from edgepack.data.datasets import _scenes
from edgepack.data.pictures.boxed import Boxed
from edgepack.data.pictures.moving import moved_each
from edgepack.data.pictures.samples import InMemory, Pictures
from edgepack.data.splits import PARTS, Data, Split

if TYPE_CHECKING:
    import numpy
    from torch import Tensor

    Bytes = numpy.typing.NDArray[numpy.uint8]

KEEPS = True
LICENCE = "that of the data set whose pictures they are composed of"
VERSION = _scenes.VERSION
_COUNTED = "objects"  # name of the number that a scene is told by
_AT_ONCE = 1024

DataChoice = Annotated[
    Choice,
    PlainValidator(lambda value: choose("datasets", value)),
    PlainSerializer(lambda choice: {choice.name: choice.plain()}),
    WithJsonSchema({"type": "object", "description": "a data set: {fashion_mnist: {}}"}),
]


class Config(Frozen):
    of: DataChoice = Field(description="data set of square grey pictures, each of one object on black")
    size: int = Field(default=96, ge=16, le=512, description="side of a scene in pixels")
    most: int = Field(default=4, ge=1, le=20, description="objects in a scene, from 1 to so many")
    targets: Literal["boxes", "masks", "tags", "count"] = Field(
        default="boxes",
        description="what is told of a scene: the boxes of its objects, the class of each pixel, 0 for the background, "
        "the classes that are there, or the number of objects",
    )
    train: int = Field(default=4000, ge=2, description="number of scenes")
    validation: int = Field(default=500, ge=1, description="number of scenes")
    test: int = Field(default=500, ge=1, description="number of scenes")
    augment: bool = Field(default=True, description="mirror half of the training scenes, unless they have masks")


def describe(config: Config) -> Signature:
    """Raises RecipeError if the other data set is not of square grey pictures."""
    found: Signature = config.of.module.describe(config.of.config)
    shapes = [each.shape for each in found.inputs]
    if len(shapes) != 1 or len(shapes[0]) != 3 or shapes[0][0] != 1 or shapes[0][1] != shapes[0][2]:
        message = f"scenes are composed of square grey pictures, but {config.of.name} has inputs of other shapes: "
        raise RecipeError(message + " and ".join(map(str, shapes)), "use another data set: of: {fashion_mnist: {}}")
    steps = {"color": "grey", "scale": {"from": [0, 255], "to": [0, 1]}}
    picture = TensorSpec(name="input", shape=(1, config.size, config.size))
    named = {"count": (_COUNTED,), "masks": ("background", *found.labels)}
    return Signature(inputs=(picture,), labels=named.get(config.targets, found.labels), preprocessing=steps)


def fingerprint(config: Config) -> str:
    of = config.of.module.fingerprint(config.of.config), config.of.module.VERSION
    settings = config.model_dump(mode="json", exclude={"of"})
    return digest({"of": [config.of.name, *of], **settings, "versions": versions("numpy", "pillow")})


def load(config: Config, loading: Loading | None = None) -> Data:
    module = config.of.module
    given = module.load(config.of.config, *([loading or Loading()] if module.KEEPS else []))
    labels = describe(config).labels
    train, validation, test = (_split(getattr(given, part), part, config, labels) for part in PARTS)
    return Data(train=train, validation=validation, test=test)


def _split(objects: Split, part: str, config: Config, labels: Sequence[str]) -> Split:
    import numpy
    import torch

    scenes = _scenes.composed(
        *_objects(objects, config),
        count=getattr(config, part),
        side=config.size,
        most=config.most,
        seed=PARTS.index(part),
    )
    pixels, rows = InMemory(scenes.pictures), numpy.arange(len(scenes.pictures), dtype=numpy.int32)
    mirror = part == "train" and config.augment
    if config.targets != "boxes":
        moving = partial(moved_each, size=config.size) if mirror and config.targets != "masks" else None
        pictures = Pictures(pixels=pixels, rows=rows, size=config.size, moving=moving)
        return Split(samples=pictures, targets=_told(scenes, config, len(labels)), prepare=_prepared)
    boxes = numpy.concatenate([scenes.boxes, scenes.labels[..., None]], axis=2, dtype="float32")
    samples = Boxed(pixels=pixels, rows=rows, targets=torch.from_numpy(boxes), mirror=mirror)
    classes = torch.zeros(len(boxes), dtype=torch.int64)
    return Split(samples=samples, targets=classes, prepare=_prepared, labelled=True)


def _told(scenes: _scenes.Scenes, config: Config, classes: int) -> "Tensor":
    """Return the class of each pixel, [n, side, side], or 1 for each class that is in a scene, else 0, [n, classes], or
    how many objects there are, [n, 1].
    """
    import torch

    if config.targets == "masks":
        return torch.from_numpy(scenes.masks)
    labels = torch.from_numpy(scenes.labels)
    if config.targets == "count":
        return (labels >= 0).sum(1, keepdim=True).float()
    # A column before the first class takes the -1 of places without an object.
    return torch.zeros(len(labels), 1 + classes).scatter(1, labels + 1, 1)[:, 1:].contiguous()


def _objects(split: Split, config: Config) -> "tuple[Bytes, Any]":
    """Return pictures as bytes, [n, h, h], and their labels. Raises RecipeError for others than 0 to 1."""
    import torch

    batches = [*split.batches(_AT_ONCE)]
    pictures = torch.cat([batch.inputs[0][:, 0] for batch in batches])
    if float(pictures.min()) < 0 or float(pictures.max()) > 1:
        message = f"scenes are composed of pictures whose pixels go from 0 to 1, but those of {config.of.name} do not"
        raise RecipeError(message, "leave out its mean and std")
    return (pictures * 255).round().byte().numpy(), torch.cat([batch.targets for batch in batches]).numpy()


def _prepared(inputs: "tuple[Tensor, ...]") -> "tuple[Tensor, ...]":
    return (inputs[0] / 255,)
