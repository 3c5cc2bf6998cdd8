"""Over a real OpenSSH server on the loopback interface, with keys and a home folder of its own: here is the board.

After every test nothing may be left of it there, neither files nor processes.
"""

import ast
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy
import pytest
from factories import device, edgepack, recipe, run_here
from torch_factories import data, exported
from torch_factories import tiny_models as tiny_models

from edgepack.config.device import Controls, load_device
from edgepack.core.errors import AbsentError, DeviceError
from edgepack.measure import processes
from edgepack.measure.contract import connected
from edgepack.measure.runners import ssh
from edgepack.measure.runners.ssh import address, connection, remote
from edgepack.measure.session import DeviceSession
from edgepack.measure.timing import protocol
from edgepack.measure.worker import archive
from edgepack.workflows.build import pipeline
from edgepack.workflows.build.store import Store

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
SHORT: dict[str, Any] = {"warm_up_seconds": 0.0, "seconds": 0.0, "least_runs": 7, "most_runs": 50, "most_seconds": 60.0}

PATIENCE = 120.0  # seconds until what never happens is a failure; what happens takes one or two

pytestmark = pytest.mark.skipif(SSHD is None, reason="there is no sshd: apt install openssh-server")


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
        return [pid for pid in _pids() if f"HOME={self.home}\0".encode() in _read(f"/proc/{pid}/environ")]

    def folders(self) -> list[Path]:
        return list(self.home.glob(".cache/edgepack/*"))

    def connections(self) -> list[int]:
        """The processes that the server has started for each of them."""
        parents = {pid: _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[1:2] for pid in _pids()}
        return [pid for pid, parent in parents.items() if parent == [str(self.process.pid).encode()]]

    def cut(self, how: signal.Signals = signal.SIGKILL) -> list[int]:
        """End every connection, as if the board had lost its power, or stop it, as if the cable had gone."""
        pids = self.connections()
        _signal(pids, how)
        return pids


