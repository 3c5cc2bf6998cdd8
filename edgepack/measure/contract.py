"""Define what a runner must and may provide, and connect to a device."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Protocol

from edgepack.core import provenance
from edgepack.core.errors import DeviceError
from edgepack.core.frozen import Frozen, Json

if TYPE_CHECKING:
    from edgepack.config.device import Device

Job = Json


class Connection(Protocol):
    """A device that was reached.

    `facts` is what its answers depend on besides the file, as JSON: processor, kernel, threads, whatever `match` can
    name, and under "versions" those of its runtimes. "lacks", if it is there, says of a runtime that can never be had
    there why: files of that one are not run, where a runtime that is only missing is an error.
    """

    facts: Json

    def run(self, job: Job) -> Json:
        """One job of the worker in a fresh process there; files are named by their paths here. Raises DeviceError."""

    def close(self) -> None:
        """Leave nothing of it on the device, neither files nor processes."""


class Runner(Protocol):
    """Takes exported files to where they must run. Stands in measure/runners/.

    What has no default below must be defined; what has one may be left out. A whole runner:

        "This computer, with a name of its own."

        from edgepack.core.frozen import Frozen, Json
        from edgepack.measure.processes import Host

        EVIDENCE = {"time": "measured", "predict": "measured"}
        IS_LOCAL = True


        class Config(Frozen):
            name: str = "bench"


        class Bench(Host):
            @property
            def facts(self):
                return {**super().facts, "runner": "bench", "name": "bench"}


        def connect(device):
            return Bench(device.controls)
    """

    Config: type[Frozen]  # what a device profile may say of it; no address, serial or secret
    # {mode of the worker: "measured", "emulated" or "estimated"}: what its answers are worth. Other modes are not done
    # there.
    EVIDENCE: dict[str, str]
    IS_LOCAL: bool  # whether connecting takes no time: the device is this computer, or none at all

    INSTALL: dict[str, str] = {}  # how a runtime gets there, by its name, where that is not plain

    @abstractmethod
    def connect(self, device: "Device") -> Connection:
        """Reach the device.

        Raises AbsentError where none is attached or configured, DeviceError where there is one that cannot be used.
        """

    # prepare(device, tell) fetches what `connect` looks for, telling a person of it line by line. None: needs nothing.
    prepare: "Callable[[Device, Callable[[str], None]], None] | None" = None


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
    hint = device.runner.module.INSTALL.get(runtime, f"install {runtime} there")
    return DeviceError(f"{device.name} has no {runtime}, which {what} needs", hint)


def recognise(device: "Device", facts: Json) -> None:
    """Raises DeviceError where these are the facts of another device than its profile is about."""
    for fact, patterns in device.match.items():
        found = str(facts.get(fact, ""))
        if not any(fnmatchcase(found, pattern) for pattern in patterns):
            message = f"this is not {device.name}: its {fact} is {found!r}, not {' or '.join(patterns)}"
            raise DeviceError(message, f"attach the right device, or fix `match` in {device.file}")


def _check_versions(device: "Device", found: dict[str, str]) -> None:
    from packaging.specifiers import SpecifierSet

    here = {runtime: f"=={version.partition('+')[0]}" for runtime, version in provenance.installed(*found).items()}
    for runtime, version in found.items():
        wanted = device.runtimes.get(runtime) or here.get(runtime, "")  # one that is not here is held to nothing
        if not SpecifierSet(wanted, prereleases=True).contains(version.partition("+")[0]):
            message = f"{device.name} has {runtime} {version}, but {wanted} is required"
            hint = f"install that version on the device, or set `runtimes: {{{runtime}: ...}}` in {device.file}"
            raise DeviceError(message, hint)
