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

    `facts` is what its results depend on besides the file, as JSON: processor, kernel, threads, whatever `match` can
    name, and under "versions" those of its runtimes. "lacks", if present, says why a runtime can never run there: files
    for that runtime are not run, whereas a runtime that is only missing is an error.
    """

    facts: Json

    def run(self, job: Job) -> Json:
        """Run one job of the worker in a fresh process there; files have their local paths. Raises DeviceError."""

    def close(self) -> None:
        """Leave no files or processes on the device."""


class Runner(Protocol):
    """Runs exported files where they must run. Stands in measure/runners/.

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

    Config: type[Frozen]  # its settings in a device profile; no address, serial or secret
    # {mode of the worker: "measured", "emulated" or "estimated"}: the evidence that each mode gives. Other modes are
    # not supported.
    EVIDENCE: dict[str, str]
    IS_LOCAL: bool  # whether connecting takes no time: the device is this computer, or there is no device

    INSTALL: dict[str, str] = {}  # how to install a runtime there, by its name, if that is not obvious

    @abstractmethod
    def connect(self, device: "Device") -> Connection:
        """Connect to the device.

        Raises AbsentError if none is attached or configured, DeviceError if there is one that cannot be used.
        """

    # prepare(device, tell) fetches what `connect` needs, and reports progress line by line. None: needs nothing.
    prepare: "Callable[[Device, Callable[[str], None]], None] | None" = None


@contextmanager
def connected(device: "Device") -> Iterator[Connection]:
    """Connect to the device and check that it is the one of its profile. Raises AbsentError or DeviceError."""
    connection: Connection = device.runner.module.connect(device)
    try:
        recognise(device, connection.facts)
        _check_versions(device, connection.facts["versions"])
        yield connection
    finally:
        connection.close()


def lacking(device: "Device", runtime: str, what: str) -> DeviceError:
    """Return the error for a device without the runtime that `what` needs."""
    hint = device.runner.module.INSTALL.get(runtime, f"install {runtime} there")
    return DeviceError(f"{device.name} has no {runtime}, which {what} needs", hint)


def recognise(device: "Device", facts: Json) -> None:
    """Raises DeviceError where these are not the facts of the device that its profile describes."""
    for fact, patterns in device.match.items():
        found = str(facts.get(fact, ""))
        if not any(fnmatchcase(found, pattern) for pattern in patterns):
            message = f"this is not {device.name}: its {fact} is {found!r}, not {' or '.join(patterns)}"
            raise DeviceError(message, f"attach the right device, or fix `match` in {device.file}")


def _check_versions(device: "Device", found: dict[str, str]) -> None:
    from packaging.specifiers import SpecifierSet

    here = {runtime: f"=={version.partition('+')[0]}" for runtime, version in provenance.installed(*found).items()}
    for runtime, version in found.items():
        wanted = device.runtimes.get(runtime) or here.get(runtime, "")  # any version, if it is not installed here
        if not SpecifierSet(wanted, prereleases=True).contains(version.partition("+")[0]):
            message = f"{device.name} has {runtime} {version}, but {wanted} is required"
            hint = f"install that version on the device, or set `runtimes: {{{runtime}: ...}}` in {device.file}"
            raise DeviceError(message, hint)
