"""Check what on this machine can spoil a build or a timing, and advise what to change."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import requires
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.core import provenance
from edgepack.core.runtimes import RUNTIMES
from edgepack.core.units import SIZE
from edgepack.measure.worker import system

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_PATIENCE = 180.0  # seconds until loading a runtime counts as failed; one or two are usual
_ROOM = 2e9  # bytes that a store may need for one large teacher and its exports

_LOAD = "from edgepack.measure.runtimes.{} import Runtime; Runtime()"  # loads a runtime as a benchmark does


@dataclass(frozen=True)
class Finding:
    fine: bool
    text: str
    advice: str = ""


def checks(store: Path, dist: Path) -> Iterator[Finding]:
    """Yield every check, quick ones first."""
    yield from _versions()
    yield _processor()
    yield _load()
    yield _governor()
    for folder in (store, dist):
        yield _room(folder)
    yield from _tools()
    yield from _runtimes()


def _requirements() -> "Iterator[Requirement]":
    """Yield the requirements of edgepack itself, without its extras."""
    from packaging.requirements import Requirement

    wanted = map(Requirement, requires("edgepack") or [])
    return (each for each in wanted if not each.marker or each.marker.evaluate({"extra": ""}))


def _versions() -> Iterator[Finding]:
    for wanted in _requirements():
        found = provenance.versions(wanted.name)[wanted.name]
        fine = found != provenance.MISSING and wanted.specifier.contains(found.split("+")[0], prereleases=True)
        advice = "" if fine else f"pip install '{wanted.name}{wanted.specifier}'"
        yield Finding(fine, f"{wanted.name} {found}", advice)


def _processor() -> Finding:
    cores = len(os.sched_getaffinity(0))
    features = provenance.cpu_features()
    int8 = provenance.int8_features(features)
    text = f"{provenance.cpu()['name']}, {cores} cores, int8 instructions: {', '.join(int8) or 'none'}"
    if provenance.int8_saturates(features):
        return Finding(True, text, "int8 products saturate here: weights get 7 bits")
    return Finding(True, text, "" if int8 else "int8 is not much faster on this processor; other devices differ")


def _load() -> Finding:
    busy, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    fine = busy < 0.5 * cores + 0.5
    return Finding(
        fine,
        f"load {busy:.1f} on {cores} cores",
        "" if fine else "timings are not reliable now: close other programs",
    )


def _governor() -> Finding:
    governor = system.governor()
    if not governor:
        return Finding(True, "frequency governor: unknown (usual in a virtual machine)")
    fine = governor == "performance"
    return Finding(
        fine, f"frequency governor: {governor}", "" if fine else "sudo cpupower frequency-set -g performance"
    )


def _room(folder: Path) -> Finding:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    fine = free > _ROOM and os.access(there, os.W_OK)
    advice = "" if fine else "free some space, or name another folder with --store and --dist"
    return Finding(
        fine, f"{folder}: {SIZE.format(free)} free" + ("" if os.access(there, os.W_OK) else ", not writable"), advice
    )


_TOOLS = {
    "ssh": ("devices reached over ssh", "openssh-client"),
    "adb": ("Android devices", "adb"),
    "qemu-aarch64-static": ("emulated devices", "qemu-user-static"),
}


def _tools() -> Iterator[Finding]:
    """Yield the tools for reaching other devices; a missing one is not an error."""
    for tool, (purpose, package) in _TOOLS.items():
        there = shutil.which(tool)
        yield Finding(
            True, f"{tool}: {there or 'none'}", "" if there else f"{purpose} need it: apt-get install {package}"
        )


def _runtimes() -> Iterator[Finding]:
    """Load each runtime in its own process, as a benchmark does."""
    for name, runtime in RUNTIMES.items():
        why = _failure(_LOAD.format(runtime.module))
        text = f"{name} does not load: {why}" if why else f"{name} loads"
        yield Finding(not why, text, _anew(runtime.packages) if why else "")


def _anew(packages: tuple[str, ...]) -> str:
    """Return the command that reinstalls packages: pip skips installed versions, even broken ones."""
    wanted = {each.name: f"'{each.name}{each.specifier}'" for each in _requirements()}
    named = " ".join(wanted[package] for package in packages)
    return f"pip install --force-reinstall --no-deps {named}; `pip check` lists what else is missing"


def _failure(code: str) -> str:
    """Return why this Python cannot run `code`, or ""."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=_PATIENCE, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return f"it did not finish in {_PATIENCE:.0f} s"
    lines = done.stderr.strip().splitlines() or [f"it ended with code {done.returncode} without a message"]
    return "" if done.returncode == 0 else lines[-1]
