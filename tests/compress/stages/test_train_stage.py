import pytest
import torch
from pydantic import ValidationError
from torch_factories import Kind, accuracy, candidate, context
from torch_factories import tiny_models as tiny_models

from edgepack.compress.stages.train import MAKES_TEACHER, Config, dry_run, run
from edgepack.config.device import Quantization
from edgepack.core.errors import StageError
from edgepack.models.structure.surgery import Edit


@pytest.mark.parametrize("kind", ["residual", "mlp", "depthwise"])
def test_it_learns_and_says_which_epoch_it_kept(kind: Kind) -> None:
    result = run(candidate(kind), Config(epochs=8, learning_rate=1e-2, batch_size=16), context())
    assert accuracy(result.module) > 0.9
    [note] = result.notes
    assert note.startswith("kept epoch") and note.endswith("of 8")
    assert (result.form, result.surgery) == ("eager", ())


def test_it_makes_the_teacher() -> None:
    assert MAKES_TEACHER


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"batch_size": 1}, {"learning_rate": 0}, {"epoch": 3}])
def test_settings_that_cannot_work_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Config.model_validate(wrong)


def test_frozen_parts_are_not_trained() -> None:
    start = candidate()
    for parameter in start.module.stem.parameters():
        parameter.requires_grad_(False)
    before = start.module.stem[0].weight.clone()
    first = start.module.head.weight.clone()
    trained = run(start, Config(epochs=1, batch_size=16), context())
    assert torch.equal(trained.module.stem[0].weight, before)
    assert not torch.equal(trained.module.head.weight, first)


def test_a_model_of_which_all_is_frozen_is_refused() -> None:
    start = candidate()
    start.module.requires_grad_(False)
    with pytest.raises(StageError, match=r"nothing to train: all \d+ parameters are frozen") as failure:
        dry_run(start, Config(epochs=1), Quantization())
    assert "requires_grad_(True)" in failure.value.hint
    with pytest.raises(StageError, match="nothing to train"):
        run(start, Config(epochs=1), context())


def test_a_pair_in_the_place_of_a_frozen_layer_is_frozen() -> None:
    start = candidate("mlp")
    start.module[1].requires_grad_(False)
    made = start.edited(Edit(op="split", layer="1", to={"rank": 2}))
    assert not any(parameter.requires_grad for parameter in made.module[1].parameters())
    assert all(parameter.requires_grad for parameter in made.module[3].parameters())
