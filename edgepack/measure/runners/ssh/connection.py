"""Hold one ssh connection: send files, run commands, and explain failures."""

import json
import logging
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import IO, Any
from uuid import uuid4

from edgepack.config.device import Device
from edgepack.core.errors import AbsentError, DeviceError
from edgepack.core.files import file_digest
from edgepack.core.frozen import Json
from edgepack.core.units import SIZE
from edgepack.measure.runners.ssh.address import Address, Config, ssh
from edgepack.measure.worker import archive

_THERE = (Path(__file__).parent / "remote.py").read_text()
_GREETING = 60.0  # seconds that logging in and starting Python may take
_SLOWEST = 100e3  # bytes per second, below which a connection is of no use
_OPTIONS = {
    "BatchMode": "yes",  # never ask for a password
    "ConnectTimeout": "10",
    "ServerAliveInterval": "10",
    "ServerAliveCountMax": "3",
    "LogLevel": "ERROR",
    "ControlMaster": "yes",
    "ControlPersist": "no",
    # Options that a user's logins may have and ours must not.
    "RemoteCommand": "none",
    "RequestTTY": "no",
    "PermitLocalCommand": "no",
    "ClearAllForwardings": "yes",
    "ForwardAgent": "no",
    "ForwardX11": "no",
}


class LostError(DeviceError):
    """The connection broke; what ran there has ended, and sent files are gone."""


class Link:
    """One ssh connection, and a folder on the device that exists as long as the connection.

    The connection belongs to a process there that keeps the folder; all other commands share the connection.
    """

    def __init__(self, device: Device, address: Address, broken: Sequence[str]) -> None:
        """Connect. `broken` are the folders of earlier connections, in which something may still run."""
        self.device, self.address = device, address
        assert isinstance(device.runner.config, Config)
        self.python = device.runner.config.python
        self._sent: dict[str, str] = {}  # name there -> path there
        self._place = Path(tempfile.mkdtemp(prefix="edgepack-", dir=_short()))
        self._keeper: subprocess.Popen[str] | None = None
        try:
            self._greeting = self._greet(broken)
            self._check()
        except BaseException:
            self.close()
            raise

    @property
    def folder(self) -> str:
        return str(self._greeting["folder"])

    def call(
        self,
        arguments: Iterable[str],
        *,
        timeout: float,
        environment: Mapping[str, str] | None = None,
        stdin: IO[bytes] | None = None,
        stdout: int | IO[bytes] = subprocess.PIPE,
    ) -> "subprocess.CompletedProcess[str]":
        """Run Python there. By default its input stays open while it runs. Raises LostError, TimeoutExpired.

        No configuration is read: the shared connection has all settings. If it is broken, no new one is opened.
        """
        command = ["ssh", "-F", os.devnull, "-o", "LogLevel=ERROR", "-o", f"ControlPath={self._socket}"]
        command += ["-o", "ProxyCommand=false", "-T", "--", "edgepack", _shell(self.python, arguments, environment)]
        leash, held = os.pipe()
        try:
            done = subprocess.run(
                command,
                stdin=stdin or leash,
                stdout=stdout,
                stderr=subprocess.PIPE,
                timeout=timeout,
                encoding="utf-8",
                errors="replace",
            )
        finally:
            os.close(held)
            os.close(leash)
        if done.returncode == 255:
            hint = "check its power and its network"
            raise LostError(f"the connection to {self.device.name} was lost", hint)
        return done

    def send(self, file: Path) -> str:
        """Send a file and return its path there; its name is its hash, so it is sent only once."""
        self._check_space(file, float(self._greeting["free"]))
        sha256 = file_digest(file)
        name = f"{sha256}{file.suffix}"
        if name not in self._sent:
            with file.open("rb") as content:
                size = file.stat().st_size
                found = json.loads(self._hand("take", name, str(size), sha256, size=size, stdin=content).stdout)
            self._check_space(file, found.get("free"))
            self._sent[name] = f"{self.folder}/{name}"
        return self._sent[name]

    def send_worker(self) -> str:
        """Send the worker and return its path there."""
        file = self._place / "worker.pyz"
        file.write_bytes(archive.packed())
        return self.send(file)

    def fetch(self, name: str, target: Path) -> None:
        """Fetch a file; it is deleted there."""
        part = target.with_name(f"{target.name}.part")
        with part.open("wb") as content:
            self._hand("give", name, stdout=content)
        part.replace(target)

    def close(self) -> None:
        """Close the connection; its folder and all that runs there are removed."""
        if self._keeper:
            assert self._keeper.stdin and self._keeper.stdout
            with suppress(OSError):
                self._keeper.stdin.close()
            try:
                self._keeper.wait(15)
            except subprocess.TimeoutExpired:
                self._keeper.kill()
                self._keeper.wait()
            self._keeper.stdout.close()
        shutil.rmtree(self._place, ignore_errors=True)

    @cached_property
    def _socket(self) -> str:
        return str(self._place / "s").replace("%", "%%")

    def _greet(self, broken: Sequence[str]) -> Json:
        """Log in and learn where the folder is. The process that keeps it always ends as soon as this process does."""
        options = [f"-o{name}={value}" for name, value in {**_OPTIONS, "ControlPath": self._socket}.items()]
        kept = _shell(self.python, ("-c", _THERE, "keep", f"session-{uuid4().hex}"))
        command = [*ssh(), *options, "--", self.address.destination, kept]
        with (self._place / "said").open("wb") as said:
            self._keeper = keeper = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,  # Ctrl-C is handled here first
            )
        timer = threading.Timer(_GREETING, keeper.kill)
        timer.start()
        try:
            assert keeper.stdin and keeper.stdout
            with suppress(OSError):  # if it has ended already, it says why
                keeper.stdin.write(json.dumps(broken) + "\n")
                keeper.stdin.flush()
            line = keeper.stdout.readline()
        finally:
            timer.cancel()
        return self._understood(line) if line else self._failed(keeper.wait())

    def _understood(self, line: str) -> Json:
        try:
            found: Json = json.loads(line)
        except ValueError:
            message = f"{self.device.name} prints text at login: {line.strip()[:60]!r}"
            raise DeviceError(message, "turn that off for shells without a terminal, in ~/.bashrc or similar") from None
        return found

    def _failed(self, code: int) -> Json:
        """Raises the error that explains why the device did not respond."""
        said = (self._place / "said").read_text(errors="replace").strip()
        logging.getLogger(__name__).info("ssh ended with %s: %s", code, said)
        name, try_it = self.device.name, f"`ssh {self.address.label} true`"
        if code < 0:
            raise AbsentError(f"{name} did not respond in {_GREETING:.0f} s", f"check that {try_it} works")
        if code == 255:
            raise _unconnected(name, said, try_it)
        if code in (126, 127):
            hint = "install Python 3.9 or newer there, or set `runner: {ssh: {python: ~/venv/bin/python}}`"
            raise DeviceError(f"{name} has no program {self.python}", f"{hint} in {self.device.file}")
        raise DeviceError(f"{name} failed: {(said.splitlines() or [f'code {code}'])[-1]}", f"check what {try_it} says")

    def _check(self) -> None:
        """Raises DeviceError where the worker cannot run."""
        name = self.device.name
        if python := self._greeting.get("python"):
            hint = "set another one: `runner: {ssh: {python: ~/venv/bin/python}}`"
            raise DeviceError(f"{name} has Python {python}, and the worker needs 3.9", f"{hint} in {self.device.file}")
        if lacking := self._greeting["lacking"]:
            what = " ".join(lacking)
            raise DeviceError(f"{name} has no {what}", f"install it there: `{self.python} -m pip install {what}`")

    def _check_space(self, file: Path, free: float | None) -> None:
        """Raises DeviceError where a file is larger than the free space."""
        try:
            size = file.stat().st_size
        except OSError as error:
            raise DeviceError(f"{file} cannot be read: {error.strerror}", "build again") from None
        if free is not None and size > free:
            message = (
                f"{self.device.name} has no space: {file.name} is {SIZE.format(size)}, {SIZE.format(free)} are free"
            )
            raise DeviceError(message, "free disk space for its ~/.cache")

    def _hand(self, do: str, *arguments: str, size: int = 0, **streams: Any) -> "subprocess.CompletedProcess[str]":
        """Have the device receive or send a file."""
        timeout = _GREETING + size / _SLOWEST
        try:
            done = self.call(("-c", _THERE, do, self.folder, *arguments), timeout=timeout, **streams)
        except subprocess.TimeoutExpired:
            raise LostError(f"the connection to {self.device.name} is too slow", "check its network") from None
        if done.returncode != 0:
            why = (done.stderr.strip().splitlines() or [f"code {done.returncode}"])[-1]
            raise DeviceError(
                f"{self.device.name} cannot {do} a file: {why}", "check whether its disk is full or broken"
            )
        return done


