"""Run one job: import a runtime, load one file, do what is asked, and print one line of JSON."""

import contextlib
import fcntl
import gc
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from importlib import import_module

from edgepack.core.runtimes import RUNTIMES
from edgepack.measure.runtimes.contract import Refused, Runtime
from edgepack.measure.worker import system
from edgepack.measure.worker.modes import MODES, Job

# Exit codes besides 1, which means a failure of this device or its installation.
REFUSED = 65  # the runtime refuses this file or its inputs: the last line of stderr says why
NO_MEMORY = 71
TOO_WARM = 75  # the device did not cool down
_MS = 1e-6  # one nanosecond in milliseconds


def main() -> None:
    """Do the job on the command line, and end the process."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # runtimes print; the result must be the only line of output
    try:
        found = run(json.loads(sys.argv[1]))
    except Refused as error:
        print(error, file=sys.stderr)
        sys.exit(REFUSED)
    except MemoryError as error:
        print(" ".join(str(error).split()) or "MemoryError", file=sys.stderr)
        sys.exit(NO_MEMORY)
    print(json.dumps(found), file=answer, flush=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # unloading torch takes 0.4 s, and every file is closed; failures end the normal way, with a message


def run(job: Job) -> Job:
    if job.get("leash"):
        threading.Thread(target=_end_with_input, daemon=True).start()
    if job.get("mode") == "probe":
        return system.probe()
    _pin(job)
    name = job["runtime"]
    runtime = _imported(name)
    if "wait" in job:
        job = _awaited(job["wait"])
        _pin(job)
    runtime.start(job["threads"])
    if job["mode"] == "delegates":
        return {"delegates": runtime.delegates()}
    if job.get("cool_down"):
        _cool_down(**job["cool_down"])
    baseline = system.memory("VmRSS") + system.memory("VmSwap")
    system.forget_peak()
    started = time.perf_counter_ns()
    with _refusing("it does not load"):
        runtime.load(job["file"])
    load = (time.perf_counter_ns() - started) * _MS
    result = {"load_ms": load, "versions": system.versions(RUNTIMES[name].packages)}
    with _refusing("it does not run"):
        return {**result, **MODES[job["mode"]](runtime, job, baseline)}


@contextlib.contextmanager
def _refusing(why: str) -> Iterator[None]:
    """Turn a runtime's exceptions, which are about the file, into Refused; OSError is about the device."""
    try:
        yield
    except (Refused, MemoryError, OSError):
        raise
    except Exception as error:
        said = " ".join(str(error).split())
        if any(words in said for words in _OF_MEMORY):
            raise MemoryError(said) from error
        raise Refused(f"{why}: {type(error).__name__}: {said}") from error


_OF_MEMORY = ("bad_alloc", "Failed to allocate memory", "error: 0x:21", "error 0x21", "not enough memory")


def _pin(job: Job) -> None:
    """Pin every thread: a library may have started some when it was imported."""
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            os.sched_setaffinity(int(thread), job.get("cpus") or os.sched_getaffinity(0))


def _imported(name: str) -> Runtime:
    """Return the runtime. Without the garbage collector its import takes a tenth less time.

    Imported objects are frozen, else the next collection, while a file is loaded, would visit all of them.
    """
    gc.disable()
    runtime: Runtime = import_module(f"edgepack.measure.runtimes.{RUNTIMES[name].module}").Runtime()
    gc.freeze()
    gc.enable()
    return runtime


def _awaited(descriptor: int) -> Job:
    """Signal that this process is ready and idle, and return the job that is then sent."""
    os.write(descriptor, b"!")
    with open(descriptor) as line:
        job: Job = json.load(line)
    return job


def _cool_down(below: float, seconds: float) -> None:
    """Wait until the hottest sensor is below the limit."""
    end = time.monotonic() + seconds
    while (now := system.state().get("celsius", 0.0)) > below:
        if time.monotonic() > end:
            why = f"it stays at {now:.0f} degrees Celsius, above the {below:.0f} of cool_down, for {seconds:.0f} s"
            print(why, file=sys.stderr)
            sys.exit(TOO_WARM)
        time.sleep(1)


def _end_with_input() -> None:
    """End the process with its input. SIGIO, which is not handled, ends even one that hangs in a runtime."""
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)
    while os.read(0, 4096):
        pass
    os._exit(1)
