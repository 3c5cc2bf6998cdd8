"""Turn timed processes into figures, and list reasons to distrust them."""

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from edgepack.core.frozen import Frozen, Json
from edgepack.core.order_statistics import interval, percentile
from edgepack.records.measurement import Reading

_RISE = 10.0  # degrees Celsius within one process
_CPU_CONTENTION = 0.10  # share of its cores' time that others may use while a file is timed
_NOISY = 0.10  # coefficient of variation between processes above which a figure is doubted
# Runs that a process must time for a percentile to be meaningful: MLPerf's early-stopping minima at a confidence of 99
# % (MLCommons inference, loadgen/early_stopping).
NEEDED = {"latency.p90": (0.90, 64), "latency.p99": (0.99, 662)}
Answers = list[Json]  # the results of the processes of one file, in the order they ran, as JSON


class Estimated(Frozen):
    """What an analytic model estimates for a file: milliseconds, and where they are spent."""

    value_ms: float
    low_ms: float
    high_ms: float
    detail: Json


class Timed(Frozen):
    """The result of timing one file: the results of its processes, or an estimate for a device that is not timed."""

    answers: Answers = []
    memory: Answers = []
    estimate: Estimated | None = None


def slowed_down(answer: Json) -> str:
    """Say what slowed the device down while this process was timed, or ""; a device that reports nothing gives "".

    >>> slowed_down({"before": {"throttle_count": 3}, "after": {"throttle_count": 5}})
    'the processor throttled'
    """
    before, after = answer.get("before", {}), answer.get("after", {})
    if before.get("throttled") or after.get("throttled"):
        return "it reports throttling or low power"
    if after.get("throttle_count", 0) > before.get("throttle_count", 0):
        return "the processor throttled"
    rise = after.get("celsius", 0.0) - before.get("celsius", math.inf)
    return f"its temperature rose by {rise:.0f} degrees" if rise > _RISE else ""


def timings(answers: Sequence[Json]) -> dict[str, list[float]]:
    """Return one figure per process for each latency metric, in milliseconds; no percentiles of too few runs.

    Of files that write text also the tokens in a second.
    """
    least = min((len(answer["samples_ns"]) for answer in answers), default=0)
    return {
        "latency.p50": [statistics.median(answer["samples_ns"]) * 1e-6 for answer in answers],
        **{
            metric: [percentile(answer["samples_ns"], share) * 1e-6 for answer in answers]
            for metric, (share, needed) in NEEDED.items()
            if least >= needed
        },
        "latency.load": [answer["load_ms"] for answer in answers],
        "latency.first": [answer["first_ms"] for answer in answers],
        **(_generation(answers) if all("token_ns" in answer for answer in answers) else {}),
    }


def _generation(answers: Sequence[Json]) -> dict[str, list[float]]:
    return {
        "latency.first_token": [statistics.median(answer["samples_ns"]) * 1e-6 for answer in answers],
        "tokens_per_second": [1e9 / statistics.median(answer["token_ns"]) for answer in answers],
    }


def doubts(answers: Answers, threads: int | None = None) -> tuple[str, ...]:
    """Return reasons not to trust the timings of a file, each with what to do about it."""
    steady = _unsteady(answers, threads)
    found = (steady, _cpu_contention(answers), _slowed(answers), _blind(answers), _unchecked(answers))
    return tuple(doubt for doubt in found if doubt)


def _unsteady(answers: Answers, threads: int | None) -> str:
    values = timings(answers)["latency.p50"]
    if len(values) < 2 or (mean := statistics.fmean(values)) == 0:
        return ""
    spread = statistics.stdev(values) / mean
    fewer = "" if threads == 1 else ", or set `controls: {threads: 1}` in the device profile"
    return f"processes differ by {spread:.0%}: close other programs{fewer}" if spread > _NOISY else ""


def _cpu_contention(answers: Answers) -> str:
    """Detect steady load, which slows every process alike, so that they agree. Uses the median over processes."""
    share = statistics.median([answer.get("cpu_contention", 0.0) for answer in answers] or [0.0])
    text = f"other programs used {share:.0%} of the time of the cores used for timing: close them"
    return text if share > _CPU_CONTENTION else ""


def _blind(answers: Answers) -> str:
    if not any(answer.get("blind") for answer in answers):
        return ""
    return "the device reports no temperature, so `cool_down` had no effect: let it cool before timing"


def _unchecked(answers: Answers) -> str:
    return next((str(answer["unchecked"]) for answer in answers if answer.get("unchecked")), "")


def _slowed(answers: Answers) -> str:
    slowed = [why for answer in answers if (why := slowed_down(answer))]
    return f"in {len(slowed)} of {len(answers)} processes {slowed[-1]}: let the device cool" if slowed else ""


def readings(timed: Timed, *, threads: int | None = None, doubted: bool = True) -> Iterator[Reading]:
    """Yield each figure of a file that was timed or estimated; none for one that was not.

    Doubts are attached to the median only: repeated for every figure, nobody would read them.
    """
    if timed.estimate:
        found = timed.estimate
        yield Reading(
            metric="latency.p50", value=found.value_ms, low=found.low_ms, high=found.high_ms, detail=found.detail
        )
    if timed.answers:
        samples = tuple(tuple(answer["samples_ns"]) for answer in timed.answers)
        for metric, values in timings(timed.answers).items():
            found_doubts = doubts(timed.answers, threads) if doubted and metric == "latency.p50" else ()
            yield _interval(metric, values, samples if metric == "latency.p50" else (), found_doubts)
    if timed.memory:
        peaks = [answer["peak_bytes"] for answer in timed.memory]
        yield exact("memory.peak", max(peaks), each=peaks)  # the peak is the largest value seen


def exact(metric: str, value: float, **detail: Any) -> Reading:
    return Reading(metric=metric, value=float(value), low=float(value), high=float(value), detail=detail)


def _interval(
    metric: str, values: Sequence[float], samples: tuple[tuple[float, ...], ...], doubts: tuple[str, ...]
) -> Reading:
    value, low, high = (float(each) for each in interval(values))
    detail = {"processes": len(values), "each": list(values)}
    return Reading(metric=metric, value=value, low=low, high=high, samples=samples, doubts=doubts, detail=detail)
