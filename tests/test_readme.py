"""What the README shows is so."""

import re
import types
from pathlib import Path

from factories import edgepack, recipe_file
from torch_factories import candidate, context

from edgepack.config import read_value
from edgepack.reports import sarif

README = (Path(__file__).parent.parent / "README.md").read_text()


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


def test_the_workflow_is_yaml_and_keeps_what_a_build_writes() -> None:
    block = next(block for block in re.findall(r"```yaml\n(.*?)```", README, re.S) if "runs-on" in block)
    steps = read_value(block)["jobs"]["gate"]["steps"]
    kept = [step["with"]["sarif_file"] for step in steps if "sarif_file" in step.get("with", {})]
    assert kept == [f"dist/quickstart/{sarif.FILE}"]
    assert any("edgepack build quickstart" in step.get("run", "") for step in steps)
