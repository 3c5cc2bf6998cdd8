"""A whole build of a tiny recipe, through the command line, and the builds after it that find everything done."""

import json
import os
import subprocess
import sys

import pytest
from short_timings import SHORTENED
from tiny_project import FILES, LIMIT, STAGES, STEPS, Project, Ran, sound
from tiny_project import first as first
from tiny_project import no_torch as no_torch
from tiny_project import project as project
from tiny_project import without_dry_run as without_dry_run

from edgepack.config.device import load_device
from edgepack.config.recipe_reading import load_recipe
from edgepack.core.events import BuildFinished, BuildStarted, Event
from edgepack.deliver.bundle import verify
from edgepack.judge.history import read
from edgepack.workflows.build import pipeline
from edgepack.workflows.build.planning.planner import plan
from edgepack.workflows.build.store import Store

pytestmark = pytest.mark.slow


def test_a_build_does_every_step_and_tells_of_it(first: tuple[Project, Ran]) -> None:
    _, ran = first
    assert (ran.code, ran.err) == (0, "")
    assert (ran.events[0]["event"], ran.events[-1]["event"]) == ("BuildStarted", "BuildFinished")
    assert ran.steps("StepStarted") == ran.steps("StepFinished") == STEPS
    for event in ran.events[1:-1]:
        assert (event["steps"], event["step"]) == (len(STEPS), STEPS.index(event["name"]) + 1)
    progress = [event for event in ran.events if event["event"] == "StepProgress"]
    assert {event["name"] for event in progress} >= {"train", "distill", "prune", "factorize", "quantize", "time onnx"}
    assert all(event["total"] >= event["done"] >= 0 for event in progress)


def test_the_result_holds_everything_a_report_needs(first: tuple[Project, Ran]) -> None:
    project, _ = first
    result = project.result()
    assert (result.exit_code, result.error) == (0, "")
    assert [record.stage for record in result.ledger] == STAGES
    sizes = [record.bytes for record in result.ledger[1:]]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 5
    assert all(record.notes for record in result.ledger[1:])
    assert [artifact.label for artifact in result.artifacts] == FILES
    metrics = {"size", "accuracy", "latency.p50", "latency.p90", "latency.load", "latency.first"}
    found = {file: {each.metric for each in result.measurements if each.artifact == file} for file in FILES}
    assert all(found[file] >= metrics for file in FILES)
    assert all("memory.peak" in found[artifact.label] for artifact in result.shipped())
    assert "parity" in found["executorch"] and found["onnx"] >= {"parity", "parity.runtimes"}
    assert [verdict.outcome for verdict in result.verdicts] == ["pass"] * 10


def test_the_files_are_there_and_whole(first: tuple[Project, Ran]) -> None:
    project, _ = first
    names = {path.name for path in project.dist.iterdir()}
    assert names >= {"build.json", "report.html", "report.md", "report.sarif", "junit.xml", "tiny.zip", "bundle"}
    assert not {name for name in names if name.startswith(".")}
    for bundle in ("dist/tiny/tiny.zip", "dist/tiny/bundle"):
        ran = project.run("verify", bundle)
        assert ran.code == 0 and "tiny for desk" in ran.out
    ran = project.run("selftest", "dist/tiny/tiny.zip")
    assert (ran.code, ran.out.splitlines()[-1]) == (0, "OK: 6 outputs match those recorded at build time")
    assert sound(project.store)
    roles = {each.path: each.role for each in verify(project.dist / "bundle").files}
    listed = {"BUILDING.md", "selected_operators.yaml", "required_operators_and_types.config"}
    assert {path for path, role in roles.items() if role == "build"} == {f"runtime/{name}" for name in listed}
    assert str(project.folder).encode() not in project.bundle()
    runtimes = verify(project.dist / "tiny.zip").runtimes
    assert (runtimes["executorch"].entry.method, runtimes["onnxruntime"].entry.method) == ("forward", None)
    assert {"MODEL_CARD.md", "sbom.cdx.json", "licences/README.md", "examples/executorch/Load.kt"} <= {*roles}


def test_what_is_in_the_files_is_explained(first: tuple[Project, Ran], no_torch: dict[str, str]) -> None:
    project, _ = first
    assert [artifact.contents is not None for artifact in project.result().artifacts] == [True, True, False, False]
    ran = project.run_alone("explain", "--size", "tiny", **no_torch)
    assert ran.code == 0 and "delegated to XnnpackBackend" in ran.out and "block.conv2" in ran.out


def test_a_bundle_that_changed_is_noticed(project: Project) -> None:
    (project.dist / "bundle/models/tiny.onnx").write_bytes(b"another")
    ran = project.run("verify", "dist/tiny/bundle")
    assert ran.code == 1 and "changed: models/tiny.onnx" in ran.err


