"""A Linux computer with Python, reached over ssh: the system's OpenSSH with the user's own configuration and keys.

Where it is stands in no file of the project: environment variable EDGEPACK_SSH_<ID> (as EDGEPACK_SSH_RASPBERRY_PI_5)
holds what `ssh` would be given, or the user's ssh configuration has a host named after the device.
"""

import json
import logging
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import IO, Any
from uuid import uuid4

from pydantic import Field, field_validator

from edgepack import provenance, worker
from edgepack.config import Frozen
from edgepack.device import RUNTIMES, Device
from edgepack.errors import AbsentError, DeviceError
from edgepack.runners import Job, host, recognise
from edgepack.store import file_digest
from edgepack.units import SIZE

EVIDENCE = host.EVIDENCE
NEAR = False

_WORKER = Path(worker.__file__)
_THERE = (Path(__file__).parent / "_there.py").read_text()
_WAITS = (2.0, 10.0, 30.0)  # seconds before each further try: a small board needs half a minute to start again
_GREETING = 60.0  # seconds that logging in and starting Python may take
_CONFIGURED = 20.0  # seconds that reading its configuration may take
_SLOWEST = 100e3  # bytes a second, below which a connection is of no use
_NOBODY = "edgepack-asks-for-no-host"
_OPTIONS = {
    "BatchMode": "yes",  # nobody is asked for a password
    "ConnectTimeout": "10",
    "ServerAliveInterval": "10",
    "ServerAliveCountMax": "3",
    "LogLevel": "ERROR",
    "ControlMaster": "yes",
    "ControlPersist": "no",
    # What a person's logins have and ours must not.
    "RemoteCommand": "none",
    "RequestTTY": "no",
    "PermitLocalCommand": "no",
    "ClearAllForwardings": "yes",
    "ForwardAgent": "no",
    "ForwardX11": "no",
}


class Config(Frozen):
    python: str = Field(default="python3", description="the interpreter there, as ~/venv/bin/python")

    @field_validator("python")
    @classmethod
    def _program(cls, python: str) -> str:
        if not python.strip() or not python.isprintable() or python.startswith("-"):
            raise ValueError(f"name a program, as python3 or ~/venv/bin/python, got {python!r}")
        return python


class LostError(DeviceError):
    """The connection broke; what ran there has ended, and the files that were sent are gone."""


@dataclass(frozen=True)
class Address:
    """Where the device is, and how to write that where others read it."""

    destination: str
    told: str

    @classmethod
    def of(cls, device: Device) -> "Address":
        """Raises AbsentError where the user has configured none."""
        variable = f"EDGEPACK_SSH_{re.sub('[^A-Z0-9]', '_', device.id.upper())}"
        destination = os.environ.get(variable, "").strip()
        if destination.startswith("-") or not all(letter.isprintable() and letter != " " for letter in destination):
            raise DeviceError(f"{variable} names no host", "write it as `ssh` takes it: user@host, or a host alias")
        if destination:
            return cls(destination, f"${variable}")
        if _knows(device.id):
            return cls(device.id, device.id)
        message = f"{device.name} is not configured: there is no {variable}, and ssh knows no host {device.id}"
        raise AbsentError(message, f"set {variable}=user@host, or put `Host {device.id}` into ~/.ssh/config")


def connect(device: Device) -> "Board":
    board = Board(device, Address.of(device))
    try:
        board.reach()
    except BaseException:
        board.close()
        raise
    return board


