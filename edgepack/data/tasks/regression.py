"""Regression: numbers for each sample, such as an age or the corners of a face."""

from collections.abc import Mapping
from math import sqrt
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from edgepack.core.frozen import Frozen
from edgepack.core.metrics import Metric, named
from edgepack.core.signature import Signature, TensorSpec
from edgepack.core.signature.shown import Shown
from edgepack.data import contract
from edgepack.data.tasks._meters import Mean

if TYPE_CHECKING:
    from torch import Tensor

    from edgepack.data.contract import Array, Arrays


class Config(Frozen):
    loss: Literal["squared", "absolute", "huber"] = Field(
        default="squared", description="what training minimizes; huber: squared up to a difference of 1, then absolute"
    )
    tolerance: float = Field(
        default=0.05,
        gt=0,
        description="files agree on a number if it differs by at most this share of its size, or of 1 if it is less",
    )


def metrics(config: Config) -> Mapping[str, Metric]:
    return named("rmse", "mae")


def task(config: Config, signature: Signature) -> "Regression":
    return Regression(config, signature, metrics(config))


def incompatibility(config: Config, signature: Signature) -> str:
    return "" if signature.labels else "this task needs the names of the numbers as labels of the data"


class Regression(contract.Task):
    """Outputs and targets are float32 [n, numbers], whose names are the labels; metrics are means over all numbers."""

    config: Config
    mixes = ("mixup",)
    reading = "values"

    def outputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec(name="values", shape=(len(self.signature.labels),)),)

    def problem(self, targets: "Tensor") -> str:
        import torch

        wanted = len(self.signature.labels)
        if targets.dtype != torch.float32 or targets.dim() != 2 or targets.shape[1] != wanted:
            kind = str(targets.dtype).removeprefix("torch.")
            return f"targets are {kind} of shape {list(targets.shape)}, expected float32 of shape [n, {wanted}]"
        bad = (~targets.isfinite().all(1)).nonzero()
        return f"the target of sample {int(bad[0])} is not a finite number" if len(bad) else ""

    def loss(self, outputs: "tuple[Tensor, ...]", targets: "Tensor") -> "Tensor":
        from torch.nn import functional

        match self.config.loss:
            case "squared":
                return functional.mse_loss(outputs[0], targets)
            case "absolute":
                return functional.l1_loss(outputs[0], targets)
            case "huber":
                return functional.huber_loss(outputs[0], targets)

    def distill(self, outputs: "tuple[Tensor, ...]", teacher: "tuple[Tensor, ...]", temperature: float) -> "Tensor":
        """Return the loss with the teacher's numbers as targets; numbers have no temperature."""
        return self.loss(outputs, teacher[0])

    def meter(self) -> Mean:
        return Mean(
            {
                "rmse": lambda outputs, targets: (outputs[0].double() - targets).square().mean(1),
                "mae": lambda outputs, targets: (outputs[0].double() - targets).abs().mean(1),
            },
            {"rmse": sqrt},
        )

    def agreement(self, outputs: "Arrays", reference: "Arrays") -> "Array":
        """Return the share of a sample's numbers that agree."""
        import numpy

        reach = self.config.tolerance * numpy.maximum(1, numpy.abs(reference[0]))
        alike: Array = (numpy.abs(outputs[0] - reference[0]) <= reach).mean(axis=1)
        return alike

    def told(self, outputs: "Arrays") -> list[str]:
        return [
            ", ".join(f"{name} {value:.4g}" for name, value in zip(self.signature.labels, row, strict=True))
            for row in outputs[0]
        ]

    def truth(self, targets: "Array") -> list[Shown]:
        return [Shown(words=words) for words in self.told((targets,))]
