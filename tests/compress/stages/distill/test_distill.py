from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch_factories import accuracy, candidate, context, learned, logits, reloaded
from torch_factories import tiny_models as tiny_models

from edgepack.compress.stages.distill import assistants, dry_run, run
from edgepack.compress.stages.distill.config import Config
from edgepack.compress.training.loss.feature_matching import AttentionTransfer
from edgepack.config.device import Quantization
from edgepack.core.errors import StageError
from edgepack.core.events import Event, Note, StepProgress
from edgepack.models.candidate import Candidate
from edgepack.models.complexity import parameters


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
    ratio = parameters(teacher.module) / parameters(student.module)
    assert student.notes[0].startswith("kept epoch")
    assert student.notes[1] == f"{ratio:.1f}x fewer parameters; teacher assistants: 1"


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


def derived(**changes: Any) -> Config:
    return Config.model_validate({"epochs": 4, "learning_rate": 1e-2, "batch_size": 16, **changes})


def test_a_derived_student_is_a_narrow_sibling_with_the_teachers_weights(teacher: Candidate, tmp_path: Path) -> None:
    student = run(teacher, derived(compression=4, progressive=0, learning_rate=1e-9, epochs=1), context())
    assert parameters(student.module) <= parameters(teacher.module) / 4
    assert student.factory == teacher.factory
    assert student.surgery[0].op == "resize"
    known = {tuple(row.flatten().tolist()) for row in teacher.module.stem[0].weight.detach()}
    own = {tuple(row.flatten().tolist()) for row in student.module.stem[0].weight.detach()}
    assert all(any(torch.allclose(torch.tensor(row), torch.tensor(of), atol=1e-6) for of in known) for row in own)
    assert torch.equal(logits(reloaded(student, tmp_path / "saved").module), logits(student.module))


def test_a_derived_student_learns(teacher: Candidate) -> None:
    assert accuracy(run(teacher, derived(compression=4), context()).module) > 0.9


def test_a_student_can_be_shallower(teacher: Candidate, tmp_path: Path) -> None:
    student = run(teacher, derived(compression=1.9, scale="depth"), context())
    assert [(edit.op, edit.layer) for edit in student.surgery] == [("drop", "blocks.1")]
    assert student.module.stem[0].out_channels == 32
    assert torch.equal(logits(reloaded(student, tmp_path / "saved").module), logits(student.module))


@pytest.mark.parametrize(
    ("changes", "why", "advice"),
    [
        ({"compression": 1000}, "still has 667", "at most 56.3"),
        ({"compression": 1000, "scale": "depth"}, "without the 2 blocks", "scale: width, or a compression of at most"),
    ],
    ids=["width", "depth"],
)
def test_a_student_that_cannot_be_derived_is_refused(
    teacher: Candidate, changes: dict[str, Any], why: str, advice: str
) -> None:
    with pytest.raises(StageError, match=why) as failure:
        dry_run(teacher, derived(**changes), Quantization(channel_multiple=4))
    assert advice in failure.value.hint


@pytest.mark.parametrize(("ratio", "number"), [(2, 0), (4, 0), (4.2, 1), (16, 1), (17, 2), (1000, 2)])
def test_the_further_the_more_assistants(ratio: float, number: int) -> None:
    assert assistants(ratio) == number


def test_assistants_lie_between_teacher_and_student(teacher: Candidate) -> None:
    events: list[Event] = []
    student = run(teacher, derived(compression=30, progressive=2), context(events=events))
    doing = dict.fromkeys(event.doing for event in events if isinstance(event, StepProgress))
    assert list(doing) == [
        "running the teacher",
        "teaching assistant 1 of 2",
        "teaching assistant 2 of 2",
        "teaching the student",
    ]
    sizes = [int(note.split()[2].replace(",", "")) for note in student.notes if note.startswith("assistant")]
    assert parameters(teacher.module) > sizes[0] > sizes[1] > parameters(student.module)


def test_assistants_that_cannot_be_made_are_done_without_or_refused_early() -> None:
    scaled = candidate("scaled", width=64)
    far = {"student": {"tiny": "scaled", "width": 4}, "epochs": 1, "batch_size": 16}
    student = run(scaled, Config.model_validate(far), context())
    assert any("teacher assistants: none (no narrower student can be derived" in note for note in student.notes)
    with pytest.raises(StageError, match="no teacher assistant") as failure:
        dry_run(scaled, Config.model_validate({**far, "progressive": 1}), Quantization(channel_multiple=4))
    assert "progressive: 0" in failure.value.hint


def test_a_derived_student_that_cannot_be_narrower_is_refused_early() -> None:
    with pytest.raises(StageError, match=r"no narrower student .*; conv: .* combined with the parameter 'scale'"):
        dry_run(candidate("scaled", width=64), derived(compression=2), Quantization(channel_multiple=4))


@pytest.mark.parametrize(("tolerance", "warned"), [(0.005, True), (0.05, False), (None, False)])
def test_a_drop_that_is_unlikely_is_warned_of(teacher: Candidate, tolerance: float | None, warned: bool) -> None:
    events: list[Event] = []
    settings = derived(compression=50, epochs=1, progressive="auto")
    run(teacher, settings, context(events=events, tolerance=tolerance))
    assert any("unlikely" in event.text for event in events if isinstance(event, Note)) is warned


def test_features_are_matched_where_both_look(teacher: Candidate) -> None:
    from torch_factories import data

    inputs = data().test.head(4)
    same = AttentionTransfer(teacher.module, teacher.copy().module, inputs)
    teacher.module(*inputs)
    for size in same.sizes:
        same.seen["student", size] = same.seen["teacher", size][:, :8] + 1
    assert float(same.loss().detach()) > 0
    same.close()
    student = run(teacher, config(features=1.0), context(teacher=teacher))
    assert accuracy(student.module) > 0.9
    assert not student.module._forward_hooks and not teacher.module._forward_hooks


def test_a_student_equal_to_its_teacher_looks_where_it_does(teacher: Candidate) -> None:
    from torch_factories import data

    inputs, twin = data().test.head(4), teacher.copy()
    both = AttentionTransfer(teacher.module, twin.module, inputs)
    teacher.module(*inputs), twin.module(*inputs)
    assert float(both.loss().detach()) == 0


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(StageError, match="no feature maps of the same size"):
        run(learned("mlp", width=32), config(student={"tiny": "mlp", "width": 8}, features=1.0), context())


def test_a_named_student_starts_from_what_fits(teacher: Candidate) -> None:
    student = run(teacher, config(epochs=1), context())
    assert "6 of its 32 tensors start as the teacher's" in student.notes
    assert "starts from random weights" in run(teacher, config(epochs=1, init="random"), context()).notes


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"compression": 1},
        {"compression": 4, "student": {"tiny": "mlp"}},
        {"compression": 4, "features": -1},
        {"compression": 4, "progressive": 7},
        {"compression": 4, "progressive": "some"},
    ],
    ids=str,
)
def test_students_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Config.model_validate(wrong)