class Board:
    """The device, over one connection at a time: a broken one is replaced, and the job that it broke is done again."""

    def __init__(self, device: Device, address: Address) -> None:
        self.device, self.address = device, address
        self.facts: dict[str, Any] = {}
        self._line: Line | None = None
        self._folders: list[str] = []  # there, of connections that broke

    def run(self, job: Job) -> dict[str, Any]:
        for wait in (*_WAITS, None):
            try:
                return self._attempt(job)
            except (LostError, AbsentError) as error:
                logging.getLogger(__name__).info("lost: %s", error.message)
                self.close()
                if wait is None:
                    over = Path(job.get("file", "its check of the runtime")).name
                    message = f"{self.device.name} was lost {len(_WAITS) + 1} times over {over}"
                    raise DeviceError(message, "check its power and its network, then build again") from None
                time.sleep(wait)
        raise AssertionError("the last try returns or raises")

    def reach(self) -> "Line":
        """A new connection. Raises AbsentError, or DeviceError where it leads to something that cannot be used."""
        self._line = line = Line(self.device, self.address, self._folders)
        self._folders.append(Path(line.folder).name)
        facts = self._facts(line)
        if self.facts and facts != self.facts:
            raise DeviceError(f"{self.device.name} is not as it was before its connection broke", "build again")
        self.facts = facts
        return line

    def close(self) -> None:
        if self._line:
            self._line.close()
        self._line = None

    def _facts(self, line: "Line") -> dict[str, Any]:
        """What stays the same from one day to the next. Raises DeviceError where nothing can run there."""
        found = _work(
            line, {"mode": "probe", "runtime": "worker.py"}, advice="a device with this runner is a Linux computer"
        )
        recognise(self.device, found)
        host.check_controls(self.device, found["cores"], "it")
        if not found["versions"]:
            package = "onnxruntime=={onnxruntime}".format(**provenance.versions("onnxruntime"))
            hint = f"install what the recipe exports to there, as `{line.python} -m pip install {package}`"
            raise DeviceError(f"{self.device.name} has neither {' nor '.join(RUNTIMES)}", hint)
        cores = host.pinned(self.device.controls, found["cores"])
        kept = ("model", "cpu", "features", "machine", "kernel", "governor", "versions")
        return {"runner": "ssh", **{fact: found[fact] for fact in kept}, "cores": cores, "threads": len(cores)}

    def _attempt(self, job: Job) -> dict[str, Any]:
        line = self._line or self.reach()
        output = f"{uuid4().hex}.npy"
        packages = ", ".join(worker.RUNTIMES[job["runtime"]].packages)
        advice = f"see whether the runtime loads there: {line.python} -c 'import {packages}'"
        found = _work(line, self._told(line, job, output), job, advice=advice)
        if "output" in job:
            line.fetch(output, Path(job["output"]))
        return found

    def _told(self, line: "Line", job: Job, output: str) -> Job:
        """The job as the device must hear it: its files sent, its paths those there."""
        cores = self.facts["cores"]
        there: Job = {**job, "threads": len(cores), "cpus": cores}
        if job["mode"] != "delegates":  # which names no file, but what it is asked for
            there["file"] = line.send(Path(job["file"]))
        if "inputs" in job:
            there["inputs"] = [line.send(Path(path)) for path in job["inputs"]]
        if "output" in job:
            there["output"] = f"{line.folder}/{output}"
        return there


def _work(line: "Line", told: Job, job: Job | None = None, *, advice: str) -> dict[str, Any]:
    """One process of worker.py there. `job` is how it is known here. Raises LostError or DeviceError."""
    job = job or told
    timeout = host.patience(job)
    arguments = (line.send(_WORKER), json.dumps({**told, "leash": True}))
    try:
        done = line.call(arguments, timeout=timeout, environment=host.pools(told.get("threads", 1)))
    except subprocess.TimeoutExpired:
        raise host.endless(job, timeout) from None
    done.stderr = done.stderr.replace(f"{line.folder}/", "")  # it names the user's home, and lands in reports
    return host.answer(done, job, advice)


