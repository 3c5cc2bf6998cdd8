"""What runners that start worker.py themselves share."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from edgepack.config.device import Controls, Device
from edgepack.core.errors import DeviceError, RefusedError
from edgepack.measure import worker
from edgepack.measure.contract import Job

_TIMEOUT = 600.0  # seconds; a job takes a few
_SLOWEST = 2.0  # seconds that one row of a prediction may take
_TOO_WARM = "let it cool, or raise `cool_down` in its profile"
_KILLED = "the system killed it, most likely for want of memory"
_SMALLER = "give it smaller inputs, or a device with more memory"
_DOCTOR = "run `edgepack doctor` to check that the runtime is installed and loads"
_POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


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
    """What a worker said. Raises RefusedError where the file is to blame, DeviceError when it failed otherwise."""
    if done.returncode == 0:
        found: dict[str, Any] = json.loads(done.stdout)
        return found
    what, reason = f"{job['runtime']} failed on {job.get('file', 'its check of the runtime')}", _reason(done)
    died = _signal(done.returncode)
    if done.returncode == worker.REFUSED or died in _CRASHES:
        raise RefusedError(f"{what}: {reason}", advice)
    if done.returncode == worker.NO_MEMORY:
        raise DeviceError(f"{what}, for want of memory: {reason}", _SMALLER)
    hint = {signal.SIGKILL: _KILLED}.get(died, advice) if died else advice
    raise DeviceError(f"{what}: {reason}", _TOO_WARM if done.returncode == worker.TOO_WARM else hint)


def _signal(code: int) -> signal.Signals | None:
    """What ended a process with this exit code; a shell adds 128 to it."""
    number = -code if code < 0 else code - 128
    return signal.Signals(number) if number in {*signal.Signals} else None


_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)


def _reason(done: "subprocess.CompletedProcess[str]") -> str:
    """The last line; where the runtime has said more before that, its first words too."""
    lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
    if died := _signal(done.returncode):
        return f"{lines[-1]} (it died of {died.name})" if lines else f"it died of {died.name}"
    if not lines:
        return f"it ended with code {done.returncode} and said nothing"
    said = next((found[2] for line in lines if (found := _SAID.match(line)) and found[1] not in _IDLE), "")
    return f"{lines[-1]} ({said})" if said and done.returncode == worker.REFUSED else lines[-1]


_SAID = re.compile(r"\[(\w+\.\w+):\d+\] (.*)")  # as ExecuTorch logs: [method.cpp:85] Backend X is not registered.
_IDLE = ("cpuinfo_utils.cpp", "threadpool.cpp")
