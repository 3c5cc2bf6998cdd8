"""Print the history of a recipe on a device: one row per build and file, the newest last."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import TextIO

from edgepack.core.metrics import METRICS
from edgepack.core.units import SHARE
from edgepack.deliver import wording
from edgepack.judge.history import Figure, HistoryEntry
from edgepack.records.differences import differences

_SHOWN = ("size", "latency.p50")  # and the metric of the task


@dataclass(frozen=True, kw_only=True)
class Row:
    """A file of a build. `remarks` say where a new series begins, and which values changed beyond their intervals."""

    line: HistoryEntry
    artifact: str
    times: int  # number of consecutive builds with the same result
    remarks: tuple[str, ...]

    def cells(self) -> tuple[str, ...]:
        when = f"{datetime.fromtimestamp(self.line.started_at, UTC):%Y-%m-%d %H:%M}"
        figures = (
            wording.figure(metric, _value(self.line.find(metric, self.artifact)))
            for metric in (*_SHOWN, self.line.metric)
        )
        repeated = (f"the same {self.times} times",) if self.times > 1 else ()
        return (
            when,
            self.line.commit[:8],
            self.artifact,
            *figures,
            str(self.line.exit_code),
            "; ".join((*self.remarks, *repeated)),
        )


def show(lines: Sequence[HistoryEntry], stream: TextIO, last: int) -> None:
    """Print one table for each recipe and device, with its last builds."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=stream, width=None if stream.isatty() else 140, highlight=False, emoji=False)
    for recipe, device in dict.fromkeys((line.recipe, line.device) for line in lines):
        console.print(f"{recipe} on {device}", style="bold", markup=False)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        own = [line for line in lines if (line.recipe, line.device) == (recipe, device)]
        figures = (*_SHOWN, own[-1].metric)
        for column in ("when", "commit", "file", *figures, "exit code", ""):
            table.add_column(column, justify="right" if column in figures else "left", overflow="fold")
        found = rows(own)
        kept = {id(row.line) for row in found}
        for row in found if len(kept) <= last else _newest(found, last):
            table.add_row(*(Text(cell) for cell in row.cells()))
        console.print(table)
        console.print()


def _newest(found: Sequence[Row], last: int) -> list[Row]:
    lines = list(dict.fromkeys(row.line.started_at for row in found))[-last:]
    return [row for row in found if row.line.started_at in lines]


def rows(lines: Sequence[HistoryEntry]) -> list[Row]:
    """Return a row for each file; the last of consecutive builds with equal results stands for all of them."""
    found: list[Row] = []
    before: HistoryEntry | None = None
    for _, same in groupby(sorted(lines, key=lambda line: line.started_at), key=_outcome):
        builds = list(same)
        line = builds[-1]
        for artifact in line.artifacts:
            tried = (f"--set {each}" for each in line.overrides)
            remarks = (*tried, *(_remarks(before, line, artifact) if before else ()))
            found.append(Row(line=line, artifact=artifact, times=len(builds), remarks=remarks))
        before = line
    return found


def _outcome(line: HistoryEntry) -> object:
    figures = tuple((each.metric, each.artifact, each.value, each.taken) for each in line.figures)
    return line.exit_code, line.overrides, line.artifacts, line.versions, figures


def _remarks(before: HistoryEntry, line: HistoryEntry, artifact: str) -> Iterator[str]:
    yield from _breaks(before, line, artifact)
    for metric in (*_SHOWN, line.metric):
        old, new = before.find(metric, artifact), line.find(metric, artifact)
        if old and new and old.series == new.series and (new.low > old.high or new.high < old.low):
            yield f"{metric} {_step(old, new)}"


def _breaks(before: HistoryEntry, line: HistoryEntry, artifact: str) -> Iterator[str]:
    """Yield where values of a metric cannot be compared any more, and why."""
    versions = list(map(str, differences(before.versions, line.versions)))
    if versions:
        yield f"new versions: {', '.join(versions)}"
    if _apart(before, line, "latency.p50", artifact):
        yield f"new series: {', '.join(map(str, differences(before.where, line.where))) or 'another processor'}"
    if _apart(before, line, line.metric, artifact):
        yield "new series: other test data"


def _apart(before: HistoryEntry, line: HistoryEntry, metric: str, artifact: str) -> bool:
    old, new = before.find(metric, artifact), line.find(metric, artifact)
    return bool(old and new and old.series != new.series)


def _step(old: Figure, new: Figure) -> str:
    if new.metric not in _SHOWN:
        change = wording.score_change(new.metric, old.value, new.value, ".3g")
        return f"{change} points" if new.metric in METRICS and METRICS[new.metric].quantity is SHARE else change
    return f"{(new.value / old.value - 1) * 100:+.3g} %" if old.value else "from 0"


def _value(figure: Figure | None) -> float | None:
    return figure.value if figure else None
