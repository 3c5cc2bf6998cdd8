"""Detection: the box and the label of each object in a picture, found by a model with anchors, such as SSD.

A model gives two outputs:

    boxes       [anchors, 4], offsets of each box from its anchor: of the middle in tenths of the anchor's width and
                height, then five times the logarithm of how much wider and higher it is
    scores      [anchors, 1 + labels], logits; the first column is background

Anchors (anchors.py) are fixed by the size of the picture and the settings; by default they are those of torchvision's
SSDLite. What follows is in reading.py, which a bundle ships: it is the same in training, in the self-test and in an
app. With `postprocess: in_file` an exported file does the same by tensor operations, see selection.py, and gives

    boxes       [most, 4], left, top, right and bottom in pixels, those of the surest object first
    scores      [most], their probabilities; 0 where there is no object
    labels      [most], their labels, as floats

These reach down to the probability that metrics count: an app leaves out those below `threshold`, see listed.py.

Targets are float32 [n, most, 5]: left, top, right and bottom of each object in pixels, and its label, or -1 for none.
"""

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from edgepack.core.frozen import Frozen
from edgepack.core.metrics import Metric, named
from edgepack.core.signature import Signature, TensorSpec
from edgepack.core.signature.shown import Box, Shown
from edgepack.core.units import Share
from edgepack.data import contract
from edgepack.data.tasks.detection import anchors

if TYPE_CHECKING:
    from torch import Tensor

    from edgepack.data.contract import Array, Arrays
    from edgepack.data.tasks.detection.precision import Precision

_COUNTED = 0.01  # probability from which a box counts for the metrics: an app shows much surer ones only
_PARTNER = 0.5  # intersection over union of two boxes for the same object
_OUTSIDE = 1e-3  # pixels, of rounding


class Config(Frozen):
    strides: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = Field(
        default=(16, 32, 64, 128, 256, 512),
        description="pixels between neighbouring anchors, for each grid of the model's outputs, the finest first",
    )
    scales: tuple[Share, Share] = Field(
        default=(0.2, 0.95),
        description="sizes of anchors of the finest and the coarsest grid, as shares of the picture",
    )
    ratios: tuple[Annotated[float, Field(gt=1)], ...] = Field(
        default=(2, 3), description="width to height of anchors, lying and standing, besides two squares"
    )
    threshold: float = Field(
        default=0.5, gt=0, lt=1, description="probability from which an app shows an object, and files must agree on it"
    )
    overlap: float = Field(
        default=0.5, gt=0, lt=1, description="of two boxes with one label that share more of their area, one is kept"
    )
    most: int = Field(default=100, ge=1, le=1000, description="number of objects in a picture at most")
    postprocess: Literal["in_app", "in_file"] = Field(
        default="in_app",
        description="where boxes are made and selected: in_app, by the bundle's examples, or in_file, by the exported "
        "file itself, which gets slower and larger with `most`",
    )

    @model_validator(mode="after")
    def _rising(self) -> "Config":
        if not 0 < self.scales[0] <= self.scales[1] <= 1:
            raise ValueError("scales must be above 0 % and rise")
        if [*self.strides] != sorted({*self.strides}):
            raise ValueError("strides must rise")
        return self


def metrics(config: Config) -> Mapping[str, Metric]:
    return named("map", "map.50")


def task(config: Config, signature: Signature) -> "Detection":
    kind = Detection if config.postprocess == "in_app" else DetectionInFile
    return kind(config, signature, metrics(config))


def incompatibility(config: Config, signature: Signature) -> str:
    if not signature.labels:
        return "this task needs labels, but the data has none"
    shapes = [each.shape for each in signature.inputs]
    if len(shapes) != 1 or len(shapes[0]) != 3:
        return "this task is for pictures, one a sample, but the data has others: " + " and ".join(map(str, shapes))
    return ""


