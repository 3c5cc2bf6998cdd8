"""Vision transformers teach, and are taught."""

from pathlib import Path
from typing import Any

import pytest
import torch
import vision_factories as make
from torch_factories import candidate, context, logits, reloaded, tiny_models
from vision_factories import tiny_vits as tiny_vits

from edgepack.compress.stages.distill import dry_run, run
from edgepack.compress.stages.distill.config import Config
from edgepack.compress.stages.distill.encoder_siblings import narrowed
from edgepack.config.device import Quantization
from edgepack.core.errors import StageError
from edgepack.models.complexity import parameters
from edgepack.models.structure.encoder import blocks
from edgepack.models.structure.surgery import sizes

tiny_models = tiny_models


def config(**changes: Any) -> Config:
    return Config.model_validate({"epochs": 1, "batch_size": 16, **changes})


@pytest.mark.parametrize("student", [{"tiny": "depthwise"}, {"tiny_vit": "timm", "depth": 1}], ids=str)
def test_a_vision_transformer_teaches_a_named_student(student: dict[str, Any]) -> None:
    teacher = make.vit("torchvision")
    taught = run(teacher, config(student=student), context())
    assert taught.factory.model == next(iter(student))
    assert bool(logits(taught.module).isfinite().all())


def test_a_convolutional_net_teaches_a_vision_transformer() -> None:
    taught = run(candidate("residual", width=64), config(student={"tiny_vit": "timm", "depth": 1}), context())
    assert len(blocks(taught.module)) == 1


@pytest.mark.parametrize("kind", make.KINDS)
def test_students_of_fewer_layers_have_the_teachers_weights(kind: str) -> None:
    teacher = make.vit(kind, depth=3)
    student = dry_run(teacher, config(layers=(0, 2)), Quantization())
    assert [block.name for block in blocks(student.module)] == [blocks(teacher.module)[at].name for at in (0, 2)]
    shallow = dry_run(make.vit(kind, depth=4), config(compression=1.5, scale="depth"), Quantization())
    assert len(blocks(shallow.module)) == 2


@pytest.mark.parametrize("kind", make.KINDS)
def test_a_narrower_sibling_is_a_true_vision_transformer(kind: str, tmp_path: Path) -> None:
    teacher = make.vit(kind)
    student = run(teacher.copy(), config(compression=3), context())
    assert parameters(student.module) <= parameters(teacher.module) / 3
    first = blocks(student.module)[0]
    width = student.module.get_submodule(first.query).in_features
    assert width in (8, 16) and width == first.heads(student.module) * make.HEAD
    assert torch.equal(logits(reloaded(student, tmp_path / "saved").module), logits(student.module))


def test_layers_of_a_named_student_start_as_the_teachers() -> None:
    """As for encoders of text: the same model with some of its layers."""
    teacher, name = make.vit("vit", depth=3), make.described("vit", depth=3)
    settings = config(student={"huggingface": name, "layers": (0, 2), "weights": None}, learning_rate=1e-30)
    taught = run(teacher, settings, context())
    pairs = zip(blocks(taught.module), (blocks(teacher.module)[at] for at in (0, 2)), strict=True)
    for own, known in pairs:
        assert torch.equal(
            taught.module.get_submodule(own.query).weight, teacher.module.get_submodule(known.query).weight
        )


def test_hidden_states_and_relations_are_taught() -> None:
    settings = config(student={"tiny_vit": "timm-deit", "depth": 1}, hidden=1, attention=1)
    taught = run(make.vit("timm-deit"), settings, context())
    assert bool(logits(taught.module).isfinite().all())
    with pytest.raises(StageError, match="the teacher sees 17 tokens and the student 18"):
        dry_run(make.vit("torchvision"), settings, Quantization())


@pytest.mark.parametrize("kind", make.KINDS)
def test_a_sibling_of_all_heads_is_the_teacher(kind: str) -> None:
    teacher = make.vit(kind)
    same = narrowed(teacher, make.HEADS, 4)
    assert same.surgery == () and sizes(same.module) == sizes(teacher.module)
    torch.testing.assert_close(logits(same.module), logits(teacher.module))
