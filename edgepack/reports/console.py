"""What a person sees: progress while a build runs, and the table at its end. Makes no file."""

import dataclasses
import io
import json
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from edgepack.events import (
    BuildStarted,
    Event,
    Note,
    StepCached,
    StepFailed,
    StepFinished,
    StepProgress,
    StepStarted,
)
from edgepack.reports import _words as words
from edgepack.result import Build

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_WIDTH = 115  # columns of a table where there is no terminal
_QUIET = 15.0  # seconds between two lines of progress where there is no terminal


class JsonLines:
    """One JSON object a line, for programs: {"event": "StepFinished", "step": 3, ...}."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __call__(self, event: Event) -> None:
        _say(self, json.dumps({"event": type(event).__name__, **dataclasses.asdict(event)}))

    def close(self) -> None:
        """Nothing to tidy: every line is complete."""


def _say(watcher: "JsonLines | Plain", line: str) -> None:
    """Write one line; when nobody reads on (`edgepack build | head`) the build goes on and keeps its verdict."""
    try:
        watcher.stream.write(f"{line}\n")
        watcher.stream.flush()
    except BrokenPipeError:
        watcher.stream = io.StringIO()


class Plain:
    """Plain lines, for logs: one when a step starts, some while it runs, one when it ends."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.told = stream, 0.0

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepStarted):
            self.told = time.monotonic()
        if isinstance(event, StepProgress):
            if time.monotonic() - self.told < _QUIET:
                return
            self.told = time.monotonic()
        if text := _text(event):
            _say(self, text)

    def close(self) -> None:
        """Nothing to tidy: every line is complete."""


class Live:
    """A terminal: what is done stays as a line, what runs now is a bar with the time left."""

    def __init__(self, console: "Console") -> None:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn

        self.console = console
        self.bar: Progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            transient=True,
            redirect_stdout=False,  # what libraries print belongs into build.log
            redirect_stderr=False,
        )
        self.bar.start()
        self.task: Any = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepStarted):
            self._clear()
            self.task = self.bar.add_task(f"{_place(event)} {event.name}", total=None, left="")
        elif isinstance(event, StepProgress):
            self._advance(event)
        elif text := _text(event):
            if isinstance(event, StepFinished | StepFailed):
                self._clear()
            self.console.print(text, style=_style(event), highlight=False, markup=False)

    def _advance(self, event: StepProgress) -> None:
        if self.task is None:
            self.task = self.bar.add_task("", total=None, left="")
        left = f"{words.clock(event.seconds_left)} left" if event.seconds_left is not None else ""
        total = event.total if event.done or event.total > 1 else None
        text = f"{_place(event)} {event.name}: {event.doing}"
        self.bar.update(self.task, description=text, completed=event.done, total=total, left=left)

    def _clear(self) -> None:
        if self.task is not None:
            self.bar.remove_task(self.task)
            self.task = None

    def close(self) -> None:
        self._clear()
        self.bar.stop()


Watcher = JsonLines | Plain | Live


def watcher(stream: TextIO, *, as_json: bool) -> Watcher:
    """How events look on this stream: JSON lines when asked for, a live display on a terminal, else plain lines."""
    if as_json:
        return JsonLines(stream)
    if not stream.isatty():
        return Plain(stream)
    from rich.console import Console

    return Live(Console(file=stream, emoji=False))


def show(build: Build, stream: TextIO, reports: str, *, bundle: bool = True) -> None:
    """The end of a build: what was gained, every budget with its verdict, and where the bundle and the reports lie.

    `reports` is the folder of the reports that say the same, "" where there is none.
    """
    console = _console(stream)
    console.print()
    if build.verdicts:
        console.print(_budgets(build))
    for line in _remarks(build):
        console.print(words.printable(line), markup=False, soft_wrap=True)
    for warning in words.warnings(build):
        console.print(words.printable(warning), style="bold yellow", markup=False, soft_wrap=True)
    if doubts := [words.printable(doubt) for doubt in words.doubts(build)]:
        console.print(f"{_counted(len(doubts), reports)}: {doubts[0]}", style="yellow", markup=False, soft_wrap=True)
    if note := words.reused(build):
        console.print(note, markup=False, soft_wrap=True)
    style = "bold green" if build.exit_code == 0 else "bold red"
    console.print(words.printable(f"{build.name}: {words.headline(build)}"), style=style, markup=False)
    if places := _places(build, reports, bundle):
        console.print(places, markup=False, soft_wrap=True)


