"""The recipes of examples/ build, on real data, in the folder that a user would be in."""

import shutil
from contextlib import chdir
from pathlib import Path

import pytest
from factories import PROJECT, edgepack

from edgepack.records.build import Build

EXAMPLES = sorted(file.parent for file in (PROJECT / "examples").glob("*/digits.yaml"))


@pytest.fixture(params=EXAMPLES, ids=lambda folder: folder.name)
def example(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of an example."""
    files = shutil.ignore_patterns("dist", ".edgepack")
    return Path(shutil.copytree(request.param, tmp_path / request.param.name, ignore=files))


def _built(folder: Path) -> Build:
    with chdir(folder):
        ran = edgepack("build", "digits.yaml")
    assert ran.code == 0, ran.out + ran.err
    return Build.read(folder / "dist/digits/build.json")


def test_there_is_one_for_each_library() -> None:
    assert {folder.name for folder in EXAMPLES} == {"huggingface_trainer", "lightning", "timm"}


def test_a_recipe_is_right(example: Path) -> None:
    with chdir(example):
        checked = edgepack("check", "digits.yaml")
    assert (checked.code, checked.err) == (0, "")


@pytest.mark.slow
@pytest.mark.usefixtures("short_timings")
def test_it_builds_with_a_curve_of_each_training_and_leaves_no_other_file(example: Path) -> None:
    before = {*example.iterdir()}
    build = _built(example)
    for stage in build.ledger[1:]:
        [training] = stage.trainings
        assert len(training.epochs) > 1
        assert all(each.loss is not None and each.score is not None for each in training.epochs[1:])
    made = {path.name for path in {*example.iterdir()} - before}
    made = {name for name in made if not name.startswith(("tmp", "torchinductor"))}  # in tests /tmp is here
    assert made == {"dist", ".edgepack"}
    assert not [*(example / ".edgepack").rglob("own-*")]


@pytest.mark.slow
@pytest.mark.usefixtures("short_timings")
def test_a_task_in_one_file_builds_into_a_bundle_that_tests_itself(tmp_path: Path) -> None:
    files = shutil.ignore_patterns("dist", ".edgepack")
    folder = Path(shutil.copytree(PROJECT / "examples" / "denoising", tmp_path / "denoising", ignore=files))
    short = ["train.epochs=2", "distill.epochs=2", "prune.recover.epochs=1", "quantize.epochs=1"]
    changes = [word for setting in short for word in ("--set", f"stages.{setting}")]
    with chdir(folder):
        ran = edgepack("build", "denoising.yaml", *changes, "--set", "export=[onnx]", "--set", "budgets={}")
        build = Build.read(folder / "dist/denoising/build.json")
        tested = edgepack("selftest", f"dist/denoising/{build.bundle}")
    assert (ran.code, tested.code) == (0, 0), ran.out + ran.err + tested.out + tested.err
    psnr = build.find("psnr", "onnx")
    assert psnr is not None and psnr.value > 10
    assert [build.metric, build.find("parity", "onnx") is not None] == ["psnr", True]
