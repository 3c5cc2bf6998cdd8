"""Embedding: numbers for each sample that point the same way where samples are alike, for search and recognition.

What is alike has the same label. Only the direction of an embedding counts: samples are compared by cosine.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from edgepack.core.frozen import Frozen
from edgepack.core.metrics import Metric, named
from edgepack.core.signature import Signature, TensorSpec
from edgepack.data import contract

if TYPE_CHECKING:
    from torch import Tensor

    from edgepack.data.contract import Array, Arrays

_USUAL = 64  # numbers of an embedding, if neither the recipe nor the model has its own
_NEAREST = {"recall_at_1": 1, "recall_at_5": 5}  # how many other samples are looked at
_AT_ONCE = 1024  # samples that are compared with all others at a time
_TOLD = 4  # numbers of an embedding that people are shown
_LEAST = 1e-6  # length below which an embedding has no direction
_NEVER = -1e4  # a logarithm of 0, as far as float32 goes


class Config(Frozen):
    size: int | None = Field(
        default=None,
        ge=2,
        le=4096,
        description=f"numbers of an embedding; default: those of a pretrained encoder of texts, else {_USUAL}; "
        "of another size than its own, such a model gets a projection, which must be trained",
    )
    temperature: float = Field(
        default=0.1,
        gt=0,
        description="of the loss on labels: cosines are divided by it; less looks at near samples only",
    )
    tolerance: float = Field(
        default=0.99, gt=0, le=1, description="files agree on a sample if the cosine of its embeddings is at least this"
    )


def metrics(config: Config) -> Mapping[str, Metric]:
    return named(*_NEAREST)


def task(config: Config, signature: Signature) -> "Embedding":
    return Embedding(config, signature, metrics(config))


def suited(config: Config, embedding_width: int | None) -> Config:
    return config.model_copy(update={"size": config.size or embedding_width or _USUAL})


def incompatibility(config: Config, signature: Signature) -> str:
    return "" if signature.labels else "this task needs labels, which say what is alike, but the data has none"


class Embedding(contract.Task):
    """Outputs are float32 [n, size], and targets int64 [n]: samples of the same one are alike."""

    config: Config
    counts_samples = True

    def outputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec(name="embedding", shape=(self.config.size or _USUAL,)),)

    def problem(self, targets: "Tensor") -> str:
        import torch

        if targets.dtype != torch.int64 or targets.dim() != 1:
            kind = str(targets.dtype).removeprefix("torch.")
            return f"targets are {kind} of shape {list(targets.shape)}, expected int64 of shape [n]"
        low, high, most = int(targets.min()), int(targets.max()), len(self.signature.labels) - 1
        if low < 0 or high > most:
            return f"targets go from {low} to {high}, but the labels are 0 to {most}"
        return (
            "" if int(targets.bincount().max()) > 1 else "no two of its samples have the same label, so none is alike"
        )

    def classes(self, targets: "Tensor") -> "Tensor":
        return targets

    def loss(self, outputs: "tuple[Tensor, ...]", targets: "Tensor") -> "Tensor":
        """Return the mean over samples of the cross entropy of finding those of the same label among all others.

        It compares samples of a batch with each other: one whose label is there once is left out.
        Source: P. Khosla et al., Supervised Contrastive Learning, NeurIPS 2020, arXiv 2004.11362, equation 2.
        """
        import torch

        near = _directions(outputs[0])
        lost, counted = near.new_zeros(()), 0
        for rows in torch.arange(len(near), device=near.device).split(_AT_ONCE):
            alike = (targets[rows, None] == targets).scatter(1, rows[:, None], False)  # none is like itself
            number = alike.sum(1)
            likely = self._likely(near, rows).masked_fill(~alike, 0)
            lost = lost - (likely.sum(1) / number.clamp(min=1)).sum()
            counted += int((number > 0).sum())
        return lost / max(1, counted)

    def distill(self, outputs: "tuple[Tensor, ...]", teacher: "tuple[Tensor, ...]", temperature: float) -> "Tensor":
        """Return how far embeddings are from the teacher's, and how far what is near each sample is from what the
        teacher has near it, among the samples of the batch: one minus a cosine, and a KL divergence.

        By the first alone, a student learned less than from labels. The task's own temperature is used.
        Source of the second: N. Passalis and A. Tefas, Learning Deep Representations with Probabilistic Knowledge
        Transfer, ECCV 2018, arXiv 1803.10837, here with a softmax of cosines.
        """
        import torch
        from torch.nn import functional

        ours, theirs = _directions(outputs[0]), _directions(teacher[0])
        rows = torch.arange(len(ours), device=ours.device)
        likely, goal = self._likely(ours, rows), self._likely(theirs, rows)
        apart = functional.kl_div(likely, goal, reduction="batchmean", log_target=True)
        return apart + 1 - (ours * theirs).sum(1).mean()

    def _likely(self, near: "Tensor", rows: "Tensor") -> "Tensor":
        """Return the logarithms of how likely each other sample is to be taken for one of these rows, [rows, n]."""
        cosines: Tensor = near[rows] @ near.T / self.config.temperature
        return cosines.scatter(1, rows[:, None], _NEVER).log_softmax(1)

    def meter(self) -> "_Recall":
        return _Recall()

    def agreement(self, outputs: "Arrays", reference: "Arrays") -> "Array":
        """Return 1 for each sample whose embeddings point the same way, or nowhere both, else 0."""
        import numpy

        ours, theirs = (each[0].astype("float64") for each in (outputs, reference))
        sizes = [numpy.linalg.norm(each, axis=1) for each in (ours, theirs)]
        ways = [size > _LEAST for size in sizes]
        near = (ours * theirs).sum(axis=1) >= self.config.tolerance * sizes[0] * sizes[1]
        same: Array = ((ways[0] == ways[1]) & near).astype("float64")
        return same

    def told(self, outputs: "Arrays") -> list[str]:
        import numpy

        lengths = numpy.linalg.norm(outputs[0], axis=1)
        return [
            f"{', '.join(f'{value:.3g}' for value in row[:_TOLD])}, ... of length {length:.3g}"
            for row, length in zip(outputs[0], lengths, strict=True)
        ]


class _Recall:
    """The share of samples of which one of the nearest others has the same label; it keeps all embeddings.

    Samples that no other is like are left out: no model could find one.
    Source: H. Oh Song et al., Deep Metric Learning via Lifted Structured Feature Embedding, CVPR 2016, arXiv
    1511.06452.
    """

    def __init__(self) -> None:
        self.directions: list[Tensor] = []
        self.targets: list[Tensor] = []

    def update(self, outputs: "tuple[Tensor, ...]", targets: "Tensor") -> None:
        self.directions.append(_directions(outputs[0]))
        self.targets.append(targets)

    def compute(self) -> dict[str, float]:
        import torch

        every, targets = torch.cat(self.directions), torch.cat(self.targets)
        has_like = targets.bincount()[targets] > 1
        found = torch.cat([_found(every, targets, rows) for rows in torch.arange(len(every)).split(_AT_ONCE)])[has_like]
        return {
            name: float(found[:, :count].any(1).double().mean()) if len(found) else 0.0
            for name, count in _NEAREST.items()
        }


def _found(every: "Tensor", targets: "Tensor", rows: "Tensor") -> "Tensor":
    """Return whether each of the nearest other samples of these rows has their label, nearest first, [rows, 5]."""
    import torch

    scores = every[rows] @ every.T
    scores[torch.arange(len(rows)), rows] = -torch.inf
    # The sample itself comes last, where there are fewer others than are looked at.
    nearest = scores.topk(min(max(_NEAREST.values()), len(every) - 1), dim=1).indices
    return targets[nearest] == targets[rows, None]


def _directions(embeddings: "Tensor") -> "Tensor":
    from torch.nn import functional

    return functional.normalize(embeddings.float(), dim=1, eps=_LEAST)
