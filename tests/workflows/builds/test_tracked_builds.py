"""Builds that are logged to a tracker: the same builds, and complete runs of cached and of failed ones."""

import signal
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_project import STAGES, Project
from tiny_project import first as first
from tiny_project import project as project

pytestmark = pytest.mark.slow


def _run(project: Project) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = (project.folder / "runs/tiny").iterdir()
    return EventAccumulator(str(folder)).Reload()


def _outcome(run: Any) -> str:
    text: str = run.Tensors("outcome")[0].tensor_proto.string_val[0].decode()
    return text


def test_a_cached_build_is_logged_with_all_its_curves_and_nothing_of_it_changes(project: Project) -> None:
    bundle, before = project.bundle(), project.result()
    ran = project.build("--track", "tensorboard")
    assert (ran.code, ran.steps("StepStarted")) == (0, [])
    assert "tensorboard" in ran.steps("Note")
    assert ran.events[-1]["event"] == "BuildFinished"
    assert project.bundle() == bundle
    after = project.result()
    assert (after.recipe, after.verdicts, after.overrides) == (before.recipe, before.verdicts, before.overrides)
    run = _run(project)
    trained = {tag.partition("/")[0] for tag in run.Tags()["scalars"] if tag.endswith("/epochs/score")}
    assert trained == {*STAGES} - {"model"}
    assert [each.step for each in run.Scalars("stages/accuracy")] == [*range(len(STAGES))]
    assert "| status | finished |" in _outcome(run)


def test_a_build_that_fails_ends_its_run_as_failed_with_what_was_done(project: Project) -> None:
    assert project.build("--set", "stages.prune.ratio=1 %", "--track", "tensorboard").code == 5
    run = _run(project)
    assert len(run.Scalars("stages/accuracy")) == 3
    assert "| status | failed |" in _outcome(run)
    assert "nothing was removed" in _outcome(run)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_build_that_is_stopped_leaves_what_was_logged_and_no_process(
    project: Project, number: signal.Signals
) -> None:
    stopped = project.stop("StepStarted", "prune", number, "--set", "stages.prune.ratio=40 %", "--track", "tensorboard")
    assert stopped.code == (130 if number == signal.SIGINT else -signal.SIGKILL)
    _wait_for_trackers(project)
    run = _run(project)
    assert len(run.Scalars("stages/accuracy")) == 3
    assert "| status | killed |" in _outcome(run)


def _wait_for_trackers(project: Project) -> None:
    """Until no process in the project's folder is that of a tracker; the test's own limit ends this."""
    while any(_is_tracker(process, project.folder) for process in Path("/proc").glob("[0-9]*")):
        time.sleep(0.05)


def _is_tracker(process: Path, folder: Path) -> bool:
    try:
        there = (process / "cwd").resolve() == folder.resolve()
        return there and b"edgepack.deliver.tracking" in (process / "cmdline").read_bytes()
    except OSError:
        return False