def _signal(pids: Iterable[int], how: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.kill(pid, how)


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:  # it has ended meanwhile, or is another user's
        return b""


def _soon(happened: Callable[[], object]) -> bool:
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
        assert _soon(lambda: _listens(port) or server.process.poll()), "sshd does not start"
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
    assert _soon(lambda: not started.folders()), "files are left on the board"
    assert _soon(lambda: not started.processes()), "processes are left on the board"


def board(name: str = "board", interpreter: str = sys.executable, **parts: Any) -> Any:
    return device(name, runner={"ssh": {"python": interpreter}}, **parts)


def model() -> dict[str, Any]:
    path = Path("model.onnx")
    path.write_bytes(exported("onnx", "eager", "mlp"))
    return {"runtime": "onnxruntime", "file": str(path)}


@pytest.fixture
def reached(server: Server) -> Iterator[ssh.Board]:
    with connected(board(controls={"threads": 1})) as found:
        assert isinstance(found, ssh.Board)
        yield found


def test_a_board_tells_what_it_is(reached: ssh.Board) -> None:
    cores = sorted(os.sched_getaffinity(0))[-1:]
    assert (reached.facts["runner"], reached.facts["machine"]) == ("ssh", os.uname().machine)
    assert (reached.facts["cores"], reached.facts["threads"]) == (cores, 1)
    assert reached.facts["versions"] == processes.Host(Controls()).facts["versions"]


def test_answers_are_those_of_this_computer(reached: ssh.Board, server: Server) -> None:
    inputs = Path("input.npy")
    numpy.save(inputs, data().test.inputs[0].numpy())
    job = {**model(), "mode": "predict", "inputs": [str(inputs)], "rows": 48}
    assert reached.run({**job, "output": "there.npy"})["rows"] == 48
    run_here({**job, "output": "here.npy"})
    assert Path("there.npy").read_bytes() == Path("here.npy").read_bytes()
    (session,) = server.folders()
    assert {path.suffix for path in session.iterdir()} == {".pyz", ".onnx", ".npy"}
    sent = {path.name: path.stat().st_mtime_ns for path in session.iterdir()}
    assert reached.run({**job, "output": "again.npy"})["rows"] == 48
    assert {path.name: path.stat().st_mtime_ns for path in session.iterdir()} == sent


def test_time_memory_and_delegates(reached: ssh.Board) -> None:
    timed = reached.run({**model(), "mode": "time", **SHORT})
    assert len(timed["samples_ns"]) == 7 and timed["load_ms"] > 0
    assert 10_000 < reached.run({**model(), "mode": "memory"})["peak_bytes"] < 32 * 2**20
    asked = {"runtime": "onnxruntime", "file": "onnx", "mode": "delegates"}
    assert "CPUExecutionProvider" in reached.run(asked)["delegates"]


def test_a_broken_file_is_told_with_the_runtimes_reason(reached: ssh.Board) -> None:
    Path("broken.onnx").write_bytes(b"no model")
    with pytest.raises(DeviceError, match=r"onnxruntime failed on broken\.onnx: .*INVALID_PROTOBUF") as failure:
        reached.run({"runtime": "onnxruntime", "file": "broken.onnx", "mode": "memory"})
    assert "-c 'import onnxruntime'" in failure.value.hint
    assert ".cache" not in failure.value.message
    with pytest.raises(DeviceError, match=r"gone\.onnx cannot be read: No such file"):
        reached.run({"runtime": "onnxruntime", "file": "gone.onnx", "mode": "memory"})


def test_a_variable_names_the_host(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPACK_SSH_MY_DESK_2", "board")
    with connected(board("my-desk.2")) as found:
        assert found.facts["kernel"] == os.uname().release


@pytest.mark.parametrize("destination", ["-oProxyCommand=touch /tmp/x", "board -v", "bo\nard"])
def test_an_option_is_no_host(server: Server, monkeypatch: pytest.MonkeyPatch, destination: str) -> None:
    monkeypatch.setenv("EDGEPACK_SSH_BOARD", destination)
    with pytest.raises(DeviceError, match="EDGEPACK_SSH_BOARD has no host"), connected(board()):
        pass


def test_a_board_that_nobody_configured_says_how(server: Server) -> None:
    with Path("ssh_config").open("a") as config:
        config.write("Host *\n  User everybody\n")
    with pytest.raises(AbsentError) as failure, connected(board("rpi-9")):
        pass
    assert failure.value.code == 4
    assert (
        failure.value.message == "the rpi-9 is not configured: EDGEPACK_SSH_RPI_9 is not set, and ssh has no host rpi-9"
    )
    assert failure.value.hint == "set EDGEPACK_SSH_RPI_9=user@host, or put `Host rpi-9` into ~/.ssh/config"


def test_the_users_own_configuration_is_asked(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("broken").write_text("NoSuchOption yes\n")
    monkeypatch.setenv("EDGEPACK_SSH_CONFIG", "broken")
    with pytest.raises(DeviceError, match="ssh cannot read its configuration: broken: terminating"), connected(board()):
        pass


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"Port": "1"}, AbsentError, "the board refuses connections over ssh"),
        ({"HostName": "no-such-host.invalid"}, AbsentError, "the board host name could not be resolved"),
        ({"IdentityFile": "other"}, DeviceError, "the board refuses this user"),
        ({"UserKnownHostsFile": os.devnull}, DeviceError, "the board has a host key that ssh does not know"),
        ({"UserKnownHostsFile": "changed"}, DeviceError, "the board has another host key than the one ssh knows"),
        ({"ProxyCommand": "false"}, AbsentError, "the board closes connections over ssh"),
        ({"Ciphers": "3des-cbc"}, DeviceError, "ssh could not connect to the board"),
    ],
)
def test_who_cannot_be_reached_or_trusted(
    server: Server, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], kind: type[DeviceError], message: str
) -> None:
    """Each with its own words, and none of them an address: reports are read by others."""
    shutil.copy(server.folder / "other", "other")
    Path("changed").write_text(f"[127.0.0.1]:{server.port} {(server.folder / 'other.pub').read_text()}")
    monkeypatch.setenv("EDGEPACK_SSH_CONFIG", server.configuration(**changes))
    with pytest.raises(kind) as failure, connected(board()):
        pass
    assert (type(failure.value), failure.value.message, failure.value.code) == (kind, message, 4)
    assert "ssh board" in failure.value.hint and "127.0.0.1" not in str(failure.value)


