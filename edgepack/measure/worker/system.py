"""Read facts of the device: its kind, temperature, load of its cores, memory of this process."""

import glob
import os
import platform
import shutil
import subprocess
import time
from typing import Any

from edgepack.core.runtimes import RUNTIMES

_TICKS = os.sysconf("SC_CLK_TCK")  # units of /proc/stat per second
_FEW = 20  # ticks; shares of fewer are noise
_FIRMWARE = 10.0  # timeout in seconds for the firmware of a Raspberry Pi


def probe() -> dict[str, Any]:
    """Describe this device, for `match` in its profile and for the record. Nothing identifies a person or address."""
    info = _facts("/proc/cpuinfo")
    return {
        "model": _text("/proc/device-tree/model") or _text("/sys/class/dmi/id/product_name"),
        "cpu": info.get("model name") or info.get("Hardware") or platform.processor(),
        "features": info.get("flags") or info.get("Features", ""),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "cores": sorted(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "free_bytes": _free(os.getcwd()),
        "governor": governor(),
        "python": platform.python_version(),
        "versions": installed(*RUNTIMES),
        "state": state(),
    }


def governor() -> str:
    """Return the governor of the processor's clock; "" if there is none, as in most virtual machines."""
    return _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def state() -> dict[str, Any]:
    """Return the temperature in degrees Celsius and the throttling state; only what the device reports.

    `throttled` has bits 0 to 3 of a Raspberry Pi's state, the current ones; `throttle_count` is the counter of x86.
    """
    zones = [_number(path) / 1000 for path in glob.glob("/sys/class/thermal/thermal_zone*/temp")]
    counts = [_number(path) for path in glob.glob("/sys/devices/system/cpu/cpu*/thermal_throttle/core_throttle_count")]
    found = {
        "celsius": max((each for each in zones if 0 < each < 150), default=None),
        "throttle_count": sum(counts) if counts else None,
        "throttled": _now(_raspberry_bits()),
    }
    return {name: value for name, value in found.items() if value is not None}


def blind(job: dict[str, Any], facts: dict[str, Any]) -> bool:
    """Return whether the device should cool down but reports no temperature."""
    return bool(job.get("cool_down")) and "celsius" not in facts


def others(stat: str, cores: set[int], own: float) -> tuple[float, float]:
    """Return the seconds that these cores spent on other processes than this one, which used `own`, and the total.

    The load average would not do: it counts other cores too, and the processes that were timed a minute ago.
    """
    wanted = {f"cpu{core}" for core in cores}
    lines = (line.split() for line in stat.splitlines())
    times = [[int(each) for each in line[1:9]] for line in lines if line and line[0] in wanted]
    had = sum(map(sum, times)) / _TICKS
    idle = sum(each[3] + each[4] for each in times) / _TICKS  # idle, or waiting for a disk
    return had - idle - own, had


def others_now() -> tuple[float, float]:
    return others(_text("/proc/stat"), os.sched_getaffinity(0), time.process_time())


def share(before: tuple[float, float], after: tuple[float, float]) -> float:
    """Return the share of the cores' time that others used between two moments; 0 if unknown or too short."""
    had = after[1] - before[1]
    return min(1.0, max(0.0, (after[0] - before[0]) / had)) if had * _TICKS >= _FEW else 0.0


def memory(field: str) -> int:
    """Return a line of /proc/self/status in bytes; 0 if there is none."""
    try:
        with open("/proc/self/status") as status:
            return next((int(line.split()[1]) * 1024 for line in status if line.startswith(field)), 0)
    except OSError:
        return 0


def forget_peak() -> None:
    """Reset the high-water mark: importing a runtime may have peaked above what the model needs."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    from importlib.metadata import version

    return {package: version(package) for package in packages}


def installed(*packages: str) -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError

    found = {}
    for package in packages:
        try:
            found.update(versions((package,)))
        except PackageNotFoundError:
            continue
    return found


def _raspberry_bits() -> str:
    """Return the state in hexadecimal; newer boards have a program for it in place of a file."""
    if files := glob.glob("/sys/devices/platform/soc*/soc*:firmware/get_throttled"):
        return _text(files[0])
    program = shutil.which("vcgencmd")
    if not program:
        return ""
    try:
        result = subprocess.run(
            [program, "get_throttled"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_FIRMWARE
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""  # it asks the firmware, which may not answer
    return result.stdout.strip().removeprefix("throttled=")


def _now(bits: str) -> "int | None":
    """Return the current bits; None if it is no number, as `error=1 error_msg="Command not registered"`."""
    try:
        return int(bits, 16) & 0xF
    except ValueError:
        return None


def _facts(path: str) -> dict[str, str]:
    """Return the first block of a file of "key : value" lines."""
    lines = (line.partition(":") for line in _text(path).split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip("\0\n ")
    except OSError:
        return ""


def _number(path: str) -> float:
    text = _text(path)
    return float(text) if text.lstrip("-").isdigit() else 0.0


def _free(folder: str) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize
