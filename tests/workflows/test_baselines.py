"""Which earlier build a relative budget is held against, and where that is found."""

import hashlib
import shutil
import zlib
from pathlib import Path
from typing import Any

import pytest
from factories import build, edgepack, measurement, runtime, sealed
from recorded_builds import PAST, held, limits, reasons, recorded

from edgepack.deliver.bundle import pack
from edgepack.judge import gate
from edgepack.judge.history import append
from edgepack.records.build import Build
from edgepack.records.verdict import Base
from edgepack.workflows.baselines import baseline

RELATIVE = {"relative": {"size": "2 %", "latency.p50": "5 %"}}


def test_a_baseline_by_its_path() -> None:
    recorded("old", measurements=(measurement(), measurement("latency.p50", 1.0, sha256="b" * 64)))
    recorded(budgets=RELATIVE)
    ran = edgepack("gate", "tiny", "--baseline", "old/build.json")
    assert ran.code == 1
    assert "relative.latency.p50" in ran.out and "latency.p50 of onnx 1 ms +5 %" in ran.out


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"device": {"id": "phone", "name": "a phone"}}, "the device 'phone', not 'board'"),
        ({"recipe": {"name": "tiny2"}}, "the recipe 'tiny2', not 'tiny'"),
        ({"measurements": ()}, "has no size of onnx"),
        (
            {"measurements": (measurement(), measurement("latency.p50", 1.5, environment={"cpu": "another"}))},
            "was measured on another device or by another protocol: cpu another -> ours",
        ),
    ],
)
def test_a_baseline_that_cannot_be_compared(facts: dict[str, Any], said: str) -> None:
    known = (measurement(), measurement("latency.p50", 1.5, environment={"cpu": "ours"}))
    recorded(budgets=RELATIVE, measurements=known)
    Path("old").mkdir()
    build(**{"recipe": {"name": "tiny"}, **facts}).save(Path("old/build.json"))
    assert edgepack("gate", "tiny", "--baseline", "old").code == 3
    assert said in reasons(against="old")


def test_the_last_build_that_passed_is_the_baseline_unless_another_is_named() -> None:
    path = recorded(budgets=RELATIVE, started_at=1.7e9 + 60)
    assert edgepack("gate", str(path)).code == 3
    assert "there is no history at dist/history.jsonl" in reasons()
    append(Path("dist/history.jsonl"), Build.read(path))
    assert edgepack("gate", str(path)).code == 0  # nothing before it: that is told, and fails nothing
    assert "there is no baseline yet" in reasons()
    append(
        Path("dist/history.jsonl"),
        Build.read(recorded("old", measurements=(measurement(value=480e3, sha256="b" * 64),))),
    )
    assert edgepack("gate", str(path)).code == 1
    assert edgepack("gate", str(path), "--history", "other.jsonl").code == 3


def test_a_relative_budget_is_judged_again_from_the_build_alone() -> None:
    path, folder = held(), Path("elsewhere")
    there = edgepack("gate", str(path))
    folder.mkdir()
    shutil.copy(path, folder)
    here = edgepack("gate", str(folder))
    assert (here.code, there.code) == (1, 1)
    table = "latency.p50 of onnx 1 ms +5 %"
    assert table in here.out and table in there.out
    for limit, code in (("40 %", 1), ("50 %", 3), ("60 %", 3), ("70 %", 0)):  # with its interval
        assert edgepack("gate", str(folder), "--set", f"budgets.relative.latency.p50={limit}").code == code


def test_a_recorded_failure_is_no_pass_by_a_history_that_lost_its_lines() -> None:
    path = held()
    for kept in (0, 1):
        lines = PAST.read_text().splitlines(keepends=True)
        PAST.write_text("".join(lines[:kept]) + "{\n")
        assert edgepack("gate", str(path)).code == 1
    PAST.write_text("{\n")
    ran = edgepack("gate", str(path), "--history", str(PAST))
    assert ran.code == 3
    assert "the build itself is not in the history dist/history.jsonl" in ran.out
    assert "unreadable lines in dist/history.jsonl: 1" in ran.out
    assert edgepack("gate", str(path), "--baseline", "last").code == 3


