"""The computer that runs the build: every job in a fresh process, its threads pinned to as many cores."""

import json
import os
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepack import provenance, worker
from edgepack.config import Frozen
from edgepack.device import RUNTIMES, Controls, Device
from edgepack.errors import DeviceError
from edgepack.runners import Job

EVIDENCE = {"time": "measured", "memory": "measured", "predict": "measured", "delegates": "measured"}
NEAR = True

_WORKER = Path(worker.__file__)
_TIMEOUT = 600.0  # seconds; a job takes a few
_SLOWEST = 2.0  # seconds that one row of a prediction may take
_TOO_WARM = "let it cool, or raise `cool_down` in its profile"
_KILLED = "the system killed it, most likely for want of memory"
_DOCTOR = "run `edgepack doctor` to check that the runtime is installed and loads"
_POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Config(Frozen):
    pass


@dataclass(frozen=True)
class Host:
    """This computer, held to the controls of a device profile."""

    controls: Controls

    @property
    def facts(self) -> dict[str, Any]:
        cpu, governor = provenance.cpu(), worker.governor()
        return {
            "runner": "host",
            "cpu": cpu["name"],
            "family": cpu["family"],
            "features": cpu["features"],
            "machine": cpu["machine"],
            "threads": len(self._cores),
            "kernel": os.uname().release,
            **({"governor": governor} if governor else {}),
            "versions": provenance.installed(*RUNTIMES),
        }

    @property
    def _cores(self) -> list[int]:
        return pinned(self.controls, os.sched_getaffinity(0))

    def run(self, job: Job) -> dict[str, Any]:
        cores = self._cores
        whole = {**job, "threads": len(cores), "cpus": cores, "leash": True}
        # -P: the worker's own folder must not come before the packages that a runtime imports.
        command = [sys.executable, "-P", str(_WORKER), json.dumps(whole)]
        timeout = patience(job)
        environment = {**os.environ, **pools(len(cores)), "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            with leash() as held:
                done = subprocess.run(
                    command, stdin=held, capture_output=True, text=True, timeout=timeout, env=environment
                )
        except subprocess.TimeoutExpired:
            raise endless(job, timeout) from None
        return answer(done, job)

    def close(self) -> None:
        """Nothing is left: every job was a process of its own."""


def connect(device: Device) -> Host:
    check_controls(device, os.sched_getaffinity(0), "this computer")
    return Host(device.controls)


# What runners that start worker.py themselves share.


def check_controls(device: Device, there: Collection[int], who: str) -> None:
    """Raises DeviceError where a device whose cores are `there` cannot give what its profile asks for."""
    controls = device.controls
    if (controls.threads or 1) > len(there):
        message = f"{device.name} asks for {controls.threads} threads, and {who} has {len(there)} cores"
        raise DeviceError(message, f"set `controls` in {device.file}")
    if gone := sorted({*controls.cores} - {*there}):
        message = f"{device.name} asks for the core {gone[0]}, and {who} has {sorted(there)}"
        raise DeviceError(message, f"set `controls` in {device.file}")


def pinned(controls: Controls, there: Collection[int]) -> list[int]:
    """The cores to run on. Unless the profile names them, the last ones: interrupts tend to land on the first."""
    named = list(controls.cores) or sorted(there)
    return named[-min(controls.threads or len(named), len(named)) :]


def pools(threads: int) -> dict[str, str]:
    """What keeps the thread pools of a runtime's libraries to that many."""
    return dict.fromkeys(_POOLS, str(threads))


@contextmanager
def leash() -> Iterator[int]:
    """An input that ends when this process does, whatever ends it: a worker on it goes then too."""
    read, write = os.pipe()
    try:
        yield read
    finally:
        os.close(read)
        os.close(write)


def patience(job: Job) -> float:
    """Seconds after which a job is given up."""
    return float(_TIMEOUT + _SLOWEST * job.get("rows", 0) + job.get("cool_down", {}).get("seconds", 0.0))


def endless(job: Job, timeout: float) -> DeviceError:
    message = f"{job.get('file', 'its check of the runtime')} did not finish in {timeout:.0f} s"
    return DeviceError(message, "it hangs, or is far too slow for this device")


def answer(done: "subprocess.CompletedProcess[str]", job: Job, advice: str = _DOCTOR) -> dict[str, Any]:
    """What a worker said. Raises DeviceError when it failed."""
    if done.returncode != 0:
        where = job.get("file", "its check of the runtime")
        hint = {-9: _KILLED, 137: _KILLED, worker.TOO_WARM: _TOO_WARM}.get(done.returncode, advice)
        raise DeviceError(f"{job['runtime']} failed on {where}: {_reason(done)}", hint)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _reason(done: "subprocess.CompletedProcess[str]") -> str:
    lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
    return lines[-1] if lines else f"it ended with code {done.returncode} and said nothing"
