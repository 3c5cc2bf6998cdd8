"""No device at all: times are estimated from the operators of a file, answers are those of this computer.

The figures are the profile's `analytic`; without them nothing is timed. What it says is always told as "estimated".
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepack import plugins
from edgepack.analytic import Analytic, bounds, estimate
from edgepack.config import Frozen
from edgepack.device import Controls, Device, Quantization
from edgepack.errors import DeviceError, EdgepackError
from edgepack.operators import Operation
from edgepack.runners import Job
from edgepack.runners.host import Host
from edgepack.store import digest
from edgepack.units import SHARE

EVIDENCE = {"time": "estimated", "predict": "emulated", "delegates": "emulated"}
NEAR = True


class Config(Frozen):
    pass


@dataclass(frozen=True)
class Estimator:
    """The figures of a device, and this computer to run files on."""

    device: Device
    host: Host

    @property
    def facts(self) -> dict[str, Any]:
        analytic = self.device.analytic
        figures = digest(analytic.model_dump(mode="json"))[:12] if analytic else ""
        here, cpu = self.host.facts, self.device.cpu
        name = f"{cpu.name if cpu else self.device.name}, worked out on {here['cpu']}"
        return {**here, "cpu": name, "runner": "estimate", "analytic": figures}

    def run(self, job: Job) -> dict[str, Any]:
        return self._time(job) if job["mode"] == "time" else self.host.run(job)

    def close(self) -> None:
        self.host.close()

    def _time(self, job: Job) -> dict[str, Any]:
        analytic, runtime = self.device.analytic, job["runtime"]
        if analytic is None or runtime not in analytic.runtimes:
            message = f"the profile of {self.device.name} has no figures to estimate the time of {runtime} with"
            raise DeviceError(message, f"add them to `analytic` in {self.device.file}")
        file = Path(job["file"])
        computed = operations(runtime, file, self.device.quantization, job.get("shapes", {}))
        found = estimate(analytic.runtimes[runtime], computed)
        low, high = bounds(found.ms, analytic.error)
        return {"value_ms": found.ms, "low_ms": low, "high_ms": high, "detail": _detail(analytic, found.slowest)}


def _detail(analytic: Analytic, slowest: tuple[tuple[str, float], ...]) -> dict[str, Any]:
    return {
        "error": SHARE.exact(analytic.error),
        "calibrated_from": analytic.calibrated_from,
        "threads": analytic.threads,
        "slowest": [{"operator": name, "share": round(share, 4)} for name, share in slowest],
    }


def operations(
    runtime: str, file: Path, quantization: Quantization, shapes: Mapping[str, Sequence[int]] = {}
) -> tuple[Operation, ...]:
    """What a file computes. Raises DeviceError where nobody can read that out of it."""
    exporters = (plugins.load("exporters", name) for name in plugins.names("exporters"))
    readers = [each for each in exporters if hasattr(each, "operations") and runtime == each.RUNTIME]
    if not readers:
        raise DeviceError(f"no exporter can tell the operators of a file for {runtime}", "run it on the device")
    try:
        found: tuple[Operation, ...] = readers[0].operations(file, quantization, shapes)
    except EdgepackError:
        raise
    except Exception as error:
        logging.getLogger(__name__).exception("the operators of %s could not be read", file)
        first = (str(error).strip().splitlines() or [""])[0]
        raise DeviceError(f"the operators of {file} cannot be read: {type(error).__name__}: {first}") from error
    return found


def connect(device: Device) -> Estimator:
    return Estimator(device, Host(Controls(threads=1)))
