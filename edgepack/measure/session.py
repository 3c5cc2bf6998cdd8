"""How a build gets at its device: asked for only when something must run there, and replaced where there is none.

What a device was when it was last reached is remembered in a folder, so that a build whose every step is cached needs
no device, and `plan` never waits for one.
"""

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from edgepack.config.device import Device
from edgepack.core.errors import AbsentError, DeviceError
from edgepack.core.files import digest, write_atomic
from edgepack.core.frozen import Json
from edgepack.measure.contract import Connection, Job, connected, lacking

Facts = Json
STAND_IN = "estimate"  # the runner that works without the device


def known(device: Device, facts_folder: Path) -> Facts | None:
    """Return the device's facts without waiting for it; None while unknown. The facts are kept in `facts_folder`."""
    if not device.runner.module.IS_LOCAL:
        return _remembered(device, facts_folder)
    try:
        with connected(device) as connection:
            return connection.facts
    except DeviceError:
        return None


class DeviceSession:
    """A device for one build. `absent` says why a stand-in is used; `facts` are then those of the stand-in."""

    def __init__(self, device: Device, facts_folder: Path, needed: Callable[[Facts], bool]) -> None:
        """Connect, unless `needed` says of the known facts that nothing must run on the device.

        Raises DeviceError if there is a device that cannot be used.
        """
        self.device, self.facts_folder, self.absent = device, facts_folder, ""
        self._stack = ExitStack()
        self._connection: Connection | None = None
        before = known(device, facts_folder)
        if before is None or device.runner.module.IS_LOCAL or needed(before):
            before = self._connect().facts
        self.facts: Facts = before

    def run(self, job: Job) -> Json:
        """Run one job of the worker in a fresh process of the device. Raises DeviceError."""
        connection = self._connection or self._connect()
        if connection.facts != self.facts:
            changed = f"{self.device.name} changed since the last connection"
            raise DeviceError(self.absent or changed, "build again")
        self.check(job["runtime"], Path(job.get("file", "")).name or "this recipe")
        return connection.run(job)

    def check(self, runtime: str, what: str) -> None:
        """Raises DeviceError where the device lacks a runtime that `what` needs, unless it can never have it."""
        if runtime not in {**self.facts["versions"], **self.facts.get("lacks", {})}:
            raise lacking(self.device, runtime, what)

    def close(self) -> None:
        self._stack.close()
        self._connection = None

    def _connect(self) -> Connection:
        try:
            self._connection = self._stack.enter_context(connected(self.device))
        except AbsentError as error:
            if self.device.runner.name == STAND_IN:
                raise
            # The facts of the stand-in's own processor must not count.
            self.device, self.absent = self.device.settled({}).run_by(STAND_IN, {}), error.message
            return self._connect()
        _remember(self.device, self.facts_folder, self._connection.facts)
        return self._connection


def _remembered(device: Device, facts_folder: Path) -> Facts | None:
    try:
        found: Facts = json.loads(_place(device, facts_folder).read_text())
        return found
    except (OSError, ValueError):
        return None


def _remember(device: Device, facts_folder: Path, facts: Facts) -> None:
    if device.runner.module.IS_LOCAL:
        return
    path = _place(device, facts_folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(facts, indent=1).encode())


def _place(device: Device, facts_folder: Path) -> Path:
    return facts_folder / f"{digest(device.plain())[:16]}.json"