class Line:
    """One ssh connection, and a folder on the device that is there for as long as the connection is.

    The connection is that of a process there which keeps the folder; whatever else is done goes through it too.
    """

    def __init__(self, device: Device, address: Address, broken: Sequence[str]) -> None:
        """`broken` are the folders of connections before, in which something may still run."""
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
        """Run Python there. Its input stays open while it runs, unless there is one. Raises LostError, TimeoutExpired.

        No configuration is read: what the connection needed of it, it has. Nor is another one opened in its place.
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
        """Its path there, where it goes by its content: what was sent once is not sent again."""
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

    def fetch(self, name: str, target: Path) -> None:
        """A file from there, which goes there."""
        part = target.with_name(f"{target.name}.part")
        with part.open("wb") as content:
            self._hand("give", name, stdout=content)
        part.replace(target)

    def close(self) -> None:
        """The folder goes with the connection, and with it what runs there."""
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

    def _greet(self, broken: Sequence[str]) -> dict[str, Any]:
        """Log in, and hear where the folder is. What keeps it ends as soon as this process does, however it ends."""
        options = [f"-o{name}={value}" for name, value in {**_OPTIONS, "ControlPath": self._socket}.items()]
        kept = _shell(self.python, ("-c", _THERE, "keep", f"session-{uuid4().hex}"))
        command = [*_ssh(), *options, "--", self.address.destination, kept]
        with (self._place / "said").open("wb") as said:
            self._keeper = keeper = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,  # an interruption is ours to deal with first
            )
        timer = threading.Timer(_GREETING, keeper.kill)
        timer.start()
        try:
            assert keeper.stdin and keeper.stdout
            with suppress(OSError):  # where it has ended already, it says why
                keeper.stdin.write(json.dumps(broken) + "\n")
                keeper.stdin.flush()
            line = keeper.stdout.readline()
        finally:
            timer.cancel()
        return self._understood(line) if line else self._failed(keeper.wait())

    def _understood(self, line: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(line)
        except ValueError:
            message = f"{self.device.name} prints as it logs in: {line.strip()[:60]!r}"
            raise DeviceError(
                message, "silence that, in ~/.bashrc or the like, for shells without a terminal"
            ) from None
        return found

    def _failed(self, code: int) -> dict[str, Any]:
        """Why nobody there said a word."""
        said = (self._place / "said").read_text(errors="replace").strip()
        logging.getLogger(__name__).info("ssh ended with %s: %s", code, said)
        name, try_it = self.device.name, f"`ssh {self.address.told} true`"
        if code < 0:
            raise AbsentError(f"{name} said nothing in {_GREETING:.0f} s", f"see whether {try_it} works")
        if code == 255:
            raise _unconnected(name, said, try_it)
        if code in (126, 127):
            hint = "install Python 3.9 or newer there, or name it: `runner: {ssh: {python: ~/venv/bin/python}}`"
            raise DeviceError(f"{name} has no program {self.python}", f"{hint} in {self.device.file}")
        raise DeviceError(f"{name} failed: {(said.splitlines() or [f'code {code}'])[-1]}", f"see what {try_it} says")

    def _check(self) -> None:
        """Raises DeviceError where worker.py cannot run."""
        name = self.device.name
        if python := self._greeting.get("python"):
            hint = "name another one: `runner: {ssh: {python: ~/venv/bin/python}}`"
            raise DeviceError(f"{name} has Python {python}, and worker.py needs 3.9", f"{hint} in {self.device.file}")
        if lacking := self._greeting["lacking"]:
            what = " ".join(lacking)
            raise DeviceError(f"{name} has no {what}", f"install it there: `{self.python} -m pip install {what}`")

    def _check_space(self, file: Path, free: float | None) -> None:
        """Raises DeviceError where a file is larger than what is free."""
        try:
            size = file.stat().st_size
        except OSError as error:
            raise DeviceError(f"{file} cannot be read: {error.strerror}", "build again") from None
        if free is not None and size > free:
            message = (
                f"{self.device.name} has no space: {file.name} is {SIZE.format(size)}, {SIZE.format(free)} are free"
            )
            raise DeviceError(message, "make room where its ~/.cache is")

    def _hand(self, do: str, *arguments: str, size: int = 0, **streams: Any) -> "subprocess.CompletedProcess[str]":
        """Have a file taken or given there."""
        timeout = _GREETING + size / _SLOWEST
        try:
            done = self.call(("-c", _THERE, do, self.folder, *arguments), timeout=timeout, **streams)
        except subprocess.TimeoutExpired:
            raise LostError(f"the connection to {self.device.name} is too slow", "check its network") from None
        if done.returncode != 0:
            why = (done.stderr.strip().splitlines() or [f"code {done.returncode}"])[-1]
            raise DeviceError(f"{self.device.name} cannot {do} a file: {why}", "see whether its disk is full or broken")
        return done


def _unconnected(name: str, said: str, try_it: str) -> DeviceError:
    """What ssh says names hosts and addresses, which reports must not."""
    for words, kind, why, hint in _REASONS:
        if any(each in said for each in words):
            return kind(f"{name} {why}", hint.format(try_it))
    return DeviceError(f"ssh could not connect to {name}", f"see what {try_it} says")


_REACHED = "see that it is on and in the network: {} must work"
_REASONS: tuple[tuple[tuple[str, ...], type[DeviceError], str, str], ...] = (
    (("Could not resolve hostname",), AbsentError, "has a host name that nobody knows", _REACHED),
    (("Connection refused",), AbsentError, "refuses connections over ssh", _REACHED),
    (("timed out", "No route to host", "unreachable", "Host is down"), AbsentError, "does not answer", _REACHED),
    (
        ("REMOTE HOST IDENTIFICATION HAS CHANGED",),
        DeviceError,
        "has another host key than ssh knows",
        "it is another computer, or was installed anew: then `ssh-keygen -R` its host, and try {}",
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
        "does not let this user in",
        "{} must work without a password: `ssh-copy-id` brings a key there",
    ),
    (("Connection closed", "Connection reset"), AbsentError, "closes connections over ssh", _REACHED),
)


def _ssh() -> list[str]:
    """EDGEPACK_SSH_CONFIG names a configuration to use in place of the user's."""
    config = os.environ.get("EDGEPACK_SSH_CONFIG", "")
    if shutil.which("ssh") is None:
        raise AbsentError("ssh is not installed here", "install it: apt install openssh-client")
    return ["ssh", *(["-F", config] if config else [])]


