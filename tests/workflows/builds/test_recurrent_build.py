"""An LSTM that reads raw sound, from recipe to bundle: distilled into a narrower one, cut, in int8."""

from pathlib import Path

import pytest
from sound_factories import write_folder
from tiny_project import Project

RECIPE = """\
edgepack: 1
task: audio_classification
model: {recurrent: lstm, hidden: 32, bidirectional: true}
data: {audio_folder: {folder: sounds, rate: 8000, seconds: 0.25, hop: 40 ms, window: 40 ms, mels: 16}}
device: desk
stages:
  - train:    {epochs: 8, learning_rate: 1e-2, batch_size: 16}
  - distill:  {compression: 2, epochs: 4, learning_rate: 1e-2, batch_size: 16}
  - prune:    {ratio: 30 %, steps: 1, recover: {epochs: 1, batch_size: 16}}
  - quantize: {epochs: 1, batch_size: 16}
export: [executorch, onnx]
budgets:
  size: 1 MB
  accuracy: {min: 60 %, max_drop: 40 %}
  parity: {min: 70 %}
"""


@pytest.mark.slow
@pytest.mark.usefixtures("short_timings")
def test_a_recurrent_net_is_built_and_tests_itself(tmp_path: Path) -> None:
    project = Project.at(tmp_path / "project")
    write_folder(str(project.folder / "sounds"), count=20)
    (project.folder / "recipes/tiny.yaml").write_text(RECIPE)
    ran = project.run("build", "tiny")
    assert ran.code == 0, ran.out + ran.err
    operators = {each.format: each.contents.operators for each in project.result().artifacts if each.contents}
    assert sum(count for name, count in operators["onnx"].items() if "LSTM" in name) == 1
    assert not [name for name in operators["executorch"] if "lstm" in name]
    tested = project.run("selftest", "dist/tiny/tiny.zip")
    assert tested.code == 0, tested.err
    assert tested.out.splitlines()[-1].startswith("OK: ")
