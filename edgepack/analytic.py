"""What a device takes for a model, worked out from its operators and a few figures of its profile: no measurement.

    time = per_run + sum over operators of (per_operation + max(macs / rate, bytes / bandwidth))

Source: S. Williams, A. Waterman and D. Patterson, Roofline: An Insightful Visual Performance Model for Multicore
Architectures, CACM 52(4), 2009; one roof for each kind of operator, since kernels reach different shares of the peak.
`edgepack devices calibrate` fits the figures to a device that can be timed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, field_validator

from edgepack.config import Frozen
from edgepack.operators import Operation
from edgepack.units import Duration, Share

_SPREAD = 2.45  # half of a 95 % interval of a normal error, as a multiple of its mean size
_SHOWN = 5  # operators told as the slowest

Rate = Annotated[float, Field(gt=0)]


class Rates(Frozen):
    """Billions of multiply-accumulates a second, of elementwise operators of elements; see operators.py."""

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
    bandwidth: Rate = Field(description="GB/s at which operators read and write")
    per_operation: Duration = Field(description="what every operator takes besides")
    per_run: Duration = Field(description="what every inference takes besides")

    def rate(self, operation: Operation) -> float:
        if operation.kind == "portable":
            return self.portable or self.fp32.elementwise
        rates = self.int8 if operation.dtype == "int8" else self.fp32
        return float(getattr(rates, operation.kind))

    def milliseconds(self, operation: Operation) -> float:
        work, traffic = operation.macs / self.rate(operation), operation.bytes / self.bandwidth
        return self.per_operation + 1e-6 * max(work, traffic)


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
    each = [(operation.name, figures.milliseconds(operation)) for operation in operations]
    total = figures.per_run + sum(ms for _, ms in each)
    slowest = sorted(each, key=lambda pair: -pair[1])[:_SHOWN]
    return Estimate(ms=total, slowest=tuple((name, ms / total) for name, ms in slowest))


def bounds(value: float, error: float) -> tuple[float, float]:
    """Where a measurement would lie with 95 % confidence, errors being ratios and their mean size `error`.

    >>> bounds(10.0, 0.2)
    (6.711409395973154, 14.9)
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
