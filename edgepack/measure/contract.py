"""A runner takes exported files to where they must run. It is a module with

Config                          what a device profile may say of it (frozen pydantic); no address, serial or secret
EVIDENCE                        {mode of worker.py: "measured", "emulated" or "estimated"}: what its answers are worth;
                                a mode that is not in it is not done there
connect(device) -> Connection   reach the device. Raises AbsentError where none is attached or configured, DeviceError
                                where there is one that cannot be used
NEAR                            whether that takes no time: the device is this computer, or none at all
INSTALL                         {runtime: how it gets there}, where that is not plain
prepare(device, tell)           if it has one: fetch what connect() looks for, telling a person of it line by line
"""

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Protocol

from edgepack.core import provenance
from edgepack.core.errors import DeviceError

if TYPE_CHECKING:
    from edgepack.config.device import Device
    from edgepack.core.frozen import Frozen

Job = dict[str, Any]


class Connection(Protocol):
    """A device that was reached.

    `facts` is what its answers depend on besides the file, as JSON: processor, kernel, threads, whatever `match` can
    name, and under "versions" those of its runtimes. "lacks", if it is there, says of a runtime that can never be had
    there why: files of that one are not run, where a runtime that is only missing is an error.
    """

    facts: dict[str, Any]

    def run(self, job: Job) -> dict[str, Any]:
        """One job of worker.py in a fresh process there; files are named by their paths here. Raises DeviceError."""

    def close(self) -> None:
        """Leave nothing of it on the device, neither files nor processes."""


class Runner(Protocol):
    Config: "type[Frozen]"
    EVIDENCE: dict[str, str]
    NEAR: bool

    def connect(self, device: "Device") -> Connection: ...


@contextmanager
def connected(device: "Device") -> Iterator[Connection]:
    """The device, reached and recognised. Raises AbsentError or DeviceError."""
    connection: Connection = device.runner.module.connect(device)
    try:
        recognise(device, connection.facts)
        _check_versions(device, connection.facts["versions"])
        yield connection
    finally:
        connection.close()


def lacking(device: "Device", runtime: str, what: str) -> DeviceError:
    """The error of a device without the runtime that `what` needs."""
    hints: dict[str, str] = getattr(device.runner.module, "INSTALL", {})
    return DeviceError(
        f"{device.name} has no {runtime}, which {what} needs", hints.get(runtime, f"install {runtime} there")
    )


def recognise(device: "Device", facts: dict[str, Any]) -> None:
    """Raises DeviceError where these are the facts of another device than its profile is about."""
    for fact, patterns in device.match.items():
        found = str(facts.get(fact, ""))
        if not any(fnmatchcase(found, pattern) for pattern in patterns):
            message = f"this is not {device.name}: its {fact} is {found!r}, not {' or '.join(patterns)}"
            raise DeviceError(message, f"attach the right device, or mend `match` in {device.file}")


def _check_versions(device: "Device", found: dict[str, str]) -> None:
    from packaging.specifiers import SpecifierSet

    here = {runtime: f"=={version.partition('+')[0]}" for runtime, version in provenance.installed(*found).items()}
    for runtime, version in found.items():
        wanted = device.runtimes.get(runtime) or here.get(runtime, "")  # one that is not here is held to nothing
        if not SpecifierSet(wanted, prereleases=True).contains(version.partition("+")[0]):
            message = f"{device.name} has {runtime} {version}, where {wanted} is wanted"
            hint = f"install that there, or say `runtimes: {{{runtime}: ...}}` in {device.file}"
            raise DeviceError(message, hint)
