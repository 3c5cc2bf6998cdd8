"""Share code of tasks with one label per sample: logits [n, classes], targets int64 [n]."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgepack.core.frozen import Frozen
from edgepack.core.metrics import Metric, named
from edgepack.core.signature import Signature, TensorSpec
from edgepack.core.signature.shown import Shown
from edgepack.data import contract
from edgepack.data.tasks._meters import Mean

if TYPE_CHECKING:
    from torch import Tensor

    from edgepack.data.contract import Array, Arrays

_FIRST = 5  # of accuracy.top5


class Config(Frozen):
    """It has no settings."""


def metrics(config: Config | None = None) -> Mapping[str, Metric]:
    return named("accuracy", "accuracy.top5")


def task(config: Config | None, signature: Signature) -> "Classification":
    return Classification(config, signature, metrics())


def too_few(signature: Signature) -> str:
    """Return why the data is none for a classifier, or ""."""
    count = len(signature.labels)
    return f"a classifier needs at least two labels, the data has {count or 'none'}" if count < 2 else ""


class Classification(contract.Task):
    mixes = ("mixup", "cutmix")
    reading = "label"
    counts_samples = True

    def __init__(self, config: Any, signature: Signature, metrics: Mapping[str, Metric]) -> None:
        super().__init__(config, signature, metrics)
        self.chance = 1 / max(1, len(signature.labels))

    def outputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec(name="logits", shape=(len(self.signature.labels),)),)

    def problem(self, targets: "Tensor") -> str:
        import torch

        if targets.dtype != torch.int64 or targets.dim() != 1:
            kind = str(targets.dtype).removeprefix("torch.")
            return f"targets are {kind} of shape {list(targets.shape)}, expected int64 of shape [n]"
        low, high, most = int(targets.min()), int(targets.max()), len(self.signature.labels) - 1
        return f"targets go from {low} to {high}, but the labels are 0 to {most}" if low < 0 or high > most else ""

    def classes(self, targets: "Tensor") -> "Tensor":
        return targets

    def loss(self, outputs: "tuple[Tensor, ...]", targets: "Tensor") -> "Tensor":
        from torch.nn import functional

        return functional.cross_entropy(outputs[0], targets)

    def smoothed(self, outputs: "tuple[Tensor, ...]", targets: "Tensor", amount: float) -> "Tensor":
        """Source: C. Szegedy et al., Rethinking the Inception Architecture, CVPR 2016, arXiv 1512.00567, section 7."""
        from torch.nn import functional

        return functional.cross_entropy(outputs[0], targets, label_smoothing=amount)

    def weighted(self, outputs: "tuple[Tensor, ...]", targets: "Tensor", weights: "Tensor", amount: float) -> "Tensor":
        """Return the mean over samples, not over weights: else a class that is in few batches would count less."""
        from torch.nn import functional

        total = functional.cross_entropy(outputs[0], targets, weight=weights, label_smoothing=amount, reduction="sum")
        return total / len(targets)

    def distill(self, outputs: "tuple[Tensor, ...]", teacher: "tuple[Tensor, ...]", temperature: float) -> "Tensor":
        """Return the KL divergence at a temperature, times its square, so that gradients keep their size.

        Source: G. Hinton, O. Vinyals and J. Dean, Distilling the Knowledge in a Neural Network, arXiv 1503.02531, 2015.
        """
        from torch.nn import functional

        soft = functional.log_softmax(outputs[0] / temperature, dim=1)
        goal = functional.log_softmax(teacher[0] / temperature, dim=1)
        return functional.kl_div(soft, goal, reduction="batchmean", log_target=True) * temperature**2

    def meter(self) -> Mean:
        return Mean(
            {
                "accuracy": lambda outputs, targets: outputs[0].argmax(1) == targets,
                "accuracy.top5": _among_first,
            }
        )

    def agreement(self, outputs: "Arrays", reference: "Arrays") -> "Array":
        same: Array = (outputs[0].argmax(axis=1) == reference[0].argmax(axis=1)).astype("float64")
        return same

    def told(self, outputs: "Arrays") -> list[str]:
        return [self.signature.labels[int(label)] for label in outputs[0].argmax(axis=1)]

    def truth(self, targets: "Array") -> list[Shown]:
        return [Shown(words=self.signature.labels[int(label)]) for label in targets]


def _among_first(outputs: "tuple[Tensor, ...]", targets: "Tensor") -> "Tensor":
    first = outputs[0].topk(min(_FIRST, outputs[0].shape[1]), dim=1).indices
    return (first == targets[:, None]).any(1)
