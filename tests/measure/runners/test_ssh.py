"""A board over ssh: what it tells, what it answers, and who cannot be reached."""

import ast
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy
import pytest
from factories import edgepack, run_here
from stand_ins.ssh_server import (
    SHORT,
    SSHD,
    Server,
    board,
    changed_worker,
    model,
    unpacked,
)
from stand_ins.ssh_server import server as server
from stand_ins.ssh_server import started as started
from torch_factories import data
from torch_factories import tiny_models as tiny_models

from edgepack.config.device import Controls
from edgepack.core.errors import AbsentError, DeviceError
from edgepack.measure import processes
from edgepack.measure.contract import connected
from edgepack.measure.runners import ssh
from edgepack.measure.runners.ssh import address, connection, remote
from edgepack.measure.session import DeviceSession

pytestmark = pytest.mark.skipif(SSHD is None, reason="there is no sshd: apt install openssh-server")


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
    assert reached.run({**job, "output": "there.npz"})["rows"] == 48
    run_here({**job, "output": "here.npz"})
    assert Path("there.npz").read_bytes() == Path("here.npz").read_bytes()
    (session,) = server.folders()
    assert {path.suffix for path in session.iterdir()} == {".pyz", ".onnx", ".npy"}
    sent = {path.name: path.stat().st_mtime_ns for path in session.iterdir()}
    assert reached.run({**job, "output": "again.npz"})["rows"] == 48
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
    assert refused(board(controls={"threads": 4096})).startswith(
        "the profile of the board sets 4096 threads, but it has "
    )
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
