"""What trackers are told of a build."""

import math
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from builds import BUILDS, full
from factories import build, record, verdict

from edgepack.core.events import Event, Note, StepProgress
from edgepack.deliver.tracking.contents import LiveCurves, stage_points, summary, tracked
from edgepack.records.training import Epoch, TrainingRecord

TRAINING = "training on the labels"


def _progress(done: int, doing: str = TRAINING, total: int = 9, **figures: Any) -> StepProgress:
    return StepProgress(name="train", doing=doing, done=done, total=total, **figures)


def _points(*events: Event) -> list[tuple[str, int, dict[str, float]]]:
    live = LiveCurves()
    return [(each.curve, each.step, each.figures) for event in events for each in live.points(event)]


def test_a_training_is_a_curve_of_its_first_and_last_step_and_some_between() -> None:
    found = _points(*(_progress(done, loss=1 / done) for done in range(1, 10)))
    assert found[0] == (f"train/{TRAINING}/steps", 1, {"loss": 1.0})
    assert found[-1] == (f"train/{TRAINING}/steps", 9, {"loss": 1 / 9})
    assert len(found) < 9


def test_what_is_no_training_and_what_is_not_finite_is_no_point() -> None:
    assert _points(Note(text="loss"), _progress(1), _progress(9, loss=math.nan)) == []
    assert _points(_progress(9, loss=math.inf, score=0.5)) == [(f"train/{TRAINING}/steps", 9, {"score": 0.5})]


def test_a_score_is_logged_when_it_is_new() -> None:
    found = _points(
        *(_progress(done, total=1, loss=1.0, score=score) for done, score in ((1, 0.5), (2, 0.5), (3, 0.7)))
    )
    assert [figures.get("score") for _, _, figures in found] == [0.5, None, 0.7]


def test_trainings_of_one_name_in_a_stage_are_told_apart() -> None:
    found = _points(_progress(1, loss=1.0), _progress(9, loss=0.5), _progress(1, loss=0.9), _progress(9, loss=0.4))
    assert [curve for curve, _, _ in found] == [f"train/{TRAINING}/steps"] * 2 + [f"train/{TRAINING} (2)/steps"] * 2


def test_stages_give_their_trainings_by_epoch_and_what_they_left() -> None:
    epochs = (Epoch(epoch=0, score=0.1), Epoch(epoch=1, score=0.9, loss=0.5), Epoch(epoch=2))
    trainings = (TrainingRecord(doing="a", kept=1, epochs=epochs), TrainingRecord(doing="a", kept=1, epochs=epochs[:1]))
    result = build(ledger=(record("model"), record("prune", accuracy=0.9, trainings=trainings)))
    found = [(each.curve, each.step, each.figures) for each in stage_points(result, 1)]
    assert found[:3] == [
        ("prune/a/epochs", 0, {"score": 0.1}),
        ("prune/a/epochs", 1, {"score": 0.9, "loss": 0.5}),
        ("prune/a (2)/epochs", 0, {"score": 0.1}),
    ]
    ((curve, step, figures),) = found[3:]
    assert (curve, step, figures["accuracy"], figures["parameters"]) == ("stages", 1, 0.9, 1000)


def test_a_build_begins_with_its_recipe_its_device_and_its_commit() -> None:
    recipe = {"name": "tiny", "stages": [{"train": {"epochs": 8}}, {"quantize": {"fp32": ["fc", "conv1"]}}]}
    began = tracked(build(recipe=recipe, provenance={"git": {"commit": "abc", "dirty": False}}))
    assert began.parameters["recipe.stages.0.train.epochs"] == 8
    assert began.parameters["recipe.stages.1.quantize.fp32"] == "fc, conv1"
    assert began.parameters["device.name"] == "the board"
    assert began.tags == {"device": "board", "git.commit": "abc", "git.dirty": "false"}


def test_where_the_device_is_and_secrets_are_in_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE_API_KEY", "a1b2c3d4")
    device = {"id": "board", "name": "the board", "runner": {"lab": {"host": "me@10.0.0.7", "serial": "R58M"}}}
    recipe = {"name": "tiny", "model": {"args": {"key": "a1b2c3d4", "urls": ["https://me:word@host/x"], "depth": 3}}}
    result = build(recipe=recipe, device=device, overrides=("model.args.key=a1b2c3d4",), error="refused: a1b2c3d4")
    began = tracked(result)
    assert {name: value for name, value in began.parameters.items() if name != "recipe.name"} == {
        "recipe.model.args.key": "***",
        "recipe.model.args.urls": "https://***@host/x",
        "recipe.model.args.depth": 3,
        "device.id": "board",
        "device.name": "the board",
    }
    assert began.tags["overrides"] == "model.args.key=***"
    assert summary(result, Path()).tags["error"] == "refused: ***"


def test_values_that_are_no_json_become_text() -> None:
    began = tracked(build(recipe={"name": "tiny", "args": {"day": date(2026, 1, 31), "most": math.inf}}))
    assert began.parameters["recipe.args.day"] == "2026-01-31"
    assert began.parameters["recipe.args.most"] == "inf"


def test_a_summary_has_every_figure_limit_and_verdict_and_the_reports_that_there_are() -> None:
    Path("report.html").write_text("a report")
    missed = verdict("latency.p50", 9.6, "8 ms")
    found = summary(build(verdicts=(verdict(), missed), exit_code=1), Path())
    assert found.status == "failed"
    assert found.metrics["files/teacher (onnx)/size"] == 40e6
    assert found.metrics["budgets/onnx/latency.p50/limit"] == 8
    assert found.metrics["budgets/onnx/latency.p50/headroom"] == pytest.approx(-0.2)
    assert found.tags["verdicts/onnx/latency.p50"] == "fail"
    assert (found.tags["summary"], found.tags["exit_code"]) == ("a budget failed", "1")
    assert found.files == (Path("report.html").absolute(),)


@pytest.mark.parametrize(
    ("code", "status"),
    [(0, "finished"), (1, "failed"), (3, "failed"), (70, "failed"), (130, "killed"), (None, "failed")],
)
def test_only_a_build_that_met_its_budgets_is_finished(code: int | None, status: str) -> None:
    assert summary(build(exit_code=code), Path()).status == status


@pytest.mark.parametrize("name", BUILDS)
def test_every_kind_of_build_can_be_told(name: str) -> None:
    result = BUILDS[name]
    assert tracked(result).recipe == result.name
    assert [point for point in stage_points(result, 0) if point.curve == "stages"] or not result.ledger
    assert "exit_code" in summary(result, Path()).tags


def test_intervals_are_logged_with_their_figure() -> None:
    metrics = summary(full(), Path()).metrics
    assert metrics["files/onnx/latency.p50.low"] < metrics["files/onnx/latency.p50"]
    assert "files/onnx/size.low" not in metrics
