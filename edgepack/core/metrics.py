"""Define the metrics of an artifact: unit and better direction.

METRICS holds those of every file and those of the tasks that edgepack ships. A user's own task brings its own: `define`
adds them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

from edgepack.core.errors import StageError
from edgepack.core.units import DURATION, NUMBER, SHARE, SIZE, Quantity

Evidence = Literal["measured", "emulated", "estimated"]


Level = Literal["error", "warn", "info"]
FROM_BELOW = ("min", "retain", "max_decrease")  # bounds that a value must not fall below
AGAINST_TEACHER = ("max_drop", "retain", "max_rise")
_HIGHER, _LOWER = ("min", "max_drop", "retain"), ("max", "max_rise")  # bounds of a score, by its better direction


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
    of_samples: bool = False  # whether it is a fraction of samples, each of which is right or wrong
    in_shares: bool = False  # whether `max_rise` is a share of the teacher's value

    @property
    def higher(self) -> bool:
        """Return whether higher values are better."""
        return self.bounds[0] == "min"

    def bounds_of(self, relative: bool) -> tuple[str, ...]:
        return (("max_decrease" if self.bounds[0] == "min" else "max_increase"),) if relative else self.bounds


def _timed(meaning: str) -> Metric:
    return Metric(quantity=DURATION, meaning=meaning, evidence="measured", within="device")


def _agreement(meaning: str, quantity: Quantity = SHARE, bound: str = "min") -> Metric:
    return Metric(quantity=quantity, bounds=(bound,), meaning=meaning, within="data")


def score(meaning: str, quantity: Quantity = SHARE, *, higher: bool = True, of_samples: bool = False) -> Metric:
    """Return a metric of a task: how good a file's outputs are on the test split."""
    bounds = _HIGHER if higher else _LOWER
    return Metric(quantity=quantity, bounds=bounds, meaning=meaning, within="data", of_samples=of_samples)


_OF_TASKS = {
    "accuracy": score("fraction of test samples classified correctly", of_samples=True),
    "accuracy.top5": score("fraction of test samples whose label is among the five most likely", of_samples=True),
    "f1": score("harmonic mean of precision and recall, over all labels of all test samples"),
    "accuracy.labels": score("fraction of labels of test samples that are rightly given or not"),
    "recall_at_1": score("fraction of test samples whose nearest other one has the same label"),
    "recall_at_5": score("fraction of test samples of which one of the five nearest others has the same label"),
    "rmse": score("root of the mean squared error on the test samples", NUMBER, higher=False),
    "miou": score("intersection over union of pixels of a class, mean over the classes in the test masks"),
    "accuracy.pixels": score("fraction of pixels of the test masks that get their class"),
    "mae": score("mean absolute error on the test samples", NUMBER, higher=False),
    "perplexity": Metric(
        quantity=NUMBER,
        bounds=_LOWER,
        meaning="tokens among which the model hesitates, on average: e to the mean loss of a token of the test split",
        within="data",
        in_shares=True,
    ),
    "bits_per_byte": score(
        "bits in which the model could write a byte of the test split, whatever the tokenizer", NUMBER, higher=False
    ),
    "map": score("mean average precision of boxes in test samples, as COCO defines it: over IoU 0.50 to 0.95"),
    "map.50": score("mean average precision of boxes in test samples, at IoU 0.50"),
}
OF_GENERATION = {  # of files that write text
    "latency.first_token": _timed("median time to read a whole window, after which the first token is known"),
    "tokens_per_second": Metric(
        quantity=NUMBER,
        bounds=("min",),
        meaning="tokens written in a second, where a whole window has been read before each",
        evidence="measured",
        within="device",
    ),
}
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
    **OF_GENERATION,
    **_OF_TASKS,
    "parity": _agreement("agreement with torch on the test samples, as the task defines it"),
    "parity.difference": _agreement("largest difference of an output from torch", NUMBER, "max"),
    "parity.cosine": _agreement("cosine similarity of all outputs and those of torch", NUMBER),
    "parity.runtimes": _agreement("agreement with the first file on the test samples"),
    "delegation": Metric(
        quantity=SHARE, bounds=("min",), meaning="fraction of operators that a backend runs", formats=("executorch",)
    ),
}
OF_EVERY_FILE = frozenset(METRICS) - {*_OF_TASKS, *OF_GENERATION}  # whatever its task is
OF_FILES = OF_EVERY_FILE | {*OF_GENERATION}  # all but scores
_SHIPPED = dict(METRICS)
_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*")
_WORDS = {*_HIGHER, *_LOWER, "max_increase", "max_decrease", "limit", "level", "evidence", "relative", "baseline"}


def define(metrics: Mapping[str, Metric]) -> None:
    """Add the metrics of a user's own task."""
    METRICS.update((name, metric) for name, metric in metrics.items() if name not in _SHIPPED)


def problem(name: str, metric: Metric) -> str:
    """Return why a user's own task cannot have this metric, or "".

    >>> problem("accuracy", score("fraction of letters that are right"))
    "'accuracy' is edgepack's name for another metric, fraction of test samples classified correctly"
    """
    known = _SHIPPED.get(name)
    if known is not None and (known != metric or name in OF_FILES):
        return f"{name!r} is edgepack's name for another metric, {known.meaning}"
    if not _NAME.fullmatch(name) or _WORDS & {*name.split(".")}:
        return f"{name!r} cannot be written in a budget: use small letters, digits and _, such as count.error"
    if inside := [each for each in _SHIPPED if each.startswith(f"{name}.") and known is None]:
        return f"{name!r} is a group of edgepack's budgets, such as {inside[0]}"
    kinds = (SHARE.name, NUMBER.name)
    return (
        "" if metric.quantity.name in kinds else f"{name!r} is {metric.quantity.name}: it must be {' or '.join(kinds)}"
    )


def named(*names: str) -> Mapping[str, Metric]:
    """Return metrics by name, for a task."""
    return {name: METRICS[name] for name in names}


def quantity_of(metric: str, bound: str) -> Quantity:
    """Return the kind of quantity in which a limit is given."""
    return SHARE if bound == "max_increase" else compared(metric, bound)


def compared(metric: str, bound: str) -> Quantity:
    """Return the kind of quantity of the value that is compared with a limit."""
    in_shares = bound == "max_rise" and METRICS[metric].in_shares
    return SHARE if bound == "retain" or in_shares else METRICS[metric].quantity


def number(name: str, given: Any) -> float:
    """Return what a task's meter gives for a metric. Raises StageError unless it is a finite number."""
    try:
        found = float(given)
    except (TypeError, ValueError, RuntimeError) as error:
        message = f"compute() of the task's meter gives {given!r:.60} for {name}, which is not a number"
        raise StageError(message, "return a number, or a tensor of one") from error
    if not isfinite(found):
        raise StageError(
            f"{name} is {found}, which cannot be compared",
            "outputs or targets are not finite or too large, or compute() of the task's meter divides by 0",
        )
    return found
