"""Print the budgets table and the ledger at the end of a build."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

from edgepack.deliver import wording
from edgepack.records.build import Build

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text


_WIDTH = 115  # columns of a table if the output is not a terminal


def show(build: Build, stream: TextIO, reports: str, *, bundle: bool = True) -> None:
    """Print the end of a build: gains, every budget with its verdict, and the paths of the bundle and the reports.

    `reports` is the folder of the reports, "" if there is none.
    """
    console = _console(stream)
    console.print()
    if build.verdicts:
        console.print(_budgets(build))
    for line in _remarks(build):
        console.print(wording.printable(line), markup=False, soft_wrap=True)
    for warning in wording.warnings(build):
        console.print(wording.printable(warning), style="bold yellow", markup=False, soft_wrap=True)
    if doubts := [wording.printable(doubt) for doubt in wording.doubts(build)]:
        console.print(f"{_counted(len(doubts), reports)}: {doubts[0]}", style="yellow", markup=False, soft_wrap=True)
    if note := wording.reused(build):
        console.print(note, markup=False, soft_wrap=True)
    style = "bold green" if build.exit_code == 0 else "bold red"
    console.print(wording.printable(f"{build.name}: {wording.headline(build)}"), style=style, markup=False)
    if places := _places(build, reports, bundle):
        console.print(places, markup=False, soft_wrap=True)


def _counted(doubts: int, reports: str) -> str:
    where = f" (all in {reports}/report.md)" if reports else ""
    return "1 warning" if doubts == 1 else f"{doubts} warnings{where}, first"


def _places(build: Build, reports: str, bundle: bool) -> str:
    kind = "bundle" if build.exit_code == 0 else "not for release:"
    packed = f"{kind} {reports}/{build.bundle}" if bundle and build.bundle else ""
    return "   ".join(filter(None, (packed, f"report {reports}/report.html" if reports else "")))


def _console(stream: TextIO) -> "Console":
    from rich.console import Console

    return Console(file=stream, width=None if stream.isatty() else _WIDTH, highlight=False, emoji=False)


def _remarks(build: Build) -> Iterator[str]:
    for budgets, why in wording.reasons(build):
        yield f"{budgets}: {why}"
    yield from wording.baselines(build)
    yield from wording.gains(build)
    if build.error:
        yield f"the build did not finish: {build.error}"


def _budgets(build: Build) -> "Table":
    table = _table(("budget", "file", "value", "limit", "headroom", "verdict", "written at"), right=("value",))
    for each in build.verdicts:
        style = {"none": "green", "error": "bold red"}.get(wording.severity(each), "yellow")
        row = (each.budget, each.artifact, wording.value(each), wording.limit(each), wording.headroom(each))
        table.add_row(*map(_cell, row), _cell(wording.mark(each), style), _cell(each.place))
    return table


def _table(columns: Sequence[str], right: Sequence[str]) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def _cell(text: str, style: str = "") -> "Text":
    """Return the text without markup: [red] is printed literally."""
    from rich.text import Text

    return Text(wording.printable(text), style=style)


def ledger(build: Build, stream: TextIO) -> None:
    """Print what every stage cost and gained."""
    console = _console(stream)
    numbers = ("parameters", "MACs", "bytes", "of the model", build.metric, "change", "seconds")
    table = _table(("stage", *numbers, ""), right=numbers)
    start = build.ledger[0].bytes if build.ledger else 1
    before = None
    for record in build.ledger:
        change = "" if before is None else wording.score_change(record.metric, before, record.score)
        before = record.score
        row = (
            record.stage,
            f"{record.parameters:,}",
            f"{record.macs:,}",
            f"{record.bytes:,}",
            f"{record.bytes / (start or 1):.1%}",
            wording.score(record.metric, record.score),
            change,
            f"{record.seconds:.1f}",
            "reused" if record.reused else "",
        )
        table.add_row(*map(_cell, row))
    console.print(table)
    for record in build.ledger:
        for note in record.notes:
            console.print(wording.printable(f"{record.stage}: {note}"), markup=False, soft_wrap=True)
