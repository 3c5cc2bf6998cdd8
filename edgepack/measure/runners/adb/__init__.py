"""An Android phone on this computer's adb, where each file is timed in fresh processes by its runtime's own program.

The programs are ExecuTorch's executor_runner and ONNX Runtime's onnxruntime_perf_test.
Both run one input at a time, so the test split is answered on this computer. A few of its rows are answered on the
phone too, before anything is timed, by executor_runner: onnxruntime_perf_test writes no outputs, and every timing of
it says so. Inputs of timings are the programs' own, ones and zeros.

What adb starts is in the background for Android; inside an app in the foreground the same file may be faster.
"""

import math
import shlex
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from edgepack.config.device import Controls, Device
from edgepack.core.errors import AnswerError, DeviceError
from edgepack.core.frozen import Frozen, Json
from edgepack.measure import evaluate, processes
from edgepack.measure.contract import Job
from edgepack.measure.runners.adb import link as adb_link
from edgepack.measure.runners.adb import output, programs
from edgepack.measure.runners.adb.folder import Folder
from edgepack.measure.runners.adb.link import Link, LostError
from edgepack.measure.runners.adb.output import Timing
from edgepack.measure.runners.adb.programs import Tool
from edgepack.measure.worker import system

if TYPE_CHECKING:
    import numpy

    Array = numpy.typing.NDArray[Any]

EVIDENCE = {"time": "measured", "predict": "emulated", "delegates": "emulated"}
IS_LOCAL = False
INSTALL = {runtime: programs.advice(runtime) for runtime in programs.KINDS}

_ROWS = 3  # rows checked on the phone
_TRIAL = 5  # runs that set the number of runs
_TRIES = 3  # processes, until one has timed enough runs
_MARGIN = 1.2  # times as many runs as the pace so far requires
_PAUSE = 5.0  # seconds between two temperature checks
_UNCHECKED = "onnxruntime_perf_test writes no outputs, so outputs on the phone were not checked: check them in the app"

# What a timing depends on, and what `match` can name. No other properties are kept: serial numbers are among them.
_PROPERTIES = (
    "ro.product.manufacturer",
    "ro.product.model",
    "ro.product.device",
    "ro.soc.manufacturer",
    "ro.soc.model",
    "ro.board.platform",
    "ro.product.cpu.abi",
    "ro.build.version.release",
    "ro.build.version.sdk",
    "ro.build.fingerprint",
)
_ASK = """getprop
echo "[kernel]: [$(uname -r)]"
echo "[online]: [$(cat /sys/devices/system/cpu/online)]"
echo "[features]: [$(grep -m 1 Features /proc/cpuinfo | cut -d : -f 2)]\""""


class Config(Frozen):
    pass


def connect(device: Device) -> "Phone":
    link = adb_link.find(device)
    try:
        properties = output.properties(link.shell(_ASK).out)
    except LostError:
        raise DeviceError(f"{device.name} disconnected at once", "check the phone and its cable") from None
    if (abi := properties.get("ro.product.cpu.abi", "")) != "arm64-v8a":
        message = f"the device attached as {device.name} is for {abi or 'an unknown ABI'}, not arm64-v8a"
        raise DeviceError(message, "attach a phone with a 64-bit system, not an emulator on x86")
    tools = programs.find()
    return Phone(device, link, _facts(device, properties, tools), tools)


def _facts(device: Device, properties: dict[str, str], tools: dict[str, Tool]) -> Json:
    cores = _cores(device, output.cores(properties.get("online", "")))
    return {
        "runner": "adb",
        "context": "adb shell",
        "cpu": f"{properties.get('ro.soc.manufacturer', '')} {properties.get('ro.soc.model', '')}".strip(),
        "features": properties.get("features", "").strip(),
        "machine": "aarch64",
        "kernel": properties.get("kernel", ""),
        **{name: properties.get(name, "") for name in _PROPERTIES},
        "threads": len(cores),
        "cores": cores,
        "versions": {runtime: tool.version for runtime, tool in tools.items()},
        "programs": {runtime: tool.digests() for runtime, tool in tools.items()},
    }


