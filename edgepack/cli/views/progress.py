"""Show the progress of a build: live on a terminal, plain lines in CI, or JSON lines."""

import dataclasses
import io
import json
import time
from typing import TYPE_CHECKING, Any, TextIO

from edgepack.core.events import (
    BuildStarted,
    Event,
    Note,
    StepCached,
    StepFailed,
    StepFinished,
    StepProgress,
    StepStarted,
)
from edgepack.deliver import wording

if TYPE_CHECKING:
    from rich.console import Console

_QUIET = 15.0  # seconds between two lines of progress if the output is not a terminal


class JsonLines:
    """Prints events as JSON, one object per line, for programs: {"event": "StepFinished", "step": 3, ...}."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __call__(self, event: Event) -> None:
        _say(self, json.dumps({"event": type(event).__name__, **dataclasses.asdict(event)}))

    def close(self) -> None:
        """Do nothing: every line is complete."""


def _say(watcher: "JsonLines | Plain", line: str) -> None:
    """Write one line; if nobody reads it (`edgepack build | head`), the build continues and keeps its verdict."""
    try:
        watcher.stream.write(f"{line}\n")
        watcher.stream.flush()
    except BrokenPipeError:
        watcher.stream = io.StringIO()


class Plain:
    """Prints plain lines for logs: when a step starts, sometimes while it runs, and when it ends."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.reported = stream, 0.0

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepStarted):
            self.reported = time.monotonic()
        if isinstance(event, StepProgress):
            if time.monotonic() - self.reported < _QUIET:
                return
            self.reported = time.monotonic()
        if text := _text(event):
            _say(self, text)

    def close(self) -> None:
        """Do nothing: every line is complete."""


class Live:
    """Shows a build on a terminal: a line for each finished step, and a bar with the time left for the current one."""

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
            redirect_stdout=False,  # output of libraries goes to build.log
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
        left = f"{wording.clock(event.seconds_left)} left" if event.seconds_left is not None else ""
        total = event.total if event.done or event.total > 1 else None
        text = f"{_place(event)} {event.name}: {event.doing}{_course(event)}"
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
    """Return the display for this stream: JSON lines if requested, live on a terminal, else plain lines."""
    if as_json:
        return JsonLines(stream)
    if not stream.isatty():
        return Plain(stream)
    from rich.console import Console

    return Live(Console(file=stream, emoji=False))


def _text(event: Event) -> str:
    match event:
        case BuildStarted():
            return f"building {event.recipe} for {event.device}"
        case StepStarted():
            return f"{_place(event)} {event.name}: starts ({event.why})"
        case StepProgress():
            left = f", {wording.clock(event.seconds_left)} left" if event.seconds_left is not None else ""
            return f"{_place(event)} {event.name}: {event.doing}, {event.done} of {event.total}{left}{_course(event)}"
        case StepFinished():
            return f"{_place(event)} {event.name}: {event.result} ({wording.clock(event.seconds)})"
        case StepCached():
            return f"{_place(event)} {event.name}: {event.result} (cached {event.key[:6]})"
        case StepFailed():
            return f"{_place(event)} {event.name}: failed"
        case Note():
            return f"{_place(event)} {event.name}: {event.text}"
    return ""


def _course(event: StepProgress) -> str:
    """Return how a training goes, or ""."""
    loss = f", loss {event.loss:.3g}" if event.loss is not None else ""
    return loss + (f", {wording.figure(event.metric, event.score)} on validation" if event.score is not None else "")


def _style(event: Event) -> str | None:
    return "dim" if isinstance(event, StepCached) else "red" if isinstance(event, StepFailed) else None


def _place(event: Event) -> str:
    return f"[{event.step}/{event.steps}]"
