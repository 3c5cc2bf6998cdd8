"""How a file compares with its teacher's: how much smaller and faster, and with what confidence."""

from collections.abc import Iterator

from edgepack.core.order_statistics import interval
from edgepack.records.artifact import TEACHER, label_of
from edgepack.records.build import Build
from edgepack.records.measurement import Measurement


def with_teacher(build: Build, label: str) -> Iterator[tuple[Measurement, Measurement]]:
    """Yield pairs of measurements, the teacher's first: size, then latency."""
    for metric in ("size", "latency.p50"):
        teacher, ours = build.find(metric, label_of(label, TEACHER)), build.find(metric, label)
        if teacher and ours and ours.value and teacher.value:
            yield teacher, ours


def times(teacher: Measurement, ours: Measurement) -> str:
    """Return a ratio in words: "6.5x faster", "1.2x larger"; both values are above 0."""
    better, worse = ("smaller", "larger") if ours.metric == "size" else ("faster", "slower")
    pairs = _alternating_ratios(teacher, ours)
    ratio = interval(pairs)[0] if pairs else teacher.value / ours.value
    return f"{ratio:.3g}x {better}" if ratio >= 1 else f"{1 / ratio:.3g}x {worse}"


def ratio_bounds(teacher: Measurement, ours: Measurement, *, after: str = "") -> str:
    """Return the 95 % interval of the ratio of two latencies, or "" if the files were not timed in alternating runs."""
    pairs = _alternating_ratios(teacher, ours)
    if not pairs:
        return ""
    ratio, low, high = interval(pairs)
    low, high = (low, high) if ratio >= 1 else (1 / high, 1 / low)
    return f"{low:.3g}x to {high:.3g}x{after}"


def is_worse(teacher: Measurement, ours: Measurement) -> bool:
    """Return whether the file is larger or slower; for alternating runs, only if the 95 % interval is below 1."""
    pairs = _alternating_ratios(teacher, ours)
    return interval(pairs)[2] < 1 if pairs else teacher.value < ours.value


def _alternating_ratios(teacher: Measurement, ours: Measurement) -> list[float]:
    """Return the ratio of each pair of processes that ran one after the other."""
    before, after = (each.detail.get("each", ()) for each in (teacher, ours))
    if ours.metric != "latency.p50" or teacher.taken_at != ours.taken_at or len(before) != len(after):
        return []
    return [theirs / mine for theirs, mine in zip(before, after, strict=True)]
