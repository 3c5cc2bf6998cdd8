"""What can be measured of an exported file, and the limits a recipe sets on it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edgepack.config import Document, KeyPath, unknown
from edgepack.units import DURATION, SHARE, SIZE, Quantity


@dataclass(frozen=True, kw_only=True)
class Metric:
    """Something measured on every exported file, and the ways a budget may bound it (the first is the default)."""

    quantity: Quantity
    bounds: tuple[str, ...]
    meaning: str


METRICS: dict[str, Metric] = {
    "size": Metric(quantity=SIZE, bounds=("max",), meaning="bytes of the exported file"),
    "latency.p50": Metric(quantity=DURATION, bounds=("max",), meaning="median time of one inference"),
    "latency.p90": Metric(quantity=DURATION, bounds=("max",), meaning="90th percentile of one inference"),
    "latency.p99": Metric(quantity=DURATION, bounds=("max",), meaning="99th percentile of one inference"),
    "latency.load": Metric(quantity=DURATION, bounds=("max",), meaning="time to load the file, page cache warm"),
    "latency.first": Metric(quantity=DURATION, bounds=("max",), meaning="time of the first inference after loading"),
    "memory.peak": Metric(quantity=SIZE, bounds=("max",), meaning="peak memory above the runtime's own, load included"),
    "accuracy": Metric(quantity=SHARE, bounds=("min", "max_drop"), meaning="share of test samples classified right"),
    "parity": Metric(quantity=SHARE, bounds=("min",), meaning="share of test samples on which it agrees with torch"),
    "parity.runtimes": Metric(
        quantity=SHARE, bounds=("min",), meaning="share of test samples on which it agrees with the first file"
    ),
}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """One limit on one metric of every exported file. `limit` is in the metric's base unit (bytes, ms, share)."""

    metric: str
    bound: str  # max | min | max_drop
    limit: float
    place: str  # file:line, for whoever has to change it

    @property
    def name(self) -> str:
        return self.metric if self.bound == METRICS[self.metric].bounds[0] else f"{self.metric}.{self.bound}"


def read_budgets(document: Document, value: object) -> tuple[Budget, ...]:
    """The budgets of a recipe; every mistake in them is noted in the document."""
    found: dict[tuple[str, str], Budget] = {}
    for path, metric, bound, limit in _flatten(value, ("budgets",), "") if isinstance(value, dict) else ():
        if (metric, bound) in found:
            document.problem(path, f"the budget '{metric}' is given twice")
        elif message := _mistake(metric, bound, limit):
            document.problem(path, message)
        else:
            known = METRICS[metric].quantity.parse(limit)
            found[metric, bound] = Budget(metric=metric, bound=bound, limit=known, place=document.place(path))
    return tuple(found.values())


def plain(budgets: Sequence[Budget]) -> dict[str, dict[str, str]]:
    """The budgets as a recipe spells them out."""
    result: dict[str, dict[str, str]] = {}
    for budget in budgets:
        limit = METRICS[budget.metric].quantity.exact(budget.limit)
        result.setdefault(budget.metric, {})[budget.bound] = limit
    return result


def _flatten(budgets: dict[str, Any], path: KeyPath, prefix: str) -> Iterator[tuple[KeyPath, str, str, Any]]:
    """(path, metric, bound, limit) of `latency.p50: 2 ms`, `latency: {p50: 2 ms}`, `accuracy: {min: 95 %}` alike."""
    bounds = METRICS[prefix].bounds if prefix in METRICS else ()
    for key, value in budgets.items():
        name = f"{prefix}.{key}" if prefix else key
        metric, _, bound = name.rpartition(".")
        if key in bounds:
            yield (*path, key), prefix, key, value
        elif name not in METRICS and metric in METRICS and bound in METRICS[metric].bounds:
            yield (*path, key), metric, bound, value
        elif isinstance(value, dict) and _begins_a_metric(name):
            yield from _flatten(value, (*path, key), name)
        elif bounds and name not in METRICS:
            yield (*path, key), prefix, key, value
        else:
            yield (*path, key), name, METRICS[name].bounds[0] if name in METRICS else "", value


def _begins_a_metric(name: str) -> bool:
    return any(metric == name or metric.startswith(f"{name}.") for metric in METRICS)


def _mistake(metric: str, bound: str, limit: object) -> str:
    if metric not in METRICS:
        return unknown("budget", metric, METRICS).replace("unknown budget", "nothing measures a budget")
    known = METRICS[metric]
    if bound not in known.bounds:
        inner = [name.removeprefix(f"{metric}.") for name in METRICS if name.startswith(f"{metric}.")]
        return unknown("key", bound, [*known.bounds, *inner])
    try:
        value = known.quantity.parse(limit)
    except ValueError as error:
        return str(error)
    if value < 0:
        return f"a limit cannot be below 0, got {limit!r}"
    return f"a share cannot be above 100 %, got {limit!r}" if known.quantity is SHARE and value > 1 else ""
