"""Parse what a phone and the two programs on it print.

Formats: ExecuTorch's examples/portable/executor_runner and runtime/platform/default/android.cpp; ONNX Runtime's
onnxruntime/test/perftest; Android's BatteryService, ThermalManagerService, logcat and getprop; `adb devices`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from edgepack.core.errors import DeviceError
from edgepack.core.frozen import Json

_ITERATION = re.compile(r"Iteration (\d+) of \d+: ([\d.]+) ms")
_LOADED = re.compile(r"Model loaded in ([\d.]+) ms")
_ENDED = re.compile(r"Model executed successfully (\d+) time\(s\)")
_LINE = re.compile(r"^\d\d-\d\d [\d:.]+ +(\d+) +\d+ ([A-Z]) ExecuTorch *: (.*)$", re.MULTILINE)
_SESSION = re.compile(r"Session creation time cost: ([\d.e+-]+) s")
_FIRST = re.compile(r"First inference time cost: (\d+) ms")
_PROPERTY = re.compile(r"^\[([^]]+)\]: \[(.*)\]$", re.MULTILINE)
_BATTERY = re.compile(r"^\s+temperature: (-?\d+)\s*$", re.MULTILINE)  # its event log contains temperatures too
_THERMAL = re.compile(r"^\s*Thermal Status: (\d+)\s*$", re.MULTILINE)
_KEPT = 0.9  # share of the runs that the phone's log must still contain: it drops lines under load


@dataclass(frozen=True)
class Timing:
    """The times of one process: load, first run, and each later run; milliseconds."""

    load: float
    first: float
    runs: tuple[float, ...]


def attached(text: str) -> dict[str, str]:
    """Return the state of each device by its serial.

    >>> attached("List of devices attached\\n0A1B\\tdevice\\n0C2D\\tunauthorized\\n")
    {'0A1B': 'device', '0C2D': 'unauthorized'}
    """
    lines = (line.split(None, 1) for line in text.partition("List of devices attached")[2].splitlines())
    return {parts[0]: parts[1].strip() for parts in lines if len(parts) == 2}


def properties(text: str) -> dict[str, str]:
    """
    >>> properties("[ro.product.model]: [Pixel 8]")
    {'ro.product.model': 'Pixel 8'}
    """
    return dict(_PROPERTY.findall(text))


def cores(text: str) -> tuple[int, ...]:
    """Parse a list of numbers as the kernel prints it.

    >>> cores("0-3,6")
    (0, 1, 2, 3, 6)
    """
    ranges = (part.partition("-") for part in text.strip().split(",") if part)
    return tuple(core for low, _, high in ranges for core in range(int(low), int(high or low) + 1))


def state(text: str) -> Json:
    """Return the battery's degrees Celsius, which are printed in tenths, and the thermal status, 0 if nothing is
    throttled; each only if the phone reports it (status: since Android 10).
    """
    battery, thermal = _BATTERY.search(text), _THERMAL.search(text)
    found = {
        "celsius": int(battery[1]) / 10 if battery else None,
        "throttled": int(thermal[1]) if thermal else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def messages(log: str, pid: int) -> Iterator[tuple[str, str]]:
    """Yield level and text of each line that one process logged under ExecuTorch's tag, from `logcat -v threadtime`."""
    return ((level, text) for process, level, text in _LINE.findall(log) if int(process) == pid)


def complaint(log: str, pid: int) -> str:
    """Return the last error that one process logged, or ""."""
    return next((text for level, text in reversed([*messages(log, pid)]) if level in "EF"), "")


def ended(log: str, pid: int) -> bool:
    """Return whether the log is complete up to the end of a process that ran well."""
    return any(_ENDED.search(text) for _, text in messages(log, pid))


def executor(log: str, pid: int) -> Timing:
    """Read the timing from the log of one executor_runner. Raises DeviceError if too few runs are logged."""
    text = "\n".join(text for _, text in messages(log, pid))
    if not text:
        message = "executor_runner logged nothing"
        raise DeviceError(message, "build it with -DEXECUTORCH_ENABLE_LOGGING=ON")
    runs = {int(number): float(ms) for number, ms in _ITERATION.findall(text)}
    loaded, asked = _LOADED.search(text), _ENDED.search(text)
    if loaded is None or asked is None or not (runs or int(asked[1]) == 0):
        message = "executor_runner does not log the time of each run: it is too old"
        raise DeviceError(message, "build it from ExecuTorch 1.3 or later")
    if 1 not in runs or len(runs) < _KEPT * int(asked[1]):
        message = f"the phone's log kept {len(runs)} of {asked[1]} runs"
        raise DeviceError(message, "make it larger: adb logcat -G 8M")
    first, *rest = (runs[number] for number in sorted(runs))
    return Timing(load=float(loaded[1]), first=first, runs=tuple(rest))


def perf_test(printed: str, table: str) -> Timing:
    """Read the timing from what one onnxruntime_perf_test printed, and from its table of "model,seconds,peak
    bytes,processor %,number" lines.

    Raises DeviceError if they contain too little.
    """
    session, first = _SESSION.search(printed), _FIRST.search(printed)
    rows = (line.rsplit(",", 4) for line in table.splitlines())
    runs = tuple(float(row[1]) * 1000 for row in rows if len(row) == 5)
    if session is None or first is None or not runs:
        message = "onnxruntime_perf_test does not print the times of loading and of each run: it is too old"
        raise DeviceError(message, "build it from the same ONNX Runtime version as here")
    # It prints whole milliseconds, rounded down: the next one is the maximum for the first run.
    return Timing(load=float(session[1]) * 1000, first=int(first[1]) + 1.0, runs=runs)
