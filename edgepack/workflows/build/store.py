"""Store candidates, artifacts and measurements by content-addressed key.

    store/
      README.txt  CACHEDIR.TAG
      entries/<kind>/<key>/        the files of one step and record.json, with the sha256 of each
      tmp/                         entries being written; never read
      unfinished/<key>/            what a step that has not ended may go on from; removed with its end
      locks/                       one lock a key, so that two builds do one piece of work once
      plans/  reads/               what steps were made of, and what functions of a user read, when they were last made

An entry appears by one rename, so a reader sees all of it or nothing; it is checked against its hashes when it is read;
a failure is never stored.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from edgepack.core.errors import DeviceError
from edgepack.core.files import digest, disk_error, file_digest, write_atomic
from edgepack.core.frozen import Json
from edgepack.core.process import interrupts

DEFAULT = Path(".edgepack/store")
_HOST = hashlib.sha256(os.uname().nodename.encode()).hexdigest()[:8]  # identifies this computer in a shared store
_README = """This folder is edgepack's cache. It is safe to delete: the next build creates what it needs again.
`edgepack cache ls` lists it, `edgepack cache gc` removes what was not used recently.
"""
_TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# bford.info/cachedir: backup programs skip this folder\n"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One stored step: its files, its `ingredients` and its `outcome`."""

    kind: str
    key: str
    path: Path
    made_at: float
    ingredients: Json
    outcome: Json
    files: dict[str, Json]

    @property
    def bytes(self) -> int:
        return sum(int(file["bytes"]) for file in self.files.values())

    @property
    def used_at(self) -> float:
        try:
            return (self.path / "record.json").stat().st_mtime
        except OSError:  # removed meanwhile
            return 0.0