def test_the_shipped_profile_is_listed_with_why_it_cannot_be_used(server: Server) -> None:
    ran = edgepack("devices")
    assert ran.code == 0 and "Raspberry Pi 5 is not configured" in ran.out


def test_a_configuration_that_waits_for_something_is_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("waits").write_text('Match exec "sleep 3"\n  User nobody\n')
    monkeypatch.setenv("EDGEPACK_SSH_CONFIG", "waits")
    monkeypatch.setattr(address, "_CONFIGURED", 0.2)
    with pytest.raises(DeviceError, match="did not read its configuration in") as failure, connected(board("away")):
        pass
    assert "`Match exec`" in failure.value.hint


def script(text: str, name: str = "python") -> str:
    """A stand-in for an interpreter."""
    path = Path(name).absolute()
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def package(folder: str, name: str) -> str:
    """An installed package of which nothing but the name is there."""
    info = Path(folder, f"{name}-1.0.dist-info")
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    return str(Path(folder).absolute())


def refused(device: Any) -> str:
    with pytest.raises(DeviceError) as failure, connected(device):
        pass
    assert not isinstance(failure.value, AbsentError) and failure.value.hint
    return failure.value.message


def test_a_board_that_lacks_something_says_what(server: Server) -> None:
    assert refused(board(interpreter="python-of-nowhere")) == "the board has no program python-of-nowhere"
    assert refused(board(interpreter="~/venv/bin/python")) == "the board has no program ~/venv/bin/python"
    bare = f"exec {sys.executable} -I -S"
    assert refused(board(interpreter=script(f'{bare} "$@"'))) == "the board has no numpy"
    (Path("site/numpy")).mkdir(parents=True)
    (Path("site/numpy/__init__.py")).write_text("")
    some = f'PYTHONPATH={Path("site").absolute()} exec {sys.executable} -S "$@"'
    assert refused(board(interpreter=script(some))) == "the board has neither executorch nor onnxruntime"


def test_a_runtime_that_is_not_there_is_told_when_it_is_needed(server: Server) -> None:
    site = package("site", "executorch")
    (Path("site/numpy")).mkdir()
    (Path("site/numpy/__init__.py")).write_text("")
    some = board(
        interpreter=script(f'PYTHONPATH={site} exec {sys.executable} -S "$@"'), runtimes={"executorch": "==1.0"}
    )
    message = r"the board has no onnxruntime, which model\.onnx needs"
    reached = DeviceSession(some, Path("store"), lambda facts: True)
    with closing(reached) as session, pytest.raises(DeviceError, match=message):
        session.run({**model(), "mode": "memory"})


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


def test_an_old_python_is_told_of(server: Server) -> None:
    """One that says it is old: what it is told to run must be readable for it, which ast checks as far as 3.7."""
    Path("old").mkdir()
    Path("old/sitecustomize.py").write_text("import sys\nsys.hexversion, sys.version = 0x030703F0, '3.7.3 (default)'\n")
    old = script(f'PYTHONPATH={Path("old").absolute()} exec {sys.executable} "$@"')
    assert refused(board(interpreter=old)) == "the board has Python 3.7.3, and the worker needs 3.9"
    ast.parse(Path(remote.__file__).read_text(), feature_version=(3, 7))
    for name, source in unpacked().items():
        parsed = ast.parse(source, name, feature_version=(3, 9))
        calls = [node for node in ast.walk(parsed) if isinstance(node, ast.Call)]
        assert "strict" not in {keyword.arg for call in calls for keyword in call.keywords}  # of zip, since 3.10


def test_the_wrong_board_is_told_first(server: Server) -> None:
    wrong = board(match={"model": ["Raspberry Pi 5*"]}, controls={"threads": 4096})
    assert refused(wrong).startswith("this is not the board: its model is ")
    assert refused(board(controls={"threads": 4096})).startswith("the board sets 4096 threads, but it has ")
    assert "but ==1.2.3 is required" in refused(board(runtimes={"onnxruntime": "==1.2.3"}))


