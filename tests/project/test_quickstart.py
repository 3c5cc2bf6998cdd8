"""The quickstart with all its stages and budgets: real data, real training, both runtimes.

Its nets are half as wide as those of the shipped recipe, a quarter of the work, and trained on one thread: its figures
are not those of the README, and whether the shipped recipe meets its budgets is not tested here.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgepack.deliver.bundle import verify
from edgepack.records.build import Build

pytestmark = pytest.mark.slow

NARROW = ("build", "quickstart", "--set", "model.width=50 %", "--set", "stages.distill.student.width=25 %")


def edgepack(*arguments: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-X", "importtime", "-m", "edgepack", *arguments]
    # The other core is for the tests beside it.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("EDGEPACK_")}
    environment["EDGEPACK_THREADS"] = "1"
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the shipped recipe, built once."""
    import shutil

    folder = tmp_path_factory.mktemp("quickstart")
    project = Path(__file__).parents[2]
    for name in ("recipes", "devices"):
        shutil.copytree(project / name, folder / name)
    done = edgepack(*NARROW, folder=folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-500:]
    return folder


@pytest.fixture
def built(home: Path) -> Build:
    return Build.read(home / "dist/quickstart/build.json")


def figure(build: Build, metric: str, artifact: str) -> float:
    found = build.find(metric, artifact)
    assert found is not None, f"{metric} of {artifact} was not measured"
    return found.value


@pytest.mark.parametrize("artifact", ["executorch", "onnx"])
def test_each_file_is_forty_times_smaller_than_the_teacher_and_as_accurate(built: Build, artifact: str) -> None:
    assert figure(built, "size", f"teacher ({artifact})") >= 40 * figure(built, "size", artifact)
    assert figure(built, "accuracy", f"teacher ({artifact})") - figure(built, "accuracy", artifact) <= 0.01
    assert figure(built, "parity", artifact) >= 0.995


def test_both_runtimes_agree(built: Build) -> None:
    assert figure(built, "parity.runtimes", "onnx") >= 0.995


def test_every_stage_does_work(built: Build) -> None:
    ledger = {record.stage: record for record in built.ledger}
    assert list(ledger) == ["model", "train", "distill", "prune", "factorize", "quantize"]
    assert ledger["train"].score > ledger["model"].score + 0.5
    for before, after in (("train", "distill"), ("distill", "prune"), ("prune", "factorize")):
        assert ledger[after].parameters < ledger[before].parameters
        assert ledger[after].macs < ledger[before].macs
    assert ledger["quantize"].bytes < 0.6 * ledger["factorize"].bytes
    assert all(record.notes for record in built.ledger if record.stage != "model")


def test_what_is_measured_is_what_is_shipped(home: Path, built: Build) -> None:
    for artifact in built.shipped():
        shipped = home / "dist/quickstart/bundle/models" / f"quickstart{Path(artifact.file).suffix}"
        assert hashlib.sha256(shipped.read_bytes()).hexdigest() == artifact.sha256
        assert all(each.sha256 == artifact.sha256 for each in built.measurements if each.artifact == artifact.label)
    assert verify(home / "dist/quickstart/quickstart.zip") == verify(home / "dist/quickstart/bundle")


def test_a_build_with_nothing_changed_runs_nothing_and_imports_no_torch(home: Path) -> None:
    before = (home / "dist/quickstart/quickstart.zip").read_bytes()
    done = edgepack(*NARROW, "--json", folder=home)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert not [event for event in events if event["event"] == "StepStarted"]
    assert "| torch\n" not in (home / "dist/quickstart/build.log").read_text() + done.stderr
    assert (home / "dist/quickstart/quickstart.zip").read_bytes() == before


def test_a_tighter_budget_fails_the_build_without_running_anything(home: Path, tmp_path: Path) -> None:
    done = edgepack(*NARROW, "--set", "budgets.size=10kB", "--dist", str(tmp_path / "d"), "--json", folder=home)
    events: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1
    assert not [event for event in events if event["event"] == "StepStarted"]
    failed = [each for each in Build.read(tmp_path / "d/quickstart/build.json").verdicts if each.outcome == "fail"]
    assert {each.budget for each in failed} == {"size"}


def test_the_recipe_in_the_bundle_gives_the_same_bundle(home: Path, tmp_path: Path) -> None:
    recipe = home / "dist/quickstart/bundle/provenance/recipe.yaml"
    done = edgepack("build", str(recipe), "--dist", str(tmp_path / "d"), folder=home)
    assert done.returncode == 0, done.stdout
    again = (tmp_path / "d/quickstart/quickstart.zip").read_bytes()
    assert again == (home / "dist/quickstart/quickstart.zip").read_bytes()
