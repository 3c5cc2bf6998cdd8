"""No device at all: times are estimated from the operators of a file, answers are those of this computer.

The figures are the profile's `analytic`; without them nothing is timed. What it says is always told as "estimated".
"""

from dataclasses import dataclass
from pathlib import Path

from edgepack.config.analytic import Analytic
from edgepack.config.device import Controls, Device
from edgepack.core.errors import DeviceError
from edgepack.core.files import digest
from edgepack.core.frozen import Frozen, Json
from edgepack.core.units import SHARE
from edgepack.export.contract import operations
from edgepack.measure.contract import Job
from edgepack.measure.processes import Host
from edgepack.measure.timing.estimator import bounds, estimate

EVIDENCE = {"time": "estimated", "predict": "emulated", "delegates": "emulated"}
IS_LOCAL = True


class Config(Frozen):
    pass


@dataclass(frozen=True)
class Estimator:
    """The figures of a device, and this computer to run files on."""

    device: Device
    host: Host

    @property
    def facts(self) -> Json:
        analytic = self.device.analytic
        figures = digest(analytic.model_dump(mode="json"))[:12] if analytic else ""
        here, cpu = self.host.facts, self.device.cpu
        name = f"{cpu.name if cpu else self.device.name}, worked out on {here['cpu']}"
        return {**here, "cpu": name, "runner": "estimate", "analytic": figures}

    def run(self, job: Job) -> Json:
        return self._time(job) if job["mode"] == "time" else self.host.run(job)

    def close(self) -> None:
        self.host.close()

    def _time(self, job: Job) -> Json:
        analytic, runtime = self.device.analytic, job["runtime"]
        if analytic is None or runtime not in analytic.runtimes:
            message = f"the profile of {self.device.name} has no figures for estimating the time of {runtime}"
            raise DeviceError(message, f"add them to `analytic` in {self.device.file}")
        file = Path(job["file"])
        computed = operations(runtime, file, self.device.quantization, job.get("shapes", {}))
        found = estimate(analytic.runtimes[runtime], computed)
        low, high = bounds(found.ms, analytic.error)
        return {"value_ms": found.ms, "low_ms": low, "high_ms": high, "detail": _detail(analytic, found.slowest)}


def _detail(analytic: Analytic, slowest: tuple[tuple[str, float], ...]) -> Json:
    return {
        "error": SHARE.exact(analytic.error),
        "calibrated_from": analytic.calibrated_from,
        "threads": analytic.threads,
        "slowest": [{"operator": name, "share": round(share, 4)} for name, share in slowest],
    }


def connect(device: Device) -> Estimator:
    return Estimator(device, Host(Controls(threads=1)))
