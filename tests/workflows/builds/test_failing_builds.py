"""Builds that cannot go on: what they end with, what they say, and what stays."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_project import Project, sound
from tiny_project import first as first
from tiny_project import no_torch as no_torch
from tiny_project import project as project
from tiny_project import without_dry_run as without_dry_run

from edgepack.compress.contract import Context
from edgepack.compress.stages import prune
from edgepack.config.device import load_device
from edgepack.config.recipe_reading import load_recipe
from edgepack.core.errors import RefusedError, StageError
from edgepack.measure import evaluate
from edgepack.measure.timing.protocol import Run
from edgepack.models.candidate import Candidate
from edgepack.workflows.build import pipeline
from edgepack.workflows.build.runner import Runner
from edgepack.workflows.build.store import Store

pytestmark = pytest.mark.slow


def test_a_stage_that_fails_ends_with_5_says_which_and_keeps_what_was_done(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = project.build("--set", "stages.prune.ratio=1 %")
    assert ran.code == 5
    for words in ("prune", "nothing was removed", "larger ratio"):
        assert words in ran.err
    assert "Traceback" not in ran.err
    assert (ran.steps("StepCached"), ran.steps("StepFailed")) == (["model", "train", "distill"], ["prune"])
    result = project.result()
    assert (result.exit_code, [record.stage for record in result.ledger]) == (5, ["model", "train", "distill"])
    assert "nothing was removed" in result.error
    assert "nothing was removed" in (project.dist / "report.md").read_text()  # the reports are of this build
    explained = project.run("explain", "tiny").out
    assert "did not finish" in explained and "nothing was removed" in explained
    assert sound(project.store)
    monkeypatch.setattr(Runner, "_dry_run", lambda self: None)
    assert project.build("--set", "stages.prune.ratio=1 %").code == 5  # a failure is never stored


def test_a_file_that_is_refused_keeps_no_other_from_being_evaluated(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it comes first. It is of the format that is written sooner, for an operator is looked for."""
    outputs = evaluate.outputs

    def refused(run: Run, *, file: Path, runtime: str, **rest: Any) -> Any:
        if file.name == "teacher.onnx":  # not refused: no operator is looked for
            raise StageError("it answers nothing")
        if runtime == "onnxruntime":
            raise RefusedError("onnxruntime failed: it does not load", "run `edgepack doctor`")
        return outputs(run, file=file, runtime=runtime, **rest)

    monkeypatch.setattr(evaluate, "outputs", refused)
    with pytest.raises(StageError, match=r"evaluate onnx: .*does not load; the first operator that fails is '"):
        evaluated_again(project, monkeypatch, ["onnxruntime", "executorch"], "export=[onnx, executorch]")
    result = project.result()
    assert result.exit_code == 5
    evaluated = {each.artifact for each in result.measurements if each.metric == "accuracy"}
    assert evaluated == {"executorch", "teacher (executorch)"}
    assert not (project.dist / "tiny.zip").exists()


@pytest.mark.parametrize("subject", ["model", "teacher"])
def test_a_file_far_from_the_torch_model_fails_the_build_whatever_the_budgets_ask(
    project: Project, subject: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = evaluate.outputs

    def wrong(run: Run, *, file: Path, **rest: Any) -> Any:
        found = outputs(run, file=file, **rest)
        return tuple(-each for each in found) if file.name == f"{subject}.onnx" else found

    monkeypatch.setattr(evaluate, "outputs", wrong)
    with pytest.raises(StageError, match=r"the onnx file .*than the torch model .*: the file is broken"):
        evaluated_again(project, monkeypatch, ["onnxruntime"])
    assert project.result().exit_code == 5


def evaluated_again(project: Project, monkeypatch: pytest.MonkeyPatch, runtimes: list[str], *overrides: str) -> None:
    """Build when the evaluations of the files that these run are gone."""
    monkeypatch.chdir(project.folder)
    for entry in Store(project.store).entries():
        if entry.kind == "evaluation" and {*runtimes} & {*entry.ingredients["where"]["versions"]}:
            shutil.rmtree(entry.path)
    recipe = load_recipe("tiny", overrides=overrides)
    pipeline.build(recipe, load_device("desk"), Store(".edgepack/store"), dist="dist")


def test_what_cannot_work_fails_before_anything_is_trained(project: Project) -> None:
    ran = project.build("--set", "stages.train.epochs=10000", "--set", "stages.prune={target: {params: 10}, steps: 1}")
    assert ran.code == 5
    assert "prune, dry run before any training: pruning cannot reach 10 parameters" in ran.err
    assert (ran.steps("StepCached"), ran.steps("StepFailed")) == (["model"], ["train"])


@pytest.mark.usefixtures("without_dry_run")
def test_a_stage_that_calls_exit_has_failed_and_its_traceback_is_in_the_log(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(candidate: Candidate, config: prune.Config, context: Context) -> Candidate:
        sys.exit(0)

    monkeypatch.setattr(prune, "run", run)
    ran = project.build_forked("--set", "stages.prune.ratio=60 %")
    assert ran.code == 5, ran.err
    assert "prune failed: SystemExit" in ran.err and "Traceback" not in ran.err
    assert ", in run\n" in (project.dist / "build.log").read_text()
    assert not (project.dist / "tiny.zip").exists()


@pytest.mark.usefixtures("without_dry_run")
@pytest.mark.parametrize("option", ["--dist", "--store"])
def test_a_folder_that_cannot_be_written_ends_with_4(project: Project, option: str) -> None:
    (project.folder / "in the way").write_text("")
    ran = project.build(option, "in the way")
    assert ran.code == 4
    assert "in the way" in ran.err and "Traceback" not in ran.err
    assert len(ran.err.splitlines()) == 2  # what happened, and what to do


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_ends_with_4(project: Project) -> None:
    (project.folder / "locked").mkdir(mode=0o500)
    ran = project.build("--dist", "locked")
    assert ran.code == 4 and "permission" in ran.err.lower()


def damage(project: Project, kind: str, file: str, **ingredients: str) -> None:
    """Flip one byte in the middle of a stored file."""
    for entry in Store(project.store).entries():
        if entry.kind == kind and all(entry.ingredients.get(key) == value for key, value in ingredients.items()):
            path = entry.path / file
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
            return
    raise AssertionError(f"no {kind} with {ingredients}")


@pytest.mark.usefixtures("without_dry_run")
def test_damage_in_the_store_is_noticed_and_made_good(project: Project) -> None:
    """A file of the bundle, and what it was made from, and what that was made from."""
    before = project.bundle()
    damage(project, "artifact", "model.onnx", subject="model", plugin="onnx")
    damage(project, "outputs", "outputs-0.npy")
    damage(project, "candidate", "program.pt2", plugin="quantize")
    damage(project, "candidate", "weights.safetensors", plugin="factorize")
    ran = project.build()
    assert (ran.code, ran.err) == (0, "")
    assert project.bundle() == before
    assert sound(project.store)
