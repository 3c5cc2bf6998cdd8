"""Detectors from recipe to bundle: one with boxes and scores in both files, and one with objects."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_project import LIMIT, Project, Ran

from edgepack.deliver.bundle import verify

pytestmark = pytest.mark.slow

RECIPE = """\
edgepack: 1
task: {detection: {strides: [4, 8], scales: [40 %, 60 %], ratios: [2], threshold: 0.3}}
model: {python: "nets:make", args: {channels: 16}}
data: {object_scenes: {of: {digits: {size: 16}}, size: 32, most: 2, train: 300, validation: 50, test: 40}}
device: desk
stages:
  - train:     {epochs: 8, learning_rate: 5e-3, batch_size: 32}
  - distill:   {student: {python: "nets:make", args: {channels: 12}}, epochs: 6, learning_rate: 5e-3, batch_size: 32}
  - prune:     {ratio: 25 %, steps: 1, recover: {epochs: 2, learning_rate: 5e-3}}
  - quantize:  {epochs: 1}
export: [executorch, onnx]
budgets:
  size: 100 kB
  map: {min: 0.5 %}
  map.50: {min: 2 %}
  parity: {min: 95 %}
  parity.runtimes: {min: 95 %}
"""
IN_FILE = "".join(
    line
    for line in RECIPE.replace("threshold: 0.3", "threshold: 0.1, most: 4, postprocess: in_file").splitlines(True)
    if not line.strip().startswith(("- distill", "- prune"))
)
NETS = """\
import torch
from torch import nn


def block(inside, outside, stride):
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()
    )


class Detector(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.fine = nn.Sequential(block(1, channels, 2), block(channels, channels, 2), block(channels, channels, 1))
        self.coarse = block(channels, channels, 2)
        self.boxes, self.scores = (
            nn.ModuleList(nn.Conv2d(channels, 4 * width, 3, padding=1) for _ in range(2)) for width in (4, 11)
        )

    def forward(self, picture):
        fine = self.fine(picture)
        maps = fine, self.coarse(fine)
        return {"scores": rows(self.scores, maps, 11), "boxes": rows(self.boxes, maps, 4)}


def rows(heads, maps, width):
    found = [head(each).permute(0, 2, 3, 1) for head, each in zip(heads, maps)]
    return torch.cat([each.reshape(each.shape[0], each.shape[1] * each.shape[2] * 4, width) for each in found], dim=1)


def make(channels):
    return Detector(channels)
"""
READ = """\
import json, numpy, sys
from pathlib import Path
sys.path.insert(0, "examples")
from detection import objects
facts = json.loads(Path("io/detection.json").read_text())
anchors = numpy.fromfile("io/anchors.bin", "<f4").reshape(-1, 4)
for case in json.loads(Path("selftest/cases.json").read_text())["cases"]:
    given = case["expected"]["onnx"]
    boxes, scores = (numpy.fromfile(f"selftest/{given[name]}", "<f4") for name in ("boxes", "scores"))
    print(len(objects(boxes.reshape(-1, 4), scores.reshape(len(anchors), -1), anchors, **facts)[0]))
"""
READ_IN_FILE = """\
import json, numpy, sys
from pathlib import Path
sys.path.insert(0, "examples")
from detection import objects
facts = json.loads(Path("io/detection.json").read_text())
for case in json.loads(Path("selftest/cases.json").read_text())["cases"]:
    given = {name: numpy.array(values) for name, values in case["expected"]["executorch"].items()}
    boxes, labels, scores = objects(given["boxes"].reshape(-1, 4), given["scores"], given["labels"], **facts)
    print(len(boxes))
"""


def project_of(folder: Path, recipe: str) -> Project:
    project = Project.at(folder)
    (project.folder / "recipes/tiny.yaml").write_text(recipe)
    (project.folder / "nets.py").write_text(NETS)
    return project


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Ran]:
    project = project_of(tmp_path_factory.mktemp("detector"), RECIPE)
    return project, project.build_alone()


def test_a_detector_is_built_and_meets_its_budgets(detector: tuple[Project, Ran]) -> None:
    project, ran = detector
    assert (ran.code, ran.err) == (0, "")
    result = project.result()
    assert {(each.metric, each.outcome) for each in result.verdicts} == {
        (metric, "pass") for metric in ("size", "map", "map.50", "parity", "parity.runtimes")
    }
    scores = {record.stage: record.score for record in result.ledger}
    assert scores["train"] > 0.05 > scores["model"]
    assert [record.metric for record in result.ledger] == ["map"] * 5
    assert "map.50" in (project.dist / "report.md").read_text()


def test_its_bundle_passes_the_self_test(detector: tuple[Project, Ran]) -> None:
    project, _ = detector
    ran = project.run("selftest", "dist/tiny/tiny.zip")
    assert (ran.code, ran.out.splitlines()[-1]) == (0, "OK: 6 outputs match those recorded at build time")
    roles = {each.path: each.role for each in verify(project.dist / "bundle").files}
    assert roles["io/anchors.bin"] == roles["io/detection.json"] == "deploy"
    assert "examples/detection.py" in roles


def test_an_app_finds_objects_with_what_is_in_the_bundle(detector: tuple[Project, Ran]) -> None:
    assert len(_read(detector[0], READ)) == 3


def _read(project: Project, code: str) -> list[str]:
    """Return the number of objects in each sample, as an app finds them."""
    command = [sys.executable, "-B", "-c", code]
    done = subprocess.run(command, cwd=project.dist / "bundle", capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_classifier_is_refused(detector: tuple[Project, Ran], tmp_path: Path) -> None:
    project, _ = detector
    ran = project.run("check", "tiny", "--set", "model={torchvision: resnet18}")
    assert ran.code == 2 and "resnet18 is a classifier" in ran.err


def test_facts_of_the_app_are_json(detector: tuple[Project, Ran]) -> None:
    facts = json.loads((detector[0].dist / "bundle/io/detection.json").read_text())
    assert facts == {"picture": [32, 32], "threshold": 0.3, "overlap": 0.5, "most": 100}


@pytest.mark.usefixtures("short_timings")
def test_files_that_select_objects_become_a_bundle_that_passes_its_self_test(tmp_path: Path) -> None:
    project = project_of(tmp_path / "project", IN_FILE)
    ran = project.run("build", "tiny")
    assert ran.code == 0, ran.out + ran.err
    result = project.result()
    assert {each.outcome for each in result.verdicts} == {"pass"}
    counts = [{name: len(shown.boxes) for name, shown in each.files.items()} for each in result.samples]
    assert {*counts[0]} == {"torch", "executorch", "onnx"} and sum(each["torch"] for each in counts) > 0
    tested = project.run("selftest", "dist/tiny/tiny.zip")
    assert (tested.code, tested.out.splitlines()[-1]) == (0, "OK: 6 outputs match those recorded at build time")
    bundle = project.dist / "bundle"
    outputs = json.loads((bundle / "io/signature.json").read_text())["outputs"]
    assert {each["name"]: each["shape"] for each in outputs} == {"boxes": [1, 4, 4], "scores": [1, 4], "labels": [1, 4]}
    assert json.loads((bundle / "selftest/cases.json").read_text())["tolerance"] == {"agreement": 0.99}
    assert [*map(int, _read(project, READ_IN_FILE))] == [each["executorch"] for each in counts]
