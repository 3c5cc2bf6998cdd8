"""Define what a report must provide, and write reports."""

from abc import abstractmethod
from pathlib import Path
from typing import Any, Protocol

from edgepack.config import plugins
from edgepack.core.errors import RecipeError, StageError
from edgepack.core.files import disk_error, write_atomic
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