def _knows(name: str) -> bool:
    """Whether ssh would do anything for a host of this name that it would not do for every name."""
    anybody, found = _settings(_NOBODY), _settings(name)
    if anybody.returncode != 0:
        why = (anybody.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise DeviceError(f"ssh cannot read its configuration: {why}", "mend it, or set EDGEPACK_SSH_CONFIG")
    return found.returncode == 0 and found.stdout.lower() != anybody.stdout.replace(_NOBODY, name).lower()


def _settings(name: str) -> "subprocess.CompletedProcess[str]":
    """What ssh would do for a host. It runs each `Match exec` of its configuration, which may wait for anything."""
    command = [*_ssh(), "-G", "--", name]
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=_CONFIGURED
        )
    except subprocess.TimeoutExpired:
        message = f"ssh did not read its configuration in {_CONFIGURED:.0f} s"
        raise DeviceError(message, "see what a `Match exec` in it waits for, or set EDGEPACK_SSH_CONFIG") from None


def _shell(python: str, arguments: Iterable[str], environment: Mapping[str, str] | None = None) -> str:
    """A command for the shell of the device, whichever that is.

    Within it `sh` waits for Python: of a process that was killed it tells 128 and the signal, where ssh would tell what
    it tells of a lost connection too.
    """
    program = f'"$HOME"/{quote(python[2:])}' if python.startswith("~/") else quote(python)
    given = [f"{name}={quote(value)}" for name, value in (environment or {}).items()]
    return f"sh -c {quote(' '.join([*given, program, *map(quote, arguments)]) + '; exit $?')}"


def _short() -> str:
    """A folder for sockets, whose paths may have a hundred letters."""
    return "/tmp" if os.access("/tmp", os.W_OK) else tempfile.gettempdir()  # noqa: S108 (what is made there is ours alone)
