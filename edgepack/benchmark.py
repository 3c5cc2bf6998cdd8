"""How a file is timed so that the figure can be trusted, and what a figure is.

The sample is a fresh process, never an iteration: inside one process runs agree with each other far better than two
processes do. Rounds of seven processes are taken until an order-statistic interval of their medians lies wholly on one
side of the budget, at most three rounds; otherwise the verdict is inconclusive.
Source of the interval: H. A. David and H. N. Nagaraja, Order Statistics, 3rd ed., 2003, section 7.1.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import model_validator

from edgepack.config import Frozen, Moment
from edgepack.errors import DeviceError

PROTOCOL = "edgepack/1"
_ROUND = 7  # processes
# Processes so far -> k: the k-th smallest and k-th largest process bound the median with an error, summed over the
# three looks, of 2.8 % a side.
_LOOKS = {7: 1, 14: 3, 21: 6}
_PASSES = 3  # processes whose memory is looked at
_SPOILT = 0.2  # share of processes that may be timed on a device that slows down
_RISE = 10.0  # degrees Celsius within one process
_CROWDED = 0.10  # share of its cores' time that others may take while a file is timed
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
    taken_at: Moment  # seconds since 1970
    reused: bool = False  # taken by an earlier build
    doubts: tuple[str, ...] = ()
    samples: tuple[tuple[float, ...], ...] = ()
    environment: dict[str, Any] = {}
    detail: dict[str, Any] = {}

    @model_validator(mode="after")
    def _within_its_interval(self) -> "Measurement":
        if not self.low <= self.value <= self.high:
            raise ValueError(f"{self.metric} of {self.artifact}: {self.value} is not within its interval")
        return self


# Runs a process must have timed before a percentile of them says anything: MLPerf's early-stopping minima at a
# confidence of 99 % (MLCommons inference, loadgen/early_stopping).
_NEEDED = {"latency.p90": (0.90, 64), "latency.p99": (0.99, 662)}


class TimingProtocol(Frozen):
    """The fixed part of a timing."""

    name: str = PROTOCOL
    warm_up_seconds: float = 0.3
    seconds: float = 1.0
    least_runs: int = 30
    most_runs: int = 1000
    most_seconds: float = 20.0  # of a model so slow that three runs will do

    @classmethod
    def of(cls, metrics: Iterable[str]) -> "TimingProtocol":
        """As many runs as the percentiles among these metrics need.

        >>> TimingProtocol.of(["size", "latency.p90"]).least_runs
        64
        """
        return cls(least_runs=max([cls().least_runs, *(_NEEDED[each][1] for each in metrics if each in _NEEDED)]))

    def key(self) -> dict[str, Any]:
        """What a timing depends on. Of the runs there may be more than were asked for: `kept` tells."""
        return self.model_dump(exclude={"least_runs"})

    def kept(self, answers: "Answers") -> bool:
        """Whether each process timed as many runs as are asked for now, or as long as any does."""
        counts = ((len(answer["samples_ns"]), sum(answer["samples_ns"])) for answer in answers)
        return all(runs >= self.least_runs or ns >= self.most_seconds * 1e9 for runs, ns in counts)

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

    `told` is called before each process with how many there were and how many are certain to come. Raises DeviceError
    when the device slows down.
    """
    answers = list(answers)
    while not enough(answers, decided):
        told(len(answers), next(look for look in _LOOKS if look > len(answers)))
        answers.append(run(job))
        _check_state(answers)
    return answers


def outcome(
    run: Run,
    evidence: Mapping[str, str],
    job: dict[str, Any],
    before: Answers,
    decided: Callable[[Answers], bool],
    told: Callable[[int, int], None],
    *,
    memory: bool,
) -> dict[str, Any]:
    """What timing a file comes to: {"answers", "memory"} of its processes, or the one {"estimate"} of a device that is
    only worked out.
    """
    if evidence["time"] == "estimated":
        return {"estimate": run(job), "answers": [], "memory": []}
    answers = time_file(run, job, before, decided, told)
    passes = _PASSES if memory and "memory" in evidence else 0
    return {"answers": answers, "memory": [run({**job, "mode": "memory"}) for _ in range(passes)]}


