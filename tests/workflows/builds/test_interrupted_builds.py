"""Builds that are killed, interrupted or made to wait: the next one goes on, and nothing is left half done."""

import fcntl
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from tiny_project import STAGES, Project, Ran, sound
from tiny_project import first as first
from tiny_project import no_torch as no_torch
from tiny_project import project as project
from tiny_project import without_dry_run as without_dry_run

import edgepack
from edgepack.compress.contract import Context
from edgepack.compress.stages import prune
from edgepack.config.device import load_device
from edgepack.config.recipe_reading import load_recipe
from edgepack.deliver.bundle import verify
from edgepack.judge import history
from edgepack.models.candidate import Candidate
from edgepack.records.build import Build
from edgepack.workflows.build.store import Store

pytestmark = pytest.mark.slow


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """A folder that another build is at work in."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def test_two_builds_into_one_folder_take_turns(project: Project) -> None:
    with ExitStack() as other:
        other.enter_context(held(project.dist))
        with project.started("build", "tiny", "--json") as process:
            assert process.stdout
            events = [json.loads(process.stdout.readline()) for _ in range(2)]
            assert [each["event"] for each in events] == ["BuildStarted", "Note"]
            assert events[1]["text"].endswith("dist/tiny") and "waiting for another build" in events[1]["text"]
            assert (project.dist / "tiny.zip").exists()
            other.close()
            out, _ = process.communicate()
    assert process.returncode == 0 and '"BuildFinished"' in out


def test_a_build_stopped_while_it_waits_leaves_the_other_ones_bundle(project: Project) -> None:
    with held(project.dist):
        ran = project.stop("Note", "build", signal.SIGINT)
    assert ran.code == 130
    assert verify(project.dist / "bundle") and (project.dist / "tiny.zip").exists()


MOMENTS = [  # and how many candidates and files build.json tells of by then
    ("StepProgress", "quantize", 5, 0),
    ("StepStarted", "export onnx", 6, 1),
    ("StepCached", "time onnx", 6, 4),  # the bundle is being written
]


@pytest.mark.usefixtures("short_timings", "without_dry_run")
def test_a_build_killed_again_and_again_gives_the_same_bundle(first: tuple[Project, Ran], tmp_path: Path) -> None:
    """Only the timings of the undisturbed build are shared: they are found if the files are the same, to the byte."""
    undisturbed, _ = first
    project = Project.at(tmp_path / "another folder")
    shutil.copytree(undisturbed.store / "entries/timing", project.store / "entries/timing")
    for event, step, candidates, files in MOMENTS:
        assert project.stop_forked(event, step, signal.SIGKILL).code == -signal.SIGKILL
        result = project.result()
        assert (len(result.ledger), len(result.artifacts), result.exit_code) == (candidates, files, None)
    ran = project.build_alone()
    assert ran.code == 0
    assert ran.steps("StepStarted") == []
    assert project.bundle() == undisturbed.bundle()
    assert [file.sha256 for file in project.result().artifacts] == [
        file.sha256 for file in undisturbed.result().artifacts
    ]
    assert project.run("cache", "gc").code == 0
    assert sound(project.store)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_ends_with_130_and_leaves_a_sound_store(project: Project, how: signal.Signals) -> None:
    before = {path.name for path in project.store.glob("entries/*/*")}
    ran = project.stop("StepProgress", "prune", how, "--set", "stages.prune.steps=2")
    assert ran.code == 130
    assert "interrupted" in ran.err and "Traceback" not in ran.err
    assert ran.steps("StepCached") == STAGES[:3]
    assert sound(project.store)
    assert {path.name for path in project.store.glob("entries/*/*")} == before
    result = project.result()
    assert (result.exit_code, [record.stage for record in result.ledger]) == (130, STAGES[:3])


def passing_over(error: BaseException) -> None: ...


def failing(error: BaseException) -> None:
    raise RuntimeError("the library failed") from error


def exiting(error: BaseException) -> None:
    sys.exit(0)


@pytest.mark.usefixtures("without_dry_run")
@pytest.mark.parametrize(
    ("how", "instead"), [(signal.SIGINT, passing_over), (signal.SIGTERM, failing), (signal.SIGINT, exiting)]
)
def test_an_interrupt_that_a_library_swallows_ends_a_build_too(
    project: Project, instead: Callable[[BaseException], None], how: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name for path in project.store.glob("entries/*/*")}
    real = prune.run

    def run(candidate: Candidate, config: prune.Config, context: Context) -> Candidate:
        made = real(candidate, config, context)
        try:
            os.kill(os.getpid(), how)
        except BaseException as error:
            instead(error)
        return made

    monkeypatch.setattr(prune, "run", run)
    ran = project.build_forked("--set", "stages.prune.ratio=60 %")
    assert ran.code == 130, ran.err
    assert ran.err.strip().endswith("run the same command to continue") and "failed" not in ran.err
    result = project.result()
    assert (result.exit_code, result.error) == (130, "interrupted")
    assert [record.stage for record in result.ledger] == STAGES[:3]
    assert not (project.dist / "tiny.zip").exists()
    assert {path.name for path in project.store.glob("entries/*/*")} == before
    assert sound(project.store)


def test_an_interrupt_as_a_build_is_added_to_the_history_leaves_both_or_neither(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    builds = len(history.read(project.folder / "dist/history.jsonl")[0])
    real = history.append

    def append(path: Path, build: Build) -> None:
        real(path, build)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(history, "append", append)
    ran = project.build_forked()
    assert ran.code == 130, ran.err
    assert len(history.read(project.folder / "dist/history.jsonl")[0]) == builds + 1
    assert project.result().exit_code == 0 and verify(project.dist / "tiny.zip")


def test_a_build_clears_away_what_one_that_was_killed_left(project: Project) -> None:
    file, folder = project.dist / ".build.json.123.tmp", project.dist / ".bundle.x1y2/new"
    file.touch()
    folder.mkdir(parents=True)
    assert project.build().code == 0
    assert not file.exists() and not folder.exists()


@pytest.mark.usefixtures("without_dry_run")
def test_ctrl_c_reaches_who_builds_from_a_program(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a stage swallows it; and the program goes on."""

    def run(candidate: Candidate, config: prune.Config, context: Context) -> Candidate:
        with suppress(BaseException):
            os.kill(os.getpid(), signal.SIGINT)
        return candidate

    def program() -> None:
        recipe = load_recipe("tiny", overrides=["stages.prune.ratio=60 %"])
        try:
            edgepack.build(recipe, load_device(recipe.device), Store(".edgepack/store"), dist="dist")
        except KeyboardInterrupt:
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            os._exit(17)

    monkeypatch.setattr(prune, "run", run)
    assert project.run_forked(program).code == 17
    assert project.result().exit_code == 130
