import pytest
from pydantic import ValidationError
from torch_factories import Kind, accuracy, candidate, context
from torch_factories import tiny_models as tiny_models

from edgepack.stages.train import MAKES_TEACHER, Config, run


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
