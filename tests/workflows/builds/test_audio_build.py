"""A net that takes raw sound, and one that takes features of it, from recipe to bundle."""

import json
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
from sound_factories import configured, write_folder
from tiny_project import Project

from edgepack.data.datasets.audio_folder import load

RECIPE = """\
edgepack: 1
task: audio_classification
model: {ds_cnn: 16, blocks: 2}
data: {audio_folder: {folder: sounds, rate: 8000, seconds: 0.25, mels: 16}}
device: desk
stages:
  - train:    {epochs: 4, learning_rate: 1e-2, batch_size: 16}
  - prune:    {ratio: 25 %, steps: 1, recover: {epochs: 1, batch_size: 16}}
  - quantize: {epochs: 1, batch_size: 16}
export: [executorch, onnx]
budgets:
  size: 1 MB
  accuracy: {min: 60 %, max_drop: 40 %}
  parity: {min: 70 %}
"""


@pytest.mark.usefixtures("short_timings")
def test_a_net_that_hears_raw_sound_is_built_and_tests_itself(tmp_path: Path) -> None:
    project = Project.at(tmp_path / "project")
    write_folder(str(project.folder / "sounds"), count=20)
    (project.folder / "recipes/tiny.yaml").write_text(RECIPE)
    ran = project.run("build", "tiny")
    assert ran.code == 0, ran.out + ran.err
    tested = project.run("selftest", "dist/tiny/tiny.zip")
    assert tested.code == 0, tested.err
    assert tested.out.splitlines()[-1].startswith("OK: ")
    io = json.loads((project.dist / "bundle/io/signature.json").read_text())
    assert io["inputs"] == [{"name": "input", "shape": [1, 2000], "dtype": "float32"}]
    assert io["preprocessing"]["log_mel"]["made"] == "by the model"


@pytest.mark.usefixtures("short_timings")
def test_a_bundle_has_the_code_that_makes_its_features_from_raw_sound(tmp_path: Path) -> None:
    project = Project.at(tmp_path / "project")
    write_folder(str(project.folder / "sounds"), count=20)
    recipe = RECIPE.replace("mels: 16", "mels: 16, front_end: beside").replace("[executorch, onnx]", "[onnx]")
    stages = [line for line in recipe.splitlines(keepends=True) if "prune" not in line]
    (project.folder / "recipes/tiny.yaml").write_text("".join(stages))
    ran = project.run("build", "tiny")
    assert ran.code == 0, ran.out + ran.err
    tested = project.run("selftest", "dist/tiny/tiny.zip")
    assert tested.code == 0, tested.err
    bundle = project.dist / "bundle"
    shipped: dict[str, Any] = {}
    exec((bundle / "io/log_mel.py").read_text(), shipped)  # noqa: S102
    io = json.loads((bundle / "io/signature.json").read_text())
    given = {name: value for name, value in io["preprocessing"]["log_mel"].items() if name != "made"}
    with chdir(project.folder):
        raw = load(configured()).test.head(3)[0].numpy()
    for number, features in enumerate(shipped["log_mel"](raw, **given)):
        assert features.tobytes() == (bundle / f"selftest/case-{number}-input.bin").read_bytes()