class Detection(contract.Task):
    """Boxes are made and selected by the app."""

    config: Config
    reader = "reading.py"  # what an app does with the outputs

    def outputs(self) -> tuple[TensorSpec, ...]:
        width, height = self.picture
        count = anchors.count(anchors.grids(height, width, self.config.strides), self.config.ratios)
        return (
            TensorSpec(name="boxes", shape=(count, 4)),
            TensorSpec(name="scores", shape=(count, 1 + len(self.signature.labels))),
        )

    @property
    def picture(self) -> tuple[int, int]:
        """Return width and height of the input."""
        _, height, width = self.signature.inputs[0].shape
        return width, height

    @cached_property
    def anchors(self) -> "anchors.Floats":
        width, height = self.picture
        return anchors.anchors(height, width, self.config.strides, self.config.scales, self.config.ratios)

    def problem(self, targets: "Tensor") -> str:
        import torch

        if targets.dtype != torch.float32 or targets.dim() != 3 or targets.shape[1] < 1 or targets.shape[2] != 5:
            kind = str(targets.dtype).removeprefix("torch.")
            return f"targets are {kind} of shape {list(targets.shape)}, expected float32 of shape [n, most, 5]"
        return next(_flaws(targets, self.picture, len(self.signature.labels)), "")

    def loss(self, outputs: "tuple[Tensor, ...]", targets: "Tensor") -> "Tensor":
        return self.smoothed(outputs, targets, 0)

    def smoothed(self, outputs: "tuple[Tensor, ...]", targets: "Tensor", amount: float) -> "Tensor":
        import torch

        from edgepack.data.tasks.detection import multibox

        used = (targets[..., 4] >= 0).any(0)
        used[0] = True
        return multibox.loss(outputs, targets[:, used], torch.from_numpy(self.anchors).to(targets.device), amount)

    def distill(self, outputs: "tuple[Tensor, ...]", teacher: "tuple[Tensor, ...]", temperature: float) -> "Tensor":
        from edgepack.data.tasks.detection import multibox

        return multibox.distance(outputs, teacher, temperature)

    def meter(self) -> "_Found":
        from edgepack.data.tasks.detection.precision import Precision

        return _Found(self, Precision(len(self.signature.labels)))

    def objects(self, outputs: "Arrays", threshold: float | None = None) -> "Iterator[Arrays]":
        """Yield boxes [k, 4], labels [k] and probabilities [k] of the objects in each picture."""
        from edgepack.data.tasks.detection import reading

        facts = self._facts | ({} if threshold is None else {"threshold": threshold})
        for boxes, scores in zip(*outputs, strict=True):
            found: Arrays = reading.objects(boxes, scores, self.anchors, **facts)
            yield found

    @property
    def _facts(self) -> dict[str, Any]:
        """Return the settings of reading.objects."""
        chosen = self.config.model_dump(include={"threshold", "overlap", "most"})
        return {"picture": [*self.picture], **chosen}

    def agreement(self, outputs: "Arrays", reference: "Arrays") -> "Array":
        """Return which share of the objects in both has a partner in the other: a box with the same label in about the
        same place. It is 1 if there is none in either.
        """
        import numpy

        pairs = zip(self.objects(outputs), self.objects(reference), strict=True)
        return numpy.array([_alike(*pair) for pair in pairs], dtype="float64")

    def drawn(self, outputs: "Arrays") -> list[Shown]:
        words = self.told(outputs)
        boxes = [self._boxes(found[0], found[1]) for found in self.objects(outputs)]
        return [Shown(words=each, boxes=of) for each, of in zip(words, boxes, strict=True)]

    def truth(self, targets: "Array") -> list[Shown]:
        there = [each[each[:, 4] >= 0] for each in targets]
        found = [self._boxes(each[:, :4], each[:, 4]) for each in there]
        return [Shown(words=_listed([box.label for box in each]), boxes=each) for each in found]

    def _boxes(self, boxes: "Array", labels: "Array") -> tuple[Box, ...]:
        shares = boxes / [*self.picture, *self.picture]
        edges = ("left", "top", "right", "bottom")
        return tuple(
            Box(**dict(zip(edges, share, strict=True)), label=self.signature.labels[int(label)])
            for share, label in zip(shares.tolist(), labels.tolist(), strict=True)
        )

    def told(self, outputs: "Arrays") -> list[str]:
        return [self._told(labels.tolist(), scores.tolist()) for _, labels, scores in self.objects(outputs)]

    def _told(self, labels: list[int], scores: list[float]) -> str:
        pairs = zip(labels, scores, strict=True)
        return _listed([f"{self.signature.labels[label]} {score:.2f}" for label, score in pairs])

    def attachments(self) -> dict[str, bytes]:
        facts = json.dumps(self._facts, indent=1)
        return {"anchors.bin": self.anchors.astype("<f4").tobytes(), "detection.json": f"{facts}\n".encode()}

    def examples(self) -> dict[str, bytes]:
        folder = Path(__file__).parent
        apps = sorted((folder / "apps" / self.config.postprocess).iterdir())
        return {"detection.py": (folder / self.reader).read_bytes(), **{each.name: each.read_bytes() for each in apps}}


