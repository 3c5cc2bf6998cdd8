"""The process in which one tracker works, seen from the build, which waits for it at the beginning and at the end only.

Messages to it and back are lines of JSON in two pipes; what it prints goes to build.log. It has a session of its own,
so that Ctrl-C in a terminal does not reach it: it ends when told so, or when its input ends, because the build is gone.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import BinaryIO

from edgepack.config.plugins import Choice
from edgepack.core.frozen import Json
from edgepack.core.process import interrupts
from edgepack.deliver.contract import BuildSummary, Point, TrackedBuild

# As in this process, user code and all; a fresh one would put the current folder before the packages.
_START = (
    "import json, sys; sys.path[:], *arguments = json.loads(sys.argv.pop()); "
    "from edgepack.deliver.tracking.child import main; main(*arguments)"
)
_MOST = 16_000_000  # bytes that wait for a tracker which does not read; points beyond are dropped
_CHUNK = 65_536
_ALONE = 60.0  # seconds that a tracker has to end its run when the build is gone


class TrackerProcess:
    """Raises OSError if it cannot be started."""

    def __init__(self, choice: Choice, build: TrackedBuild) -> None:
        self.name = choice.name
        self._process, self._output = _started()
        assert self._process.stdin is not None
        self._input = self._process.stdin
        os.set_blocking(self._input.fileno(), False)
        os.set_blocking(self._output.fileno(), False)
        self._unsent, self._said = bytearray(), bytearray()
        self.answered = False
        self._dropped, self._warned = False, set[str]()
        self._send({"tracker": {choice.name: choice.plain()}, "build": build.model_dump(mode="json")})

    def log(self, points: Sequence[Point]) -> None:
        if len(self._unsent) > _MOST:
            self._dropped = True
            return
        for point in points:
            self._send({"point": point.model_dump(mode="json")})

    def end(self, summary: BuildSummary) -> None:
        """Send the summary, the last message. `running` tells when it is done."""
        self._send({"end": summary.model_dump(mode="json")})

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def exchange(self) -> list[str]:
        """Send what waits, as far as it is read, and return what the tracker has to tell."""
        code = self._process.poll()  # asked first: what it said last is read below
        self._write()
        self._said += _read(self._output.fileno())
        *lines, rest = self._said.split(b"\n")
        self._said = bytearray(rest)
        texts = [json.loads(line) for line in lines]
        self.answered |= bool(texts)
        if self._dropped:
            texts += self._once("warning: it is too slow, some points are lost")
        if code:
            texts += self._once(f"warning: the build goes on without it: it ended with code {code}")
        return texts

    def _once(self, text: str) -> list[str]:
        new = [] if text in self._warned else [text]
        self._warned.add(text)
        return new

    def stop(self) -> None:
        """Ask it to end its run at once. `running` tells when it has."""
        self._process.terminate()

    def close(self) -> None:
        """End it, with all processes that it started."""
        if self.running:
            interrupts.kill_tree(self._process.pid)
        for stream in (self._input, self._output):
            with suppress(OSError):
                stream.close()
        self._process.wait()

    def _send(self, message: Json) -> None:
        self._unsent += json.dumps(message).encode() + b"\n"
        self._write()

    def _write(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: os.write(self._input.fileno(), self._unsent[:_CHUNK])]
        except BlockingIOError:
            pass  # it is busy: the rest is sent later
        except OSError:  # it has ended
            self._unsent.clear()


def _started() -> tuple["subprocess.Popen[bytes]", BinaryIO]:
    """Start the process, and return it with the pipe of its messages.

    That is not its standard output, to which libraries and files of Python's start-up print.
    """
    read, write = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps([sys.path, write, _ALONE])],
            stdin=subprocess.PIPE,
            stdout=2,
            bufsize=0,
            pass_fds=(write,),
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        )
    except BaseException:
        os.close(read)
        raise
    finally:
        os.close(write)
    return process, os.fdopen(read, "rb", buffering=0)


def _read(fd: int) -> bytes:
    found = b""
    with suppress(BlockingIOError):
        while part := os.read(fd, _CHUNK):
            found += part
    return found
