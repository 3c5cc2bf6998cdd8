"""The computer that runs the build: every job in a fresh process, its threads pinned to as many cores."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from edgepack.config import Frozen
from edgepack.device import Controls
from edgepack.errors import DeviceError
from edgepack.provenance import cpu

EVIDENCE = "measured"

_WORKER = Path(__file__).parent.parent / "worker.py"
_TIMEOUT = 600.0  # seconds; a job takes a few
_SLOWEST = 2.0  # seconds that one row of a prediction may take
_POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Config(Frozen):
    pass


def unavailable(config: Config, controls: Controls) -> str:
    cores = len(os.sched_getaffinity(0))
    if (controls.threads or 1) > cores:
        return f"it asks for {controls.threads} threads, and this computer has {cores} cores"
    return ""


def fingerprint(config: Config, controls: Controls) -> dict[str, Any]:
    facts = cpu()
    return {
        "runner": "host",
        "cpu": facts["name"],
        "family": facts["family"],
        "features": facts["features"],
        "machine": facts["machine"],
        "threads": _threads(controls),
        "kernel": os.uname().release,
    }


def run(config: Config, controls: Controls, job: dict[str, Any]) -> dict[str, Any]:
    threads = _threads(controls)
    cpus = sorted(os.sched_getaffinity(0))[-threads:]  # the last cores: interrupts tend to land on the first
    # -P: the worker's own folder must not come before the packages that a runtime imports.
    command = [sys.executable, "-P", str(_WORKER), json.dumps({**job, "threads": threads, "cpus": cpus})]
    timeout = _TIMEOUT + _SLOWEST * job.get("rows", 0)
    environment = {**os.environ, **dict.fromkeys(_POOLS, str(threads)), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)
    except subprocess.TimeoutExpired:
        message = f"{job['file']} did not finish in {timeout:.0f} s"
        raise DeviceError(message, "it hangs, or is far too slow for this device") from None
    if done.returncode != 0:
        raise DeviceError(f"{job['runtime']} failed on {job['file']}: {_reason(done)}", _advice(done.returncode))
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _threads(controls: Controls) -> int:
    cores = len(os.sched_getaffinity(0))
    return min(controls.threads or cores, cores)


def _reason(done: "subprocess.CompletedProcess[str]") -> str:
    lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
    return lines[-1] if lines else f"it ended with code {done.returncode} and said nothing"


def _advice(code: int) -> str:
    if code == -9:
        return "the system killed it, most likely for want of memory"
    return "run `edgepack doctor` to check that the runtime is installed and loads"
