"""The computer that runs the build: every job in a fresh process, its threads pinned to as many cores.

A runtime takes far longer to import than most files do to be timed. So processes are started several at once, one a
core, and none begins its job before all have imported the runtime and stand still: then each does one job, and while it
does, the others wait for theirs.
"""

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from edgepack.config.device import RUNTIMES, Controls, Device
from edgepack.core import provenance
from edgepack.core.frozen import Frozen
from edgepack.core.process import openmp
from edgepack.measure import worker
from edgepack.measure.contract import Job
from edgepack.measure.processes import answer, check_controls, endless, leash, patience, pinned, pools

EVIDENCE = {"time": "measured", "memory": "measured", "predict": "measured", "delegates": "measured"}
NEAR = True

_WORKER = Path(worker.__file__)
_MOST = 4  # processes of a runtime that are started at once: each of ExecuTorch takes some 200 MB


class Config(Frozen):
    pass


@dataclass(frozen=True)
class Host:
    """This computer, held to the controls of a device profile. One job at a time: its caller has one thread."""

    controls: Controls
    _waiting: "list[_Process]" = field(default_factory=list, init=False, repr=False, compare=False)

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
        cores, timeout = self._cores, patience(job)
        whole = {**job, "threads": len(cores), "cpus": cores}
        end = time.monotonic() + timeout
        try:
            with closing(self._take(job.get("runtime", ""), end)) as process:
                done = process.do(whole, end)
        except (TimeoutError, subprocess.TimeoutExpired):
            self.close()  # others may hang as well
            raise endless(job, timeout) from None
        return answer(done, job)

    def close(self) -> None:
        """End the processes that got no job."""
        while self._waiting:
            self._waiting.pop().close()

    def _take(self, runtime: str, end: float) -> "_Process":
        """One that has imported the runtime, or failed to. Raises TimeoutError.

        Several are started even for the first job: who has one mostly has more, and the cores are idle meanwhile. One
        that was killed as it waited, say for want of memory, is no failure of this job as long as there are others.
        """
        if not any(each.runtime == runtime and not each.ended for each in self._waiting):
            self._start(runtime, end)
        mine = [each for each in self._waiting if each.runtime == runtime]
        taken = next((each for each in mine if not each.ended), mine[-1])
        self._waiting.remove(taken)
        return taken

    def _start(self, runtime: str, end: float) -> None:
        """All of them, or none where that is interrupted: no job may begin while another still imports."""
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
    """A fresh process that imports a runtime, does one job and ends; also as soon as this process does.

    Moments are those of time.monotonic(), in seconds.
    """

    def __init__(self, runtime: str, threads: int) -> None:
        self.runtime = runtime
        self._line, its = socket.socketpair()
        job = {"runtime": runtime, "wait": its.fileno(), "leash": True}
        with its, ExitStack() as held:
            held.enter_context(self._line)
            # A file: nobody empties a pipe while it waits, and what a runtime prints could fill that.
            self._said = held.enter_context(TemporaryFile("w+", encoding="utf-8", errors="replace"))
            self._process = subprocess.Popen(
                # -P: the worker's own folder must not come before the packages that a runtime imports.
                [sys.executable, "-P", str(_WORKER), json.dumps(job)],
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
        """Until it has imported its runtime and stands still, or has ended. Raises TimeoutError."""
        self._line.settimeout(max(end - time.monotonic(), 1e-3))  # 0 would be no timeout
        self._line.recv(1)

    def do(self, job: Job, end: float) -> "subprocess.CompletedProcess[str]":
        """Raises TimeoutExpired."""
        with suppress(OSError):  # it has ended, and says why
            self._line.sendall(json.dumps(job).encode())
            self._line.shutdown(socket.SHUT_WR)
        told, _ = self._process.communicate(timeout=end - time.monotonic())
        self._said.seek(0)
        return subprocess.CompletedProcess(self._process.args, self._process.returncode, told, self._said.read())

    def close(self) -> None:
        with self._process:
            self._process.kill()
        self._held.close()


def connect(device: Device) -> Host:
    check_controls(device, os.sched_getaffinity(0), "this computer")
    return Host(device.controls)
