"""What was found in a folder, remembered for as long as nothing in it changes.

    labels = remembered(Path("pictures"), ["labels", settings], lambda: [*listed(...)])

A folder has not changed if each entry below it, and what links lead to, has the name, size, inode and ctime that it
had: the system sets the last one whenever a file is written, moved or given other times. `find` asks a million files
within seconds, where Python needs most of a minute to list them and to sort them into classes; where there is no GNU
find, nothing is remembered.
"""

import hashlib
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar

from edgepack.core.files import digest, recalled, remember

Found = TypeVar("Found")

_FACTS = "%P\\0%y %s %C@ %i\\0"  # name; kind, size, time of the last change of anything, and the inode's number
_FEW = 4  # folders are those of splits rather than of classes
_MOST = 500  # folders for one process, so that their names fit into its arguments
_looks: ContextVar[dict[Path, str] | None] = ContextVar("_looks", default=None)


@contextmanager
def one_look() -> Iterator[None]:
    """Look at each folder once while the block runs: what changes meanwhile counts for the next one."""
    token = _looks.set({})
    try:
        yield
    finally:
        _looks.reset(token)


def remembered(root: Path, made_of: object, find: Callable[[], Found]) -> Found:
    """Return what `find` returns, or returned when the folder was as it is now; `made_of` is all else it depends on.
    It is a JSON value. Errors of `find` are not remembered.
    """
    state = _state(root)
    memory = f"found-{digest([str(root.resolve()), made_of])[:16]}"
    before = recalled(memory) or {}
    if state and before.get("state") == state and "found" in before:
        known: Found = before["found"]
        return known
    found = find()
    if state:
        remember(memory, {"state": state, "found": found})
    return found


def _state(root: Path) -> str:
    """Return a digest of the facts of all entries below a folder, or "" if they cannot be found out."""
    looks = _looks.get()
    if looks is not None and root in looks:
        return looks[root]
    state = _look(root)
    if looks is not None:
        looks[root] = state
    return state


def _look(root: Path) -> str:
    from concurrent.futures import ThreadPoolExecutor  # imported here: most commands need none

    cores = len(os.sched_getaffinity(0))
    try:
        shallow, deep = [root], _folders(root)
        if len(deep) < _FEW:  # splits, whose classes are shared out among the cores
            shallow, deep = [root, *deep], [inside for folder in deep for inside in _folders(folder)]
        each = max(1, min(_MOST, -(-len(deep) // cores)))
        shares = [deep[start : start + each] for start in range(0, len(deep), each)]
        jobs = [*((share, ()) for share in shares), *(([folder], ("-maxdepth", "1")) for folder in shallow)]
        with ThreadPoolExecutor(cores) as pool:
            found = [*pool.map(_facts, jobs)]
    except OSError:
        return ""
    return "" if "" in found else digest(found)


def _folders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.is_dir())


def _facts(job: tuple[Sequence[Path], Sequence[str]]) -> str:
    """Return a digest of what `find` says of these folders, or "" if it cannot."""
    folders, options = job
    # An absolute path is never taken for an option.
    command = ["find", "-L", *(str(folder.absolute()) for folder in folders), *options, "-printf", _FACTS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        known = hashlib.sha256()
        while block := process.stdout.read(1 << 20):
            known.update(block)
    return "" if process.returncode else digest([*map(str, folders), known.hexdigest()])
