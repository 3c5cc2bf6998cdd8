"""A device is reached when something must run there, and replaced where there is none."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from factories import device

from edgepack.config.device import Device
from edgepack.config.plugins import load
from edgepack.core.errors import AbsentError, DeviceError
from edgepack.core.provenance import versions
from edgepack.measure.contract import connected
from edgepack.measure.session import DeviceSession, known

VERSIONS = versions("onnxruntime")


@dataclass
class Board:
    """A device that is far away: it notes what is asked of it."""

    facts: dict[str, Any] = field(default_factory=lambda: {"model": "A board", "versions": dict(VERSIONS)})
    absent: str = ""
    log: list[str] = field(default_factory=list)

    def connect(self, device: Device) -> "Board":
        self.log.append("reached")
        if self.absent:
            raise AbsentError(self.absent)
        return self

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        self.log.append(job["mode"])
        return {"from": "the board"}

    def close(self) -> None:
        self.log.append("left")


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Board:
    """In the place of the runner `host`, and not local."""
    there, host = Board(), load("runners", "host")
    evidence = {"time": "measured"}
    module = SimpleNamespace(
        connect=there.connect, IS_LOCAL=False, EVIDENCE=evidence, Config=host.Config, INSTALL=host.INSTALL
    )
    monkeypatch.setattr(
        "edgepack.config.plugins.load", lambda kind, name: module if name == "host" else load(kind, name)
    )
    return there


def always(facts: dict[str, Any]) -> bool:
    return True


def never(facts: dict[str, Any]) -> bool:
    return False


JOB = {"mode": "time", "runtime": "onnxruntime", "file": "m.onnx"}


def test_a_device_is_reached_once_and_left_at_the_end(board: Board) -> None:
    reach = DeviceSession(device(), Path("store"), always)
    assert [reach.run(JOB), reach.run(JOB)] == [{"from": "the board"}] * 2
    reach.close()
    assert board.log == ["reached", "time", "time", "left"]


def test_a_device_that_is_known_is_left_alone_until_something_must_run_there(board: Board) -> None:
    store, where = Path("store"), device()
    assert known(where, store) is None
    DeviceSession(where, store, never).close()
    assert known(where, store) == board.facts
    board.log.clear()
    reach = DeviceSession(where, store, never)
    assert (reach.facts, board.log) == (board.facts, [])
    reach.run(JOB)
    reach.close()
    assert board.log == ["reached", "time", "left"]


def test_a_device_that_changed_meanwhile_is_told(board: Board) -> None:
    store, where = Path("store"), device()
    DeviceSession(where, store, always).close()
    reach = DeviceSession(where, store, never)
    board.facts = {**board.facts, "kernel": "7"}
    with pytest.raises(DeviceError, match="changed since the last connection"):
        reach.run(JOB)
    assert DeviceSession(where, store, never).facts["kernel"] == "7"


def test_a_device_without_the_runtime_is_told_what_to_install(board: Board) -> None:
    reach = DeviceSession(device(), Path("store"), always)
    with pytest.raises(DeviceError, match=r"has no executorch, which m\.pte needs") as failure:
        reach.run({**JOB, "runtime": "executorch", "file": "dist/m.pte"})
    assert "install executorch there" in str(failure.value)


@pytest.mark.parametrize(
    ("match", "versions", "message"),
    [
        ({"model": ["A bord*"]}, VERSIONS, "this is not the board: its model is 'A board', not A bord"),
        ({"soc": ["X"]}, VERSIONS, "its soc is ''"),
        ({}, {"onnxruntime": "1.20.0"}, r"has onnxruntime 1\.20\.0, but ==.* is required"),
    ],
)
def test_another_device_or_version_is_refused_and_left(
    board: Board, match: dict[str, Any], versions: dict[str, str], message: str
) -> None:
    board.facts["versions"] = versions
    with pytest.raises(DeviceError, match=message), connected(device(match=match)):
        pass
    assert board.log == ["reached", "left"]


def test_versions_and_names_are_patterns(board: Board) -> None:
    board.facts["versions"] = {"onnxruntime": "1.20.0+cpu"}
    with connected(device(match={"model": ["A b*", "B"]}, runtimes={"onnxruntime": ">=1.20"})):
        pass


def test_what_is_not_installed_here_is_held_to_nothing(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepack.core.provenance.installed", lambda *packages: {})
    with connected(device()):
        pass


def test_a_runtime_that_is_missing_is_told_before_any_work(board: Board) -> None:
    reach = DeviceSession(device(), Path("store"), always)
    reach.check("onnxruntime", "the export to onnx")
    with pytest.raises(DeviceError, match="the board has no executorch, which the export to executorch needs"):
        reach.check("executorch", "the export to executorch")
    board.facts["lacks"] = {"executorch": "it never runs there"}
    DeviceSession(device(), Path("store"), always).check("executorch", "the export to executorch")


def test_a_device_that_is_gone_half_way_is_told_as_gone(board: Board) -> None:
    store, where = Path("store"), device()
    DeviceSession(where, store, always).close()
    reach = DeviceSession(where, store, never)
    board.absent = "the board is away"
    with pytest.raises(DeviceError, match="the board is away"):
        reach.run(JOB)