def time_pair(run: Run, jobs: Sequence[dict[str, Any]], told: Callable[[int, int], None]) -> tuple[Answers, Answers]:
    """Time two files in turns, until it is decided which is faster, so that drift strikes both alike.

    Raises DeviceError when the device slows down: how much each file suffers from that is not its own doing.
    """
    first, second = jobs
    taken: tuple[Answers, Answers] = ([], [])
    while not enough(taken[0], lambda _: _differs(ratios(*taken))):
        told(len(taken[0]), next(look for look in _LOOKS if look > len(taken[0])))
        pair = [(taken[0], first), (taken[1], second)]
        for answers, job in pair if len(taken[0]) % 2 == 0 else reversed(pair):
            answers.append(run(job))
        for answers in taken:
            _check_state(answers)
    return taken


def ratios(first: Answers, second: Answers) -> list[float]:
    """How long the second file takes, in times of the first: one figure a pair of processes that ran in turn."""
    before, after = (timings(answers)["latency.p50"] for answers in (first, second))
    return [mine / its for its, mine in zip(before, after, strict=True)]


def _differs(found: Sequence[float]) -> bool:
    _, low, high = interval(found)
    return not low <= 1 <= high


def _check_state(answers: Answers) -> None:
    """Raises DeviceError once more than a fifth of a whole number of rounds was taken on a device that slowed down."""
    slowed = [why for answer in answers if (why := slowed_down(answer))]
    if len(answers) in _LOOKS and len(slowed) > _SPOILT * len(answers):
        message = f"the device slowed down in {len(slowed)} of {len(answers)} processes: {slowed[-1]}"
        raise DeviceError(message, "let it cool, feed it enough power, or give its profile a `cool_down`")


def slowed_down(answer: dict[str, Any]) -> str:
    """What slowed the device down while this process was timed, or ""; nothing is known of one that does not tell.

    >>> slowed_down({"before": {"throttle_count": 3}, "after": {"throttle_count": 5}})
    'the processor throttled'
    """
    before, after = answer.get("before", {}), answer.get("after", {})
    if before.get("throttled") or after.get("throttled"):
        return "it reports throttling, or too little power"
    if after.get("throttle_count", 0) > before.get("throttle_count", 0):
        return "the processor throttled"
    rise = after.get("celsius", 0.0) - before.get("celsius", math.inf)
    return f"it grew warmer by {rise:.0f} degrees" if rise > _RISE else ""


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
    """One figure a process, in milliseconds, for each latency metric; without percentiles of too few runs."""
    least = min((len(answer["samples_ns"]) for answer in answers), default=0)
    return {
        "latency.p50": [statistics.median(answer["samples_ns"]) * 1e-6 for answer in answers],
        **{
            metric: [percentile(answer["samples_ns"], share) * 1e-6 for answer in answers]
            for metric, (share, needed) in _NEEDED.items()
            if least >= needed
        },
        "latency.load": [answer["load_ms"] for answer in answers],
        "latency.first": [answer["first_ms"] for answer in answers],
    }


def doubts(answers: Answers, threads: int | None = None) -> tuple[str, ...]:
    """Reasons not to trust the timings of a file, each with what to do about it."""
    found = (_unsteady(answers, threads), _crowded(answers), _slowed(answers), _blind(answers), _unchecked(answers))
    return tuple(doubt for doubt in found if doubt)


def _unsteady(answers: Answers, threads: int | None) -> str:
    values = timings(answers)["latency.p50"]
    if len(values) < 2 or (mean := statistics.fmean(values)) == 0:
        return ""
    spread = statistics.stdev(values) / mean
    fewer = "" if threads == 1 else ", or put `controls: {threads: 1}` into the device profile"
    return f"processes differ by {spread:.0%}: close other programs{fewer}" if spread > _NOISY else ""


def _crowded(answers: Answers) -> str:
    """Steady competition makes every process slower alike, so that they agree. The median: one process tells little."""
    share = statistics.median([answer.get("crowded", 0.0) for answer in answers] or [0.0])
    told = f"other programs took {share:.0%} of the time of the cores that it was timed on: close them"
    return told if share > _CROWDED else ""


def _blind(answers: Answers) -> str:
    if not any(answer.get("blind") for answer in answers):
        return ""
    return "the device tells no temperature, so `cool_down` waited for nothing: let it rest before it is timed"


def _unchecked(answers: Answers) -> str:
    return next((str(answer["unchecked"]) for answer in answers if answer.get("unchecked")), "")


def _slowed(answers: Answers) -> str:
    slowed = [why for answer in answers if (why := slowed_down(answer))]
    return f"in {len(slowed)} of {len(answers)} processes {slowed[-1]}: let the device cool" if slowed else ""
