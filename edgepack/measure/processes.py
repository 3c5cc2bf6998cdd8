"""Start fresh processes of the worker on this computer, and share code with runners that start it elsewhere.

A runtime takes far longer to import than most files do to be timed. So processes are started several at once, one a
core, and none begins its job before all have imported the runtime and stand still: then each does one job, and while it
does, the others wait for theirs.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile

from edgepack.config.device import Controls, Device
from edgepack.core import provenance
from edgepack.core.errors import DeviceError, RefusedError
from edgepack.core.frozen import Json
from edgepack.core.process import openmp
from edgepack.core.runtimes import RUNTIMES
from edgepack.measure.contract import Job
from edgepack.measure.worker import system
from edgepack.measure.worker.job import NO_MEMORY, REFUSED, TOO_WARM

# The modules here are compiled already: they start in 73 ms, the archive for devices in 78 ms. Only edgepack is looked
# up in its folder, which must not come before the packages that a runtime imports.
_START = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); import edgepack; del sys.path[0]; "
    "from edgepack.measure.worker.job import main; main()"
)
_WORKER = ("-c", _START, str(Path(__file__).parents[2]))
MEASURED = dict.fromkeys(("time", "memory", "predict", "delegates"), "measured")  # all modes
_MOST = 4  # processes of a runtime that are started at once: one of ExecuTorch takes some 200 MB
_TIMEOUT = 600.0  # seconds; a job takes a few
_SLOWEST = 2.0  # seconds allowed per row of a prediction
_COOLER = "let it cool, or raise `cool_down` in its profile"
_KILLED = "the system killed it, most likely because memory ran out"
_SMALLER = "use smaller inputs, or a device with more memory"
_DOCTOR = "run `edgepack doctor` to check that the runtime is installed and loads"
_POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Host:
    """This computer with the controls of a device profile. One job at a time: it is called from one thread."""

    controls: Controls
    _waiting: "list[_Process]" = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def facts(self) -> Json:
        cpu, governor = provenance.cpu(), system.governor()
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

    def run(self, job: Job) -> Json:
        cores, timeout = self._cores, patience(job)
        whole = {**job, "threads": len(cores), "cpus": cores}
        end = time.monotonic() + timeout
        try:
            with closing(self._take(job.get("runtime", ""), end)) as process:
                done = process.do(whole, end)
        except (TimeoutError, subprocess.TimeoutExpired):
            self.close()  # others may hang too
            raise endless(job, timeout) from None
        return answer(done, job)

    def close(self) -> None:
        """End the processes that got no job."""
        while self._waiting:
            self._waiting.pop().close()

    def _take(self, runtime: str, end: float) -> "_Process":
        """Return a process that has imported the runtime, or failed to. Raises TimeoutError.

        Several are started even for the first job: more jobs mostly follow, and the cores are idle meanwhile. A process
        killed while waiting, for example for lack of memory, does not fail this job as long as there are others.
        """
        if not any(each.runtime == runtime and not each.ended for each in self._waiting):
            self._start(runtime, end)
        mine = [each for each in self._waiting if each.runtime == runtime]
        taken = next((each for each in mine if not each.ended), mine[-1])
        self._waiting.remove(taken)
        return taken

    def _start(self, runtime: str, end: float) -> None:
        """Start several processes, and end all if interrupted: no job may begin while another process still imports."""
        before = len(self._waiting)
        try:
            for _ in range(min(len(os.sched_getaffinity(0)), _MOST)):
                self._waiting.append(_Process(runtime, len(self._cores)))
            for each in self._waiting[before:]:
                each.wait(end)
        except BaseException:
            self.close()
            raise


class _Process:
    """A fresh process that imports a runtime, does one job and ends. It also ends as soon as this process does.

    Times are those of time.monotonic(), in seconds.
    """

    def __init__(self, runtime: str, threads: int) -> None:
        self.runtime = runtime
        self._line, its = socket.socketpair()
        job = {"runtime": runtime, "wait": its.fileno(), "leash": True}
        with its, ExitStack() as held:
            held.enter_context(self._line)
            # A file, not a pipe: nobody reads while it waits, and the runtime's messages could fill a pipe.
            self._said = held.enter_context(TemporaryFile("w+", encoding="utf-8", errors="replace"))
            self._process = subprocess.Popen(
                [sys.executable, "-P", *_WORKER, json.dumps(job)],
                stdin=held.enter_context(leash()),
                stdout=subprocess.PIPE,
                stderr=self._said,
                text=True,
                pass_fds=[its.fileno()],
                env={**openmp.of_the_user(os.environ), **pools(threads), "PYTHONDONTWRITEBYTECODE": "1"},
            )
            self._held = held.pop_all()

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def wait(self, end: float) -> None:
        """Wait until it has imported its runtime and is idle, or has ended. Raises TimeoutError."""
        self._line.settimeout(max(end - time.monotonic(), 1e-3))  # 0 would mean non-blocking
        self._line.recv(1)

    def do(self, job: Job, end: float) -> "subprocess.CompletedProcess[str]":
        """Send the job and wait for its result. Raises TimeoutExpired."""
        with suppress(OSError):  # it has ended; its stderr says why
            self._line.sendall(json.dumps(job).encode())
            self._line.shutdown(socket.SHUT_WR)
        output, _ = self._process.communicate(timeout=end - time.monotonic())
        self._said.seek(0)
        return subprocess.CompletedProcess(self._process.args, self._process.returncode, output, self._said.read())

    def close(self) -> None:
        with self._process:
            self._process.kill()
        self._held.close()


def check_controls(device: Device, there: Collection[int], who: str) -> None:
    """Raises DeviceError where a device with the cores `there` cannot satisfy the controls of its profile."""
    controls = device.controls
    if (controls.threads or 1) > len(there):
        message = f"the profile of {device.name} sets {controls.threads} threads, but {who} has {len(there)} cores"
        raise DeviceError(message, f"set `controls` in {device.file}")
    if gone := sorted({*controls.cores} - {*there}):
        message = f"the profile of {device.name} sets core {gone[0]}, but {who} has {sorted(there)}"
        raise DeviceError(message, f"set `controls` in {device.file}")


def pinned(controls: Controls, there: Collection[int]) -> list[int]:
    """Return the cores to run on. By default these are the last ones: interrupts tend to run on the first."""
    named = list(controls.cores) or sorted(there)
    return named[-min(controls.threads or len(named), len(named)) :]


def pools(threads: int) -> dict[str, str]:
    """Return environment variables that limit the thread pools of a runtime's libraries."""
    return dict.fromkeys(_POOLS, str(threads))


