"""Rates of a device, fitted to nets that were timed on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.config.analytic import Figures, Rates
from edgepack.core.units import SIZE
from edgepack.export.operations import Operation
from edgepack.measure.timing.estimator import estimate

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    Vector = NDArray[numpy.float64]

_PRIOR = 0.1  # penalty for a figure that is e times its start value, in units of an estimate that is e times off
_UNLIKE = 0.3  # larger errors count linearly, not squared: no single model decides
_DIGITS = 3  # significant digits of a figure
_CACHES = tuple(0.25e6 * 2**power for power in range(7))  # bytes: 250 kB to 16 MB
_RATES = tuple(Rates.model_fields)
_NAMES = (*(f"{dtype} {kind}" for dtype in ("fp32", "int8") for kind in _RATES), "portable")
_SLOW = {"elementwise": 0.1, "depthwise": 0.5, "portable": 0.02}  # relative to multiplying, as a start


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One file: what it computes and how long the device takes. Files of one model are held out together."""

    net: str
    operations: tuple[Operation, ...]
    ms: float


def fit_rates(samples: Sequence[Sample]) -> Figures:
    """Fit the figures to these timings: least squares of the log ratios of estimate to measurement.

    A figure that no sample depends on stays near its start value, which comes from all samples together.
    """
    from scipy.optimize import least_squares

    start = _start(samples)
    fits = {}
    for cache in _CACHES:
        counted = _Counted.of(samples, cache)
        fits[cache] = least_squares(counted.misses, start, args=(start,), loss="soft_l1", f_scale=_UNLIKE)
    best = min(fits, key=lambda cache: float(fits[cache].cost))
    seen = {_name(each) for sample in samples for each in sample.operations}
    return _figures(fits[best].x, best, portable="portable" in seen)


def left_out(samples: Sequence[Sample]) -> list[tuple[Sample, float]]:
    """Return each sample with its estimate in milliseconds, by figures fitted without its model."""
    found = []
    for net in dict.fromkeys(sample.net for sample in samples):
        figures = fit_rates([sample for sample in samples if sample.net != net])
        found += [(each, estimate(figures, each.operations).ms) for each in samples if each.net == net]
    return found


@dataclass(frozen=True, kw_only=True)
class _Counted:
    """Samples as sums that are linear in the inverses of the figures.

    `costs` [samples, figures] has billions of multiply-accumulates, elements and bytes in the columns of the figures
    that divide them: the rates of `_NAMES`, the bandwidth, the memory bandwidth; then the numbers of operators and of
    runs, which are multiplied.
    """

    costs: "Vector"
    log_ms: "Vector"

    @classmethod
    def of(cls, samples: Sequence[Sample], cache: float) -> "_Counted":
        import numpy

        costs = numpy.array([_costs(sample, cache) for sample in samples])
        return cls(costs=costs, log_ms=numpy.log([sample.ms for sample in samples]))

    def misses(self, logs: "Vector", start: "Vector") -> "Vector":
        """Return the logs of estimate / measurement, and the penalties for figures far from their start values."""
        import numpy

        return numpy.concatenate([numpy.log(self.costs @ _parts(logs)) - self.log_ms, _PRIOR * (logs - start)])


def _parts(logs: "Vector") -> "Vector":
    """Return milliseconds per billion, then per operator, then per run."""
    import numpy

    figures = numpy.exp(logs)
    return numpy.concatenate([1e3 / figures[:-2], figures[-2:]])


def _costs(sample: Sample, cache: float) -> list[float]:
    found = dict.fromkeys((*_NAMES, "bandwidth", "memory"), 0.0)
    weights = "bandwidth" if sum(each.weights for each in sample.operations) <= cache else "memory"
    for each in sample.operations:
        found[_name(each)] += 1e-9 * each.macs
        found["portable" if each.kind == "portable" else f"{each.dtype} elementwise"] += 1e-9 * each.elements
        found["bandwidth"] += 1e-9 * (each.bytes - each.weights)
        found[weights] += 1e-9 * each.weights
    return [*found.values(), float(len(sample.operations)), 1.0]


def _name(operation: Operation) -> str:
    return "portable" if operation.kind == "portable" else f"{operation.dtype} {operation.kind}"


def _start(samples: Sequence[Sample]) -> "Vector":
    """Return start values: as if multiplying alone took all the time, and reading half of it."""
    import numpy

    seconds = 1e-3 * sum(sample.ms for sample in samples)
    operations = [each for sample in samples for each in sample.operations]
    rate = 1e-9 * max(1, sum(each.macs for each in operations)) / seconds
    bandwidth = 2e-9 * max(1, sum(each.bytes for each in operations)) / seconds
    least = min(sample.ms for sample in samples)
    rates = [rate * _SLOW.get(name.split()[-1], 1.0) for name in _NAMES]
    return numpy.log([*rates, bandwidth, bandwidth, 0.01 * least, 0.1 * least])


def _figures(logs: "Vector", cache: float, *, portable: bool) -> Figures:
    import numpy

    values = [float(f"{value:.{_DIGITS}g}") for value in numpy.exp(logs)]
    rates = dict(zip(_NAMES, values, strict=False))
    bandwidth, memory, per_operation, per_run = values[len(_NAMES) :]
    by_type = {dtype: {kind: rates[f"{dtype} {kind}"] for kind in _RATES} for dtype in ("fp32", "int8")}
    figures = {  # in the form of a profile, so that they are validated alike
        **by_type,
        "portable": rates["portable"] if portable else None,
        "bandwidth": bandwidth,
        "memory": memory,
        "cache": SIZE.exact(cache),
        "per_operation": f"{1e3 * per_operation:.6g} us",
        "per_run": f"{1e3 * per_run:.6g} us",
    }
    return Figures.model_validate(figures)
