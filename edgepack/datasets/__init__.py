"""A data set is a module with

Config                                  what a recipe may say of it (frozen pydantic)
describe(config) -> Signature           shapes, labels, preprocessing; instant, no torch
fingerprint(config) -> str              changes when the data would; instant, no torch
load(config) -> Data                    the three splits
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from edgepack.config import Frozen

if TYPE_CHECKING:
    from torch import Tensor


class TensorSpec(Frozen):
    """One input of a model, without its batch dimension."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"


class Signature(Frozen):
    """What goes into a model and what comes out: enough to build one, and for an app to call it."""

    inputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...]
    preprocessing: dict[str, Any] = {}  # how raw data becomes the inputs, exactly as trained


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Inputs of shape [n, ...], targets of shape [n], and where in the split each sample stands."""

    inputs: "tuple[Tensor, ...]"
    targets: "Tensor"
    indices: "Tensor"


@dataclass(frozen=True, kw_only=True)
class Split:
    """One part of a data set, held in memory: each input [n, ...], targets [n]."""

    inputs: "tuple[Tensor, ...]"
    targets: "Tensor"

    def __len__(self) -> int:
        return len(self.targets)

    def head(self, samples: int) -> "tuple[Tensor, ...]":
        """The inputs of the first samples."""
        return tuple(tensor[:samples] for tensor in self.inputs)

    def first(self, samples: int) -> "Split":
        """The split's first samples as a split."""
        return replace(self, inputs=tuple(tensor[:samples] for tensor in self.inputs), targets=self.targets[:samples])

    def batches(self, size: int, *, seed: int | None = None) -> Iterator[Batch]:
        """In order, or shuffled by `seed`. A last batch of one is left out of shuffled passes: batch norm needs two."""
        import torch

        if seed is None:
            order = torch.arange(len(self))
        else:
            order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        for indices in order.split(size):
            if seed is None or len(indices) > 1:
                inputs = tuple(tensor[indices] for tensor in self.inputs)
                yield Batch(inputs=inputs, targets=self.targets[indices], indices=indices)


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What stages see: selection uses `validation`, calibration `train`."""

    train: Split
    validation: Split
    augmented: bool = False  # whether a training sample looks different every time


@dataclass(frozen=True, kw_only=True)
class Data(TrainingData):
    """A whole data set; `test` is for the report alone."""

    test: Split

    def for_stages(self) -> TrainingData:
        return TrainingData(train=self.train, validation=self.validation, augmented=self.augmented)


class Dataset(Protocol):
    Config: type[Frozen]

    def describe(self, config: Any) -> Signature: ...
    def fingerprint(self, config: Any) -> str: ...
    def load(self, config: Any) -> Data: ...
