"""What `edgepack doctor` finds of a machine, each check by itself; the command is in test_cli.py."""

import os
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from edgepack.core import provenance
from edgepack.measure.worker import system
from edgepack.workflows import doctor
from edgepack.workflows.doctor import Finding


class _Usage(NamedTuple):
    total: float
    used: float
    free: float


@pytest.fixture
def fine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with which nothing is wrong, whatever this one is like; its runtimes load at once."""
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(provenance, "cpu", lambda: {"name": "a processor", "features": "avx2 avx512_vnni"})
    monkeypatch.setattr(system, "governor", lambda: "performance")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: _Usage(10e9, 0, 10e9))
    monkeypatch.setattr(shutil, "which", lambda tool: f"/usr/bin/{tool}")
    monkeypatch.setattr(provenance, "versions", lambda name: {name: _wanted()[name]})
    monkeypatch.setattr(doctor, "_LOAD", "")


def _wanted() -> dict[str, str]:
    """A version of each package that edgepack takes: the first that its requirement names."""
    return {each.name: min(part.version for part in each.specifier) for each in doctor._requirements()}


def checked() -> list[Finding]:
    return list(doctor.checks(Path("store"), Path("dist")))


def about(words: str) -> Finding:
    """The one finding that says this."""
    (found,) = (each for each in checked() if words in each.text)
    return found


def test_a_machine_that_is_fine_gets_no_advice(fine: None) -> None:
    found = checked()
    assert [(each.text, each.advice) for each in found if not each.fine or each.advice] == []
    said = "\n".join(each.text for each in found)
    expected = (
        "torch 2.",
        "a processor, 2 cores",
        "load 0.0 on 2",
        "governor: performance",
        "store: 10 GB free",
        "dist: ",
    )
    for words in (*expected, "adb: /usr/bin/adb", "onnxruntime loads", "executorch loads"):
        assert words in said


@pytest.mark.parametrize("version", ["1.0.0", provenance.MISSING])
def test_a_package_of_another_version(fine: None, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    others = {**_wanted(), "onnxruntime": version}
    monkeypatch.setattr(provenance, "versions", lambda name: {name: others[name]})
    found = about(f"onnxruntime {version}")
    assert (found.fine, found.advice) == (False, f"pip install 'onnxruntime=={_wanted()['onnxruntime']}'")


def test_a_build_of_a_version_is_that_version(fine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "versions", lambda name: {name: f"{_wanted()[name]}+cpu"})
    assert about("torch 2.13").fine


@pytest.mark.parametrize(
    ("features", "advice"), [("avx2", "weights get 7 bits"), ("", "not much faster on this processor")]
)
def test_a_processor_without_int8_is_no_fault(
    fine: None, monkeypatch: pytest.MonkeyPatch, features: str, advice: str
) -> None:
    monkeypatch.setattr(provenance, "cpu", lambda: {"name": "old", "features": features})
    found = about("int8 instructions: none")
    assert found.fine and advice in found.advice


def test_a_busy_machine(fine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (1.6, 0.0, 0.0))
    found = about("load 1.6 on 2 cores")
    assert not found.fine and "close other programs" in found.advice


@pytest.mark.parametrize(
    ("governor", "fine_", "advice"),
    [("", True, ""), ("powersave", False, "sudo cpupower frequency-set -g performance")],
)
def test_the_governor(fine: None, monkeypatch: pytest.MonkeyPatch, governor: str, fine_: bool, advice: str) -> None:
    monkeypatch.setattr(system, "governor", lambda: governor)
    found = about("governor")
    assert (found.fine, found.advice) == (fine_, advice)


def test_a_full_disk_and_a_folder_that_cannot_be_written(fine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: _Usage(10e9, 9e9, 1e9))
    found = about("store: 1 GB free")
    assert not found.fine and "--store" in found.advice
    monkeypatch.setattr(shutil, "disk_usage", lambda path: _Usage(10e9, 0, 10e9))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert not about("dist: 10 GB free, not writable").fine


def test_a_tool_that_is_missing_is_no_fault(fine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    found = about("adb: none")
    assert (found.fine, found.advice) == (True, "Android devices need it: apt-get install adb")


def loading(code: str, monkeypatch: pytest.MonkeyPatch) -> Finding:
    monkeypatch.setattr(doctor, "_LOAD", code)
    return about("executorch does not load: ")


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("import os; os._exit(9)", "it ended with code 9 without a message"),
    ],
)
def test_a_runtime_that_does_not_load(fine: None, monkeypatch: pytest.MonkeyPatch, code: str, why: str) -> None:
    found = loading(code, monkeypatch)
    assert (found.fine, found.text) == (False, f"executorch does not load: {why}")
    again = " ".join(f"'{name}=={_wanted()[name]}'" for name in ("torch", "executorch"))
    assert found.advice.startswith(f"pip install --force-reinstall --no-deps {again}; `pip check`")


def test_a_runtime_that_hangs_as_it_loads(fine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_PATIENCE", 0.2)
    found = loading("import signal; signal.pause()", monkeypatch)
    assert (found.fine, found.text) == (False, "executorch does not load: it did not finish in 0 s")
    assert "--force-reinstall" in found.advice
