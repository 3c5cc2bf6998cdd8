"""Print two builds side by side."""

from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from typing import TextIO

from edgepack.core.metrics import METRICS
from edgepack.core.units import SHARE, SIZE
from edgepack.deliver import wording
from edgepack.judge.compare import Change, Comparison
from edgepack.records.build import Build, StageRecord


def show(comparison: Comparison, stream: TextIO) -> None:
    """Print every figure with its change, then the differences in settings, stages, versions and files."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=stream, width=None if stream.isatty() else 140, highlight=False, emoji=False)
    for word, build in (("before", comparison.before), ("after", comparison.after)):
        console.print(f"{word:7} {_headline(build)}", markup=False)
    console.print()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in ("figure", "file", "before", "after", "change", ""):
        table.add_column(column, justify="right" if column in ("before", "after") else "left", overflow="fold")
    for change in comparison.changes:
        if not (change.why_not or change.unchanged):
            table.add_row(*(Text(cell) for cell in _row(change)))
    if table.row_count:
        console.print(table)
    for line in _remarks(comparison):
        console.print(line, markup=False, soft_wrap=True)


def _headline(build: Build) -> str:
    return f"{build.name} on {build.device['name']}, {_when(build)}: {wording.headline(build)}"


def _when(build: Build) -> str:
    commit = build.provenance.get("git", {}).get("commit", "")
    day = f"{datetime.fromtimestamp(build.started_at, UTC):%Y-%m-%d %H:%M}"
    return f"{day}, commit {commit[:8]}" if commit else day


def _row(change: Change) -> tuple[str, ...]:
    before, after = (wording.figure(change.metric, each.value) for each in (change.before, change.after))
    return change.metric, change.artifact, before, after, change_text(change), _note(change)


def change_text(change: Change) -> str:
    """Return the change in words: "+12.1 % [+9.8, +14.0]", "-0.22 points"."""
    if change.ratio is None:
        return _difference(change)
    value, low, high = (_percent(each) for each in change.ratio)
    return f"{value} %" if low == high else f"{value} % [{low}, {high}]"


def _percent(ratio: float) -> str:
    """
    >>> _percent(1.0512), _percent(26.8)
    ('+5.12', '+2580')
    """
    return f"{float(f'{(ratio - 1) * 100:.3g}'):+.12g}"


def _difference(change: Change) -> str:
    if METRICS[change.metric].quantity is SHARE:
        return f"{change.difference * 100:+.3g} points"
    return f"{change.difference:+.3g}"


def _note(change: Change) -> str:
    samples = change.after.detail.get("rows")
    if samples and METRICS[change.metric].of_samples:
        return f"{abs(change.difference) * samples:.0f} of {samples} samples"
    if change.same_file and change.ratio is not None:
        return "the same file" if change.clear else "the same file, within the noise"
    return "" if change.clear else "within the noise"


def _stage(before: StageRecord, after: StageRecord) -> str:
    """Return how a stage's result changed: "prune 2.82 MB -> 2.4 MB, accuracy 99.6 % -> 99.3 %"."""
    size, score = (
        f"{show(old)} -> {show(new)}" if old != new else ""
        for show, old, new in (
            (SIZE.format, before.bytes, after.bytes),
            (partial(wording.figure, after.metric), before.score, after.score),
        )
    )
    known = score if before.metric == after.metric else ""  # of two tasks: numbers with other meanings
    return f"{after.stage} {', '.join(filter(None, (size, known and f'{after.metric} {known}')))}"


def _remarks(comparison: Comparison) -> Iterator[str]:
    same = [f"{each.metric} of {each.artifact}" for each in comparison.changes if each.unchanged]
    if same:
        yield f"unchanged: {', '.join(same)}"
    reasons: dict[str, list[str]] = {}
    for change in comparison.changes:
        if change.why_not:
            reasons.setdefault(change.why_not, []).append(change.metric)
    for reason, metrics in reasons.items():
        yield f"not compared: {', '.join(dict.fromkeys(metrics))}: {reason}"
    for kind, lines in (
        ("recipe", comparison.settings),
        ("stages", [_stage(*pair) for pair in comparison.stages]),
        ("versions", comparison.versions),
        ("files", comparison.files),
    ):
        for line in lines:
            yield f"{kind}: {line}"
    if not comparison.comparable:
        yield "no figure can be compared"
