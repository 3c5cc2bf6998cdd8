"""timm's optimizers: which there are, and that a training with one goes on exactly where it was stopped."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import python
from pydantic import ValidationError
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch_factories import accuracy, candidate, context, learned
from torch_factories import tiny_models as tiny_models

from edgepack.compress import timm_optimizers
from edgepack.compress.contract import Training
from edgepack.compress.stages import prune, train
from edgepack.compress.training import checkpoints, numerics
from edgepack.compress.training.checkpoints import Checkpoints
from edgepack.compress.training.loop import fit
from edgepack.core.process import libraries

STEPS = 6  # batches an epoch


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    with numerics.deterministic(0, 1):
        yield


def _settings(optimizer: str, **changes: Any) -> Training:
    return Training(optimizer=optimizer, **{"epochs": 2, "learning_rate": 1e-3, "batch_size": 16, **changes})


def test_names_are_those_of_timm() -> None:
    libraries.timm()
    from timm.optim import list_optimizers

    named = {name for name in list_optimizers() if timm_optimizers.known(f"timm/{name}")}
    assert named == {*list_optimizers()}
    assert {"timm/lamb", "timm/adamp", "timm/nesterov"} < {*timm_optimizers.names()}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("timm/lam", "unknown optimizer 'timm/lam': did you mean 'timm/lamb'?"),
        ("adam", "unknown optimizer 'adam': did you mean 'adamw'?"),
        ("lamb", "unknown optimizer 'lamb': did you mean 'timm/lamb'?"),
        ("timm/lookahead_adam", "unknown optimizer 'timm/lookahead_adam'"),
        ("timm/adahessian", "timm/adahessian cannot be used: it needs second derivatives"),
        ("timm/kron", "timm/kron cannot be used: it keeps a state that no checkpoint can hold"),
        ("timm/fusedadam", "timm/fusedadam cannot be used: it needs a GPU and the package apex"),
        ("timm/bnbadam8bit", "timm/bnbadam8bit cannot be used: it needs a GPU and the package bitsandbytes"),
    ],
)
def test_what_cannot_be_used_is_told_when_the_recipe_is_read(name: str, why: str) -> None:
    with pytest.raises(ValidationError) as failure:
        _settings(name)
    assert why in str(failure.value)


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm_optimizers, "source_folder", lambda package: None)
    with pytest.raises(ValidationError, match=r"timm/lamb cannot be used: .*pip install 'edgepack\[timm\]'"):
        _settings("timm/lamb")


def test_a_recipe_is_read_without_importing_timm() -> None:
    ran = python(
        "import sys; from edgepack.compress.contract import Training; Training(epochs=1, optimizer='timm/lamb');"
        "print({'timm', 'torch'} & {*sys.modules})"
    )
    assert ran.out.strip() == "set()", ran


def test_every_one_that_can_be_used_takes_steps() -> None:
    for name in timm_optimizers.names():
        weight = torch.nn.Parameter(torch.ones(4, 4))
        optimizer = timm_optimizers.made([weight], name, 1e-2, 0.01)
        for _ in range(2):
            weight.grad = torch.eye(4)
            optimizer.step()
        assert not torch.equal(weight, torch.ones(4, 4)), name
        found = checkpoints.of_optimizer(optimizer)
        assert all(isinstance(each, int | float | bool | str | None) for each in found[1].values()), name


class Killed(BaseException):
    pass


@pytest.mark.parametrize("name", ["lamb", "adamp", "rmsproptf", "lion", "adan", "muon", "nadamlegacy"])
def test_a_killed_training_ends_as_an_undisturbed_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "_SHARE", float("inf"))
    monkeypatch.setattr(checkpoints, "_PERIOD", -1.0)  # a checkpoint at every step

    def ran(folder: str, killed_after: int | None = None) -> dict[str, torch.Tensor]:
        module, taken = candidate("residual").module, 0

        def step(*_: Any) -> None:
            nonlocal taken
            if taken == killed_after:
                raise Killed
            taken += 1

        hook = register_optimizer_step_pre_hook(step)
        try:
            fit(module, context(checkpoints=Checkpoints(folder=Path(folder))), _settings(f"timm/{name}"), doing="x")
        except Killed:
            return {}
        finally:
            hook.remove()
        return {**module.state_dict(), "steps": torch.tensor(taken)}

    undisturbed = ran("other")
    assert not ran("killed", killed_after=STEPS + 3)
    again = ran("killed")
    assert (int(undisturbed.pop("steps")), int(again.pop("steps"))) == (2 * STEPS, STEPS - 3)
    assert all(torch.equal(tensor, again[each]) for each, tensor in undisturbed.items())


def test_a_net_learns_with_one_of_them() -> None:
    settings = train.Config(epochs=6, learning_rate=1e-2, batch_size=16, optimizer="timm/lamb")
    assert accuracy(train.run(candidate(), settings, context()).module) > 0.8


def test_zeros_of_pruning_stay_though_the_optimizer_mixes_weights() -> None:
    """Muon makes the rows of a step orthogonal: a weight without a gradient moves too."""
    recover = {"epochs": 1, "learning_rate": 1e-2, "batch_size": 16, "optimizer": "timm/muon"}
    config = prune.Config.model_validate({"pattern": "2:4", "recover": recover})
    weight = prune.run(learned(), config, context()).module.blocks[0].conv1.weight
    zeros = (weight == 0).transpose(1, -1).unflatten(-1, (-1, 4)).sum(-1)
    assert int(zeros.min()) >= 2
