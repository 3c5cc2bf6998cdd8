"""How a file is timed so that the figure can be trusted, and what a figure is.

The sample is a fresh process, never an iteration: inside one process runs agree with each other far better than two
processes do. Rounds of seven processes are taken until an order-statistic interval of their medians lies wholly on one
side of the budget, at most three rounds; otherwise the verdict is inconclusive.
Source of the interval: H. A. David and H. N. Nagaraja, Order Statistics, 3rd ed., 2003, section 7.1.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, Literal

from edgepack.config import Frozen

PROTOCOL = "edgepack/1"
_ROUND = 7  # processes
# Processes so far -> k: the k-th smallest and k-th largest process bound the median with an error, summed over the
# three looks, of 2.8 % a side.
_LOOKS = {7: 1, 14: 3, 21: 6}
_NOISY = 0.10  # coefficient of variation between processes above which a figure is doubted

Evidence = Literal["measured", "emulated", "estimated"]


class Measurement(Frozen):
    """One metric of one artifact.

    `value`, `low` and `high` are in the metric's base unit (bytes, milliseconds, share); `low` and `high` bound the
    value with 95 % confidence, and equal it for what is counted exactly. `samples` are the raw figures, one list a
    process.
    """

    metric: str
    artifact: str  # the artifact's label
    sha256: str
    value: float
    low: float
    high: float
    evidence: Evidence
    taken_at: float  # seconds since 1970
    reused: bool = False  # taken by an earlier build
    doubts: tuple[str, ...] = ()
    samples: tuple[tuple[float, ...], ...] = ()
    environment: dict[str, Any] = {}
    detail: dict[str, Any] = {}


class TimingProtocol(Frozen):
    """The fixed part of a timing; its values are part of the key under which a measurement is reused."""

    name: str = PROTOCOL
    warm_up_seconds: float = 0.3
    seconds: float = 1.0
    least_runs: int = 64  # a 90th percentile of fewer says nothing (MLPerf's early-stopping minimum)
    most_runs: int = 1000

    def job(self) -> dict[str, Any]:
        return {"mode": "time", **self.model_dump(exclude={"name"})}


Run = Callable[[dict[str, Any]], dict[str, Any]]  # one job of worker.py in a fresh process
Answers = list[dict[str, Any]]  # what the processes of one file said, in the order they ran


MOST = max(_LOOKS)  # processes; after that a budget that is not decided is inconclusive


def enough(answers: Answers, decided: Callable[[Answers], bool]) -> bool:
    """Whether a file needs no further process: a whole number of rounds, and decided or at the last one."""
    return len(answers) >= MOST or (len(answers) in _LOOKS and decided(answers))


def time_file(
    run: Run,
    job: dict[str, Any],
    answers: Answers,
    decided: Callable[[Answers], bool],
    told: Callable[[int, int], None],
) -> Answers:
    """Time the file of `job` in rounds of fresh processes, after the `answers` there are, until that is `enough`.

    `told` is called before each process with how many there were and how many are certain to come.
    """
    answers = list(answers)
    while not enough(answers, decided):
        told(len(answers), next(look for look in _LOOKS if look > len(answers)))
        answers.append(run({**TimingProtocol().job(), **job}))
    return answers


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(median, low, high) of figures that each come from a process of their own.

    >>> interval([5, 1, 2, 3, 4, 6, 7])
    (4, 1, 7)
    """
    ordered = sorted(values)
    k = max((k for look, k in _LOOKS.items() if look <= len(ordered)), default=1)
    return statistics.median(ordered), ordered[k - 1], ordered[-k]


def percentile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that at least `share` of them do not exceed.

    >>> percentile([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 0.9)
    9
    """
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def timings(answers: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """One figure a process, in milliseconds, for each latency metric."""
    return {
        "latency.p50": [statistics.median(answer["samples_ns"]) * 1e-6 for answer in answers],
        "latency.p90": [percentile(answer["samples_ns"], 0.9) * 1e-6 for answer in answers],
        "latency.load": [answer["load_ms"] for answer in answers],
        "latency.first": [answer["first_ms"] for answer in answers],
    }


def doubts(values: Sequence[float]) -> tuple[str, ...]:
    """Reasons not to trust a figure, each with what to do about it."""
    if len(values) < 2 or (mean := statistics.fmean(values)) == 0:
        return ()
    spread = statistics.stdev(values) / mean
    if spread > _NOISY:
        advice = "close other programs, or put `controls: {threads: 1}` into the device profile"
        return (f"processes differ by {spread:.0%}: {advice}",)
    return ()