class DetectionInFile(Detection):
    """Boxes are made and selected by the exported file."""

    steady = False
    reader = "listed.py"

    def file_outputs(self) -> tuple[TensorSpec, ...]:
        most = self.config.most
        shapes = {"boxes": (most, 4), "scores": (most,), "labels": (most,)}
        return tuple(TensorSpec(name=name, shape=shape) for name, shape in shapes.items())

    def postprocess(self, outputs: "tuple[Tensor, ...]") -> "tuple[Tensor, ...]":
        import torch

        from edgepack.data.tasks.detection import selection

        offsets, scores = outputs
        facts = self._facts | {"threshold": min(_COUNTED, self.config.threshold)}
        return selection.objects(offsets, scores, torch.from_numpy(self.anchors), **facts)

    def objects(self, outputs: "Arrays", threshold: float | None = None) -> "Iterator[Arrays]":
        from edgepack.data.tasks.detection import listed

        for each in zip(*outputs, strict=True):
            yield listed.objects(*each, threshold=threshold or self.config.threshold)

    def attachments(self) -> dict[str, bytes]:
        return {"detection.json": f"{json.dumps({'threshold': self.config.threshold}, indent=1)}\n".encode()}


class _Found:
    """Reads outputs as an app does, but for boxes that are less sure."""

    def __init__(self, task: Detection, precision: "Precision") -> None:
        self.task, self.precision = task, precision

    def update(self, outputs: "tuple[Tensor, ...]", targets: "Tensor") -> None:
        found = self.task.objects(tuple(each.numpy() for each in outputs), _COUNTED)
        for (boxes, labels, scores), truth in zip(found, targets.numpy(), strict=True):
            self.precision.add(boxes, labels, scores, truth[truth[:, 4] >= 0])

    def compute(self) -> dict[str, float]:
        return self.precision.compute()


def _listed(objects: list[str]) -> str:
    """
    >>> _listed(["dress 0.98", "bag 0.90"]), _listed([])
    ('2 objects: dress 0.98, bag 0.90', 'nothing')
    """
    return f"{len(objects)} object{'s' if len(objects) > 1 else ''}: {', '.join(objects)}" if objects else "nothing"


def _flaws(targets: "Tensor", picture: tuple[int, int], labels: int) -> Iterator[str]:
    """Yield what is wrong with boxes, each with the first sample and object that has it."""
    import torch

    boxes, label = targets[..., :4], targets[..., 4]
    there = label != -1
    edges = torch.tensor([*picture, *picture]) + _OUTSIDE
    flaws = {
        f"has a label that is none of 0 to {labels - 1}": ~((label >= 0) & (label < labels) & (label == label.floor())),
        "is not of finite numbers": ~boxes.isfinite().all(2),
        "has no area": ~(boxes[..., 2:] > boxes[..., :2]).all(2),
        f"goes beyond the picture of {picture[0]} x {picture[1]} pixels": ((boxes < -_OUTSIDE) | (boxes > edges)).any(
            2
        ),
    }
    for what, where in flaws.items():
        for sample, number in (where & there).nonzero()[:1].tolist():
            yield f"the box {number} of sample {sample} {what}: {targets[sample, number].tolist()}"


def _alike(ours: "Arrays", theirs: "Arrays") -> float:
    from edgepack.data.tasks.detection.reading import shared

    count = len(ours[0]) + len(theirs[0])
    same = (ours[0][:, None] == theirs[0]).all(axis=2)  # so are boxes without any area, at an edge of the picture
    partners = ((shared(ours[0], theirs[0]) >= _PARTNER) | same) & (ours[1][:, None] == theirs[1])
    return float((partners.any(axis=0).sum() + partners.any(axis=1).sum()) / count) if count else 1.0
