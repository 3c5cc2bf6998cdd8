"""The sha256 of a user's files, remembered: a plan asks for them every time, and they may be many gigabytes."""

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from edgepack.datasets import DOWNLOADS
from edgepack.errors import RecipeError
from edgepack.store import digest, file_digest, write_atomic

_Known = dict[str, list[int | str]]  # path: what stat tells of it, sha256


def digests(files: Mapping[str, Path], *, of: str) -> dict[str, str]:
    """The sha256 of each file by its name. Only those that stat tells to be others are read again: a file that took the
    place of another, or had its times put back, has another inode or time of change.

    They are remembered under the name `of` what they belong to.
    """
    memory = DOWNLOADS / f"digests-{digest(of)[:16]}.json"
    before = _remembered(memory)
    with ThreadPoolExecutor() as pool:
        now = dict(zip(files, pool.map(lambda item: _facts(item[1], before.get(item[0])), files.items()), strict=True))
    if now != before:
        with suppress(OSError):  # a folder that may only be read is still good to read from
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(memory, json.dumps(now).encode())
    return {name: str(facts[-1]) for name, facts in now.items()}


def _facts(path: Path, before: list[int | str] | None) -> list[int | str]:
    try:
        status = path.stat()
        seen: list[int | str] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        return before if before and before[:-1] == seen else [*seen, file_digest(path)]
    except OSError as error:
        raise RecipeError(f"cannot read {path}: {error.strerror}") from error


def _remembered(memory: Path) -> _Known:
    try:
        known = json.loads(memory.read_text())
    except (OSError, ValueError):
        return {}
    return {name: facts for name, facts in known.items() if isinstance(facts, list)}
