"""Classification with any number of labels per sample, such as the tags of a picture."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from edgepack.core.frozen import Frozen
from edgepack.core.metrics import Metric, named
from edgepack.core.signature import Signature, TensorSpec
from edgepack.core.signature.shown import Shown
from edgepack.data import contract

if TYPE_CHECKING:
    from torch import Tensor

    from edgepack.data.contract import Array, Arrays


class Config(Frozen):
    threshold: float = Field(
        default=0.5, gt=0, lt=1, description="probability above which a label is shown, and counts as given"
    )


def metrics(config: Config) -> Mapping[str, Metric]:
    return named("f1", "accuracy.labels")


def task(config: Config, signature: Signature) -> "MultiLabel":
    return MultiLabel(config, signature, metrics(config))


def incompatibility(config: Config, signature: Signature) -> str:
    return "" if signature.labels else "this task needs labels, but the data has none"


class MultiLabel(contract.Task):
    """Logits and targets are float32 [n, labels]; a target is 1 for a label that the sample has, else 0."""

    config: Config
    mixes = ("mixup", "cutmix")
    reading = "tags"

    def outputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec(name="logits", shape=(len(self.signature.labels),)),)

    @property
    def _least(self) -> float:
        """Return the logit of the threshold."""
        from math import log

        return log(self.config.threshold / (1 - self.config.threshold))

    def problem(self, targets: "Tensor") -> str:
        import torch

        wanted = len(self.signature.labels)
        if targets.dtype != torch.float32 or targets.dim() != 2 or targets.shape[1] != wanted:
            kind = str(targets.dtype).removeprefix("torch.")
            return f"targets are {kind} of shape {list(targets.shape)}, expected float32 of shape [n, {wanted}]"
        bad = (~((targets == 0) | (targets == 1)).all(1)).nonzero()
        return f"the target of sample {int(bad[0])} is not of 0 and 1" if len(bad) else ""

    def loss(self, outputs: "tuple[Tensor, ...]", targets: "Tensor") -> "Tensor":
        from torch.nn import functional

        return functional.binary_cross_entropy_with_logits(outputs[0], targets)

    def smoothed(self, outputs: "tuple[Tensor, ...]", targets: "Tensor", amount: float) -> "Tensor":
        return self.loss(outputs, targets * (1 - amount) + amount / 2)

    def distill(self, outputs: "tuple[Tensor, ...]", teacher: "tuple[Tensor, ...]", temperature: float) -> "Tensor":
        """Return the cross entropy with the teacher's probabilities at a temperature, less what no student can gain,
        times its square: for each label by itself what G. Hinton et al. (arXiv 1503.02531) do for classes.
        """
        from torch.nn import functional

        goal = (teacher[0] / temperature).sigmoid()
        cross = functional.binary_cross_entropy_with_logits(outputs[0] / temperature, goal)
        own = functional.binary_cross_entropy_with_logits(teacher[0] / temperature, goal)
        return (cross - own) * temperature**2

    def meter(self) -> "_Counts":
        return _Counts(self._least)

    def agreement(self, outputs: "Arrays", reference: "Arrays") -> "Array":
        """Return the share of labels that are given or not in both."""
        alike: Array = ((outputs[0] > self._least) == (reference[0] > self._least)).mean(axis=1)
        return alike

    def told(self, outputs: "Arrays") -> list[str]:
        rows = outputs[0] > self._least
        return [
            ", ".join(name for name, on in zip(self.signature.labels, row, strict=True) if on) or "none" for row in rows
        ]

    def truth(self, targets: "Array") -> list[Shown]:
        return [Shown(words=words) for words in self.told(((targets - 0.5) * 1e6,))]


class _Counts:
    """Counts of all labels of all samples together."""

    def __init__(self, least: float) -> None:
        self.least, self.right, self.given, self.wanted, self.alike, self.all = least, 0, 0, 0, 0, 0

    def update(self, outputs: "tuple[Tensor, ...]", targets: "Tensor") -> None:
        given, wanted = outputs[0] > self.least, targets > 0.5
        self.right += int((given & wanted).sum())
        self.given += int(given.sum())
        self.wanted += int(wanted.sum())
        self.alike += int((given == wanted).sum())
        self.all += given.numel()

    def compute(self) -> dict[str, float]:
        either = self.given + self.wanted
        return {"f1": 2 * self.right / either if either else 1.0, "accuracy.labels": self.alike / max(1, self.all)}
