"""Define the metrics of an artifact: unit and better direction."""

from dataclasses import dataclass
from typing import Literal

from edgepack.core.units import DURATION, NUMBER, SHARE, SIZE, Quantity

Evidence = Literal["measured", "emulated", "estimated"]


Level = Literal["error", "warn", "info"]
FROM_BELOW = ("min", "retain", "max_decrease")  # bounds that a value must not fall below
AGAINST_TEACHER = ("max_drop", "retain")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric of an exported file, and the bounds that a budget may set on it (the first is the default).

    `within` says what two values must share to be compared: the device and protocol, the data, or nothing.
    """

    quantity: Quantity
    meaning: str
    bounds: tuple[str, ...] = ("max",)
    evidence: Evidence = "estimated"  # the weakest evidence that a budget accepts unless it sets another
    within: Literal["device", "data", ""] = ""
    formats: tuple[str, ...] = ()  # formats that have this metric; default: all

    def bounds_of(self, relative: bool) -> tuple[str, ...]:
        return (("max_decrease" if self.bounds[0] == "min" else "max_increase"),) if relative else self.bounds


def _timed(meaning: str) -> Metric:
    return Metric(quantity=DURATION, meaning=meaning, evidence="measured", within="device")


def _agreement(meaning: str, quantity: Quantity = SHARE, bound: str = "min") -> Metric:
    return Metric(quantity=quantity, bounds=(bound,), meaning=meaning, within="data")


METRICS: dict[str, Metric] = {
    "size": Metric(quantity=SIZE, meaning="bytes of the exported file"),
    "size.deploy": Metric(quantity=SIZE, meaning="bytes of the file and everything else an app ships"),
    "size.download": Metric(quantity=SIZE, meaning="size.deploy, each file compressed for download (deflate)"),
    "latency.p50": _timed("median time of one inference"),
    "latency.p90": _timed("90th percentile of one inference"),
    "latency.p99": _timed("99th percentile of one inference"),
    "latency.load": _timed("time to load the file, page cache warm"),
    "latency.first": _timed("time of the first inference after loading"),
    "memory.peak": Metric(
        quantity=SIZE,
        meaning="peak memory above the runtime's own, load included",
        evidence="measured",
        within="device",
    ),
    "memory.arena": Metric(
        quantity=SIZE,
        meaning="memory planned for activations of operators that are not delegated",
        formats=("executorch",),
    ),
    "accuracy": Metric(
        quantity=SHARE,
        bounds=("min", "max_drop", "retain"),
        meaning="fraction of test samples classified correctly",
        within="data",
    ),
    "parity": _agreement("fraction of test samples with the same decision as torch"),
    "parity.difference": _agreement("largest difference of an output from torch", NUMBER, "max"),
    "parity.cosine": _agreement("cosine similarity of all outputs and those of torch", NUMBER),
    "parity.runtimes": _agreement("fraction of test samples with the same decision as the first file"),
    "delegation": Metric(
        quantity=SHARE, bounds=("min",), meaning="fraction of operators that a backend runs", formats=("executorch",)
    ),
}


def quantity_of(metric: str, bound: str) -> Quantity:
    """Return the kind of quantity in which a limit is given."""
    return SHARE if bound in ("max_increase", "retain") else METRICS[metric].quantity