def test_the_beginning_that_a_build_was_is_recorded_too() -> None:
    relative = {"relative": {"baseline": "last", "size": "2 %"}}
    path = recorded(budgets=relative)
    gate.judge_build(Build.read(path), limits(relative), (), baseline("last", "tiny", "board", PAST, 1.7e9)).save(path)
    assert edgepack("gate", str(path)).code == 0
    assert "there is no baseline yet" in reasons()
    ran = edgepack("gate", str(path), "--set", "budgets.relative.latency.p50=5 %")  # which was not looked up
    assert ran.code == 3
    assert "there is no history at dist/history.jsonl" in ran.out


def test_a_baseline_that_is_gone_is_remembered() -> None:
    relative = {"relative": {"baseline": "old.json", "size": "2 %"}}
    build(measurements=(measurement(value=400e3),)).save(Path("old.json"))
    path = recorded(budgets=relative)
    gate.judge_build(Build.read(path), limits(relative), (), baseline("old.json", "tiny", "board", PAST, 1.7e9)).save(
        path
    )
    Path("old.json").unlink()
    assert edgepack("gate", str(path)).code == 1
    assert "size of onnx 400 kB +2 %" in edgepack("gate", str(path)).out
    assert edgepack("gate", str(path), "--history", "other.jsonl").code == 1  # which says nothing of it
    assert "old.json no longer exists" in reasons("budgets.relative.latency.p50=5 %")
    assert edgepack("gate", str(path), "--baseline", "old.json").code == 2


def test_the_history_is_found_from_within_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    path = recorded(budgets=RELATIVE)
    append(PAST, Build.read(path))
    monkeypatch.chdir("dist/tiny")
    assert edgepack("gate", "build.json").code == 0


@pytest.mark.parametrize(
    ("baseline", "said"),
    [("nothing.json", "there is no 'nothing.json'"), ("broken.json", "it is truncated"), ("stopped", "did not finish")],
)
def test_a_baseline_that_cannot_be_read(baseline: str, said: str) -> None:
    recorded(budgets=RELATIVE)
    Path("broken.json").write_text("{")
    recorded("stopped", exit_code=5, error="prune failed")
    ran = edgepack("gate", "tiny", "--baseline", baseline)
    assert (ran.code, said in ran.err) == (2, True), ran.err


def test_a_baseline_without_a_relative_budget() -> None:
    recorded()
    ran = edgepack("gate", "tiny", "--baseline", str(recorded("old")))
    assert ran.code == 2
    assert "--baseline needs a relative budget" in ran.err


def test_a_bundle_tells_sizes_and_no_timing() -> None:
    entry = {"file": "models/tiny.onnx", "method": None}
    runtimes = {"onnxruntime": {"version": "1", "format": "onnx", "needs": None, "entry": entry}}
    Path("old.zip").write_bytes(pack(sealed({"models/tiny.onnx": bytes(499_000)}, runtimes=runtimes)))
    recorded(budgets={"relative": {"size": "2 %"}})
    ran = edgepack("gate", "tiny", "--baseline", "old.zip")
    assert ran.code == 0
    assert "relative to the bundle old.zip: size of onnx 499 kB +2 %" in ran.out
    recorded(budgets=RELATIVE)
    assert edgepack("gate", "tiny", "--baseline", "old.zip").code == 3
    assert "old.zip has no latency.p50 of onnx" in reasons(against="old.zip")


def test_a_bundle_tells_what_an_app_ships_of_it() -> None:
    files = {"models/tiny.onnx": bytes(1000), "io/labels.txt": bytes(200), "selftest/a.bin": bytes(9000)}
    Path("old.zip").write_bytes(pack(sealed(files, runtimes={"onnxruntime": runtime("models/tiny.onnx")})))
    packed = sum(len(zlib.compress(files[name])) for name in ("models/tiny.onnx", "io/labels.txt"))
    held = baseline("old.zip", "tiny", "board", Path("none"), 0.0)
    for metric, size in (("size", 1000), ("size.deploy", 1200), ("size.download", packed)):
        found = held.find(metric, "onnx", "", {})
        assert isinstance(found, Base)
        assert found.value == size


def test_a_bundle_stands_for_the_build_beside_it() -> None:
    packed = pack(sealed({"models/tiny.onnx": b"a model"}))
    old = recorded("old", bundle="tiny.zip", bundle_sha256=hashlib.sha256(packed).hexdigest())
    (old.parent / "tiny.zip").write_bytes(packed)
    recorded(budgets=RELATIVE)
    assert edgepack("gate", "tiny", "--baseline", "old/tiny.zip").code == 0
