"""A board over ssh that hangs, is lost or goes: the job is done again or given up, and nothing is left there."""

import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from factories import recipe
from short_timings import PROCESSES
from stand_ins.ssh_server import PATIENCE, SHORT, SSHD, Server, board, changed_worker, model, send, soon
from stand_ins.ssh_server import server as server
from stand_ins.ssh_server import started as started
from torch_factories import tiny_models as tiny_models

from edgepack.config.device import load_device
from edgepack.core.errors import AbsentError, DeviceError
from edgepack.measure import processes
from edgepack.measure.contract import connected
from edgepack.measure.runners import ssh
from edgepack.measure.runners.ssh import connection
from edgepack.workflows.build import pipeline
from edgepack.workflows.build.store import Store

pytestmark = pytest.mark.skipif(SSHD is None, reason="there is no sshd: apt install openssh-server")


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
            assert timeout != patience or soon(mark.exists)
            return super().communicate(input, timeout)

    with connected(board()) as found:
        before = len(server.processes())
        with monkeypatch.context() as now:
            now.setattr(processes, "_TIMEOUT", patience)
            now.setattr(subprocess, "Popen", Late)
            with pytest.raises(DeviceError, match=r"model\.onnx did not finish in 2 s"):
                found.run({**model(), "mode": "time", **SHORT})
        assert soon(lambda: len(server.processes()) <= before)
        assert found.run({**model(), "mode": "memory"})["peak_bytes"] > 0


def test_a_broken_connection_is_made_again_and_the_job_with_it(hangs: Callable[..., Path], server: Server) -> None:
    mark = hangs(once=True)
    with connected(board()) as found:
        (before,) = server.folders()
        with as_it_hangs(mark, server.cut):
            assert found.run({**model(), "mode": "time", **SHORT})["samples_ns"] == [7]
        assert soon(lambda: len(server.folders()) == 1)
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
        send(stopped, signal.SIGKILL)


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
    print(board._link._place, flush=True)
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


@pytest.mark.usefixtures("short_timings")
def test_from_profile_to_verdict(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert (median.evidence, len(median.samples), median.environment["runner"]) == ("measured", PROCESSES, "ssh")
    assert "127.0.0.1" not in Path("dist/tiny/build.json").read_text()
    server.process.send_signal(signal.SIGSTOP)  # what is up to date needs no board
    try:
        assert pipeline.build(tiny, load_device("board"), Store("store"), dist="dist").exit_code == 0
    finally:
        server.process.send_signal(signal.SIGCONT)
