"""Every stage composes with every other, in any order, and each combination is saved and loaded again."""

from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_factories import accuracy, context, learned, logits, reloaded
from torch_factories import tiny_models as tiny_models

from edgepack.config import plugins
from edgepack.config.plugins import choose
from edgepack.models.candidate import Candidate

TRAINING = {"epochs": 2, "learning_rate": 1e-2, "batch_size": 16}
STAGES: dict[str, Any] = {
    "train": TRAINING,
    "distill": {"compression": 1.5, **TRAINING},
    "prune": {"ratio": "25 %", "steps": 1, "recover": TRAINING},
    "factorize": {"target": {"params": "90 %"}, "recover": TRAINING},
}


def through(names: tuple[str, ...], folder: Path) -> Candidate:
    """The model after these stages, each given what the one before it saved."""
    teacher = learned("residual", width=32)
    model = learned("residual", width=32)
    about = context(teacher=teacher)
    about = replace(about, quantization=about.quantization.model_copy(update={"channel_multiple": 2}))
    for number, name in enumerate(names):
        choice = choose("stages", {name: STAGES[name]})
        made: Candidate = choice.module.run(model, choice.config, about)
        model = reloaded(made, folder / str(number))
        assert torch.equal(logits(model.module), logits(made.module))
    return model


@pytest.mark.parametrize("order", list(permutations(STAGES)), ids="-".join)
def test_stages_compose_in_any_order(order: tuple[str, ...], tmp_path: Path) -> None:
    model = through(order, tmp_path)
    assert {edit.op for edit in model.surgery} >= {"resize"}
    assert {edit.op for edit in model.surgery} & {"split", "split_spatial"}
    assert accuracy(model.module) > 0.9


@pytest.mark.parametrize("order", [("prune", "factorize", "prune"), ("factorize", "factorize"), ("distill", "distill")])
def test_stages_can_be_repeated(order: tuple[str, ...], tmp_path: Path) -> None:
    assert accuracy(through(order, tmp_path).module) > 0.9


@pytest.mark.parametrize("last", STAGES)
def test_whatever_came_before_can_be_quantized(last: str, tmp_path: Path) -> None:
    quantize = plugins.load("stages", "quantize")
    model = through((last,), tmp_path)
    small = quantize.run(
        model, quantize.Config(epochs=1, batch_size=16), context(teacher=learned("residual", width=32))
    )
    assert torch.equal(logits(reloaded(small, tmp_path / "quantized").module), logits(small.module))
    assert accuracy(small.module) > 0.9
