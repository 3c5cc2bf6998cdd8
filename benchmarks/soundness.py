"""What is wrong with the store and with dist/net after a build was stopped."""

import fcntl
import hashlib
from collections.abc import Iterator
from pathlib import Path

from edgepack.core.errors import EdgepackError
from edgepack.deliver.bundle import verify
from edgepack.records.build import Build
from edgepack.workflows.build.store import Store


def unsound_store() -> Iterator[str]:
    store = Store("store")
    for entry in store.entries():
        if store.get(entry.kind, entry.key) is None:
            yield f"a damaged {entry.kind} in the store"
    for file in store.root.glob("locks/*.lock"):
        with file.open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield f"{file.name} is still held"


def unsound_dist(undisturbed: str) -> Iterator[str]:
    """Yield what would make a stopped build look finished; `undisturbed` is the sha256 of the right bundle."""
    file, zip = Path("dist/net/build.json"), Path("dist/net/net.zip")
    try:
        build = Build.read(file) if file.exists() else None
    except EdgepackError as error:
        yield f"build.json: {error.message}"
        return
    if zip.exists() and sha256() != undisturbed:
        yield "the bundle is another one"
    if build and build.exit_code == 0 and not whole():
        yield "build.json tells of a bundle that is not there"
    if build and build.exit_code not in (0, None, 130):
        yield f"build.json has exit code {build.exit_code}"
    if build and build.exit_code is not None and build.exit_code != 0 and zip.exists():
        yield "a bundle beside a build.json that says it failed"


def whole() -> bool:
    try:
        return all(verify(Path("dist/net", each)) for each in ("net.zip", "bundle"))
    except EdgepackError:
        return False


def sha256() -> str:
    return hashlib.sha256(Path("dist/net/net.zip").read_bytes()).hexdigest()
