"""Every kind of task, from recipe to bundle: its metric judged, its bundle tested, its examples run."""

import ast
import csv
import json
from pathlib import Path
from typing import Any

import pytest
from factories import answers, python
from sklearn.datasets import load_diabetes
from tiny_project import DEVICE, Project
from tiny_project import without_dry_run as without_dry_run

from edgepack.measure.timing import protocol
from edgepack.records.build import Build

pytestmark = pytest.mark.slow

NETS = """\
from dataclasses import dataclass

import torch
from torch import nn


def stem(width):
    layers = [nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1, stride=2), nn.ReLU()]
    return nn.Sequential(*layers)


def mlp():
    return nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))


class Counter(nn.Module):
    "Gives a dict, in another order than its task."

    def __init__(self):
        super().__init__()
        self.stem = stem(16)
        self.map = nn.Conv2d(16, 1, 1)

    def forward(self, x):
        found = self.map(self.stem(x))[:, 0]
        return {"map": found, "count": found.sum((1, 2))[:, None]}


@dataclass
class Found:
    logits: torch.Tensor
    hidden: torch.Tensor


class Boxed(nn.Module):
    "Gives a dataclass, as models of transformers do."

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(stem(16), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.head = nn.Linear(64, 2)

    def forward(self, x):
        hidden = self.stem(x)
        return Found(logits=self.head(hidden), hidden=hidden)
"""
SHOP = """\
import numpy


def tags():
    "Whether the upper and the lower half of pictures are bright."
    def split(seed, count):
        light = numpy.linspace(0.1, 2, count)[:, None, None, None]
        inputs = numpy.random.default_rng(seed).random((count, 1, 8, 8)) * light
        return inputs, (inputs.reshape(count, 2, -1).mean(2) > 0.5) * 1.0
    return {"train": split(0, 128), "validation": split(1, 32), "test": split(2, 32)}


def counts():
    return {part: (inputs, inputs.sum((1, 2, 3)) / 10) for part, (inputs, targets) in tags().items()}
"""
TASKS = """\
import edgepack
from pydantic import BaseModel


class Counting(edgepack.Task):
    METRICS = {"count.error": edgepack.score("mean error of the count", edgepack.NUMBER, higher=False)}

    class Config(BaseModel):
        within: float = 1.0

    def outputs(self):
        return (edgepack.TensorSpec(name="count", shape=(1,)), edgepack.TensorSpec(name="map", shape=(4, 4)))

    def loss(self, outputs, targets):
        return (outputs[0][:, 0] - targets).abs().mean()

    def meter(self):
        return edgepack.Mean({"count.error": lambda outputs, targets: (outputs[0][:, 0] - targets).abs()})

    def agreement(self, outputs, reference):
        return (abs(outputs[0] - reference[0]) < self.config.within).mean(axis=1)
"""
RECIPE = """\
edgepack: 1
task: {task}
model: {model}
data: {data}
device: desk
stages:
  - train: {{epochs: 6, learning_rate: 1e-2, batch_size: 32}}
  - {stage}
export: [executorch, onnx]
budgets: {{size: 1 MB, parity: {{min: 90 %}}, {budget}}}
"""
PRUNE, QUANTIZE = "prune: {ratio: 25 %, steps: 1, recover: {epochs: 1}}", "quantize: {epochs: 1}"
OWN = '{python: {function: "shop:%s", shape: [1, 8, 8], files: []%s}}'
RUN = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forked_workers: None) -> Project:
    """A project whose files are not timed."""
    monkeypatch.setattr(protocol, "time_alternately", lambda *given: (answers(), answers()))
    monkeypatch.setattr(protocol, "peaks", lambda *given: [{"peak_bytes": 1_000_000}] * 3)
    folder = tmp_path / "shop"
    for name, text in {"nets.py": NETS, "shop.py": SHOP, "my_tasks.py": TASKS, "devices/desk.yaml": DEVICE}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "recipes").mkdir()
    return Project(folder=folder)


def _built(shop: Project, task: str, data: str, budget: str, **parts: str) -> Build:
    """A build that met its budgets, whose bundle gives what it gave."""
    facts = {"stage": PRUNE, **parts}
    (shop.folder / "recipes/tiny.yaml").write_text(RECIPE.format(task=task, data=data, budget=budget, **facts))
    ran = shop.build()
    assert ran.code == 0, ran.err
    tested = shop.run("selftest", "dist/tiny/tiny.zip")
    assert (tested.code, tested.out.splitlines()[-1]) == (0, "OK: 6 outputs match those recorded at build time")
    return shop.result()