def _cores(device: Device, there: tuple[int, ...]) -> list[int]:
    """Return the cores to run on. By default these are the last ones: phones number fast cores after slow ones."""
    controls, hint = device.controls, f"set `controls` in {device.file}"
    named = list(controls.cores) or list(there)
    if gone := sorted(set(named) - set(there)):
        raise DeviceError(
            f"the profile of {device.name} sets core {gone[0]}, but the phone runs {list(there)} now", hint
        )
    if not named or (controls.threads or 1) > len(named):
        raise DeviceError(
            f"the profile of {device.name} sets {controls.threads or 1} threads, but the phone runs {named}", hint
        )
    return named[-(controls.threads or len(named)) :]


class Phone:
    """A connected phone."""

    def __init__(self, device: Device, link: Link, facts: Json, tools: dict[str, Tool]) -> None:
        self.name, self.link, self.facts, self.tools = device.name, link, facts, tools
        self.folder = Folder(link, tools, facts["cores"])
        self.here = processes.Host(Controls())
        self._pace: dict[str, float] = {}  # milliseconds per run, by the path there

    def run(self, job: Job) -> Json:
        match job["mode"]:
            case "time":
                found: Json = self._again(lambda: self._time(job))
                return found
            case "predict":
                answer = self.here.run(job)
                if job["runtime"] == "executorch" and not job.get("row"):  # of the first part of a split only
                    self._again(lambda: self._check(job))
                return answer
            case "delegates":
                return self._delegates(job)
        raise DeviceError(f"the runner adb cannot {job['mode']} a file", "use another device")

    def close(self) -> None:
        self.here.close()
        self.folder.close()

    def _again(self, act: Callable[[], Any]) -> Any:
        """Run it; if the phone disconnects and comes back, run it once more from the start."""
        try:
            return act()
        except LostError:
            self.link.wait()
        try:
            self.folder.forget()
            return act()
        except LostError:
            hint = "check the phone and its cable; does it restart under load?"
            raise DeviceError(f"{self.name} disconnected twice during work", hint) from None

    def _delegates(self, job: Job) -> Json:
        """Return the delegates that both have: the test split runs here, and the timing there."""
        here = self.here.run(job)["delegates"]
        return {"delegates": [name for name in here if self.tools[job["runtime"]].holds(name)]}

    def _time(self, job: Job) -> Json:
        if job["runtime"] == "onnxruntime" and job.get("shapes"):
            message = f"{Path(job['file']).name} has dynamic shapes, which onnxruntime_perf_test sets to 1"
            raise DeviceError(message, "export it with the shapes that the app uses")
        file = self.folder.model(Path(job["file"]))
        if file not in self._pace:
            self._pace[file] = _pace(self._process(job, file, _TRIAL))
        for _ in range(_TRIES):
            warm, wanted = _counts(job, self._pace[file])
            self._cool_down(job)
            before = self._state()
            timing = self._process(job, file, warm + wanted)
            after = self._state()
            self._pace[file] = min(self._pace[file], _pace(timing))
            if _enough(job, timing.runs[warm:]):
                break
        answer = {
            "load_ms": timing.load,
            "first_ms": timing.first,
            "samples_ns": [round(ms * 1e6) for ms in timing.runs[warm:]],
            "before": before,
            "after": after,
            "blind": system.blind(job, before),
            "versions": {job["runtime"]: self.tools[job["runtime"]].version},
        }
        return {**answer, "unchecked": _UNCHECKED} if job["runtime"] == "onnxruntime" else answer

    def _process(self, job: Job, file: str, runs: int) -> Timing:
        """Run a fresh process that loads the file, runs it once, then `runs` times."""
        threads, model = str(self.facts["threads"]), Path(job["file"]).name
        if job["runtime"] == "executorch":
            flags = [f"--model_path={file}", f"--num_executions={runs + 1}", f"--cpu_threads={threads}"]
            ran = self.folder.run("executorch", model, flags)
            return output.executor(self.folder.log(ran.pid), ran.pid)
        table = self.folder.fresh(".csv")
        flags = ["-I", "-e", "cpu", "-m", "times", "-r", str(runs), "-x", threads, "-y", "1"]
        ran = self.folder.run("onnxruntime", model, [*flags, file, table])
        return output.perf_test(ran.out, self.link.shell(shlex.join(["cat", table])).out)

    def _check(self, job: Job) -> None:
        """Raises AnswerError where outputs of executor_runner for the first rows differ from those of this computer."""
        import numpy

        columns = [numpy.load(path, mmap_mode="r", allow_pickle=False) for path in job["inputs"]]
        rows = len(columns[0]) if columns else job["rows"]
        # One row of inputs may give several rows of outputs.
        here = [each.reshape(rows, -1)[:_ROWS] for each in evaluate.answers(Path(job["output"]))]
        with TemporaryDirectory() as folder:
            there = self._answers(job, columns, len(here[0]), len(here), Path(folder))
        for mine, its in zip(here, there, strict=True):
            self._compare(Path(job["file"]).name, mine, its)

    def _compare(self, model: str, here: "Array", there: list[bytes]) -> None:
        """Raises AnswerError where the phone's values of an output differ from those of this computer."""
        import numpy

        reach = float(numpy.abs(here.astype("float64")).max(initial=0.0))
        hint = "its runtime may have another version or other kernels"
        for row, (mine, its) in enumerate(zip(here, there, strict=True)):
            if len(its) != mine.nbytes:
                raise AnswerError(f"{model} gives {len(its)} bytes on {self.name}, and {mine.nbytes} here", hint)
            off = mine.astype("float64") - numpy.frombuffer(its, mine.dtype)  # differences of uint8 would wrap around
            far = numpy.abs(off).max(initial=0.0)
            if not far <= evaluate.ROUNDING * reach:
                message = f"{model} gives other outputs on {self.name} than on this computer"
                raise AnswerError(f"{message}: of row {row}, outputs up to {reach:.3g} differ by {far:.3g}", hint)

    def _answers(self, job: Job, columns: "list[Array]", count: int, outputs: int, near: Path) -> list[list[bytes]]:
        """Return each of the phone's outputs for the first rows; `near` is a folder on this computer."""
        import numpy

        file, there, rows = self.folder.model(Path(job["file"])), self.folder.path, range(count)
        inputs = {(row, i): near / f"in-{row}-{i}.bin" for row in rows for i in range(len(columns))}
        for (row, i), path in inputs.items():
            path.write_bytes(numpy.array(columns[i][row], order="C").tobytes())
        if inputs:
            self.link.push(list(inputs.values()), there)
        for row in rows:
            given = ",".join(f"{there}/{inputs[row, i].name}" for i in range(len(columns)))
            inputs_flag = [f"--inputs={given}"] if columns else []
            flags = [f"--model_path={file}", *inputs_flag, f"--output_file={there}/out-{row}"]
            self.folder.run("executorch", Path(job["file"]).name, flags)
        names = [[f"out-{row}-{number}.bin" for row in rows] for number in range(outputs)]
        self.link.pull([f"{there}/{name}" for those in names for name in those], near)
        return [[(near / name).read_bytes() for name in those] for those in names]

    def _state(self) -> Json:
        return output.state(self.link.shell("dumpsys battery; dumpsys thermalservice").out)

    def _cool_down(self, job: Job) -> None:
        """Wait until the battery is cool, and the phone does not throttle any more."""
        limits = job.get("cool_down")
        if not limits:
            return
        end = time.monotonic() + limits["seconds"]
        while why := _too_warm(self._state(), limits["below"]):
            if time.monotonic() > end:
                message = f"{self.name} does not cool down: {why}, after {limits['seconds']:.0f} s"
                raise DeviceError(message, "take it out of its case and off the charger, or raise `cool_down`")
            time.sleep(_PAUSE)


def _too_warm(state: Json, below: float) -> str:
    if state.get("celsius", 0.0) > below:
        return f"its battery has {state['celsius']:.0f} degrees Celsius, above the {below:.0f} of cool_down"
    return f"it is throttled, thermal status {state['throttled']}" if state.get("throttled") else ""


def _pace(timing: Timing) -> float:
    return max(statistics.median(timing.runs), 1e-4)


def _counts(job: Job, pace: float) -> tuple[int, int]:
    """Return the numbers of warm-up and timed runs at this many milliseconds per run, chosen as the worker does."""
    return _within(job, pace, job["warm_up_seconds"], 5), _within(job, pace, job["seconds"], job["least_runs"])


def _within(job: Job, pace: float, seconds: float, least: int) -> int:
    wanted = min(job["most_runs"], max(least, math.ceil(_MARGIN * seconds * 1000 / pace)))
    possible = max(3, int(job["most_seconds"] * 1000 / pace))
    return int(min(wanted, possible))


def _enough(job: Job, runs: tuple[float, ...]) -> bool:
    seconds = sum(runs) / 1000
    if len(runs) >= job["most_runs"] or seconds >= job["most_seconds"]:
        return True
    return bool(len(runs) >= job["least_runs"] and seconds >= job["seconds"])
