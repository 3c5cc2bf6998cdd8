"""Run adb: choose a phone, send commands and files, and explain failures."""

import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from edgepack.config.device import Device
from edgepack.core.errors import AbsentError, DeviceError
from edgepack.core.units import SIZE
from edgepack.measure.runners.adb import output

_SHORT = 60.0  # seconds that a command of the phone's system may take
_TRANSFER = 600.0  # seconds for one file over a slow cable
_RETURN = 180.0  # seconds in which a phone must be back: it starts in one or two minutes
_MARK = "edgepack-ended"

# What `adb devices` prints for a device that cannot be used, and what to do.
_STATES = {
    "unauthorized": "unlock it, and allow this computer in the dialog",
    "authorizing": "wait a moment: authorization is in progress",
    "offline": "unplug it and plug it in again, or run `adb reconnect offline`",
    "no permissions": "no permission to open it: apt-get install android-sdk-platform-tools-common, plug it in again",
    "recovery": "start Android on it: `adb reboot`",
    "sideload": "start Android on it: `adb reboot`",
}


class LostError(Exception):
    """The phone disconnected during work: a reboot, a loose cable."""


class HangsError(DeviceError):
    """A command on the phone did not end in time."""


@dataclass(frozen=True)
class Ended:
    """A command that ran to its end on the phone."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Link:
    """A phone. `name` is its name for users: its serial is never shown."""

    serial: str
    name: str

    def shell(self, script: str, timeout: float | None = None) -> Ended:
        """Run a script in the phone's shell; its words must be quoted. Raises LostError and HangsError.

        The mark tells a failed command from a broken connection: adb's own exit code does not.
        """
        done = self._adb("shell", f"( {script}\n); code=$?; echo; echo {_MARK} $code", timeout=timeout or _SHORT)
        out, found, code = done.stdout.rpartition(f"\n{_MARK} ")
        if not found or not code.strip().isdigit():
            raise LostError
        return Ended(int(code), out.removesuffix("\n"), done.stderr)

    def push(self, sources: list[Path], folder: str) -> None:
        """Send files into an existing folder. Raises LostError and DeviceError."""
        done = self._adb("push", *map(str, sources), folder, timeout=_TRANSFER)
        if done.returncode == 0:
            return
        said = self._unnamed(f"{done.stderr}\n{done.stdout}")
        files = ", ".join(f"{each.name} ({SIZE.format(each.stat().st_size)})" for each in sources)
        if "No space left" in said:
            raise DeviceError(f"{self.name} has no space left for {files}", "free some: adb shell df /data/local/tmp")
        self._still_there()
        raise DeviceError(f"{files} could not be sent to {self.name}: {_last(said)}", "run `adb push` by hand")

    def pull(self, sources: list[str], folder: Path) -> None:
        done = self._adb("pull", *sources, str(folder), timeout=_TRANSFER)
        if done.returncode != 0:
            self._still_there()
            why = _last(self._unnamed(done.stderr))
            raise DeviceError(f"{self.name} did not send its outputs: {why}", "run `adb pull` by hand")

    def wait(self) -> None:
        """Wait until the phone is back and has booted. Raises DeviceError when that takes too long."""
        end = time.monotonic() + _RETURN
        while (left := end - time.monotonic()) > 0:
            try:
                self._adb("wait-for-device", timeout=left)
                if self.shell("getprop sys.boot_completed").out.strip() == "1":
                    return
            except (LostError, HangsError):
                pass  # it disconnected again, or never came back
            time.sleep(0.5)
        raise DeviceError(
            f"{self.name} disconnected and was not back in {_RETURN:.0f} s", "check the phone and its cable"
        )

    def _unnamed(self, said: str) -> str:
        """Remove the phone's serial from a message of adb, as reports must not contain it."""
        return said.replace(self.serial, self.name)

    def _still_there(self) -> None:
        if self._adb("get-state", timeout=_SHORT).stdout.strip() != "device":
            raise LostError

    def _adb(self, *arguments: str, timeout: float) -> "subprocess.CompletedProcess[str]":
        try:
            return _call("-s", self.serial, *arguments, timeout=timeout)
        except subprocess.TimeoutExpired:
            hint = "check the phone and its cable, or run `adb kill-server`"
            raise HangsError(f"{self.name} did not respond in {timeout:.0f} s", hint) from None


def find(device: Device) -> Link:
    """Find the phone of a profile: named by its environment variable, else adb's default, else the only one.

    Raises AbsentError if there is none, DeviceError if the choice is not clear, or the phone cannot be used.
    """
    if shutil.which("adb") is None:
        raise AbsentError("adb is not installed", "apt-get install adb")
    there, (variable, serial) = _attached(), _wanted(device.id)
    if not there:
        hint = "plug it in and allow USB debugging in its developer options; `adb devices` must list it"
        raise AbsentError("no Android device is attached", hint)
    if serial and serial not in there:
        hint = "`adb devices` lists those that are; over the network, run `adb connect` first"
        raise AbsentError(f"the device named by {variable} is not attached", hint)
    if not serial and len(there) > 1:
        message = f"{len(there)} Android devices are attached, and none is chosen"
        raise DeviceError(message, f"set {variable} to the serial of one, from `adb devices`")
    serial = serial or next(iter(there))
    state = re.split(r"[;(]", there[serial])[0].strip()
    if state != "device":
        raise DeviceError(f"{device.name} is attached, and {state}", _STATES.get(state, "check the phone"))
    return Link(serial=serial, name=device.name)


def _wanted(id: str) -> tuple[str, str]:
    """Return the environment variable that names the phone of a profile, and the serial in it or ""."""
    variable = "EDGEPACK_ADB_" + re.sub(r"[^A-Z0-9]", "_", id.upper())
    known = next((name for name in (variable, "ANDROID_SERIAL") if os.environ.get(name)), variable)
    return known, os.environ.get(known, "")


def _attached() -> dict[str, str]:
    try:
        done = _call("devices", timeout=_SHORT)
    except subprocess.TimeoutExpired:
        raise DeviceError("`adb devices` does not finish", "run `adb kill-server`") from None
    if done.returncode != 0:
        raise DeviceError(f"adb does not work: {_last(done.stderr)}", "run `adb kill-server`, then `adb devices`")
    return output.attached(done.stdout)


def _call(*arguments: str, timeout: float) -> "subprocess.CompletedProcess[str]":
    command = ["adb", *arguments]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=timeout
    )


def _last(said: str) -> str:
    return next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "it printed nothing")
