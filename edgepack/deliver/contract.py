"""Define what a report and a tracker must provide, and write reports."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from edgepack.config import plugins
from edgepack.core.errors import RecipeError, StageError, not_installed
from edgepack.core.files import disk_error, write_atomic
from edgepack.core.frozen import Frozen, Moment
from edgepack.records.build import Build


class Report(Protocol):
    """Describes a build in one file of dist/<recipe>/. Lives in deliver/reports/; everything must be defined.

    records/build.py defines what a build contains. A figure whose evidence is not "measured" must say so next to it:
    use `wording.value` for a verdict, `wording.measured` for a measurement. `edgepack gate RECIPE --reports DIR` writes
    the report without a build. A whole report:

        "How a build ended, in one line."

        FILE = "outcome.txt"


        def render(build):
            return f"{build.name}: exit code {build.exit_code}\\n"
    """

    FILE: str  # the name of the file

    @abstractmethod
    def render(self, build: Build) -> str:
        """Return the content of the file, made from the build alone."""


class TrackedBuild(Frozen):
    """A build that begins. `parameters` are its recipe and device: {"recipe.stages.0.train.epochs": 8}."""

    recipe: str
    started_at: Moment
    parameters: dict[str, str | int | float | bool]
    tags: dict[str, str]  # "git.commit", "recipe_file", ...


class Point(Frozen):
    """Figures of a curve at one step.

    Curves are "<stage>/<training>/steps" while it trains, "<stage>/<training>/epochs" when the stage is done, and
    "stages": the model after each stage. Names have letters, digits, blanks and any of `_-.:/()`.
    """

    curve: str
    step: int  # from 0
    figures: dict[str, float]  # "loss", "learning_rate", ...


class BuildSummary(Frozen):
    """How a build ended: "failed" if its exit code is neither 0 nor that of an interrupt.

    Of a build that was killed no more may be known than that. Names are like those of curves.
    """

    status: Literal["finished", "failed", "killed"]
    metrics: dict[str, float] = {}  # "files/onnx/latency.p50", "budgets/onnx/size/limit", ... in base units
    tags: dict[str, str] = {}  # "verdicts/onnx/size", "summary", "error", ...
    files: tuple[Path, ...] = ()  # report.html and report.md


class Run(Protocol):
    """The run of a tracker that one build is logged to.

    It may raise anything: the user is told, and the build goes on.
    """

    where: str  # where a user finds it: an address or a folder

    @abstractmethod
    def log(self, points: Sequence[Point]) -> None:
        """Log points, in the order in which they arose; several that came while a slow tracker was busy."""

    @abstractmethod
    def end(self, summary: BuildSummary) -> None:
        """Log how the build ended, with its files, and wait until all is stored."""


class Tracker(Protocol):
    """Logs builds to an experiment tracker while they run. Lives in deliver/trackers/.

    It works in a process of its own, which imports what it likes: nothing that it does delays or ends a build, or
    changes its result. Secrets come from the environment, never from a recipe. A whole tracker:

        "Lines of JSON in a file for each build."

        import json
        from pathlib import Path

        from edgepack.core.frozen import Frozen


        class Config(Frozen):
            folder: str = "runs"


        class Lines:
            def __init__(self, path):
                path.parent.mkdir(parents=True, exist_ok=True)
                self.where, self.file = str(path), path.open("a", buffering=1)

            def log(self, points):
                for point in points:
                    print(json.dumps([point.curve, point.step, point.figures]), file=self.file)

            def end(self, summary):
                print(json.dumps([summary.status, summary.metrics, summary.tags]), file=self.file)
                self.file.close()


        def start(config, build):
            return Lines(Path(config.folder, f"{build.recipe}.jsonl"))
    """

    Config: type[Frozen]  # its settings in a recipe

    @abstractmethod
    def start(self, config: Any, build: TrackedBuild) -> Run:
        """Begin a run for a build."""

    def unavailable(self, config: Any) -> str:
        """Say why it cannot be used on this computer, or "". Fast, and without importing its library."""
        return ""


def missing(package: str, extra: str) -> str:
    """Say that a tracker's package is not installed, or ""."""
    from importlib.util import find_spec

    return "" if find_spec(package) else not_installed(package, extra)


def write_reports(build: Build, folder: Path) -> None:
    """Write all reports. Raises StageError for the first that fails, after writing the others."""
    failed: list[tuple[str, Exception]] = []
    for report in _reports():
        try:
            content = report.render(build)
        except Exception as error:
            import logging

            logging.getLogger(__name__).exception("the report %s failed", report.__name__)
            failed.append((report.__name__.rpartition(".")[2], error))
        else:
            write_atomic(folder / report.FILE, content.encode())
    for name, cause in failed:
        message = f"the report '{name}' failed: {type(cause).__name__}: {cause}"
        raise StageError(message, "build.log has the traceback") from cause


def report_again(build: Build, reports: Path, judged: Path) -> Path:
    """Write the reports of a build judged again from the file `judged`, into `reports`/<build name>.

    The reports of the build itself are not changed. Raises RecipeError and DeviceError.
    """
    folder = reports / build.name
    real = folder.resolve()
    if real.parent != reports.resolve() or real == judged.parent.resolve():
        raise RecipeError(f"cannot write reports of {judged} to {folder}", "name another folder with --reports")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_reports(build, folder)
    except OSError as error:
        raise disk_error(error, folder) from error
    return folder


def remove_reports(folder: Path) -> None:
    for report in _reports():
        (folder / report.FILE).unlink(missing_ok=True)


def _reports() -> list[Any]:
    return [plugins.load("reports", name) for name in plugins.names("reports")]
