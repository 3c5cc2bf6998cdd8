"""Semantic segmentation: a class for every pixel of a picture."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from edgepack.core.frozen import Frozen
from edgepack.core.metrics import Metric, named
from edgepack.core.signature import Signature, TensorSpec
from edgepack.core.signature.shown import Shown
from edgepack.core.units import SHARE
from edgepack.data import contract

if TYPE_CHECKING:
    from torch import Tensor

    from edgepack.data.contract import Array, Arrays

IGNORED = 255  # a pixel of this value has no class: it is neither learned nor scored
_SHOWN = 3  # classes that are told of a sample


class Config(Frozen):
    """It has no settings."""


def metrics(config: Config) -> Mapping[str, Metric]:
    return named("miou", "accuracy.pixels")


def task(config: Config, signature: Signature) -> "Segmentation":
    return Segmentation(config, signature, metrics(config))


def incompatibility(config: Config, signature: Signature) -> str:
    shapes = [[*each.shape] for each in signature.inputs]
    if len(shapes) != 1 or len(shapes[0]) != 3:
        return f"this task is for pictures, but the data has inputs of shape {' and '.join(map(str, shapes))}"
    if len(signature.labels) > IGNORED:
        return f"masks have room for {IGNORED} classes, but the data has {len(signature.labels)}"
    return "" if signature.labels else "this task needs the names of the classes as labels of the data"


class Segmentation(contract.Task):
    """Outputs are logits [n, classes, height, width] of the size of the picture, targets masks [n, height, width]."""

    mixes = ("mixup",)

    def outputs(self) -> tuple[TensorSpec, ...]:
        height, width = self.signature.inputs[0].shape[1:]
        return (TensorSpec(name="out", shape=(len(self.signature.labels), height, width)),)

    def problem(self, targets: "Tensor") -> str:
        import torch

        wanted = [*self.signature.inputs[0].shape[1:]]
        if targets.dtype not in (torch.uint8, torch.int64) or [*targets.shape[1:]] != wanted:
            kind = str(targets.dtype).removeprefix("torch.")
            return (
                f"targets are {kind} of shape {list(targets.shape)}, "
                f"expected masks, uint8 or int64 of shape {['n', *wanted]}".replace("'", "")
            )
        classes = len(self.signature.labels)
        unknown = ((targets >= classes) & (targets != IGNORED)) | (targets < 0)
        bad = unknown.flatten(1).any(1).nonzero()
        if not len(bad):
            return ""
        first = int(bad[0])
        found = int(targets[first][unknown[first]][0])
        return f"the mask of sample {first} has the class {found}, but the labels are 0 to {classes - 1}"

    def loss(self, outputs: "tuple[Tensor, ...]", targets: "Tensor") -> "Tensor":
        return self.smoothed(outputs, targets, 0.0)

    def smoothed(self, outputs: "tuple[Tensor, ...]", targets: "Tensor", amount: float) -> "Tensor":
        """Return the mean over samples of the mean over the pixels that have a class: so it does not depend on which
        samples are in a batch, and a sample without any such pixel adds nothing.
        """
        from torch.nn import functional

        goal = targets.long()
        each = functional.cross_entropy(
            outputs[0], goal, ignore_index=IGNORED, label_smoothing=amount, reduction="none"
        )
        pixels = (goal != IGNORED).sum((1, 2)).clamp(min=1)
        return (each.sum((1, 2)) / pixels).mean()

    def distill(self, outputs: "tuple[Tensor, ...]", teacher: "tuple[Tensor, ...]", temperature: float) -> "Tensor":
        """Return the KL divergence at a temperature, times its square, as a mean over pixels: the teacher has a class
        for those without one too. Source: Y. Liu et al., Structured Knowledge Distillation for Semantic Segmentation,
        CVPR 2019, arXiv 1903.04197, section 3.1.
        """
        from torch.nn import functional

        soft = functional.log_softmax(outputs[0] / temperature, dim=1)
        goal = functional.log_softmax(teacher[0] / temperature, dim=1)
        pixels = outputs[0][:, 0].numel()
        return functional.kl_div(soft, goal, reduction="sum", log_target=True) / pixels * temperature**2

    def meter(self) -> "_Confusion":
        return _Confusion(len(self.signature.labels))

    def agreement(self, outputs: "Arrays", reference: "Arrays") -> "Array":
        """Return the share of pixels that get the same class."""
        same: Array = (outputs[0].argmax(axis=1) == reference[0].argmax(axis=1)).mean(axis=(1, 2))
        return same

    def told(self, outputs: "Arrays") -> list[str]:
        return [self._told(mask) for mask in outputs[0].argmax(axis=1)]

    def drawn(self, outputs: "Arrays") -> list[Shown]:
        return self.truth(outputs[0].argmax(axis=1))

    def truth(self, targets: "Array") -> list[Shown]:
        from edgepack.data.pictures import png

        return [Shown(words=self._told(mask), mask=png.mask(mask)) for mask in targets]

    def _told(self, mask: "Array") -> str:
        """Return the largest classes with their shares of the pixels that have a class."""
        import numpy

        counts = numpy.bincount(mask[mask != IGNORED], minlength=len(self.signature.labels))
        largest = [label for label in numpy.argsort(-counts, kind="stable")[:_SHOWN] if counts[label]]
        shares = (
            f"{self.signature.labels[label]} {SHARE.format(counts[label] / counts.sum(), 2)}" for label in largest
        )
        return ", ".join(shares) or "nothing"


class _Confusion:
    """Counts of pixels by their class and by the one that they were given, over all samples."""

    def __init__(self, classes: int) -> None:
        import torch

        self.counts = torch.zeros(classes, classes, dtype=torch.int64)

    def update(self, outputs: "tuple[Tensor, ...]", targets: "Tensor") -> None:
        import torch

        valid, classes = targets != IGNORED, len(self.counts)
        pairs = targets[valid].long() * classes + outputs[0].argmax(1)[valid]
        self.counts += torch.bincount(pairs, minlength=classes**2).view(classes, classes)

    def compute(self) -> dict[str, float]:
        """Classes that no mask has are left out of the mean. Without any pixel that has a class, both scores are 0."""
        right, truth = self.counts.diag().double(), self.counts.sum(1)
        union = truth + self.counts.sum(0) - right
        there = truth > 0
        if not there.any():
            return {"miou": 0.0, "accuracy.pixels": 0.0}
        return {
            "miou": float((right / union)[there].mean()),
            "accuracy.pixels": float(right.sum() / truth.sum()),
        }
