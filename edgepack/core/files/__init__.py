"""Write files completely or not at all, and compute digests of their content."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgepack.core.errors import DeviceError, RecipeError

DOWNLOADS = Path(".edgepack/data")  # next to the store: downloaded data, and known digests of the user's files


_Known = dict[str, list[int | str]]  # path: facts from stat, then the sha256


def digests(files: Mapping[str, Path], *, of: str) -> dict[str, str]:
    """Return the sha256 of each file by name.

    Only files whose stat changed are read again: replacing a file or resetting its times changes the inode or ctime.
    `of` names the set of files whose digests are remembered together.
    """
    from concurrent.futures import ThreadPoolExecutor  # imported here: most commands need no digests

    memory = f"digests-{digest(of)[:16]}"
    before: _Known = recalled(memory) or {}
    # Only reading is worth a thread: there may be a million files of which none has changed.
    now = {name: _known(path, before.get(name)) for name, path in files.items()}
    changed = [name for name, facts in now.items() if len(facts) < _FACTS]
    if changed:
        with ThreadPoolExecutor() as pool:
            for name, sha in zip(changed, pool.map(_read, (files[name] for name in changed)), strict=True):
                now[name].append(sha)
    if now != before:
        remember(memory, now)
    return {name: str(facts[-1]) for name, facts in now.items()}


def made_once(what: str, made_of: Any, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what `make` returns, or returned the last time that `made_of` was the same. Both are JSON."""
    memory = f"{what}-{digest(made_of)[:32]}"
    known = recalled(memory)
    if known is None:
        known = make()
        remember(memory, known)
    return known


def recalled(memory: str) -> dict[str, Any] | None:
    """Return what `remember` wrote under this name, or None."""
    with suppress(OSError, ValueError):
        known = json.loads(_memory(memory).read_text())
        return known if isinstance(known, dict) else None
    return None


def remember(memory: str, known: Mapping[str, Any]) -> None:
    """Keep a JSON value until a later command, where that is possible."""
    file = _memory(memory)
    with suppress(OSError):  # a read-only folder is good enough to read from
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, json.dumps(known).encode())


def _memory(name: str) -> Path:
    return DOWNLOADS / f"{name}.json"


_FACTS = 5  # of a file whose content is known


def _known(path: Path, before: list[int | str] | None) -> list[int | str]:
    """Return what is known of a file: all, or what `stat` says if it has changed."""
    try:
        status = os.stat(path)  # noqa: PTH116 - a third faster than the method
    except OSError as error:
        raise RecipeError(f"cannot read {path}: {error.strerror}") from error
    seen: list[int | str] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    return before if isinstance(before, list) and before[:-1] == seen else seen


def _read(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise RecipeError(f"cannot read {path}: {error.strerror}") from error


def digest(value: Any) -> str:
    """Return the sha256 of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Write to a temporary file and rename it, so that a reader never sees half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def disk_error(error: OSError, folder: Path) -> DeviceError:
    """Return a clear error for a folder that cannot be written or a disk that is full."""
    where = error.filename or folder
    return DeviceError(
        f"cannot write {where}: {error.strerror or error}", _ADVICE.get(error.errno or 0, "check the disk")
    )


def full_disk(error: BaseException, folder: Path) -> DeviceError | None:
    """Return a DeviceError if the disk is the cause, else None, as for a plugin's OSError about a missing file."""
    if isinstance(error, OSError) and error.errno in _ADVICE:
        return disk_error(error, folder)
    if "No space left on device" in str(error):  # safetensors and torch wrap the system's error
        return disk_error(OSError(28, "No space left on device"), folder)
    return None


_ADVICE = {
    28: "the disk is full: free some space (`edgepack cache gc`), or name another folder with --store and --dist",
    13: "no permission: name a folder you may write with --store and --dist",
    30: "the disk is read-only: name another folder with --store and --dist",
    122: "the disk quota is used up: free some space (`edgepack cache gc`), or use --store and --dist",
    20: "a file is in the way of that folder: move it, or name another folder with --store and --dist",
    17: "a file is in the way of that folder: move it, or name another folder with --store and --dist",
}
