from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch_factories import accuracy, candidate, context, learned, logits, reloaded
from torch_factories import tiny_models as tiny_models

from edgepack.candidate import Candidate, parameters
from edgepack.errors import StageError
from edgepack.stages.distill import Config, run


def config(**changes: Any) -> Config:
    training = {"epochs": 8, "learning_rate": 1e-2, "batch_size": 16}
    return Config.model_validate({"student": {"tiny": "residual", "width": 8}, **training, **changes})


@pytest.fixture
def teacher() -> Candidate:
    return learned("residual", width=32)


def test_the_student_takes_the_teachers_place(teacher: Candidate) -> None:
    student = run(teacher, config(), context(teacher=teacher))
    assert accuracy(student.module) > 0.9
    assert student.factory.config["width"] == 8
    assert student.surgery == ()
    assert parameters(student.module) < parameters(teacher.module) / 10
    kept, fewer = student.notes
    ratio = parameters(teacher.module) / parameters(student.module)
    assert kept.startswith("kept epoch") and fewer == f"{ratio:.1f}x fewer parameters"


def test_the_teacher_stays_as_it_was(teacher: Candidate) -> None:
    before = logits(teacher.module)
    run(teacher, config(epochs=1), context(teacher=teacher))
    assert torch.equal(logits(teacher.module), before)


def test_the_teacher_is_what_came_in_not_what_began(teacher: Candidate) -> None:
    """Two in a row are a teacher assistant: an unlearned teacher in the context does no harm."""
    student = run(teacher, config(alpha="100 %"), context(teacher=candidate()))
    assert accuracy(student.module) > 0.9


def test_a_student_can_be_rebuilt(teacher: Candidate, tmp_path: Path) -> None:
    student = run(teacher, config(epochs=1), context())
    assert torch.equal(logits(reloaded(student, tmp_path / "saved").module), logits(student.module))


@pytest.mark.parametrize("width", [32, 40])
def test_a_student_as_big_as_its_teacher_is_refused(teacher: Candidate, width: int) -> None:
    with pytest.raises(StageError, match=r"the student has .* parameters, its teacher") as failure:
        run(teacher, config(student={"tiny": "residual", "width": width}), context())
    assert "smaller" in failure.value.hint


@pytest.mark.parametrize(
    "wrong", [{"alpha": "120 %"}, {"alpha": 0.9}, {"temperature": 0}, {"epochs": 0}, {"student": {"tiny": "gigantic"}}]
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        config(**wrong)
