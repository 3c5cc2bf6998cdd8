"""Latency worked out from a file's operators and a device's rates."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edgepack.config.analytic import Figures
from edgepack.export.operations import Operation

_SPREAD = 2.45  # half of a 95 % interval of a normal error, as a multiple of its mean size
_SHOWN = 5  # operators listed as the slowest


@dataclass(frozen=True)
class Estimate:
    """Milliseconds of one inference, and of the slowest operators with their share."""

    ms: float
    slowest: tuple[tuple[str, float], ...]


def estimate(figures: Figures, operations: Sequence[Operation]) -> Estimate:
    stays = sum(operation.weights for operation in operations) <= figures.cache
    memory = figures.bandwidth if stays else figures.memory
    each = [(operation.name, _milliseconds(figures, operation, memory)) for operation in operations]
    total = figures.per_run + sum(ms for _, ms in each)
    slowest = sorted(each, key=lambda pair: -pair[1])[:_SHOWN]
    return Estimate(ms=total, slowest=tuple((name, ms / total) for name, ms in slowest))


def _milliseconds(figures: Figures, operation: Operation, memory: float) -> float:
    """Return the time of an operator whose weights are read at `memory` GB/s."""
    rates = figures.int8 if operation.dtype == "int8" else figures.fp32
    rate, each = getattr(rates, operation.kind, 0.0), rates.elementwise
    if operation.kind == "portable":
        rate = each = figures.portable or rates.elementwise
    work = operation.macs / rate + operation.elements / each
    traffic = (operation.bytes - operation.weights) / figures.bandwidth + operation.weights / memory
    return figures.per_operation + 1e-6 * (work + traffic)


def bounds(value: float, error: float) -> tuple[float, float]:
    """Return where a measurement would lie with 95 % confidence, for ratio errors of mean size `error`.

    >>> [round(each, 2) for each in bounds(10.0, 0.2)]
    [6.71, 14.9]
    """
    factor = 1 + _SPREAD * error
    return value / factor, value * factor


def mean_error(pairs: Iterable[tuple[float, float]]) -> float:
    """Return the mean of |estimated / measured - 1|.

    >>> mean_error([(1.1, 1.0), (1.4, 2.0)])
    0.2
    """
    found = [abs(estimated / measured - 1) for estimated, measured in pairs]
    return round(sum(found) / len(found), 12)
