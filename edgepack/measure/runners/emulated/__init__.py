"""An aarch64 Linux played by qemu: the same worker, for what a file answers there and never for how fast.

It needs qemu-aarch64 and a folder with an arm64 Python, which `edgepack devices prepare ID` makes. The one runtime is
ONNX Runtime: ExecuTorch's Python wants torch, and PyPI's torch for aarch64 loads only where gigabytes of CUDA are.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple

from pydantic import Field

from edgepack.config.device import Device
from edgepack.core import provenance
from edgepack.core.errors import AbsentError, DeviceError
from edgepack.core.frozen import Frozen, Json
from edgepack.core.process import openmp
from edgepack.measure.contract import Job
from edgepack.measure.processes import answer, check_controls, endless, leash
from edgepack.measure.runners.emulated import system_image
from edgepack.measure.worker import archive

EVIDENCE = {"predict": "emulated", "delegates": "emulated"}  # speed under qemu says nothing about a device
IS_LOCAL = True

_RUNTIME = "onnxruntime"
_LACKS = {"executorch": "ExecuTorch is not run under emulation"}
_ANEW = "create its Python and runtime again with `edgepack devices prepare`"
_QEMU = ("qemu-aarch64-static", "qemu-aarch64")
_WORKER = "worker.pyz"
_TIMEOUT = 3600.0  # seconds, before any row
_SLOWEST = 60.0  # seconds allowed per row of a prediction
_FOREIGN = ("PYTHON", "LD_", "QEMU_")  # prefixes of variables that are meant for programs of this computer


class Processor(NamedTuple):
    """What /proc/cpuinfo reports for an Arm processor."""

    part: str
    features: str


_A53 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
_A76 = f"{_A53} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"
PROCESSORS = {
    "cortex-a53": Processor("0xd03", _A53),
    "cortex-a72": Processor("0xd08", _A53),
    "cortex-a76": Processor("0xd0b", _A76),
    "max": Processor("0xd4e", f"{_A76} sve i8mm bf16"),  # all that qemu supports; the number is the Cortex-X3's
}


class Config(Frozen):
    cpu: Literal["cortex-a53", "cortex-a72", "cortex-a76", "max"] = Field(
        default="cortex-a76", description="processor that qemu emulates; only the last two have int8 dot products"
    )


@dataclass(frozen=True)
class Emulated:
    """A prepared folder, and the qemu that runs programs in it."""

    qemu: str
    root: Path
    python: Path
    cpu: str
    facts: Json

    def run(self, job: Job) -> Json:
        whole = {**job, "threads": self.facts["threads"], "leash": True}
        timeout = _TIMEOUT + _SLOWEST * job.get("rows", 0)
        own = {name: value for name, value in openmp.of_the_user(os.environ).items() if not name.startswith(_FOREIGN)}
        environment = {**own, "PYTHONPATH": str(system_image.site(self.root)), "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            with leash() as held, self._system() as system:
                # -S: site would look for packages in folders of this computer.
                command = [self.qemu, "-cpu", self.cpu, "-L", system, str(self.python), "-P", "-S"]
                done = subprocess.run(
                    [*command, f"{system}/{_WORKER}", json.dumps(whole)],
                    stdin=held,
                    capture_output=True,
                    text=True,
                    timeout=timeout,
                    env=environment,
                )
        except subprocess.TimeoutExpired:
            raise endless(job, timeout) from None
        return answer(done, job, _ANEW)

    def close(self) -> None:
        """Do nothing: each job was a process of its own."""

    @contextmanager
    def _system(self) -> Iterator[str]:
        """Provide the prepared folder, with the worker and a /proc/cpuinfo of the emulated processor.

        An absolute path that is not in it falls through to this computer's file. ONNX Runtime 1.32 crashes if it reads
        an x86 cpuinfo.
        """
        with TemporaryDirectory(prefix="edgepack-arm64-") as folder:
            for each in self.root.iterdir():
                Path(folder, each.name).symlink_to(each)
            Path(folder, "proc").mkdir()
            Path(folder, "proc", "cpuinfo").write_text(cpuinfo(PROCESSORS[self.cpu], os.cpu_count() or 1))
            Path(folder, _WORKER).write_bytes(archive.packed())
            yield folder


def cpuinfo(processor: Processor, cores: int) -> str:
    """Return /proc/cpuinfo as on an aarch64 Linux."""
    about = {
        "Features": processor.features,
        "CPU implementer": "0x41",
        "CPU architecture": "8",
        "CPU variant": "0x0",
        "CPU part": processor.part,
        "CPU revision": "1",
    }
    block = "".join(f"{key}\t: {value}\n" for key, value in about.items())
    return "".join(f"processor\t: {core}\n{block}\n" for core in range(cores))


def connect(device: Device) -> Emulated:
    qemu, root, config = _qemu(), system_image.home(), device.runner.config
    assert isinstance(config, Config)
    check_controls(device, os.sched_getaffinity(0), "this computer")
    python = system_image.python(root)
    if python is None:
        hint = f"run `edgepack devices prepare {device.id}`, which creates it in {root}"
        raise AbsentError("arm64 Python is not prepared yet", hint)  # shown in reports: no path of a home
    found = system_image.versions(root, _RUNTIME, "numpy")
    facts = {
        "runner": "emulated",
        "qemu": _version(qemu),
        "cpu": config.cpu,
        "machine": "aarch64",
        "threads": device.controls.threads or len(os.sched_getaffinity(0)),
        "python": python.name,
        "numpy": found.pop("numpy", provenance.MISSING),
        "versions": found,
        "lacks": _LACKS,
    }
    return Emulated(qemu, root, python, config.cpu, facts)


def prepare(device: Device, tell: system_image.Tell) -> None:
    """Make the folder, or make it again. Raises DeviceError."""
    _qemu()
    root = system_image.home()
    system_image.make(root, _wheels(device), tell)
    tell(f"{root} is ready")


def _wheels(device: Device) -> list[str]:
    """Return the packages for pip to fetch: the runtime version of the profile, else the one installed here."""
    here = provenance.versions(_RUNTIME, "numpy")
    return [f"{package}{device.runtimes.get(package, f'=={version}')}" for package, version in here.items()]


def _qemu() -> str:
    found = next(filter(None, map(shutil.which, _QEMU)), None)
    if found is None:
        raise AbsentError("qemu-aarch64 is not installed", "install it: Debian's and Ubuntu's package qemu-user-static")
    return found


@cache
def _version(qemu: str) -> str:
    done = subprocess.run([qemu, "--version"], capture_output=True, text=True, timeout=60)
    found = re.search(r"version (\S+)", done.stdout)
    if done.returncode != 0 or not found:
        raise DeviceError(f"{qemu} does not start", "reinstall the package qemu-user-static")
    return found[1]
