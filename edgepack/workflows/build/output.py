"""The folder that a build writes to: one build at a time, nothing half done."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgepack.config.recipe import Recipe
from edgepack.core.errors import EdgepackError, ExitCode
from edgepack.core.events import Emit, Note
from edgepack.core.files import disk_error
from edgepack.deliver import bundle
from edgepack.deliver.contract import remove_reports, write_reports
from edgepack.records.build import Build


@contextmanager
def alone(folder: Path, emit: Emit) -> Iterator[None]:
    """Lock the folder: two builds into one would mix their files. The lock leaves no file."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                emit(Note(step=1, steps=1, name="build", text=f"waiting for another build into {folder}"))
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def output_folder(dist: Path, recipe: Recipe) -> Path:
    """Return `dist/<recipe>/`, created if needed."""
    folder = dist / recipe.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise disk_error(error, folder) from error
    return folder


def withdraw(result: Build, folder: Path) -> None:
    """Remove an earlier build's results before work begins: nothing outdated can be shipped if this one fails."""
    bundle.remove(folder, result.name)
    remove_reports(folder)
    result.save(folder / "build.json")


def record_failure(result: Build, error: BaseException, folder: Path) -> Build:
    interrupted = ExitCode.INTERRUPTED if isinstance(error, KeyboardInterrupt) else ExitCode.BUG
    code = error.code if isinstance(error, EdgepackError) else interrupted
    over = {"exit_code": int(code), "error": str(error) or "interrupted", "finished_at": round(time.time(), 3)}
    failed = result.model_copy(update=over)
    with suppress(OSError):  # the disk may be the cause; the original error is reported anyway
        withdraw(failed, folder)
    with suppress(Exception):  # a mistake in a report must not hide the error
        write_reports(failed, folder)
    return failed
