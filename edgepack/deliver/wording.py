"""Format figures, the same in every report."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from edgepack.core.errors import ExitCode
from edgepack.core.metrics import FROM_BELOW, METRICS, compared, quantity_of
from edgepack.core.units import SHARE, SIZE
from edgepack.deliver.ratios import is_worse, ratio_bounds, times, with_teacher
from edgepack.records.artifact import TEACHER, label_of
from edgepack.records.build import Build
from edgepack.records.measurement import Measurement
from edgepack.records.verdict import Verdict

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
    ExitCode.INCONCLUSIVE: "inconclusive or not measured",
    ExitCode.DEVICE: "the device or the infrastructure failed",
    ExitCode.STAGE: "a stage or an export failed",
    ExitCode.BUG: "a bug in edgepack",
    ExitCode.INTERRUPTED: "interrupted",
}

# Not allowed in XML 1.0, obeyed by terminals, invisible on pages: all control characters but tab and new line.
_UNPRINTABLE = re.compile("[^\t\n\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def printable(text: str) -> str:
    """
    >>> printable("a\\x1b[31mb")
    'a\ufffd[31mb'
    """
    return _UNPRINTABLE.sub("\ufffd", text)


def one_line(text: str) -> str:
    """
    >>> one_line("prune failed\\n  no channels")
    'prune failed no channels'
    """
    return " ".join(printable(text).split())


def headline(build: Build) -> str:
    if build.exit_code == ExitCode.OK and not build.verdicts:
        return "no budgets set, no limit checked"
    if build.exit_code == ExitCode.OK and (rest := _counted(each for each in build.verdicts if each.outcome != "pass")):
        return f"{HEADLINES[ExitCode.OK]} but for {rest}"
    return HEADLINES[ExitCode(build.exit_code)] if build.exit_code is not None else "not finished"


def counts(build: Build) -> str:
    """Return how many verdicts of each kind there are: "13 pass, 1 FAIL, 1 not measured"."""
    return _counted(build.verdicts)


def _counted(verdicts: Iterable[Verdict]) -> str:
    marks = [mark(verdict) for verdict in verdicts]
    return ", ".join(f"{marks.count(each)} {each}" for each in dict.fromkeys(marks))


def figure(metric: str, value: float | None, bound: str = "") -> str:
    """Return a value of a metric; with a bound, one that is compared with its limit, such as a rise."""
    if value is None:
        return "-"
    return compared(metric, bound).format(value) if metric in METRICS else f"{value:.3g}"


def score(metric: str, value: float) -> str:
    """Return a score with two digits more than most changes of it.

    >>> score("parity", 0.98765)
    '98.77 %'
    """
    share = metric in METRICS and METRICS[metric].quantity is SHARE
    return f"{value * 100:.2f} %" if share else f"{value:.4g}"


def score_change(metric: str, before: float, after: float, digits: str = ".2f") -> str:
    """Return the change of a score, without its unit: shares change by points."""
    share = metric in METRICS and METRICS[metric].quantity is SHARE
    return f"{(after - before) * 100:+{digits}}" if share else f"{after - before:+.3g}"


def loud(text: str, evidence: str | None) -> str:
    """Return the text, marked with its evidence if it is not a measurement.

    >>> loud("8 ms", "measured"), loud("8 ms", "estimated")
    ('8 ms', '8 ms ESTIMATED')
    """
    return text if evidence in (None, "measured") else f"{text} {evidence.upper()}"


def value(verdict: Verdict) -> str:
    """Return the judged figure with its evidence."""
    return loud(figure(verdict.metric, verdict.value, verdict.bound), verdict.evidence)


def measured(measurement: Measurement) -> str:
    return loud(figure(measurement.metric, measurement.value), measurement.evidence)


def interval(measurement: Measurement) -> str:
    """Return the 95 % interval; "" for values that were counted."""
    if measurement.low == measurement.high:
        return ""
    return f"{figure(measurement.metric, measurement.low)} to {figure(measurement.metric, measurement.high)}"


def warnings(build: Build) -> Iterator[str]:
    """Yield one sentence if the device was unavailable, and one for each kind of evidence that is not a measurement."""
    if build.absent:
        yield f"THE DEVICE WAS NOT REACHED: {build.absent}"
    for kind in ("estimated", "emulated"):
        found = [each for each in build.measurements if each.evidence == kind]
        if found:
            metrics = ", ".join(dict.fromkeys(each.metric for each in found))
            artifacts = ", ".join(dict.fromkeys(each.artifact for each in found))
            yield f"{kind.upper()}, not measured on the device: {metrics} of {artifacts}"


def count(number: int) -> str:
    """
    >>> count(11_175_370), count(701_818), count(640)
    ('11.2 M', '702 k', '640')
    """
    for factor, unit in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if number >= factor:
            return f"{number / factor:.3g}{unit}"
    return str(number)


def plural(count: object, noun: str) -> str:
    """
    >>> plural(1, "note"), plural(21, "note"), plural(2, "class")
    ('1 note', '21 notes', '2 classes')
    """
    return f"{count} {noun}" if str(count) == "1" else f"{count} {noun}{'es' if noun.endswith('s') else 's'}"


def clock(seconds: float) -> str:
    """
    >>> clock(3.21), clock(75), clock(7384)
    ('3.2 s', '1 min 15 s', '2 h 3 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def moment(seconds: float) -> str:
    """
    >>> moment(1.7e9)
    '2023-11-14 22:13 UTC'
    """
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def mark(verdict: Verdict) -> str:
    """Return the outcome in a word or two, marked if it does not affect the exit code."""
    if verdict.outcome in ("pass", "waived") or verdict.level == "error":
        return MARKS[verdict.outcome]
    return f"{MARKS[verdict.outcome].lower()} ({verdict.level})"


def severity(verdict: Verdict) -> str:
    """Return the severity for a CI server in SARIF's words: none, note, warning or error."""
    if verdict.outcome == "pass":
        return "none"
    if verdict.outcome == "waived":
        return "note"
    return {"warn": "warning", "info": "note"}.get(verdict.level, "error")


def tone(verdict: Verdict) -> str:
    """Return the colour class of a verdict: pass, fail, or open for others and without effect on the exit code."""
    if verdict.outcome == "pass":
        return "pass"
    return "fail" if verdict.outcome == "fail" and severity(verdict) == "error" else "open"


def limit(verdict: Verdict) -> str:
    sign = "at least" if verdict.bound in FROM_BELOW else "at most"
    shown = _change(verdict) if verdict.limit is None else figure(verdict.metric, verdict.limit, verdict.bound)
    return f"{sign} {shown}"


def _change(verdict: Verdict) -> str:
    """Return the change that a relative budget allows: "+5 %", "-0.5 %"."""
    share = quantity_of(verdict.metric, verdict.bound).format(verdict.relative or 0)
    return f"-{share}" if verdict.bound in FROM_BELOW else f"+{share}"


def headroom(verdict: Verdict) -> str:
    """Return the distance to the limit: "0.5 ms (25 %)", or "over by 1.6 ms (20 %)" if it is exceeded.

    Returns "-" if it is not known.
    """
    if verdict.value is None or verdict.limit is None or verdict.outcome == "inconclusive":
        return "-"
    gap = verdict.limit - verdict.value
    below = verdict.bound in FROM_BELOW
    text = _gap(verdict, abs(gap))
    if (gap < 0 and not below) or (gap > 0 and below):
        return f"{'under' if below else 'over'} by {text}"
    return text


def _gap(verdict: Verdict, gap: float) -> str:
    if verdict.metric in METRICS and compared(verdict.metric, verdict.bound) is SHARE:
        return plural(f"{gap * 100:.3g}", "point")
    share = f" ({abs(verdict.headroom):.0%})" if verdict.headroom is not None else ""
    return f"{figure(verdict.metric, gap)}{share}"


def sentence(verdict: Verdict) -> str:
    """Return a verdict in one line: "9.6 ms, at most 8 ms: over by 1.6 ms (20%)"."""
    parts = (headroom(verdict) if headroom(verdict) != "-" else "", verdict.reason)
    why = ": ".join(part for part in parts if part)
    return f"{value(verdict)}, {limit(verdict)}{f': {why}' if why else ''}"


def reasons(build: Build) -> Iterator[tuple[str, str]]:
    """Yield (budgets, reason) for all that neither pass nor fail: undecided, not measured, waived."""
    found: dict[str, list[str]] = {}
    for verdict in build.verdicts:
        if verdict.reason and verdict.outcome not in ("pass", "fail"):
            found.setdefault(verdict.reason, []).append(f"{verdict.budget} of {verdict.artifact}")
    for reason, budgets in found.items():
        yield ", ".join(budgets), reason


def baselines(build: Build) -> Iterator[str]:
    """Yield the baselines of relative budgets: "... the build of 2026-11-20 12:00 UTC: size of onnx 164 kB +2 %"."""
    found: dict[str, list[str]] = {}
    for each in build.verdicts:
        if each.against:
            text = f"{each.metric} of {each.artifact} {figure(each.metric, each.baseline)} {_change(each)}"
            found.setdefault(each.against, []).append(text)
    for against, figures in found.items():
        yield f"relative to {against}: {', '.join(figures)}"


def when(measurement: Measurement) -> str:
    taken = moment(measurement.taken_at)
    return f"taken {taken}, reused" if measurement.reused else f"taken {taken}"


def cut(build: Build) -> str:
    """Return how many samples the figures of the test split are of, or "" if they are of all."""
    cut = next(
        (each.detail for each in build.measurements if each.metric == build.metric and each.detail.get("of")), None
    )
    return f"{build.metric} and parity are of {cut['rows']:,} of {cut['of']:,} test samples" if cut else ""


def gains(build: Build) -> Iterator[str]:
    """Yield one line per shipped file: how much smaller and faster than its teacher, on the same runtime."""
    for artifact in build.shipped():
        parts = [
            f"{times(*pair)} ({ratio_bounds(*pair, after='; ')}{measured(pair[0])} -> {measured(pair[1])})"
            for pair in with_teacher(build, artifact.label)
        ]
        if artifact.label in build.not_run:
            parts.append(f"not run here ({build.not_run[artifact.label]})")
        drop = _drop(build, artifact.label)
        if parts or drop:
            yield f"{artifact.label}: {', '.join(parts)}{drop}, against the fp32 teacher on {artifact.runtime}"


def _drop(build: Build, label: str) -> str:
    teacher, ours = build.find(build.metric, label_of(label, TEACHER)), build.find(build.metric, label)
    return f", {build.metric} {measured(teacher)} -> {measured(ours)}" if teacher and ours else ""


def doubts(build: Build) -> Iterator[str]:
    for verdict in build.verdicts:
        if verdict.outcome == "fail" and verdict.reason:
            yield f"{verdict.budget} of {verdict.artifact} failed: {verdict.reason}"
    for artifact in build.shipped():
        worse = [ours.metric for teacher, ours in with_teacher(build, artifact.label) if is_worse(teacher, ours)]
        line = next((each for each in gains(build) if each.startswith(f"{artifact.label}: ")), "")
        if worse:
            yield f"compression made it worse: {line}{_advice(build) if 'latency.p50' in worse else ''}"
    for each in build.measurements:
        for doubt in each.doubts:
            yield f"{each.metric} of {each.artifact}: {doubt}"


def _advice(build: Build) -> str:
    """Return what may help if int8 is slower; "" if that was tried or there is no int8."""
    settings = [stage["quantize"] for stage in build.recipe.get("stages", ()) if "quantize" in stage]
    advice = "; `quantize: {fp32: auto}` keeps layers in fp32 that are slower in int8"
    return advice if any("auto" not in each.get("fp32", ()) for each in settings) else ""


def reused(build: Build) -> str:
    """Return a sentence on timings reused from an earlier build, or ""."""
    old = [each for each in build.measurements if each.reused and each.metric == "latency.p50"]
    if not old:
        return ""
    oldest = when(min(old, key=lambda each: each.taken_at))
    same = "same files, device, protocol and versions"
    return f"timings were {oldest} ({same}); `edgepack build --remeasure` measures again"


@dataclass(frozen=True, kw_only=True)
class Place:
    """An environment, and the figures that were measured in it."""

    where: str
    versions: str
    artifacts: tuple[str, ...]
    metrics: tuple[str, ...]
    evidence: str


def places(build: Build) -> tuple[Place, ...]:
    """Return the environments of all measurements; sizes need none, since they are counted."""
    groups: dict[tuple[str, str], list[Measurement]] = {}
    for each in build.measurements:
        if each.environment:
            groups.setdefault((_where(each.environment), each.evidence), []).append(each)
    return tuple(_place(where, evidence, group) for (where, evidence), group in groups.items())


def _place(where: str, evidence: str, group: list[Measurement]) -> Place:
    versions: dict[str, str] = {}
    for each in group:
        versions |= each.environment.get("versions") or {}
    return Place(
        where=where,
        versions=listed(versions),
        artifacts=tuple(dict.fromkeys(each.artifact for each in group)),
        metrics=tuple(dict.fromkeys(each.metric for each in group)),
        evidence=evidence,
    )


def _where(environment: dict[str, Any]) -> str:
    """Return the facts of an environment for people, without processor features and family codes."""
    left = {"features", "family", "evidence", "versions", "protocol", "data"}
    return ", ".join(_fact(key, fact) for key, fact in environment.items() if key not in left and _is_known(fact))


def _is_known(fact: object) -> bool:
    return isinstance(fact, str | int | float) and fact != ""


def _fact(key: str, fact: object) -> str:
    if key in ("cpu", "machine", "runner", "name", "board"):
        return str(fact)
    return plural(fact, "thread") if key == "threads" else f"{key.replace('_', ' ')} {fact}"


def listed(versions: dict[str, Any]) -> str:
    """
    >>> listed({"torch": "2.13.0", "numpy": "2.4.6"})
    'numpy 2.4.6, torch 2.13.0'
    """
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))


def built_on(build: Build) -> str:
    """Return the computer that trained and exported."""
    facts = build.provenance.get("environment", {})
    cores = f"{facts['threads']} of {plural(facts['cores'], 'core')}" if {"threads", "cores"} <= facts.keys() else ""
    memory = f"{SIZE.format(facts['memory_bytes'])} memory" if "memory_bytes" in facts else ""
    python = f"Python {facts['python']}" if "python" in facts else ""
    there = (facts.get("cpu", ""), cores, memory, facts.get("system", ""), python)
    trained = f"; models trained on {facts['trained_on']}" if "trained_on" in facts else ""
    return ", ".join(part for part in there if part) + trained


def commit(build: Build) -> str:
    """Return the recipe's commit, or "" outside a repository."""
    git = build.provenance.get("git", {})
    return f"commit {git['commit'][:12]}{' with uncommitted changes' if git.get('dirty') else ''}" if git else ""