def _unconnected(name: str, said: str, try_it: str) -> DeviceError:
    """Return the error for a message of ssh, without the hosts and addresses in it, which reports must not contain."""
    for words, kind, why, hint in _REASONS:
        if any(each in said for each in words):
            return kind(f"{name} {why}", hint.format(try_it))
    return DeviceError(f"ssh could not connect to {name}", f"check what {try_it} says")


_REACHED = "check that it is on and on the network: {} must work"
_REASONS: tuple[tuple[tuple[str, ...], type[DeviceError], str, str], ...] = (
    (("Could not resolve hostname",), AbsentError, "host name could not be resolved", _REACHED),
    (("Connection refused",), AbsentError, "refuses connections over ssh", _REACHED),
    (("timed out", "No route to host", "unreachable", "Host is down"), AbsentError, "does not respond", _REACHED),
    (
        ("REMOTE HOST IDENTIFICATION HAS CHANGED",),
        DeviceError,
        "has another host key than the one ssh knows",
        "it is another computer, or was reinstalled: then `ssh-keygen -R` its host, and try {}",
    ),
    (
        ("Host key verification failed",),
        DeviceError,
        "has a host key that ssh does not know",
        "log in once by hand and compare the key: then {} must work",
    ),
    (
        ("Permission denied", "Too many authentication failures"),
        DeviceError,
        "refuses this user",
        "{} must work without a password: `ssh-copy-id` copies a key to it",
    ),
    (("Connection closed", "Connection reset"), AbsentError, "closes connections over ssh", _REACHED),
)


def _shell(python: str, arguments: Iterable[str], environment: Mapping[str, str] | None = None) -> str:
    """Return a command for the device's shell, whichever that is.

    `sh` waits for Python and returns 128 + signal for a killed process; ssh would return the code of a lost connection.
    """
    program = f'"$HOME"/{quote(python[2:])}' if python.startswith("~/") else quote(python)
    given = [f"{name}={quote(value)}" for name, value in (environment or {}).items()]
    return f"sh -c {quote(' '.join([*given, program, *map(quote, arguments)]) + '; exit $?')}"


def _short() -> str:
    """Return a folder for sockets, whose paths are limited to about a hundred characters."""
    return "/tmp" if os.access("/tmp", os.W_OK) else tempfile.gettempdir()  # noqa: S108 (what is made there is ours alone)
