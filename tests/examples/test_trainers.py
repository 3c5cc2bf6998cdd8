"""The trainers of examples/ keep the rules of a trainer, whatever the stage that calls them."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import PROJECT
from torch import nn
from torch_factories import accuracy, candidate, context, learned
from torch_factories import tiny_models as tiny_models

from edgepack.compress.contract import Training
from edgepack.compress.stages import prune, quantize
from edgepack.compress.training import numerics
from edgepack.compress.training.checkpoints import Checkpoints
from edgepack.compress.training.loop import fit
from edgepack.compress.training.loss import Distillation

TRAINERS = ("lightning", "huggingface", "timm")
EACH = pytest.mark.parametrize("name", TRAINERS)


@pytest.fixture(autouse=True)
def here(own_place: Path) -> None:
    for file in PROJECT.glob("examples/*/*.py"):
        shutil.copy(file, own_place)


def _settings(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "epochs": 4,
        "batch_size": 16,
        "trainer": f"{name}_trainer:fit",
        "trainer_args": {"rate": 2e-2, **changes.pop("trainer_args", {})},
        **changes,
    }


def _trained(name: str, module: nn.Module, **changes: Any) -> list[Any]:
    here = context()
    with numerics.deterministic(0, 1):
        fit(module, here, Training.model_validate(_settings(name, **changes)), doing="")
    return here.trainings


def _hooks(module: nn.Module) -> int:
    kept = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    on_weights = sum(len(each._backward_hooks or ()) for each in module.parameters())
    return on_weights + sum(len(getattr(each, kind)) for each in module.modules() for kind in kept)


@EACH
def test_it_trains_the_module_in_place_and_leaves_nothing_on_it(name: str) -> None:
    module = candidate("residual").module
    weights = [*module.parameters()]
    [record] = _trained(name, module, epochs=8)
    assert accuracy(module) > 0.9
    assert all(map(lambda one, two: one is two, module.parameters(), weights))
    assert {(each.device.type, each.dtype) for each in weights} == {("cpu", torch.float32)}
    assert "forward" not in module.__dict__ and not _hooks(module) and not module.training
    assert [each.epoch for each in record.epochs] == [*range(9)]
    assert all(each.loss is not None and each.score is not None and each.learning_rate for each in record.epochs[1:-1])


@EACH
def test_two_trainings_are_the_same(name: str) -> None:
    modules = [candidate("residual").module for _ in range(2)]
    for module in modules:
        _trained(name, module, epochs=2)
    one, two = (module.state_dict().values() for module in modules)
    assert all(map(torch.equal, one, two))


@EACH
def test_weights_that_pruning_set_to_zero_stay_zero(name: str) -> None:
    config = prune.Config.model_validate(
        {"pattern": "unstructured", "ratio": "50 %", "steps": 1, "recover": _settings(name)}
    )
    cut = prune.run(learned(), config, context(teacher=learned()))
    assert accuracy(cut.module) > 0.9
    zeros = [int((weight == 0).sum()) for weight in cut.module.parameters() if weight.dim() > 1]
    assert sum(zeros) > 1000


@EACH
def test_it_trains_simulated_int8(name: str) -> None:
    config = quantize.Config.model_validate({"mode": "qat", **_settings(name, epochs=2, trainer_args={"rate": 1e-3})})
    here = context()
    assert accuracy(quantize.run(learned(), config, here).module) > 0.9
    assert here.trainings[0].epochs[1].score is not None


@EACH
def test_what_it_writes_is_in_its_folder(name: str) -> None:
    before = {*Path().iterdir()}
    here = context(checkpoints=Checkpoints(folder=Path("unfinished")))
    lesson = Distillation(teacher=learned().module)
    for _ in range(2):
        settings = Training.model_validate(_settings(name, epochs=1))
        fit(candidate("mlp").module, here, settings, doing="", distillation=lesson)
    assert {*Path().iterdir()} - before == {Path("unfinished")}
    assert len([*Path("unfinished").iterdir()]) == 2


def test_no_progress_bar_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    for name in TRAINERS:
        _trained(name, candidate("mlp").module, epochs=1)
    assert not capfd.readouterr().out
