"""Where a board is: the user's own ssh set-up decides."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass

from pydantic import Field, field_validator

from edgepack.config.device import Device
from edgepack.core.errors import AbsentError, DeviceError
from edgepack.core.frozen import Frozen

_CONFIGURED = 20.0  # seconds that reading its configuration may take
_NOBODY = "edgepack-asks-for-no-host"


class Config(Frozen):
    python: str = Field(default="python3", description="Python interpreter on the device, such as ~/venv/bin/python")

    @field_validator("python")
    @classmethod
    def _program(cls, python: str) -> str:
        if not python.strip() or not python.isprintable() or python.startswith("-"):
            raise ValueError(f"expected a program, such as python3 or ~/venv/bin/python, got {python!r}")
        return python


@dataclass(frozen=True)
class Address:
    """Where the device is, and how to show that to others."""

    destination: str
    label: str

    @classmethod
    def of(cls, device: Device) -> "Address":
        """Find the address. Raises AbsentError where the user has configured none."""
        variable = f"EDGEPACK_SSH_{re.sub('[^A-Z0-9]', '_', device.id.upper())}"
        destination = os.environ.get(variable, "").strip()
        if destination.startswith("-") or not all(letter.isprintable() and letter != " " for letter in destination):
            raise DeviceError(f"{variable} has no host", "set it to user@host, or to a host alias of ssh")
        if destination:
            return cls(destination, f"${variable}")
        if _knows(device.id):
            return cls(device.id, device.id)
        message = f"{device.name} is not configured: {variable} is not set, and ssh has no host {device.id}"
        raise AbsentError(message, f"set {variable}=user@host, or put `Host {device.id}` into ~/.ssh/config")


def ssh() -> list[str]:
    """Return the ssh command; EDGEPACK_SSH_CONFIG names a configuration to use in place of the user's."""
    config = os.environ.get("EDGEPACK_SSH_CONFIG", "")
    if shutil.which("ssh") is None:
        raise AbsentError("ssh is not installed", "install it: apt install openssh-client")
    return ["ssh", *(["-F", config] if config else [])]


def _knows(name: str) -> bool:
    """Return whether ssh has any setting for a host of this name that it does not have for every name."""
    anybody, found = _settings(_NOBODY), _settings(name)
    if anybody.returncode != 0:
        why = (anybody.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise DeviceError(f"ssh cannot read its configuration: {why}", "fix it, or set EDGEPACK_SSH_CONFIG")
    return found.returncode == 0 and found.stdout.lower() != anybody.stdout.replace(_NOBODY, name).lower()


def _settings(name: str) -> "subprocess.CompletedProcess[str]":
    """Ask ssh for its settings for a host. It runs each `Match exec` of its configuration, which may hang."""
    command = [*ssh(), "-G", "--", name]
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=_CONFIGURED
        )
    except subprocess.TimeoutExpired:
        message = f"ssh did not read its configuration in {_CONFIGURED:.0f} s"
        raise DeviceError(message, "check what a `Match exec` in it waits for, or set EDGEPACK_SSH_CONFIG") from None
