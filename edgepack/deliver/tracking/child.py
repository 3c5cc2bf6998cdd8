"""The process of one tracker: it reads messages, calls the plugin, and tells how that went. See process.py."""

import json
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain

from edgepack.config import plugins
from edgepack.core.errors import reason
from edgepack.core.frozen import Json
from edgepack.core.provenance import without_secrets
from edgepack.deliver.contract import BuildSummary, Point, Run, TrackedBuild

_CHUNK = 1 << 20


def main() -> None:
    output = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no message
    told = _Told(output)
    batches = _batches()
    first = next(batches, None)
    run: Run | None = None
    if first:
        with told.failures("the build goes on without it"):
            run = _started(first.pop(0))
    if first is None or run is None:
        return
    told(f"logging to {run.where}")
    summary = _log(run, chain([first], batches), told)
    with told.failures("its run may be incomplete"):
        run.end(summary)


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
