"""Ends processes by what they were started with; as a program, once its input ends. It starts without packages."""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path


def sweep(wanted: set[str]) -> None:
    """End every process that has all of these, as NAME=VALUE, in its environment."""
    for file in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if wanted <= {*file.read_bytes().decode(errors="replace").split("\0")}:
                os.kill(int(file.parent.name), signal.SIGKILL)


if __name__ == "__main__":
    sys.stdin.read()
    sweep({sys.argv[1]})
