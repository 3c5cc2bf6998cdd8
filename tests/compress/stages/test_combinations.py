"""Every stage composes with every other, in any order, and each combination is saved and loaded again."""

from collections.abc import Callable
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


Through = Callable[..., Candidate]


@pytest.fixture(scope="module")
def through(tmp_path_factory: pytest.TempPathFactory) -> Through:
    """The model after these stages, each given what the one before it saved; orders that begin alike share that."""
    folders: dict[tuple[str, ...], Path] = {}

    def saved(*names: str) -> Candidate:
        if not names:
            return learned("residual", width=32)
        if names not in folders:
            about = context(teacher=learned("residual", width=32))
            about = replace(about, quantization=about.quantization.model_copy(update={"channel_multiple": 2}))
            choice = choose("stages", {names[-1]: STAGES[names[-1]]})
            made: Candidate = choice.module.run(saved(*names[:-1]), choice.config, about)
            folders[names] = tmp_path_factory.mktemp("-".join(names))
            assert torch.equal(logits(reloaded(made, folders[names]).module), logits(made.module))
        return Candidate.load(folders[names])

    return saved


@pytest.mark.parametrize("order", list(permutations(STAGES)), ids="-".join)
def test_stages_compose_in_any_order(order: tuple[str, ...], through: Through) -> None:
    model = through(*order)
    assert {edit.op for edit in model.surgery} >= {"resize"}
    assert {edit.op for edit in model.surgery} & {"split", "split_spatial"}
    assert accuracy(model.module) > 0.9


@pytest.mark.parametrize("order", [("prune", "factorize", "prune"), ("factorize", "factorize"), ("distill", "distill")])
def test_stages_can_be_repeated(order: tuple[str, ...], through: Through) -> None:
    assert accuracy(through(*order).module) > 0.9


@pytest.mark.parametrize("last", STAGES)
def test_whatever_came_before_can_be_quantized(last: str, through: Through, tmp_path: Path) -> None:
    quantize = plugins.load("stages", "quantize")
    model = through(last)
    small = quantize.run(
        model, quantize.Config(epochs=1, batch_size=16), context(teacher=learned("residual", width=32))
    )
    assert torch.equal(logits(reloaded(small, tmp_path / "quantized").module), logits(small.module))
    assert accuracy(small.module) > 0.9