@contextmanager
def leash() -> Iterator[int]:
    """Provide an input that ends when this process does, for whatever reason: a worker that reads it then ends too."""
    read, write = os.pipe()
    try:
        yield read
    finally:
        os.close(read)
        os.close(write)


def patience(job: Job) -> float:
    """Return the timeout of a job in seconds."""
    return float(_TIMEOUT + _SLOWEST * job.get("rows", 0) + job.get("cool_down", {}).get("seconds", 0.0))


def endless(job: Job, timeout: float) -> DeviceError:
    message = f"{job.get('file', 'its check of the runtime')} did not finish in {timeout:.0f} s"
    return DeviceError(message, "it hangs, or is too slow for this device")


def answer(done: "subprocess.CompletedProcess[str]", job: Job, advice: str = _DOCTOR) -> Json:
    """Return a worker's result. Raises RefusedError where the file is to blame, DeviceError for other failures."""
    if done.returncode == 0:
        found: Json = json.loads(done.stdout)
        return found
    what, reason = f"{job['runtime']} failed on {job.get('file', 'its check of the runtime')}", _reason(done)
    died = _signal(done.returncode)
    if done.returncode == REFUSED or died in _CRASHES:
        raise RefusedError(f"{what}: {reason}", advice)
    if done.returncode == NO_MEMORY:
        raise DeviceError(f"{what}, out of memory: {reason}", _SMALLER)
    hint = {signal.SIGKILL: _KILLED}.get(died, advice) if died else advice
    raise DeviceError(f"{what}: {reason}", _COOLER if done.returncode == TOO_WARM else hint)


def _signal(code: int) -> signal.Signals | None:
    """Return the signal that ended a process with this exit code; a shell adds 128 to it."""
    number = -code if code < 0 else code - 128
    return signal.Signals(number) if number in {*signal.Signals} else None


_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)


def _reason(done: "subprocess.CompletedProcess[str]") -> str:
    """Return the last line, and the runtime's first own message if there is one."""
    lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
    if died := _signal(done.returncode):
        return f"{lines[-1]} (it died of {died.name})" if lines else f"it died of {died.name}"
    if not lines:
        return f"it ended with code {done.returncode} without a message"
    said = next((found[2] for line in lines if (found := _SAID.match(line)) and found[1] not in _IDLE), "")
    return f"{lines[-1]} ({said})" if said and done.returncode == REFUSED else lines[-1]


_SAID = re.compile(r"\[(\w+\.\w+):\d+\] (.*)")  # as ExecuTorch logs: [method.cpp:85] Backend X is not registered.
_IDLE = ("cpuinfo_utils.cpp", "threadpool.cpp")
