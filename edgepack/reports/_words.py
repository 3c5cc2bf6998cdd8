"""How figures are worded, the same in every report."""

from collections.abc import Iterator
from datetime import UTC, datetime

from edgepack.benchmark import Measurement
from edgepack.budgets import FROM_BELOW, METRICS, quantity_of
from edgepack.errors import ExitCode
from edgepack.gate import Verdict
from edgepack.result import Build
from edgepack.units import SHARE

MARKS = {
    "pass": "pass",
    "fail": "FAIL",
    "inconclusive": "inconclusive",
    "not_measured": "not measured",
    "not_comparable": "not comparable",
    "waived": "waived",
}

HEADLINES = {
    ExitCode.OK: "every budget met",
    ExitCode.BUDGET: "a budget failed",
    ExitCode.USAGE: "the recipe is wrong",
    ExitCode.INCONCLUSIVE: "not decided",
    ExitCode.DEVICE: "the device or the infrastructure failed",
    ExitCode.STAGE: "a stage or an export failed",
    ExitCode.BUG: "a bug in edgepack",
    ExitCode.INTERRUPTED: "interrupted",
}


def headline(build: Build) -> str:
    if build.exit_code == ExitCode.OK and not build.verdicts:
        return "no budget set, nothing was judged"
    return HEADLINES[ExitCode(build.exit_code)] if build.exit_code is not None else "not finished"


def figure(metric: str, value: float | None) -> str:
    return "-" if value is None else METRICS[metric].quantity.format(value)


def plural(count: object, noun: str) -> str:
    """
    >>> plural(1, "note"), plural(21, "note")
    ('1 note', '21 notes')
    """
    return f"{count} {noun}" if str(count) == "1" else f"{count} {noun}s"


def limit(verdict: Verdict) -> str:
    sign = "at least" if verdict.bound in FROM_BELOW else "at most"
    return f"{sign} {_against(verdict) if verdict.relative is not None else figure(verdict.metric, verdict.limit)}"


def _against(verdict: Verdict) -> str:
    """Of a relative budget what it allows: "54 us + 5 %", "97.8 % - 0.5 %"."""
    base = "the baseline" if verdict.baseline is None else figure(verdict.metric, verdict.baseline)
    share = quantity_of(verdict.metric, verdict.bound).format(verdict.relative or 0)
    return f"{base} - {share}" if verdict.bound in FROM_BELOW else f"{base} + {share}"


def headroom(verdict: Verdict) -> str:
    """
    What is left below the limit, or by how much it is exceeded: "0.5 ms (25 %)", "over by 1.6 ms (20 %)".
    """
    if verdict.value is None or verdict.limit is None:
        return verdict.reason
    gap = abs(verdict.limit - verdict.value)
    if METRICS[verdict.metric].quantity is SHARE:
        text = plural(f"{gap * 100:.3g}", "point")
    else:
        share = f" ({abs(verdict.headroom):.0%})" if verdict.headroom is not None else ""
        text = f"{figure(verdict.metric, gap)}{share}"
    if verdict.outcome == "fail":
        return f"{'under' if verdict.bound in FROM_BELOW else 'over'} by {text}"
    return verdict.reason if verdict.outcome == "inconclusive" else text


def when(measurement: Measurement) -> str:
    taken = datetime.fromtimestamp(measurement.taken_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"taken {taken}, reused" if measurement.reused else f"taken {taken}"


def gains(build: Build) -> Iterator[str]:
    """One line a shipped file: how much smaller and faster than its teacher, on the same runtime."""
    for artifact in build.shipped():
        parts = []
        for metric, word, opposite in (("size", "smaller", "larger"), ("latency.p50", "faster", "slower")):
            teacher, ours = build.find(metric, f"teacher ({artifact.label})"), build.find(metric, artifact.label)
            if teacher and ours and ours.value:
                change = f"{figure(metric, teacher.value)} -> {figure(metric, ours.value)}"
                ratio = teacher.value / ours.value
                parts.append(
                    f"{ratio:.3g}x {word} ({change})" if ratio >= 1 else f"{1 / ratio:.3g}x {opposite} ({change})"
                )
        if artifact.label in build.not_run:
            parts.append(f"not run here ({build.not_run[artifact.label]})")
        drop = _drop(build, artifact.label)
        yield f"{artifact.label}: {', '.join(parts)}{drop}, against the fp32 teacher on {artifact.runtime}"


def _drop(build: Build, label: str) -> str:
    teacher, ours = build.find("accuracy", f"teacher ({label})"), build.find("accuracy", label)
    return (
        f", accuracy {figure('accuracy', teacher.value)} -> {figure('accuracy', ours.value)}"
        if teacher and ours
        else ""
    )


def doubts(build: Build) -> Iterator[str]:
    for verdict in build.verdicts:
        if verdict.outcome == "fail" and verdict.reason:
            yield f"{verdict.budget} of {verdict.artifact} fails: {verdict.reason}"
    for line in gains(build):
        if "x slower" in line or "x larger" in line:
            yield f"compression did not pay: {line}{_advice(build) if 'x slower' in line else ''}"
    for each in build.measurements:
        for doubt in each.doubts:
            yield f"{each.metric} of {each.artifact}: {doubt}"


def _advice(build: Build) -> str:
    """What may help where int8 is slower; nothing where it was tried or there is no int8."""
    settings = [stage["quantize"] for stage in build.recipe.get("stages", ()) if "quantize" in stage]
    advice = "; `quantize: {fp32: auto}` leaves in fp32 what is slower in int8"
    return advice if any("auto" not in each.get("fp32", ()) for each in settings) else ""


def reused(build: Build) -> str:
    """One sentence on timings that an earlier build took, or nothing."""
    old = [each for each in build.measurements if each.reused and each.metric == "latency.p50"]
    if not old:
        return ""
    oldest = when(min(old, key=lambda each: each.taken_at))
    return f"timings were {oldest} (same files, device, protocol and versions); --remeasure takes them again"
