"""TensorBoard's event files in a folder: `tensorboard --logdir runs`."""

import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from edgepack.core.frozen import Frozen
from edgepack.deliver.contract import BuildSummary, Point, TrackedBuild, missing


class Config(Frozen):
    folder: str = Field(default="runs", description="each build has a folder in it: runs/<recipe>/<when it started>")


def unavailable(config: Config) -> str:
    return missing("tensorboard", "tensorboard")


def start(config: Config, build: TrackedBuild) -> "Run":
    when = time.strftime("%Y-%m-%d_%H-%M-%S", time.localtime(build.started_at))
    run = Run(Path(config.folder, build.recipe, when))
    run.text("parameters", _table(build.parameters))
    return run


class Run:
    """Written with the package tensorboard alone: torch's SummaryWriter would take a second of processor time."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.folder, self.where = folder, str(folder)
        self.writer = EventFileWriter(str(folder), flush_secs=10)

    def log(self, points: Sequence[Point]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        for point in points:
            named = ((f"{point.curve}/{name}", figure) for name, figure in point.figures.items())
            self._add([Summary.Value(tag=tag, simple_value=figure) for tag, figure in named], point.step)
        self.writer.flush()

    def end(self, summary: BuildSummary) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._add([Summary.Value(tag=name, simple_value=figure) for name, figure in summary.metrics.items()])
        self.text("outcome", _table({"status": summary.status, **summary.tags}))
        for file in summary.files:
            if file.suffix == ".md":
                self.text(file.stem, file.read_text(encoding="utf-8"))
            shutil.copy(file, self.folder)
        self.writer.close()

    def text(self, tag: str, markdown: str) -> None:
        from tensorboard.plugins.text.summary_v2 import text_pb

        self._add(text_pb(tag, markdown).value)

    def _add(self, values: Iterable[Any], step: int = 0) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        self.writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))


def _table(values: Mapping[str, object]) -> str:
    rows = (f"| {name} | {str(value).replace('|', chr(92) + '|')} |\n" for name, value in values.items())
    return "| | |\n|---|---|\n" + "".join(rows)