def test_the_python_examples_in_the_bundle_answer_as_its_selftest(first: tuple[Project, Ran]) -> None:
    bundle = first[0].dist / "bundle"
    cases = json.loads((bundle / "selftest/cases.json").read_bytes())["cases"]
    for runtime, format in (("onnxruntime", "onnx"), ("executorch", "executorch")):
        command = [sys.executable, "-B", str(bundle / f"examples/{runtime}/load.py")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
        assert done.returncode == 0, done.stderr
        answers = [logits.index(max(logits)) for logits in (case["expected"][format] for case in cases)]
        found = [line for line in done.stdout.splitlines() if "case-" in line]
        assert found == [f"{answer}: case-{i}-input.bin" for i, answer in enumerate(answers)]
    assert verify(bundle)


def test_the_ledger_is_explained(first: tuple[Project, Ran], no_torch: dict[str, str]) -> None:
    ran = first[0].run_alone("explain", "tiny", **no_torch)
    assert ran.code == 0
    for words in ("prune: block.conv1: 48 -> 24 channels", "split at rank", "kept epoch", "every budget met"):
        assert words in ran.out


def test_a_second_build_runs_nothing_and_needs_no_torch(project: Project, no_torch: dict[str, str]) -> None:
    before = project.bundle()
    ran = project.build_alone(**no_torch)
    assert (ran.code, ran.err) == (0, "")
    assert ran.steps("StepCached") == STEPS
    assert project.bundle() == before
    assert {record.reused for record in project.result().ledger} == {True}


@pytest.mark.parametrize("change", ["budgets.size=1kB", "budgets.accuracy.min=99.9 %", "budgets.latency.p50=1 us"])
def test_a_budget_that_is_missed_ends_with_1_and_runs_nothing(
    project: Project, no_torch: dict[str, str], change: str
) -> None:
    ran = project.build_alone("--set", change, **no_torch)
    assert (ran.code, ran.steps("StepStarted")) == (1, [])
    result = project.result()
    metric = change.split("=")[0].removeprefix("budgets.").removesuffix(".min")
    assert [verdict.outcome for verdict in result.verdicts if verdict.metric == metric] == ["fail", "fail"]
    assert result.exit_code == 1 and result.bundle  # the files are there to look into


@pytest.mark.usefixtures("without_dry_run")
def test_every_build_that_was_judged_is_in_the_history_and_can_be_judged_again(
    project: Project, no_torch: dict[str, str]
) -> None:
    past = project.folder / "dist/history.jsonl"
    relative = "--set=budgets.relative={size: 2 %, latency.p50: 900 %, accuracy: 0 %}"
    codes = [
        project.build_alone(relative, **no_torch).code,
        project.build_alone("--set=budgets.size=1 kB", **no_torch).code,
    ]
    ended = project.build("--set", "stages.prune.ratio=1 %")
    assert ended.code == 5  # and is not judged
    lines, damaged = read(past)
    assert (codes, [line.exit_code for line in lines], damaged) == ([0, 1], [0, 0, 1], 0)
    assert len({line.figures for line in lines}) == 1
    assert project.run("gate", "tiny").code == 5
    assert project.build_alone(relative, **no_torch).code == 0
    ran = project.run_alone("gate", "tiny", **no_torch)
    assert ran.code == 0
    assert "relative.latency.p50" in ran.out
    assert "size.deploy" in project.run_alone("compare", "tiny", "tiny", **no_torch).out


def test_people_see_where_a_budget_is_missed_and_by_how_much(project: Project) -> None:
    ran = project.run("build", "tiny", "--set", "budgets.size=1kB")
    assert ran.code == 1
    assert "at most 1 kB" in ran.out and "over by" in ran.out and "dist/tiny" in ran.out


def test_only_what_comes_after_a_change_runs(project: Project, no_torch: dict[str, str]) -> None:
    ran = project.run_alone("plan", "tiny", "--set", "stages.quantize.epochs=2", **no_torch)
    runs = [line.strip().split("  ")[0] for line in ran.out.splitlines() if "run:" in line]
    later = ["quantize", "export executorch", "export onnx", "reference outputs"]
    assert runs == [*later, "evaluate executorch", "evaluate onnx", "time executorch", "time onnx"]
    assert "epochs 1 -> 2" in ran.out


def test_events_are_told_in_order(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.folder)
    events: list[Event] = []
    recipe = load_recipe("tiny")
    pipeline.build(recipe, load_device(recipe.device), Store(), dist="elsewhere", emit=events.append)
    assert isinstance(events[0], BuildStarted) and isinstance(events[-1], BuildFinished)
    assert (events[0].device, events[-1].dist) == ("a desk", "elsewhere/tiny")
    assert [event.name for event in events[1:-1]] == STEPS


def test_measurements_are_taken_again_when_asked_for(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only as a plan: timing everything takes a while."""
    monkeypatch.chdir(project.folder)
    recipe = load_recipe("tiny")
    made = plan(recipe, load_device(recipe.device), Store(), remeasure=True)
    assert [step.name for step in made.steps if not step.cached] == STEPS[-6:]


def test_the_library_can_be_used_as_its_documentation_says(project: Project) -> None:
    """Its public names are functions, though modules have some of the same names."""
    script = (
        f"{SHORTENED}from edgepack import Store, build, load_device, load_recipe\n"
        "from edgepack.workflows.build.planning.planner import plan\n"
        "recipe = load_recipe('recipes/tiny.yaml')\n"
        "device = load_device(recipe.device)\n"
        "assert plan(recipe, device, Store()).up_to_date\n"
        "assert build(recipe, device, Store('.edgepack/store'), dist='dist').exit_code == 0\n"
    )
    environment = {**os.environ, "EDGEPACK_THREADS": "1"}
    command = [sys.executable, "-c", script]
    ran = subprocess.run(command, cwd=project.folder, env=environment, capture_output=True, text=True, timeout=LIMIT)
    assert (ran.returncode, ran.stderr) == (0, "")
