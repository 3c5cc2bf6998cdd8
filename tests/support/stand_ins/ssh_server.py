"""A real OpenSSH server on the loopback interface, with keys and a home folder of its own: here is the board.

After every test nothing may be left of it there, neither files nor processes.
"""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from factories import device
from torch_factories import exported
from torch_factories import tiny_models as tiny_models

from edgepack.measure.runners import ssh
from edgepack.measure.worker import archive

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")


SHORT: dict[str, Any] = {"warm_up_seconds": 0.0, "seconds": 0.0, "least_runs": 7, "most_runs": 50, "most_seconds": 60.0}


PATIENCE = 120.0  # seconds until what never happens is a failure; what happens takes one or two


@dataclass(frozen=True)
class Server:
    """An OpenSSH server, and what those who log in find."""

    folder: Path
    port: int
    process: "subprocess.Popen[bytes]"

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def configuration(self, **changes: str) -> str:
        """An ssh configuration that knows the host `board`, at a path."""
        settings = {
            "HostName": "127.0.0.1",
            "Port": str(self.port),
            "User": getpass.getuser(),
            "IdentityFile": str(self.folder / "key"),
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "UserKnownHostsFile": str(self.folder / "known_hosts"),
            "GlobalKnownHostsFile": os.devnull,
            "StrictHostKeyChecking": "yes",
        }
        lines = [f"  {name} {value}" for name, value in {**settings, **changes}.items()]
        path = Path("ssh_config")
        path.write_text("\n".join(["Host board", *lines, ""]))
        return str(path.absolute())

    def processes(self) -> list[int]:
        """Those of whoever is logged in: the home folder is theirs alone."""
        return [pid for pid in pids() if f"HOME={self.home}\0".encode() in read(f"/proc/{pid}/environ")]

    def folders(self) -> list[Path]:
        return list(self.home.glob(".cache/edgepack/*"))

    def connections(self) -> list[int]:
        """The processes that the server has started for each of them."""
        parents = {pid: read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[1:2] for pid in pids()}
        return [pid for pid, parent in parents.items() if parent == [str(self.process.pid).encode()]]

    def cut(self, how: signal.Signals = signal.SIGKILL) -> list[int]:
        """End every connection, as if the board had lost its power, or stop it, as if the cable had gone."""
        pids = self.connections()
        send(pids, how)
        return pids


def send(pids: Iterable[int], how: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.kill(pid, how)


def pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]


def read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:  # it has ended meanwhile, or is another user's
        return b""


def soon(happened: Callable[[], object]) -> bool:
    end = time.monotonic() + PATIENCE
    while not happened() and time.monotonic() < end:
        time.sleep(0.02)
    return bool(happened())


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("sshd")
    (folder / "home").mkdir()
    for name in ("host", "key", "other"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(folder / name)]
        subprocess.run(command, check=True)
    shutil.copy(folder / "key.pub", folder / "authorized")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # as the service of the system does
    server = Server(folder, port := _free_port(), _serve(folder, port))
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    try:
        assert soon(lambda: _listens(port) or server.process.poll()), "sshd does not start"
        assert server.process.poll() is None, (folder / "log").read_text()
        yield server
    finally:
        server.cut()  # what a test that failed has stopped would stay for ever
        server.process.kill()
        server.process.wait()


def _serve(folder: Path, port: int) -> "subprocess.Popen[bytes]":
    settings = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "authorized",
        "PidFile": "none",
        "StrictModes": "no",  # folders for temporary files may be written by all
        "UsePAM": "no",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "SetEnv": f"HOME={folder / 'home'}",
    }
    file = folder / "sshd_config"
    file.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    with (folder / "log").open("wb") as log:
        return subprocess.Popen([str(SSHD), "-D", "-e", "-f", str(file)], stdin=subprocess.DEVNULL, stderr=log)


def _free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        port: int = listening.getsockname()[1]
        return port


def _listens(port: int) -> bool:
    with suppress(OSError), closing(socket.create_connection(("127.0.0.1", port), timeout=1)):
        return True
    return False


@pytest.fixture
def server(started: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The server, which ssh knows as `board`."""
    monkeypatch.setenv("EDGEPACK_SSH_CONFIG", started.configuration())
    monkeypatch.setattr(ssh, "_WAITS", (0.0, 0.0))
    yield started
    assert soon(lambda: not started.folders()), "files are left on the board"
    assert soon(lambda: not started.processes()), "processes are left on the board"


def board(name: str = "board", interpreter: str = sys.executable, **parts: Any) -> Any:
    return device(name, runner={"ssh": {"python": interpreter}}, **parts)


def model() -> dict[str, Any]:
    path = Path("model.onnx")
    path.write_bytes(exported("onnx", "eager", "mlp"))
    return {"runtime": "onnxruntime", "file": str(path)}


def unpacked() -> dict[str, str]:
    """The files that a board gets as one."""
    with zipfile.ZipFile(BytesIO(archive.packed())) as packed:
        return {name: packed.read(name).decode() for name in packed.namelist()}


def changed_worker(more: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the board get a worker whose module of modes ends with this code."""
    content, files = BytesIO(), unpacked()
    files["edgepack/measure/worker/modes.py"] += more
    with zipfile.ZipFile(content, "w") as packed:
        for name, source in files.items():
            packed.writestr(name, source)
    monkeypatch.setattr(archive, "packed", content.getvalue)
