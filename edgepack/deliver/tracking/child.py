"""The process of one tracker: it reads messages, calls the plugin, and tells how that went. See process.py."""

import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import NoReturn

from edgepack.config import plugins
from edgepack.core.errors import reason
from edgepack.core.frozen import Json
from edgepack.core.process import interrupts
from edgepack.core.provenance import without_secrets
from edgepack.deliver.contract import BuildSummary, Point, Run, TrackedBuild

_CHUNK = 1 << 20


def main(output: int, patience: float) -> None:
    """Track one build; messages go to the file descriptor `output`. When the build is gone, end within `patience`."""
    os.set_inheritable(output, False)
    Thread(target=_end_alone, args=(patience,), daemon=True).start()
    signal.signal(signal.SIGTERM, _stop)
    try:
        _track(_Told(output))
    except _StoppedError:
        interrupts.end()  # with all that the tracker started


def _end_alone(patience: float) -> None:
    """End this process some time after the build is gone, whatever its tracker waits for then."""
    gone = select.poll()
    gone.register(0, 0)  # no event but the end of the input, even if there are messages in it
    gone.poll()
    time.sleep(patience)
    interrupts.end()


class _StoppedError(BaseException):
    """The build does not wait any longer. It is no Exception, so that libraries do not handle it as theirs."""


def _stop(number: int, frame: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _StoppedError


def _track(told: "_Told") -> None:
    batches = _batches()
    first = next(batches, None)
    run: Run | None = None
    if first:
        with told.failures("the build goes on without it"):
            run = _started(first.pop(0))
    if first is None or run is None:
        return
    told(f"logging to {run.where}")
    try:
        summary = _log(run, chain([first], batches), told)
    except _StoppedError:
        with suppress(Exception):
            run.end(BuildSummary(status="killed"))
        raise
    with told.failures("its run may be incomplete"), TemporaryDirectory() as folder:
        run.end(_public(summary, Path(folder)))


def _public(summary: BuildSummary, folder: Path) -> BuildSummary:
    """Return the summary with copies of its files in which secrets are left out."""
    for file in summary.files:
        (folder / file.name).write_text(without_secrets(file.read_text(encoding="utf-8")), encoding="utf-8")
    return summary.model_copy(update={"files": tuple(folder / file.name for file in summary.files)})


class _Told:
    """Tells the build what a user must know. Of failures with the same result only the first: others follow from it."""

    def __init__(self, output: int) -> None:
        self._output, self._results = output, set[str]()

    def __call__(self, text: str) -> None:
        os.write(self._output, json.dumps(without_secrets(text)).encode() + b"\n")

    @contextmanager
    def failures(self, result: str) -> Iterator[None]:
        """Turn an error into a warning; its traceback is printed, into build.log."""
        try:
            yield
        except (Exception, SystemExit) as error:
            if result not in self._results:
                self._results.add(result)
                sys.stderr.write(without_secrets("".join(traceback.format_exception(error))))
                self(f"warning: {result}: {reason(error)}")


def _started(message: Json) -> Run:
    ((name, settings),) = message["tracker"].items()
    module = plugins.load("trackers", name)
    config = module.Config.model_validate_json(json.dumps(settings))
    run: Run = module.start(config, TrackedBuild.model_validate_json(json.dumps(message["build"])))
    return run


def _log(run: Run, batches: Iterable[list[Json]], told: _Told) -> BuildSummary:
    """Log points until the build ends, and return how it ended."""
    for messages in batches:
        if points := [Point.model_validate(each["point"]) for each in messages if "point" in each]:
            with told.failures("some points are lost"):
                run.log(points)
        for each in messages:
            if "end" in each:
                return BuildSummary.model_validate_json(json.dumps(each["end"]))
    return BuildSummary(status="killed")  # the build is gone


def _batches() -> Iterator[list[Json]]:
    """Yield the messages that have come, at least one at a time, until the input ends."""
    rest = b""
    while part := os.read(0, _CHUNK):
        *lines, rest = (rest + part).split(b"\n")
        if lines:
            yield [json.loads(line) for line in lines]