def _counted(doubts: int, reports: str) -> str:
    where = f", all in {reports}/report.md" if reports else ""
    return "1 doubt" if doubts == 1 else f"{doubts} doubts{where}, the first"


def _places(build: Build, reports: str, bundle: bool) -> str:
    kind = "bundle" if build.exit_code == 0 else "not for release:"
    packed = f"{kind} {reports}/{build.bundle}" if bundle and build.bundle else ""
    return "   ".join(filter(None, (packed, f"report {reports}/report.html" if reports else "")))


def _console(stream: TextIO) -> "Console":
    from rich.console import Console

    return Console(file=stream, width=None if stream.isatty() else _WIDTH, highlight=False, emoji=False)


def _remarks(build: Build) -> Iterator[str]:
    for budgets, why in words.reasons(build):
        yield f"{budgets}: {why}"
    yield from words.baselines(build)
    yield from words.gains(build)
    if build.error:
        yield f"the build did not finish: {build.error}"


def _budgets(build: Build) -> "Table":
    table = _table(("budget", "file", "value", "limit", "headroom", "verdict", "written at"), right=("value",))
    for each in build.verdicts:
        style = {"none": "green", "error": "bold red"}.get(words.severity(each), "yellow")
        row = (each.budget, each.artifact, words.value(each), words.limit(each), words.headroom(each))
        table.add_row(*map(_cell, row), _cell(words.mark(each), style), _cell(each.place))
    return table


def _table(columns: Sequence[str], right: Sequence[str]) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def _cell(text: str, style: str = "") -> "Text":
    """A name is no markup: [red] is what it says."""
    from rich.text import Text

    return Text(words.printable(text), style=style)


def ledger(build: Build, stream: TextIO) -> None:
    """What every stage cost and gained."""
    console = _console(stream)
    numbers = ("parameters", "MACs", "bytes", "of the model", "accuracy", "change", "seconds")
    table = _table(("stage", *numbers, ""), right=numbers)
    start = build.ledger[0].bytes if build.ledger else 1
    before = None
    for record in build.ledger:
        change = "" if before is None else f"{(record.accuracy - before) * 100:+.2f}"
        before = record.accuracy
        row = (
            record.stage,
            f"{record.parameters:,}",
            f"{record.macs:,}",
            f"{record.bytes:,}",
            f"{record.bytes / (start or 1):.1%}",
            f"{record.accuracy:.2%}",
            change,
            f"{record.seconds:.1f}",
            "reused" if record.reused else "",
        )
        table.add_row(*map(_cell, row))
    console.print(table)
    for record in build.ledger:
        for note in record.notes:
            console.print(words.printable(f"{record.stage}: {note}"), markup=False, soft_wrap=True)


def _text(event: Event) -> str:
    match event:
        case BuildStarted():
            return f"building {event.recipe} for {event.device}"
        case StepStarted():
            return f"{_place(event)} {event.name}: starts ({event.why})"
        case StepProgress():
            left = f", {words.clock(event.seconds_left)} left" if event.seconds_left is not None else ""
            return f"{_place(event)} {event.name}: {event.doing}, {event.done} of {event.total}{left}"
        case StepFinished():
            return f"{_place(event)} {event.name}: {event.result} ({words.clock(event.seconds)})"
        case StepCached():
            return f"{_place(event)} {event.name}: {event.result} (cached {event.key[:6]})"
        case StepFailed():
            return f"{_place(event)} {event.name}: failed"
        case Note():
            return f"{_place(event)} {event.name}: {event.text}"
    return ""


def _style(event: Event) -> str | None:
    return "dim" if isinstance(event, StepCached) else "red" if isinstance(event, StepFailed) else None


def _place(event: Event) -> str:
    return f"[{event.step}/{event.steps}]"
