"""Files that want different quantizers: one quantized candidate for each, and every file held against its own."""

from pathlib import Path
from typing import Any

import onnx
import pytest
from factories import device, recipe, recipe_file
from stand_ins.coarse_quantizer import coarse_quantizer as coarse_quantizer

from edgepack.config import plugins
from edgepack.config.recipe import resolve
from edgepack.config.recipe_reading import load_recipe
from edgepack.workflows.build.pipeline import build
from edgepack.workflows.build.planning.planner import Planner, plan
from edgepack.workflows.build.planning.step import StepId
from edgepack.workflows.build.store import Store


@pytest.fixture(autouse=True)
def onnx_wants_another(coarse_quantizer: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins.load("exporters", "onnx"), "quantizer", lambda config: "coarse")


def test_a_plan_holds_one_quantized_candidate_for_each_quantizer() -> None:
    what = recipe(stages=[{"train": {"epochs": 1}}, {"prune": {"ratio": "50 %"}}, {"quantize": {"epochs": 1}}])
    board, store = device("board"), Store("store")
    steps = {step.name: step for step in plan(what, board, store).steps}
    names = [*steps]
    assert names[:5] == ["model", "train", "prune", "quantize (xnnpack)", "quantize (coarse)"]
    assert names[9:11] == ["reference outputs (xnnpack)", "reference outputs (coarse)"]
    assert len(names) == Planner(resolve(what, board), store, facts=None).count
    parents = {name: steps[f"export {name}"].ingredients["parent"] for name in ("executorch", "onnx")}
    assert parents == {"executorch": steps["quantize (xnnpack)"].key, "onnx": steps["quantize (coarse)"].key}
    for variant in ("xnnpack", "coarse"):
        assert steps[f"quantize ({variant})"].ingredients["parent"] == steps["prune"].key
        assert steps[f"quantize ({variant})"].id == StepId("candidate", "quantize", variant)
    teachers = {steps[f"export teacher ({name})"].ingredients["parent"] for name in ("executorch", "onnx")}
    assert teachers == {steps["train"].key}


def test_where_all_want_the_same_there_is_one_and_its_key_tells_which() -> None:
    def quantized(*formats: str) -> tuple[list[str], str]:
        what = recipe(stages=[{"train": {"epochs": 1}}, {"quantize": {"epochs": 1}}], export=[*formats])
        steps = plan(what, device("board"), Store("store")).steps
        return [step.name for step in steps if step.kind == "candidate"], steps[2].key

    (coarse, key), (other, other_key) = quantized("onnx"), quantized("executorch")
    assert coarse == other == ["model", "train", "quantize"]
    assert key != other_key


NET = """
from torch import nn
def net():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10)
    )
"""


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
def test_a_build_ships_each_file_of_its_own_quantizer() -> None:
    Path("own_nets.py").write_text(NET)
    stages = [{"train": {"epochs": 2}}, {"quantize": {"mode": "ptq"}}]
    net: dict[str, Any] = {"model": {"python": "own_nets:net"}, "data": {"digits": {"size": 8}}}
    budgets = {"parity": "99 %", "size": "1 MB"}
    what = load_recipe(recipe_file(**net, stages=stages, budgets=budgets))
    absent = device("board", runner="ssh")  # the files run here, and nothing is timed
    result = build(what, absent, Store("store"), dist="dist")
    assert result.exit_code == 0
    assert [record.stage for record in result.ledger] == ["model", "train", "quantize (xnnpack)", "quantize (coarse)"]
    model = onnx.load(f"dist/{what.name}/bundle/models/{what.name}.onnx")
    stored = {tuple(tensor.dims): tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) > 1}
    int8, fp32 = onnx.TensorProto.INT8, onnx.TensorProto.FLOAT
    assert {len(shape): kind for shape, kind in stored.items()} == {4: int8, 2: fp32}  # convolutions alone
    (pte,) = [each for each in result.shipped() if each.format == "executorch"]
    assert pte.contents is not None and pte.contents.delegation == 1
