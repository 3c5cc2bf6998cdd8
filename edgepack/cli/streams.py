"""Keep standard output and error apart from what libraries print, and survive readers that stop reading."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, TextIO

import click

from edgepack.core.errors import EdgepackError


class Screen:
    """The user's output and error streams, separated from what libraries print while a build runs."""

    def __init__(self) -> None:
        self.out, self.err = sys.stdout, sys.stderr
        self._kept: tuple[int, ...] = ()

    def __enter__(self) -> "Screen":
        try:
            self._kept = tuple(os.dup(stream.fileno()) for stream in (sys.stdout, sys.stderr))
        except (OSError, AttributeError, ValueError):  # captured in memory, as in tests: nothing to separate
            return self
        out, err = self._kept
        self.out, self.err = _tolerant(os.dup(out), "utf-8"), _tolerant(os.dup(err), "utf-8", counts=False)
        return self

    def send_libraries_to(self, log: Path) -> None:
        """Redirect file descriptors 1 and 2 to this file from now on."""
        if self._kept:
            target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            for fd in (1, 2):
                os.dup2(target, fd)
            os.close(target)

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is not None and self._kept and not isinstance(error, SystemExit):
            sys.excepthook(type(error), error, error.__traceback__)  # into the log
        try:
            for stream in {self.out, self.err, sys.stdout, sys.stderr}:
                stream.flush()
        finally:
            for fd, copy in zip((1, 2), self._kept, strict=False):
                os.dup2(copy, fd)
                os.close(copy)


class TolerantFile(io.FileIO):
    """A file that drops output nobody reads any more, as in `edgepack gate x | head -1`, so that the verdict stands.

    On a broken pipe, rich and click would exit before the exit code is known. On a full disk, a build would blame its
    store. Output that could not be written is reported at the end.
    """

    lost: ClassVar[list[OSError]] = []  # errors of writing to standard output
    counts = True

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            return memoryview(data).nbytes
        except OSError as error:
            if self.counts:
                self.lost.append(error)
            return memoryview(data).nbytes


def _tolerant(fd: int, encoding: str, errors: str = "strict", *, lines: bool = False, counts: bool = True) -> TextIO:
    file = TolerantFile(fd, "w", closefd=False)
    file.counts = counts
    return io.TextIOWrapper(io.BufferedWriter(file), encoding, errors, line_buffering=lines)


def _of(stream: Any, *, counts: bool) -> TextIO:
    """Return the stream as one that ignores broken pipes; streams in memory, as in tests, are returned unchanged."""
    if stream is None:  # closed before the start: `edgepack gate x >&-`
        return Path(os.devnull).open("w", encoding="utf-8")
    try:
        errors = stream.errors if stream.encoding.lower() == "utf-8" else "backslashreplace"  # for µs in ASCII
        return _tolerant(stream.fileno(), stream.encoding, errors, lines=stream.line_buffering, counts=counts)
    except (OSError, AttributeError, ValueError):
        return stream  # type: ignore[no-any-return]


@contextmanager
def tolerant_streams() -> Iterator[None]:
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _of(sys.stdout, counts=True), _of(sys.stderr, counts=False)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        sys.stdout, sys.stderr = before


def annotate(error: EdgepackError, stream: TextIO, folder: Path | None = None) -> None:
    """Show an error at the files of a pull request, if this is a job of GitHub Actions."""
    if os.environ.get("GITHUB_ACTIONS") == "true":
        from edgepack.cli.views import github

        with suppress(OSError):
            github.tell_failure(error, stream, folder)


def tell(text: str, stream: TextIO | None = None) -> None:
    """Print to the error stream; if nobody reads it, the exit code stays the same."""
    with suppress(OSError):
        click.echo(text, file=stream or sys.stderr)
