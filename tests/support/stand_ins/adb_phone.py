"""An Android phone, by a stand-in for adb (tests/measure/runners/adb_stand_in/)."""

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from factories import device

from edgepack.config.device import Device
from edgepack.core import provenance
from edgepack.core.errors import AnswerError, EdgepackError
from edgepack.measure import processes

SERIAL = "0A1B2C3D4E5F"


TESTS = Path(__file__).parents[2] / "measure" / "runners"


ARM64 = b"\x7fELF\2\1\1" + bytes(9) + b"\3\0\xb7\0"


PROTOCOL = {
    "warm_up_seconds": 0.3,
    "seconds": 1.0,
    "least_runs": 30,
    "most_runs": 1000,
    "most_seconds": 20.0,
    "mode": "time",
}


class Stand:
    """The phone of a test: what is said of it, and what was done to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def is_(self, **what: object) -> None:
        """One file a fact; one that is None is gone."""
        for name, value in what.items():
            file = self.folder / "state" / name
            file.write_text(f"{value}\n") if value is not None else file.unlink()

    def tells(self, *, celsius: float = 31.2, thermal: int = 0, **properties: str) -> None:
        """What the phone says of itself, in the recorded format."""
        recorded = {name: (TESTS / "recorded/adb" / f"{name}.txt").read_text() for name in ("battery", "thermal")}
        props = (TESTS / "recorded/adb/getprop.txt").read_text()
        for name, value in properties.items():
            props = re.sub(rf"^\[{re.escape(name)}\].*$", f"[{name}]: [{value}]", props, flags=re.MULTILINE)
        battery = recorded["battery"].replace("  temperature: 312", f"  temperature: {round(celsius * 10)}")
        thermals = recorded["thermal"].replace("Thermal Status: 0", f"Thermal Status: {thermal}")
        self.is_(battery=battery, thermalservice=thermals, getprop=props)

    def left(self) -> list[Path]:
        return list((self.folder / "data/local/tmp").iterdir())

    def programs(self) -> list[list[str]]:
        """Each program that was started: its cores, its path, its arguments."""
        file = self.folder / "state/programs"
        return [line.split("\t") for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stand:
    """A phone that is as it should be, and the programs for it."""
    phone, tools = tmp_path / "phone", tmp_path / "tools"
    for folder in (tools, phone / "data/local/tmp", phone / "state"):
        folder.mkdir(parents=True)
    (phone / "online").write_text("0-8\n")
    (phone / "cpuinfo").write_text("processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\n")
    stand = Stand(phone)
    stand.tells()
    stand.is_(devices=f"{SERIAL}\tdevice", paces=20.0, returns="", log="")
    monkeypatch.setenv("PATH", f"{TESTS / 'adb_stand_in'}:{Path(sys.executable).parent}:/usr/bin:/bin")
    monkeypatch.setenv("STAND_IN_PHONE", str(phone))
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)
    here = provenance.versions("executorch", "onnxruntime")
    for name in ("executor_runner", "onnxruntime_perf_test"):
        (tools / name).write_bytes(ARM64 + b"\0XnnpackBackend\0")
    (tools / "libonnxruntime.so").write_bytes(ARM64 + f"VERS_{here['onnxruntime']}".encode() + b"\0")
    (tools / "version.txt").write_text(here["executorch"].partition("+")[0] + "\n")
    monkeypatch.setenv("EDGEPACK_EXECUTOR_RUNNER", str(tools / "executor_runner"))
    monkeypatch.setenv("EDGEPACK_ORT_PERF_TEST", str(tools / "onnxruntime_perf_test"))
    monkeypatch.setattr(processes.Host, "run", doubled)
    return stand


def doubled(_: processes.Host, job: dict[str, Any]) -> dict[str, Any]:
    """This computer's answers, as the stand-in gives them."""
    if job["mode"] == "delegates":
        return {"delegates": ["CoreMLBackend", "XnnpackBackend"]}
    rows = numpy.load(job["inputs"][0], allow_pickle=False)
    with Path(job["output"]).open("wb") as file:
        numpy.savez(file, rows * 2)
    return {"rows": len(rows)}


def pixel(**more: Any) -> Device:
    return device("pixel-8", runner="adb", **{"controls": {"threads": 4, "cores": [4, 5, 6, 7]}, **more})


def a_model(name: str = "it's a model.pte") -> str:
    Path(name).write_bytes(b"ET12")
    return str(Path(name).absolute())


def job(runtime: str = "executorch", **more: Any) -> dict[str, Any]:
    return {**PROTOCOL, "runtime": runtime, "file": a_model(), **more}


def question(runtime: str = "executorch") -> dict[str, Any]:
    numpy.save("in.npy", numpy.arange(20, dtype="float32").reshape(5, 4), allow_pickle=False)
    files = {"inputs": ["in.npy"], "output": "out.npy", "rows": 5}
    return {"mode": "predict", "runtime": runtime, "file": a_model(), **files}


@contextlib.contextmanager
def fails(kind: type[EdgepackError], message: str) -> Iterator[None]:
    with pytest.raises(kind, match=message) as failure:
        yield
    assert failure.value.hint and SERIAL not in str(failure.value)
    assert failure.value.code == (1 if kind is AnswerError else 4)