def test_a_file_larger_than_the_boards_disk_is_not_sent(reached: ssh.Board) -> None:
    """A file of nothing but holes, larger than any disk that tests run on."""
    with Path("huge.onnx").open("wb") as file:
        file.truncate(8 * 2**40)
    with pytest.raises(DeviceError, match=r"the board has no space: huge\.onnx is 8800 GB, [\d.]+ .B are free"):
        reached.run({"runtime": "onnxruntime", "file": "huge.onnx", "mode": "memory"})


def test_a_disk_that_fills_up_on_the_way_is_told(reached: ssh.Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the board itself finds when the file comes."""
    less = connection._THERE.replace("found.f_bavail * found.f_frsize", "1000")
    monkeypatch.setattr(connection, "_THERE", less)
    with pytest.raises(DeviceError, match=r"the board has no space: model\.onnx is [\d.]+ kB, 1 kB are free"):
        reached.run({**model(), "mode": "memory"})


def test_a_talkative_login_is_told(server: Server) -> None:
    (server.home / ".bashrc").write_text("echo welcome\n")
    try:
        said = script(f'echo welcome; exec {sys.executable} "$@"')
        assert refused(board(interpreter=said)) == "the board prints text at login: 'welcome'"
    finally:
        (server.home / ".bashrc").unlink()


def test_a_worker_that_the_system_kills_is_no_lost_connection(
    reached: ssh.Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed_worker("import os\nMODES['time'] = lambda *_: os.kill(os.getpid(), 9)\n", monkeypatch)
    with pytest.raises(DeviceError, match="onnxruntime failed on") as failure:
        reached.run({**model(), "mode": "time", **SHORT})
    assert "memory" in failure.value.hint


HANG = """
def hang(runtime, job, baseline):
    import ctypes, os
    mark = {mark!r}
    if {once} and os.path.exists(mark):
        return {{"samples_ns": [7]}}
    open(mark, "w").close()
    ctypes.PyDLL(None).pause()  # as a runtime that waits forever, and lets no other thread of Python run


MODES["time"] = hang
"""


@pytest.fixture
def hangs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """Workers that hang as they time, or only the first of them does; gives the file that appears when one does."""

    def hangs(*, once: bool = False) -> Path:
        mark = tmp_path / "mark"
        changed_worker(HANG.format(mark=str(mark), once=once), monkeypatch)
        return mark

    monkeypatch.setattr(processes, "_TIMEOUT", PATIENCE)  # should nothing else end it
    return hangs


@contextmanager
def as_it_hangs(mark: Path, do: Callable[[], object], *, again: bool = False) -> Iterator[None]:
    """Meanwhile, once a worker hangs, do this; or each time that one does."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            if mark.exists():
                if again:
                    mark.unlink()
                do()
                if not again:
                    return

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join(PATIENCE)


def test_a_worker_that_hangs_is_ended_there_too(
    hangs: Callable[..., Path], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its patience is short, and counts from when the worker hangs: how long Python takes to start does not matter."""
    mark = hangs()
    patience = 1.5

    class Late(subprocess.Popen):  # type: ignore[type-arg]
        def communicate(self, input: Any = None, timeout: float | None = None) -> Any:
            assert timeout != patience or _soon(mark.exists)
            return super().communicate(input, timeout)

    with connected(board()) as found:
        before = len(server.processes())
        with monkeypatch.context() as now:
            now.setattr(processes, "_TIMEOUT", patience)
            now.setattr(subprocess, "Popen", Late)
            with pytest.raises(DeviceError, match=r"model\.onnx did not finish in 2 s"):
                found.run({**model(), "mode": "time", **SHORT})
        assert _soon(lambda: len(server.processes()) <= before)
        assert found.run({**model(), "mode": "memory"})["peak_bytes"] > 0


def test_a_broken_connection_is_made_again_and_the_job_with_it(hangs: Callable[..., Path], server: Server) -> None:
    mark = hangs(once=True)
    with connected(board()) as found:
        (before,) = server.folders()
        with as_it_hangs(mark, server.cut):
            assert found.run({**model(), "mode": "time", **SHORT})["samples_ns"] == [7]
        assert _soon(lambda: len(server.folders()) == 1)
        assert server.folders() != [before]


def test_what_runs_beyond_a_silent_network_is_ended_first(
    hangs: Callable[..., Path], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server does not know that the connection is lost, so nothing there ends by itself."""
    mark = hangs(once=True)
    monkeypatch.setitem(connection._OPTIONS, "ServerAliveInterval", "1")
    monkeypatch.setitem(connection._OPTIONS, "ServerAliveCountMax", "1")
    stopped: list[int] = []
    try:
        with connected(board()) as found:
            before = server.processes()
            with as_it_hangs(mark, lambda: stopped.extend(server.cut(signal.SIGSTOP))):
                assert found.run({**model(), "mode": "time", **SHORT})["samples_ns"] == [7]
            assert not {*before} & {*server.processes()} and len(server.folders()) == 1
    finally:
        _signal(stopped, signal.SIGKILL)


def test_a_board_that_is_lost_again_and_again_is_given_up(hangs: Callable[..., Path], server: Server) -> None:
    mark = hangs()
    with (
        connected(board()) as found,
        as_it_hangs(mark, server.cut, again=True),
        pytest.raises(DeviceError, match=r"the board was lost 3 times over model\.onnx") as failure,
    ):
        found.run({**model(), "mode": "time", **SHORT})
    assert failure.value.code == 4 and not isinstance(failure.value, AbsentError)


def test_another_board_at_the_same_address_is_noticed(server: Server) -> None:
    with connected(board()) as found:
        assert isinstance(found, ssh.Board)
        found.facts = {**found.facts, "kernel": "another"}
        server.cut()
        with pytest.raises(DeviceError, match="changed while the connection was lost"):
            found.run({**model(), "mode": "memory"})


KILLED = """
import sys
from edgepack.config.device import load_device
from edgepack.measure.contract import connected
with connected(load_device("board")) as board:
    board.run({"runtime": "onnxruntime", "file": "model.onnx", "mode": "memory"})
    print(board._line._place, flush=True)
    sys.stdin.read()
"""


def test_nothing_is_left_when_the_build_is_killed(server: Server) -> None:
    board()
    model()
    with subprocess.Popen([sys.executable, "-c", KILLED], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as build:
        assert build.stdout
        place = build.stdout.readline().decode().strip()
        assert server.folders() and server.processes()
        build.kill()
    shutil.rmtree(place)


def test_what_a_board_without_power_left_goes_when_it_is_reached_again(server: Server) -> None:
    left, foreign = (server.home / ".cache/edgepack" / name for name in ("session-0", "other"))
    for folder in (left, foreign):
        folder.mkdir(parents=True)
        (folder / "file").write_text("")
    with connected(board()), connected(board()):
        assert not left.exists() and foreign.exists()
        assert len(server.folders()) == 3
    shutil.rmtree(foreign)


NET = """
from torch import nn

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""


def test_from_profile_to_verdict(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    short = protocol.TimingProtocol(name="short", warm_up_seconds=0, seconds=0, least_runs=7)
    monkeypatch.setattr(protocol.TimingProtocol, "of", lambda metrics: short)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    Path("net_of_a_board.py").write_text(NET)
    board(controls={"threads": 1})
    tiny = recipe(
        model={"python": "net_of_a_board:make"},
        data={"digits": {"size": 8}},
        device="board",
        stages=[{"train": {"epochs": 1, "batch_size": 32}}],
        export=["onnx"],
        budgets={"latency.p50": "10 s", "memory.peak": "1 GB", "accuracy": {"min": "1 %"}, "parity": {"min": "99 %"}},
    )
    result = pipeline.build(tiny, load_device("board"), Store("store"), dist="dist")
    assert (result.exit_code, result.absent) == (0, "")
    assert {verdict.outcome for verdict in result.verdicts} == {"pass"}
    (median,) = [each for each in result.measurements if (each.metric, each.artifact) == ("latency.p50", "onnx")]
    assert (median.evidence, len(median.samples), median.environment["runner"]) == ("measured", 7, "ssh")
    assert "127.0.0.1" not in Path("dist/tiny/build.json").read_text()
    server.process.send_signal(signal.SIGSTOP)  # what is up to date needs no board
    try:
        assert pipeline.build(tiny, load_device("board"), Store("store"), dist="dist").exit_code == 0
    finally:
        server.process.send_signal(signal.SIGCONT)
