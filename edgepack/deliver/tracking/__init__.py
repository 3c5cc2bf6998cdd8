"""Tell experiment trackers of a build while it runs.

tracking = Tracking(recipe.trackers, emit)
tracking.start(build, steps)    # once its recipe and device are final
tracking.emit(event)            # passes the event on, and logs the course of trainings
tracking.log_stages(build)      # the curves of stages that are done, cached ones too
tracking.end(build, folder)     # figures, verdicts, reports

Each tracker works in a process of its own (see process.py). What goes wrong there is a warning.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from edgepack.config.plugins import Choice
from edgepack.core.errors import reason
from edgepack.core.events import Emit, Event, Note
from edgepack.core.process import interrupts
from edgepack.deliver.contract import Point
from edgepack.deliver.tracking.contents import LiveCurves, stage_points, summary, tracked
from edgepack.deliver.tracking.process import TrackerProcess
from edgepack.records.build import Build

_START = 15.0  # seconds that the build waits for trackers to start: importing them beside a timing would disturb it
_PATIENCE = 60.0  # seconds that they have at the end of a build, for uploads
_HURRY = 5.0  # ... of an interrupted one: with `_LAST` less than interrupts.py leaves a command
_LAST = 3.0  # seconds that those which took too long have to mark their run as ended
_SILENT = 3.0  # seconds after which a user is told what the build waits for
_POLL = 0.02


class Tracking:
    """The trackers of one build; without any it only passes events on."""

    def __init__(self, trackers: Sequence[Choice], emit: Emit) -> None:
        self._trackers, self._emit = trackers, emit
        self._live, self._stages = LiveCurves(), 0
        self._processes: list[TrackerProcess] = []
        self._at = Event()  # the last one: notes are about its step

    def start(self, build: Build, steps: int) -> None:
        """Start the trackers of a build of so many steps, and wait some seconds until they are ready."""
        self._at = Event(steps=steps)
        for each in self._trackers:
            try:
                self._processes.append(TrackerProcess(each, tracked(build)))
            except OSError as error:  # no memory for another process, for example
                self._note(each.name, f"warning: it does not start: {reason(error)}")
        self._wait(lambda each: each.running and not each.answered, lambda: _START, "starting")

    def emit(self, event: Event) -> None:
        """Pass an event on, log it if it is about a training, and tell what the trackers have said."""
        self._emit(event)
        self._at = event
        if self._processes:
            self._log([*self._live.points(event)])
            self._tell()

    def log_stages(self, build: Build) -> None:
        """Log the curves of the stages that are new in the ledger."""
        if self._processes:
            self._log([*stage_points(build, self._stages)])
            self._stages = len(build.ledger)

    def end(self, build: Build, folder: Path) -> None:
        """Log how the build ended, and wait some time for the trackers, less after an interrupt; then end them."""
        self.log_stages(build)
        for each in self._processes:
            each.end(summary(build, folder))
        self._wait(lambda each: each.running, lambda: _HURRY if interrupts.asked() else _PATIENCE, "storing the run")
        for each in self._processes:
            if each.running:
                self._note(each.name, "warning: it did not store all of the run in time, and was stopped")
        self.close()

    def close(self) -> None:
        """End what still runs, and leave it a moment to mark its run as ended."""
        for each in self._processes:
            each.stop()
        until = time.monotonic() + _LAST
        while any(each.running for each in self._processes) and time.monotonic() < until:
            time.sleep(_POLL)
        while self._processes:
            self._processes.pop().close()

    def _wait(self, busy: Callable[[TrackerProcess], bool], patience: Callable[[], float], doing: str) -> None:
        """Wait while trackers are busy, but not longer than `patience`, which an interrupt shortens."""
        began, silent = time.monotonic(), True
        while waiting := [each.name for each in self._processes if busy(each)]:
            waited = time.monotonic() - began
            if waited > patience():
                break
            if waited > _SILENT and silent:
                silent = False
                self._note(", ".join(waiting), doing)
            time.sleep(_POLL)
            self._tell()
        self._tell()

    def _log(self, points: Sequence[Point]) -> None:
        for each in self._processes if points else ():
            each.log(points)

    def _tell(self) -> None:
        for each in self._processes:
            for text in each.exchange():
                self._note(each.name, text)

    def _note(self, name: str, text: str) -> None:
        self._emit(Note(step=self._at.step, steps=self._at.steps, name=name, text=text))
