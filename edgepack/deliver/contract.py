"""A report is a module with

    FILE                     the name of the file it makes in dist/<recipe>/
    render(build) -> str     its content, from the build alone

Two make no file: `console` shows events while a build runs and the table at its end, `github` tells a job of GitHub
Actions. A figure whose evidence is not "measured" says so beside itself in all of them (_words.value).
"""

from pathlib import Path
from typing import Any, Protocol

from edgepack.config import plugins
from edgepack.core.errors import RecipeError
from edgepack.core.files import disk_error, write_atomic
from edgepack.records.build import Build


class Report(Protocol):
    FILE: str

    def render(self, build: Build) -> str: ...


def write_reports(build: Build, folder: Path) -> None:
    for report in _with_files():
        write_atomic(folder / report.FILE, report.render(build).encode())


def report_again(build: Build, reports: Path, judged: Path) -> Path:
    """Write the reports of the build, judged again from the file `judged`, to a folder of its name in `reports`.

    What the build itself left stays what it said then. Raises RecipeError and DeviceError.
    """
    folder = reports / build.name
    real = folder.resolve()
    if real.parent != reports.resolve() or real == judged.parent.resolve():
        raise RecipeError(f"{folder} is no place for reports of {judged}", "name another folder with --reports")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_reports(build, folder)
    except OSError as error:
        raise disk_error(error, folder) from error
    return folder


def remove_reports(folder: Path) -> None:
    for report in _with_files():
        (folder / report.FILE).unlink(missing_ok=True)


def _with_files() -> list[Any]:
    modules = (plugins.load("reports", name) for name in plugins.names("reports"))
    return [module for module in modules if getattr(module, "FILE", "")]
