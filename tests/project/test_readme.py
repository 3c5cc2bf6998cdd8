"""What the README shows is so."""

import hashlib
import re
import shlex
import types
from pathlib import Path
from typing import Any

import torch
from factories import build, bundle_files, edgepack, measurement, recipe_file
from torch_factories import candidate, context

from edgepack.config.document import read_value
from edgepack.config.plugins import choose
from edgepack.core.signature import Signature
from edgepack.deliver.bundle import pack
from edgepack.deliver.reports import sarif

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_stage_in_one_file_runs() -> None:
    source = next(block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "def run(" in block)
    stage = types.ModuleType("sparsify")
    exec(source, stage.__dict__)  # noqa: S102
    before = candidate()
    after = stage.run(before, stage.Config(threshold=0.1), context())
    weights = [weight for weight in after.module.parameters() if weight.dim() > 1]
    assert weights
    assert all(((weight == 0) | (weight.abs() >= 0.1)).all() for weight in weights)
    assert after.notes == ("threshold 0.1",)


def test_the_task_of_your_own_is_one() -> None:
    source = next(block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "edgepack.Task" in block)
    Path("my_tasks.py").write_text(source)
    choice = choose("tasks", {"python": "my_tasks:Counting", "within": 2})
    task = choice.module.task(choice.config, Signature(inputs=()))
    outputs, targets = (torch.tensor([[1.0], [5.0]]), torch.zeros(2, 4, 4)), torch.tensor([2.0, 2.0])
    meter = task.meter()
    meter.update(outputs, targets)
    assert float(task.loss(outputs, targets)) == task.scores(meter)["count.error"] == 2.0
    assert task.agreement(*[(each[0].numpy(),) for each in (outputs, outputs)]).tolist() == [1.0, 1.0]


def test_the_mistakes_are_reported_as_shown() -> None:
    command = "$ edgepack check product; echo exit code $?\n"
    block = README.partition(command)[2].partition("```")[0]
    shown, _, code = block.rpartition("exit code ")
    recipe_file("product").write_text(
        """edgepack: 1
task: image_classification
model: {torchvision: resnet18}
data: {digits: {size: 32}}
device: host
stages:
  - train: {epochs: 8}
  - quantize: {epochs: 4}
  - prune: {ratio: 0.5, importence: taylor}
export: [executorch, onnx]
budgets:
  size: 300 KB
  latency.p95: 2 ms
"""
    )
    ran = edgepack("check", "product")
    assert (ran.err, ran.code) == (shown, int(code))


def _steps() -> list[dict[str, Any]]:
    block = next(block for block in re.findall(r"```yaml\n(.*?)```", README, re.S) if "runs-on" in block)
    return [*read_value(block)["jobs"]["gate"]["steps"]]


def test_the_workflow_is_yaml_and_keeps_what_a_build_writes() -> None:
    kept = [step["with"]["sarif_file"] for step in _steps() if "sarif_file" in step.get("with", {})]
    assert kept == [f"dist/quickstart/{sarif.FILE}"]
    runs = "\n".join(step.get("run", "") for step in _steps())
    assert runs.index("edgepack build quickstart") < runs.index("edgepack gate quickstart")
    (release,) = [step["with"]["path"].split() for step in _steps() if step.get("with", {}).get("name") == "quickstart"]
    assert release == ["dist/quickstart/quickstart.zip", "dist/quickstart/build.json"]


def test_the_workflow_keeps_the_cache_of_a_build_that_failed() -> None:
    uses = [step.get("uses", "").partition("@")[0] for step in _steps()]
    restore, save = (_steps()[uses.index(f"actions/cache/{verb}")] for verb in ("restore", "save"))
    building = next(i for i, step in enumerate(_steps()) if "edgepack build" in step.get("run", ""))
    assert uses.index("actions/cache/restore") < building < uses.index("actions/cache/save")
    assert save["if"] == "always()" and "actions/cache" not in uses
    assert {key: restore["with"][key] for key in ("path", "key")} == save["with"]  # else nothing is found again
    assert restore["with"]["path"].split() == [".edgepack/store", "dist/history.jsonl"]


def test_the_gate_of_the_workflow_judges_a_build(own_place: Path) -> None:
    command = next(step["run"] for step in _steps() if "edgepack gate" in step.get("run", ""))
    for folder in ("dist/quickstart", "releases/1.0"):
        released = build(recipe={"name": "quickstart", "device": "board"}, bundle="quickstart.zip")
        packed = pack(bundle_files())
        Path(folder).mkdir(parents=True)
        Path(folder, "quickstart.zip").write_bytes(packed)
        sha = hashlib.sha256(packed).hexdigest()
        measured = (*released.measurements, measurement("accuracy", 0.97))
        released = released.model_copy(update={"bundle_sha256": sha, "measurements": measured})
        released.save(Path(folder, "build.json"))
    ran = edgepack(*shlex.split(command)[1:])
    assert (ran.code, ran.err) == (0, "")
    assert "relative.size" in ran.out and "relative.accuracy" in ran.out
