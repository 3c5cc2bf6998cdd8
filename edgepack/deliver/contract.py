"""Define what a report must provide, and write reports."""

from abc import abstractmethod
from pathlib import Path
from typing import Any, Protocol

from edgepack.config import plugins
from edgepack.core.errors import RecipeError
from edgepack.core.files import disk_error, write_atomic
from edgepack.records.build import Build


class Report(Protocol):
    """Tells of a build in one file of dist/<recipe>/. Stands in deliver/reports/; everything must be defined.

    A figure whose evidence is not "measured" says so beside itself: `wording.value` does. A whole report:

        "How a build ended, in one line."

        FILE = "outcome.txt"


        def render(build):
            return f"{build.name}: exit code {build.exit_code}\\n"
    """

    FILE: str  # the name of the file

    @abstractmethod
    def render(self, build: Build) -> str:
        """The file's content, made of the build alone."""


def write_reports(build: Build, folder: Path) -> None:
    for report in _reports():
        write_atomic(folder / report.FILE, report.render(build).encode())


def report_again(build: Build, reports: Path, judged: Path) -> Path:
    """Write the reports of the build, judged again from the file `judged`, to a folder of its name in `reports`.

    What the build itself left stays what it said then. Raises RecipeError and DeviceError.
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
