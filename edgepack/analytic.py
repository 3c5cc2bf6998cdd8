"""What a device takes for a model, worked out from its operators and a few figures of its profile: no measurement.

    time = per_run + sum over operators of
           (macs / rate of its kind + elements / rate of elementwise + bytes / bandwidth + per_operation)

Weights are read at the bandwidth of the memory where those of the whole file do not fit into the cache.
After the roofline of S. Williams, A. Waterman and D. Patterson, CACM 52(4), 2009, a roof for each kind of operator,
since kernels reach different shares of the peak. Its parts are added up: on the nets that `edgepack devices calibrate`
fits the figures to, that misses less than the larger of them does.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, field_validator

from edgepack.config import Frozen
from edgepack.operators import Operation
from edgepack.units import Duration, Share, Size

_SPREAD = 2.45  # half of a 95 % interval of a normal error, as a multiple of its mean size
_SHOWN = 5  # operators told as the slowest

Rate = Annotated[float, Field(gt=0)]


class Rates(Frozen):
    """Billions of multiply-accumulates a second by kind (operators.py), of elementwise operators of elements."""

    stem: Rate
    conv: Rate
    pointwise: Rate
    depthwise: Rate
    linear: Rate
    elementwise: Rate


class Figures(Frozen):
    """How fast one runtime is on a device."""

    fp32: Rates
    int8: Rates
    portable: Rate | None = Field(
        default=None, description="billions a second of ExecuTorch's own kernels; default: as elementwise"
    )
    bandwidth: Rate = Field(description="GB/s at which operators read and write what is in the cache")
    memory: Rate = Field(description="GB/s at which they read weights that are not")
    cache: Size = Field(description="how many bytes of weights stay in the cache from one inference to the next")
    per_operation: Duration = Field(description="what every operator takes besides")
    per_run: Duration = Field(description="what every inference takes besides")

    def milliseconds(self, operation: Operation, memory: float) -> float:
        """Of an operator whose weights are read at `memory` GB/s."""
        rates = self.int8 if operation.dtype == "int8" else self.fp32
        rate, each = getattr(rates, operation.kind, 0.0), rates.elementwise
        if operation.kind == "portable":
            rate = each = self.portable or rates.elementwise
        work = operation.macs / rate + operation.elements / each
        traffic = (operation.bytes - operation.weights) / self.bandwidth + operation.weights / memory
        return self.per_operation + 1e-6 * (work + traffic)


class Analytic(Frozen):
    """The figures of a device that estimates are made with, by runtime."""

    calibrated_from: str = Field(min_length=1, description="where the figures come from")
    error: Share = Field(description="by how much an estimate misses a measurement in the mean")
    threads: int = Field(ge=1, description="threads of the runtime for which the figures hold")
    runtimes: dict[str, Figures] = Field(min_length=1)

    @field_validator("error")
    @classmethod
    def _wrong_at_times(cls, error: float) -> float:
        if error <= 0:
            raise ValueError("no estimate is always right: say by how much it misses in the mean, as 30 %")
        return error


@dataclass(frozen=True)
class Estimate:
    """Milliseconds of one inference, and of the operators that take the most of it with their share."""

    ms: float
    slowest: tuple[tuple[str, float], ...]


def estimate(figures: Figures, operations: Sequence[Operation]) -> Estimate:
    stays = sum(operation.weights for operation in operations) <= figures.cache
    memory = figures.bandwidth if stays else figures.memory
    each = [(operation.name, figures.milliseconds(operation, memory)) for operation in operations]
    total = figures.per_run + sum(ms for _, ms in each)
    slowest = sorted(each, key=lambda pair: -pair[1])[:_SHOWN]
    return Estimate(ms=total, slowest=tuple((name, ms / total) for name, ms in slowest))


def bounds(value: float, error: float) -> tuple[float, float]:
    """Where a measurement would lie with 95 % confidence, errors being ratios and their mean size `error`.

    >>> [round(each, 2) for each in bounds(10.0, 0.2)]
    [6.71, 14.9]
    """
    factor = 1 + _SPREAD * error
    return value / factor, value * factor


def mean_error(pairs: Iterable[tuple[float, float]]) -> float:
    """The mean of |estimated / measured - 1|.

    >>> mean_error([(1.1, 1.0), (1.4, 2.0)])
    0.2
    """
    found = [abs(estimated / measured - 1) for estimated, measured in pairs]
    return round(sum(found) / len(found), 12)
