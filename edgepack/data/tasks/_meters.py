"""Meters of tasks whose metrics are means over samples."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from edgepack.core.errors import StageError

if TYPE_CHECKING:
    from torch import Tensor

    Each = Callable[[tuple[Tensor, ...], Tensor], Tensor]


class Mean:
    """Means over samples; `each` gives for every metric the values of some samples, [n].

    Raises StageError where it gives another number of values: their mean would be taken twice.
    """

    def __init__(self, each: "Mapping[str, Each]", finished: Mapping[str, Callable[[float], float]] = {}) -> None:
        """`finished` turns a mean into the metric: a root, for the mean of squares."""
        self.each, self.finished = each, finished
        self.totals, self.samples = dict.fromkeys(each, 0.0), 0

    def update(self, outputs: "tuple[Tensor, ...]", targets: "Tensor") -> None:
        for name, values in self.each.items():
            found = values(outputs, targets)
            if found.shape != (len(targets),):
                message = f"for {name}, edgepack.Mean got values of shape {list(found.shape)} of {len(targets)} samples"
                raise StageError(message, "return one number for each sample: Mean takes the mean of them")
            self.totals[name] += float(found.double().sum())
        self.samples += len(targets)

    def compute(self) -> dict[str, float]:
        means = {name: total / self.samples for name, total in self.totals.items()}
        return {name: self.finished.get(name, float)(mean) for name, mean in means.items()}