def _examples(shop: Project) -> dict[str, list[Any]]:
    """What the Python examples of the bundle print for its samples, by runtime."""
    found = {}
    for runtime in ("executorch", "onnxruntime"):
        ran = python(RUN, str(shop.dist / f"bundle/examples/{runtime}/load.py"))
        lines = [line.rpartition(": ") for line in ran.out.splitlines() if line.endswith("-input.bin")]
        assert len(lines) == 3, ran.err
        found[runtime] = [ast.literal_eval(shown) for shown, _, _ in lines]
    return found


def _card(shop: Project) -> str:
    return (shop.dist / "bundle/MODEL_CARD.md").read_text()


def _diabetes(file: Path) -> list[str]:
    """The table of 442 patients that scikit-learn ships, and how their disease progressed, in hundreds."""
    table = load_diabetes(scaled=False)
    with file.open("w", newline="") as written:
        rows = ([*features, target / 100] for features, target in zip(table.data, table.target, strict=True))
        csv.writer(written).writerows([[*table.feature_names, "progression"], *rows])
    names: list[str] = table.feature_names
    return names


def test_numbers_are_named_in_all_that_a_build_gives(shop: Project, without_dry_run: None) -> None:
    features = _diabetes(shop.folder / "diabetes.csv")
    data = f"{{csv: {{file: diabetes.csv, features: {json.dumps(features)}, targets: [progression]}}}}"
    made = _built(shop, "regression", data, "rmse: {max: 0.75, max_rise: 0.1}", model='{python: "nets:mlp"}')
    verdicts = {each.budget: each for each in made.verdicts if each.artifact == "onnx"}
    assert {"rmse", "rmse.max_rise"} <= {*verdicts} and made.metric == "rmse"
    train = made.ledger[1]
    assert train.metric == "rmse" and train.score < made.ledger[0].score  # lower is better
    for shown in _examples(shop).values():
        assert [{*each} for each in shown] == [{"progression"}] * 3
        assert all(0.2 < each["progression"] < 4 for each in shown)
    assert "Regression of 1 number, for" in _card(shop) and "| rmse |" in _card(shop)
    told = json.loads((shop.dist / "bundle/io/signature.json").read_text())["preprocessing"]
    assert told["columns"] == features and len(told["normalize"]["mean"]) == 10
    html = (shop.dist / "report.html").read_text()
    assert "accuracy" not in html + (shop.dist / "report.md").read_text() and "rmse" in html


def test_labels_above_the_threshold_are_given_by_the_output_of_a_dataclass(
    shop: Project, without_dry_run: None
) -> None:
    task = "{multi_label_classification: {threshold: 0.4}}"
    data = OWN % ("tags", ", labels: [upper, lower]")
    parts = {"stage": QUANTIZE, "model": '{python: "nets:Boxed"}'}
    made = _built(shop, task, data, "f1: {min: 30 %, max_drop: 50 %}", **parts)
    assert [each.name for each in made.metrics] == ["f1", "accuracy.labels"]
    for shown in _examples(shop).values():
        assert all(isinstance(each, list) and {*each} <= {"upper", "lower"} for each in shown)
    assert "is given above 0.4" in _card(shop)


def test_a_task_of_your_own_with_two_outputs_of_a_dict(shop: Project) -> None:
    own = {"task": '{python: "my_tasks:Counting", within: 2}', "data": OWN % ("counts", "")}
    made = _built(shop, **own, budget="count.error: {max: 5, max_rise: 1}", model='{python: "nets:Counter"}')
    assert made.recipe["task"] == {"python": "my_tasks:Counting", "within": 2.0}
    assert {each.budget for each in made.verdicts} >= {"count.error", "count.error.max_rise"}
    for shown in _examples(shop).values():
        assert shown == [{"count": [1, 1], "map": [1, 4, 4]}] * 3
    assert "Counting, for `desk`" in _card(shop)
    interface = json.loads((shop.dist / "bundle/io/signature.json").read_text())
    assert [each["name"] for each in interface["outputs"]] == ["count", "map"]
    alone = shop.run("selftest", "dist/tiny/tiny.zip")
    assert "only numbers were compared: the bundle's task is code of its own" in alone.out
    assert "only numbers" not in shop.run("selftest", "dist/tiny/tiny.zip", "--own-code").out

    (shop.folder / "my_tasks.py").write_text(TASKS.replace("abs()", "square()", 1))
    planned = shop.run("plan", "tiny").out.splitlines()
    assert planned[1].split() == ["model", "run:", "the", "task's", "code", "changed"]
    (shop.folder / "my_tasks.py").unlink()
    assert "only numbers" in shop.run("selftest", "dist/tiny/tiny.zip", "--own-code").out
    for command in (("explain", "tiny"), ("gate", "tiny"), ("trend", "tiny"), ("compare", "tiny", "tiny")):
        ran = shop.run(*command)
        assert ran.code == 0 and "count.error" in ran.out, ran.err
