"""Work on the device for the runner `ssh`: one folder per connection, and file transfer.

keep FOLDER                     make it, tell where it is, and remove it as soon as the input ends; the first line of
                                the input names the folders of connections that broke: what still runs there is ended
take FOLDER NAME BYTES SHA256   a file from the input; tells what is free where that is too little
give FOLDER NAME                a file to the output

It is sent there as text. What it tells is JSON. Any Python 3 can read it, so that one which is too old is told of.
"""

import fcntl
import hashlib
import json
import os
import shutil
import signal
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20  # bytes
_NEEDED = ("numpy",)  # packages that the worker needs, besides the runtimes


def keep(name: str) -> None:
    root = Path.home() / ".cache" / "edgepack"
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = root / name
    for broken in json.loads(sys.stdin.readline()):
        _end(broken)
        _remove(root / broken)
    held = _made(root, folder)
    lacking = [package for package in _NEEDED if find_spec(package) is None]
    _tell(folder=str(folder), free=_free(folder), lacking=lacking)
    while os.read(0, _CHUNK):
        pass
    _remove(folder)
    os.close(held)


def _end(folder: str) -> None:
    """Kill all processes of a folder: if a network fails silently, its end is noticed here only hours later."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if folder in path.read_text(errors="replace"):
                os.kill(int(path.parent.name), signal.SIGKILL)
        except OSError:
            pass  # it has ended already, or is not ours


def _made(root: Path, folder: Path) -> int:
    """Make a folder and hold its lock, which marks it as in use; remove unused folders.

    Such folders are left when a device loses power.
    """
    door = os.open(str(root), os.O_RDONLY)
    fcntl.flock(door, fcntl.LOCK_EX)
    for other in root.glob("session-*"):
        _remove_unused(other)
    folder.mkdir(mode=0o700)
    held = os.open(str(folder), os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    os.close(door)
    return held


def _remove_unused(folder: Path) -> None:
    try:
        lock = os.open(str(folder), os.O_RDONLY)
    except OSError:
        return  # its user has removed it already
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        pass  # it is in use
    finally:
        os.close(lock)


def _remove(folder: Path) -> None:
    """Remove a folder; a process that is just ending may still be writing into it."""
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


def take(folder: str, name: str, size: str, sha256: str) -> None:
    free = _free(Path(folder))
    if free < int(size):
        _tell(free=free)
        return
    path, found = Path(folder) / name, hashlib.sha256()
    part = path.with_name(name + ".part")
    with part.open("wb") as file:
        for chunk in iter(lambda: sys.stdin.buffer.read(_CHUNK), b""):
            file.write(chunk)
            found.update(chunk)
    if found.hexdigest() != sha256:
        sys.exit("it arrived damaged")
    part.replace(path)
    _tell()


def give(folder: str, name: str) -> None:
    path = Path(folder) / name
    with path.open("rb") as file:
        shutil.copyfileobj(file, sys.stdout.buffer, _CHUNK)
    path.unlink()


def _free(folder: Path) -> int:
    found = os.statvfs(str(folder))
    return found.f_bavail * found.f_frsize


def _tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    if sys.hexversion < 0x03090000:
        _tell(python=sys.version.split()[0])
        sys.exit()
    actions: Any = {"keep": keep, "take": take, "give": give}
    actions[sys.argv[1]](*sys.argv[2:])
