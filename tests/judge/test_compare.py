"""What changed between two builds, and what cannot be compared."""

from pathlib import Path
from typing import Any

import pytest
from factories import build, edgepack, measurement, record

from edgepack.judge.compare import Change, Comparison
from edgepack.records.build import Build
from edgepack.records.differences import differences

HERE = {"cpu": "a processor", "threads": 2, "protocol": "edgepack/1", "versions": {"onnxruntime": "1.32.0"}}


def of(*known: Any, **more: Any) -> Build:
    return build(measurements=known, **more)


def changes(before: Build, after: Build) -> dict[str, Change]:
    return {each.metric: each for each in Comparison(before=before, after=after).changes}


def timed(value: float, low: float, high: float, **environment: Any) -> Any:
    return measurement("latency.p50", value, low=low, high=high, environment={**HERE, **environment})


def test_a_ratio_is_bounded_by_both_sides_at_their_worst() -> None:
    (found,) = changes(of(timed(1.0, 0.9, 1.1)), of(timed(2.0, 1.98, 2.2))).values()
    assert found.clear
    assert found.ratio is not None
    assert [round(each, 9) for each in found.ratio] == [2.0, 1.8, round(2.2 / 0.9, 9)]


@pytest.mark.parametrize(("low", "high", "clear"), [(1.05, 1.2, False), (1.11, 1.2, True), (0.7, 0.89, True)])
def test_a_change_is_clear_beyond_both_intervals(low: float, high: float, clear: bool) -> None:
    (found,) = changes(of(timed(1.0, 0.9, 1.1)), of(timed((low + high) / 2, low, high))).values()
    assert found.clear == clear


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({"cpu": "another"}, "another device: cpu a processor -> another"),
        ({"threads": 1}, "another device: threads 2 -> 1"),
        ({"protocol": "edgepack/2"}, "another protocol: protocol edgepack/1 -> edgepack/2"),
        ({"versions": {"onnxruntime": "1.33.0"}}, ""),
        ({"kernel": "6.2"}, ""),
    ],
)
def test_timings_are_compared_on_one_device_by_one_protocol(environment: Any, why: str) -> None:
    found = changes(of(measurement(), timed(1, 1, 1)), of(measurement(value=4e5), timed(2, 2, 2, **environment)))
    assert found["latency.p50"].why_not == why
    assert (found["latency.p50"].ratio is None) == bool(why)
    assert found["size"].ratio == (0.8, 0.8, 0.8)


def test_accuracy_is_compared_on_the_same_data() -> None:
    def scored(data: str) -> Build:
        return of(measurement("accuracy", 0.97, environment={**HERE, "cpu": data, "data": data}))

    assert changes(scored("a"), scored("a"))["accuracy"].why_not == ""
    assert changes(scored("a"), scored("b"))["accuracy"].why_not == "other test data"


def test_settings_are_told_by_the_name_of_their_stage() -> None:
    def made(**parts: Any) -> Build:
        return build(recipe={"name": "tiny", "export": [{"onnx": {"opset": 20}}], **parts})

    before = made(stages=[{"train": {"epochs": 6}}, {"prune": {"ratio": "30 %"}}])
    after = made(stages=[{"train": {"epochs": 8}}, {"distill": {"epochs": 1}}, {"distill": {}}, {"prune": {}}])
    assert Comparison(before=before, after=after).settings == (
        "stages.distill is new: epochs 1",
        "stages.distill (2) is new: no settings",
        "stages.prune.ratio is gone: 30 %",
        "stages.train.epochs 6 -> 8",
    )


def test_what_stages_decided_and_left_is_told() -> None:
    def made(parts: list[str], accuracy: float) -> Build:
        ledger = (record("model"), record("quantize", bytes=4000, accuracy=accuracy, decided={"fp32": parts}))
        return build(recipe={"name": "tiny", "stages": [{"quantize": {"fp32": ["auto"]}}]}, ledger=ledger)

    for name, each in (("old", made(["conv1"], 0.98)), ("new", made(["fc"], 0.97))):
        Path("dist", name).mkdir(parents=True)
        each.save(Path("dist", name, "build.json"))
    ran = edgepack("compare", "old", "new")
    assert "recipe: stages.quantize.fp32 ['conv1'] -> ['fc']" in ran.out
    assert "stages: quantize accuracy 98 % -> 97 %" in ran.out
    assert "stages: model" not in ran.out


def test_differences_that_are_too_long_to_show() -> None:
    def changes(before: Any, after: Any) -> list[str]:
        return [str(each) for each in differences(before, after)]

    assert changes({"a": "x" * 50}, {"a": "x" * 51}) == ["a differs"]
    assert changes({"a": True}, {"a": False}) == ["a true -> false"]  # as in a recipe
    assert changes({"a": [1]}, {"a": [1, 2]}) == ["a [1] -> [1, 2]"]


def _saved(name: str, *known: Any, **more: Any) -> str:
    path = Path("dist", name, "build.json")
    path.parent.mkdir(parents=True)
    of(*known, **more).save(path)
    return name


def test_the_command_tells_what_changed() -> None:
    scored: dict[str, Any] = {"environment": {"data": "digits"}, "detail": {"rows": 450}}
    _saved("old", measurement(), timed(1, 0.9, 1.1), measurement("accuracy", 0.98, **scored))
    versions = {"versions": {"edgepack": "0.2.0"}, "git": {"commit": "ab" * 20}}
    new = (measurement(value=4e5), timed(1.5, 1.4, 1.6), measurement("accuracy", 0.978, **scored))
    _saved("new", *new, provenance=versions)
    ran = edgepack("compare", "old", "new")
    assert (ran.code, ran.err) == (0, "")
    shown = " ".join(ran.out.split())
    for expected in ("-20 %", "+50 % [+27.3, +77.8]", "-0.2 points 1 of 450 samples", "edgepack 0.1.0 -> 0.2.0"):
        assert expected in shown, ran.out


def test_the_command_says_that_nothing_can_be_compared() -> None:
    _saved("old", timed(1, 1, 1))
    _saved("new", timed(1, 1, 1, cpu="another"))
    ran = edgepack("compare", "old", "new")
    assert ran.code == 3
    assert "not compared: latency.p50: another device: cpu a processor -> another" in ran.out


def test_two_builds_of_the_same_are_the_same() -> None:
    _saved("old", measurement(), timed(1, 0.9, 1.1))
    ran = edgepack("compare", "old", "old")
    assert ran.code == 0
    assert "unchanged: size of onnx, latency.p50 of onnx" in ran.out


@pytest.mark.parametrize("named", ["nothing", "dist/old/old.zip"])
def test_what_is_no_build(named: str) -> None:
    _saved("old", measurement())
    assert edgepack("compare", "old", named).code == 2