class Store:
    """A folder of entries. Safe for parallel builds, and for a build that is killed at any moment."""

    def __init__(self, root: str | Path = DEFAULT) -> None:
        self.root = Path(root)

    @property
    def devices(self) -> Path:
        """Return the folder with the facts of devices when they were last reached."""
        return self.root / "devices"

    def peek(self, kind: str, key: str) -> Entry | None:
        """Return the entry without reading its files: enough for planning."""
        path = self._path(kind, key)
        try:
            record = json.loads((path / "record.json").read_text())
            whole = record.pop("digest") == digest(record)
            return Entry(kind=kind, key=key, path=path, **record) if whole else None
        except (OSError, ValueError, TypeError, LookupError, AttributeError):
            return None

    def get(self, kind: str, key: str) -> Entry | None:
        """Return the entry after checking each file's hash; a damaged entry is removed and counts as missing."""
        entry = self._whole(kind, key)
        if entry is None and self._path(kind, key).exists():
            with self.lock(key):  # another build may be repairing it now
                entry = self._whole(kind, key)
                if entry is None:
                    shutil.rmtree(self._path(kind, key), ignore_errors=True)
        if entry is not None:
            self.touch(entry)
        return entry

    def touch(self, entry: Entry) -> None:
        """Note that the entry was used: gc removes the least recently used."""
        with suppress(OSError):  # a read-only store is good enough to read from
            os.utime(entry.path / "record.json")

    def _whole(self, kind: str, key: str) -> Entry | None:
        entry = self.peek(kind, key)
        return (
            entry if entry and all(_intact(entry.path / name, facts) for name, facts in entry.files.items()) else None
        )

    def make(self, kind: str, key: str, ingredients: Json, fill: Callable[[Path], Json]) -> Entry:
        """Store what `fill` writes into a new folder; `fill` returns the outcome. Nothing is stored if it raises."""
        with self._writing():
            self._prepare()
            folder, held = self._new_folder(key)
        try:
            outcome = fill(folder)
            interrupts.check()  # after a swallowed interrupt the result may be incomplete
            with self._writing():
                self._publish(folder, self._path(kind, key), ingredients, outcome)
            shutil.rmtree(self.unfinished(key), ignore_errors=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(held)
        entry = self.peek(kind, key)
        if entry is None:
            raise DeviceError(
                f"the store lost {kind}/{key[:12]} right after it was written", f"check the disk of {self.root}"
            )
        return entry

    def unfinished(self, key: str) -> Path:
        """Return the folder in which a step may leave what it can go on from if it is killed; it may not exist."""
        return self.root / "unfinished" / key

    def keep(
        self, name: str, made_of: Json, fill: Callable[[Path], None], waiting: Callable[[], None] = lambda: None
    ) -> Path:
        """Return the folder that `fill` wrote, now or earlier. Only its files' sizes are compared: it may be large.

        Calls `waiting` if another build is writing it.
        """
        key = digest({"kind": name, **made_of})

        def filled(folder: Path) -> Json:
            fill(folder)
            return {}

        entry = self._of_size("data", key)
        if entry is None:
            with self.lock(key, waiting):
                entry = self._of_size("data", key) or self.make("data", key, {"step": name, **made_of}, filled)
        self.touch(entry)
        return entry.path

    def _of_size(self, kind: str, key: str) -> Entry | None:
        """Return the entry if its files have their sizes."""
        entry = self.peek(kind, key)
        whole = entry and all(_has_size(entry.path / file, facts) for file, facts in entry.files.items())
        return entry if whole else None

    def _new_folder(self, key: str) -> tuple[Path, int]:
        """Return a folder in tmp/ and a handle that locks it until closed: unlocked ones are from killed builds."""
        while True:
            folder = self.root / "tmp" / f"{key[:16]}-{os.getpid()}-{uuid4().hex[:8]}-{_HOST}"
            folder.mkdir(parents=True)
            with suppress(FileNotFoundError):
                handle = os.open(folder, os.O_RDONLY)
                with suppress(OSError):  # a file system without locks
                    fcntl.flock(handle, fcntl.LOCK_EX)
                if folder.exists():
                    return folder, handle
                os.close(handle)  # another build removed it as a leftover before it was locked

    @contextmanager
    def lock(self, key: str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the lock of a key. Calls `waiting` once if another process holds it."""
        from filelock import FileLock, Timeout

        with self._writing():
            (self.root / "locks").mkdir(parents=True, exist_ok=True)
        # One object per path, so that the holder of a key may lock it again.
        lock = FileLock(self.root / "locks" / f"{key[:32]}.lock", is_singleton=True)
        with self._writing():
            try:
                lock.acquire(timeout=0)
            except Timeout:
                waiting()
                lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def entries(self) -> tuple[Entry, ...]:
        """Return every readable entry, most recently used first."""
        found = (self.peek(path.parent.name, path.name) for path in self.root.glob("entries/*/*"))
        return tuple(sorted((entry for entry in found if entry), key=lambda entry: -entry.used_at))

    def collect(self, *, unused_days: float, max_bytes: float | None = None) -> tuple[Entry, ...]:
        """Remove and return entries not used for `unused_days`, then least recently used ones down to `max_bytes`."""
        oldest = time.time() - unused_days * 86400
        total, gone = 0, []
        for entry in self.entries():
            total += entry.bytes
            if entry.used_at < oldest or (max_bytes is not None and total > max_bytes):
                gone.append(entry)
        for entry in gone:
            with self.lock(entry.key):
                shutil.rmtree(entry.path, ignore_errors=True)
        self._clear_folders()
        for path in self.root.glob("unfinished/*"):
            with suppress(OSError):
                if path.stat().st_mtime < oldest:
                    shutil.rmtree(path, ignore_errors=True)
        for file in [each for name in ("plans", "reads", "devices") for each in self.root.glob(f"{name}/.*.tmp")]:
            if not _runs(file.name.split(".")[-2]):
                file.unlink(missing_ok=True)
        self._clear_entries()
        return tuple(gone)

    def _clear_folders(self) -> None:
        """Remove folders in tmp/ left by killed builds of this computer, which may be large.

        In a shared store, locks and processes of other computers cannot be seen from here.
        """
        for folder in self.root.glob(f"tmp/*-{_HOST}"):
            with suppress(OSError), _opened(folder) as handle:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                except OSError:  # a file system without locks: its process may still run
                    if _runs(folder.name.partition("-")[2].partition("-")[0]):
                        continue
                shutil.rmtree(folder, ignore_errors=True)

    def _clear_entries(self) -> None:
        """Remove entries without a readable record."""
        for path in self.root.glob("entries/*/*"):
            if self.peek(path.parent.name, path.name) is None:
                shutil.rmtree(path, ignore_errors=True)

    def _path(self, kind: str, key: str) -> Path:
        return self.root / "entries" / kind / key

    def _prepare(self) -> None:
        for name in ("tmp", "locks", "entries"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        self._clear_folders()
        if not (self.root / "CACHEDIR.TAG").exists():
            (self.root / "README.txt").write_text(_README)
            (self.root / "CACHEDIR.TAG").write_text(_TAG)

    def _publish(self, folder: Path, target: Path, ingredients: Json, outcome: Json) -> None:
        files = {
            str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": file_digest(path)}
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        record = {"made_at": time.time(), "ingredients": ingredients, "outcome": outcome, "files": files}
        record = json.loads(json.dumps(record))  # as it will be read
        write_atomic(folder / "record.json", json.dumps({**record, "digest": digest(record)}, indent=1).encode())
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():  # replace a damaged or remeasured entry
            old = target.replace(folder.with_name(folder.name + "-old"))
            shutil.rmtree(old, ignore_errors=True)
        folder.replace(target)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise disk_error(error, self.root) from error


def _intact(path: Path, facts: Json) -> bool:
    try:
        return (path.stat().st_size, file_digest(path)) == (facts["bytes"], facts["sha256"])
    except OSError:
        return False


def _has_size(path: Path, facts: Json) -> bool:
    try:
        return bool(path.stat().st_size == facts["bytes"])
    except OSError:
        return False


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        yield handle
    finally:
        os.close(handle)


def _runs(pid: str) -> bool:
    """Return whether this process exists on this computer."""
    return pid.isdigit() and Path("/proc", pid).exists()


def clear_temporaries(folder: Path) -> None:
    """Remove temporary files of a killed build from `folder`, to which no other build writes now."""
    for left in folder.glob(".*.tmp"):
        left.unlink(missing_ok=True)
    for left in folder.glob(".bundle.*"):
        shutil.rmtree(left, ignore_errors=True)
