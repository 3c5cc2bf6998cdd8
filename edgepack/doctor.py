"""What of this machine can spoil a build or a timing, and what to change."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import requires
from pathlib import Path

from edgepack import provenance, worker
from edgepack.units import SIZE

_ROOM = 2e9  # bytes that a store with one large teacher and its exports can need


@dataclass(frozen=True)
class Finding:
    fine: bool
    text: str
    advice: str = ""


def checks(store: Path, dist: Path) -> Iterator[Finding]:
    """Every check, the quick ones first."""
    yield from _versions()
    yield _processor()
    yield _load()
    yield _governor()
    for folder in (store, dist):
        yield _room(folder)
    yield from _tools()
    yield from _runtimes()


def _versions() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    for line in requires("edgepack") or []:
        wanted = Requirement(line)
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        found = provenance.versions(wanted.name)[wanted.name]
        fine = found != provenance.MISSING and wanted.specifier.contains(found.split("+")[0], prereleases=True)
        advice = "" if fine else f"pip install '{wanted.name}{wanted.specifier}'"
        yield Finding(fine, f"{wanted.name} {found}", advice)


def _processor() -> Finding:
    cores = len(os.sched_getaffinity(0))
    features = provenance.cpu_features()
    int8 = sorted(features & provenance.INT8)
    text = f"{provenance.cpu()['name']}, {cores} cores, int8 instructions: {', '.join(int8) or 'none'}"
    if provenance.int8_saturates(features):
        return Finding(True, text, f"int8 products saturate here: {provenance.SATURATING}")
    return Finding(
        True, text, "" if int8 else "int8 files gain little speed here; another device's figures will differ"
    )


def _load() -> Finding:
    busy, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    fine = busy < 0.5 * cores + 0.5
    return Finding(
        fine,
        f"load {busy:.1f} on {cores} cores",
        "" if fine else "timings taken now are not to be trusted: close what runs",
    )


def _governor() -> Finding:
    governor = worker.governor()
    if not governor:
        return Finding(True, "frequency governor: none to see (usual in a virtual machine)")
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
    """What other devices than this computer are reached with: nothing is wrong where it is missing."""
    for tool, (purpose, package) in _TOOLS.items():
        there = shutil.which(tool)
        yield Finding(
            True, f"{tool}: {there or 'none'}", "" if there else f"{purpose} need it: apt-get install {package}"
        )


def _runtimes() -> Iterator[Finding]:
    """Each runtime, loaded in a process of its own as a benchmark would."""
    import subprocess
    import sys

    modules = {
        "onnxruntime": "import onnxruntime",
        "executorch": "import torch; from executorch.extension.pybindings import _portable_lib",
    }
    for name, code in modules.items():
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        why = (done.stderr.strip().splitlines() or [""])[-1]
        yield Finding(
            done.returncode == 0, f"{name} loads" if done.returncode == 0 else f"{name} does not load: {why}", ""
        )
