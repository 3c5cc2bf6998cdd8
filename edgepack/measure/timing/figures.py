"""What timed processes say, as figures, and reasons to doubt them."""

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from edgepack.core.order_statistics import interval, percentile

_RISE = 10.0  # degrees Celsius within one process
_CROWDED = 0.10  # share of its cores' time that others may take while a file is timed
_NOISY = 0.10  # coefficient of variation between processes above which a figure is doubted
# Runs a process must have timed before a percentile of them says anything: MLPerf's early-stopping minima at a
# confidence of 99 % (MLCommons inference, loadgen/early_stopping).
NEEDED = {"latency.p90": (0.90, 64), "latency.p99": (0.99, 662)}
Answers = list[dict[str, Any]]  # what the processes of one file said, in the order they ran


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


def timings(answers: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """One figure a process, in milliseconds, for each latency metric; without percentiles of too few runs."""
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


def _estimates(outcome: dict[str, Any]) -> Iterator[dict[str, Any]]:
    value, low, high = (float(outcome["estimate"][key]) for key in ("value_ms", "low_ms", "high_ms"))
    detail = outcome["estimate"]["detail"]
    yield {"metric": "latency.p50", "value": value, "low": low, "high": high, "detail": detail}


def timed(outcome: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Each figure of benchmark.outcome; what else is known beside it: "environment", and of a step the "subject"."""
    return _estimates(outcome) if "estimate" in outcome else _times(outcome)


def _times(outcome: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Doubts go with the median of what ships: told of every other figure too, they would be read by nobody."""
    doubted = outcome.get("subject") != "teacher"
    samples = tuple(tuple(answer["samples_ns"]) for answer in outcome["answers"])
    for metric, values in timings(outcome["answers"]).items():
        more: dict[str, Any] = {}
        if metric == "latency.p50":
            more["samples"] = samples
            more["doubts"] = doubts(outcome["answers"], outcome["environment"].get("threads")) if doubted else ()
        yield {**_interval(metric, values), **more}
    if outcome["memory"]:
        peaks = [answer["peak_bytes"] for answer in outcome["memory"]]
        yield exact("memory.peak", max(peaks), each=peaks)  # a peak is the largest that was seen


def exact(metric: str, value: float, **detail: Any) -> dict[str, Any]:
    return {"metric": metric, "value": float(value), "low": float(value), "high": float(value), "detail": detail}


def _interval(metric: str, values: Sequence[float]) -> dict[str, Any]:
    value, low, high = interval(values)
    detail = {"processes": len(values), "each": list(values)}
    return {"metric": metric, "value": float(value), "low": float(low), "high": float(high), "detail": detail}
