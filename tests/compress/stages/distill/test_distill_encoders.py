"""Distillation of transformer encoders, on tiny ones of every kind."""

from pathlib import Path
from typing import Any

import pytest
import torch
from text_factories import KINDS, encoder, text
from torch import nn
from torch_factories import candidate, context, reloaded, tiny_models

from edgepack.compress.contract import Context
from edgepack.compress.stages.distill import dry_run, run
from edgepack.compress.stages.distill.config import Config
from edgepack.compress.stages.distill.encoder_siblings import axes, narrowed, narrower
from edgepack.compress.training.evaluation import predict, validate
from edgepack.compress.training.loop import fit
from edgepack.compress.training.loss import Distillation
from edgepack.compress.training.loss.feature_matching import FeatureLoss, HiddenStates, Relations
from edgepack.config.device import Quantization
from edgepack.core.errors import StageError
from edgepack.models.candidate import Candidate
from edgepack.models.complexity import parameters
from edgepack.models.structure.encoder import blocks
from edgepack.models.structure.surgery import PassOn

tiny_models = tiny_models
DEEP: dict[str, Any] = {"num_hidden_layers": 4}
BLOCK = Quantization(channel_multiple=4)


def config(**changes: Any) -> Config:
    """Settings that change no weight by as much as a rounding, unless they say otherwise."""
    return Config.model_validate({"epochs": 1, "learning_rate": 1e-30, "batch_size": 16, **changes})


def place(pad: int = 0, **changes: Any) -> Context:
    return context(data=text(pad=pad), **changes)


def answers(made: Candidate) -> torch.Tensor:
    return predict(made.module, text().validation)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_of_layers_is_the_teacher_with_the_others_passed_over(kind: str, tmp_path: Path) -> None:
    depth: dict[str, Any] = {"n_layers": 4} if kind == "distilbert" else DEEP
    teacher = encoder(kind, **depth)
    row = [block.name for block in blocks(teacher.module)]
    student = run(teacher.copy(), config(layers=(0, 2)), place(1 if kind == "roberta" else 0))
    assert [edit.layer for edit in student.surgery] == [row[1], row[3]]
    by_hand = teacher.copy()
    for name in (row[1], row[3]):
        by_hand.module.set_submodule(name, PassOn())
    assert torch.allclose(answers(student), answers(by_hand), atol=1e-6)
    assert torch.equal(answers(reloaded(student, tmp_path / "saved")), answers(student))


def test_a_number_of_layers_means_the_lowest() -> None:
    teacher = encoder(**DEEP)
    student = dry_run(teacher, config(layers=1), BLOCK)
    assert [block.name[-1] for block in blocks(student.module)] == ["0"]
    again = dry_run(dry_run(teacher, config(layers=(1, 2, 3)), BLOCK), config(layers=(0, 2)), BLOCK)
    assert [block.name[-1] for block in blocks(again.module)] == ["1", "3"]  # places among those still there


@pytest.mark.parametrize(
    ("layers", "why"),
    [
        (5, "the model has 4 layers, 5 cannot be kept"),
        ((0, 4), r"the model has the layers 0 to 3, got \[0, 4\]"),
        ((2, 0), r"each once and in order, got \[2, 0\]"),
        ((0, 0), r"each once and in order, got \[0, 0\]"),
        ((), "each once and in order"),
        ((0, 1, 2, 3), "all 4 layers of the model would be kept"),
        (4, "all 4 layers of the model would be kept"),
    ],
    ids=str,
)
def test_layers_that_cannot_be_kept_are_refused(layers: object, why: str) -> None:
    with pytest.raises(StageError, match=why) as failure:
        dry_run(encoder(**DEEP), config(layers=layers), BLOCK)
    assert failure.value.hint


def test_layers_of_what_is_no_encoder_are_refused() -> None:
    with pytest.raises(StageError, match="not a transformer encoder") as failure:
        dry_run(candidate(), config(layers=1), BLOCK)
    assert "compression" in failure.value.hint


@pytest.mark.parametrize(
    "wrong",
    [{"layers": 0}, {"layers": "two"}, {"layers": 2, "compression": 2}, {"compression": 2, "hidden": -1}],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        config(**wrong)


def test_depth_takes_the_highest_layers_first() -> None:
    teacher = encoder(**DEEP)
    student = dry_run(teacher, config(compression=1.5, scale="depth"), BLOCK)
    assert [edit.layer[-1] for edit in student.surgery] == ["3", "2"]
    assert parameters(student.module) <= parameters(teacher.module) / 1.5


def test_depth_alone_leaves_the_embeddings() -> None:
    with pytest.raises(
        StageError, match=r"without the 3 layers that can be removed .* because the embeddings stay"
    ) as failure:
        dry_run(encoder(**DEEP), config(compression=100, scale="depth"), BLOCK)
    assert "use scale: width, or a compression of at most 3.09" in failure.value.hint


@pytest.mark.parametrize("kind", KINDS)
def test_a_narrower_sibling_is_a_true_encoder_of_the_kind(kind: str, tmp_path: Path) -> None:
    teacher = encoder(kind)
    student = run(teacher, config(compression=3), place(1 if kind == "roberta" else 0))
    assert parameters(student.module) <= parameters(teacher.module) / 3
    for block in blocks(student.module):
        attention = student.module.get_submodule(block.attention)
        heads = attention.n_heads if kind == "distilbert" else attention.num_attention_heads
        width = attention.dim if kind == "distilbert" else attention.all_head_size
        assert (heads, width, block.heads(student.module)) == (2, 16, 2)
        assert student.module.get_submodule(block.query).in_features == 16
        assert student.module.get_submodule(block.ffn_in).out_features == 32
    tables = [layer for layer in student.module.modules() if isinstance(layer, nn.Embedding)]
    assert {table.embedding_dim for table in tables} == {8 if kind == "electra" else 16}
    assert torch.equal(answers(reloaded(student, tmp_path / "saved")), answers(student))


@pytest.mark.parametrize("kind", KINDS)
def test_what_counts_for_nothing_leaves_first(kind: str) -> None:
    """With two of four heads, half of the neurons and half of the hidden places at zero, nothing is lost by halving."""
    big = encoder(kind)
    small = narrowed(big, 2, 4)
    dead = _with_zeros(big, small)
    again = narrowed(dead, 2, 4)
    for name, tensor in small.module.state_dict().items():
        assert torch.equal(again.module.state_dict()[name], tensor), name


def _with_zeros(big: Candidate, small: Candidate) -> Candidate:
    """The teacher, with zeros wherever its narrow sibling has nothing of it."""
    dead = big.copy()
    kept = small.module.state_dict()
    for name, tensor in dead.module.state_dict().items():
        if tensor.dim() == 2 and tensor.shape != kept[name].shape:
            mask = torch.isin(tensor, kept[name])
            tensor[~mask] = 0
    return dead


def test_a_sibling_of_a_pruned_factorized_and_shallow_teacher() -> None:
    from edgepack.models.structure.surgery import Edit

    teacher = encoder(**DEEP)
    first, second = blocks(teacher.module)[:2]
    teacher = teacher.edited(Edit(op="drop", layer=first.name))
    teacher = teacher.edited(Edit(op="split", layer=second.query, to={"rank": 6}))
    teacher = teacher.edited(Edit(op="split", layer=second.ffn_out, to={"rank": 6}))
    sibling = narrower(teacher, parameters(teacher.module) / 2, 4)
    thin = sibling.module.get_submodule(second.query)
    assert [(layer.in_features, layer.out_features) for layer in thin] == [(16, 6), (6, 16)]
    sibling.check_rebuilt()
    again = teacher.edited(Edit(op="split", layer=f"{second.ffn_out}.1", to={"rank": 4}))
    narrower(again, parameters(again.module) / 2, 4).check_rebuilt()


def test_no_sibling_is_narrower_than_a_head() -> None:
    with pytest.raises(StageError, match="with the width of one head it still has 1,939") as failure:
        dry_run(encoder(), config(compression=100), BLOCK)
    assert "at most 10.7" in failure.value.hint


def test_assistants_stand_between_an_encoder_and_its_sibling() -> None:
    student = run(encoder(), config(compression=10, progressive=1), place())
    sizes = [int(note.split()[2].replace(",", "")) for note in student.notes if note.startswith("assistant")]
    assert parameters(student.module) < sizes[0] < 20_803


def named(teacher: Candidate, **changes: Any) -> dict[str, Any]:
    return {"huggingface": teacher.factory.config["huggingface"], "weights": None, **changes}


@pytest.mark.parametrize(("had", "chosen", "taken"), [(None, (0, 3), (0, 3)), ((0, 2, 3), (0, 3), (0, 2))], ids=str)
def test_a_named_student_of_the_same_encoder_starts_as_the_layers_that_it_names(
    had: Any, chosen: Any, taken: tuple[int, int]
) -> None:
    from edgepack.config import plugins

    teacher = encoder(**DEEP)
    if had is not None:
        teacher = Candidate.start(plugins.choose("models", named(teacher, layers=had)), teacher.signature)
    student = run(teacher, config(student=named(teacher, layers=chosen)), place())
    whole = len(student.module.state_dict())
    assert f"{whole} of its {whole} tensors start as the teacher's" in student.notes
    for own, of in zip(blocks(student.module), taken, strict=True):
        known = teacher.module.get_submodule(blocks(teacher.module)[of].ffn_in).weight
        assert torch.equal(student.module.get_submodule(own.ffn_in).weight, known)


def test_published_weights_make_way_for_what_the_teacher_made_of_them() -> None:
    from safetensors.torch import save_model

    teacher = encoder()
    save_model(teacher.module.model, "bert/model.safetensors")
    with torch.no_grad():
        for tensor in teacher.module.parameters():
            tensor.add_(0.01)
    student = run(teacher, config(student=named(teacher, layers=1, weights="pretrained")), place())
    assert any("start as the teacher's" in note for note in student.notes)
    assert torch.equal(student.module.model.classifier.weight, teacher.module.model.classifier.weight)


def test_a_student_of_another_kind_keeps_its_published_weights() -> None:
    from safetensors.torch import save_model

    student = encoder()
    save_model(student.module.model, "bert/model.safetensors")
    taught = run(encoder("electra"), config(student=named(student, layers=1, weights="pretrained")), place())
    assert "starts from its own weights" in taught.notes
    assert torch.equal(taught.module.model.classifier.weight, student.module.model.classifier.weight)


TRANSFERS = (HiddenStates, Relations)


@pytest.mark.parametrize("transfer", TRANSFERS)
@pytest.mark.parametrize("kind", KINDS)
def test_two_that_are_the_same_have_nothing_to_learn(kind: str, transfer: Any) -> None:
    teacher, inputs = encoder(kind).module.eval(), text(4).train.head(4)
    twin = encoder(kind).module.eval()
    watch = transfer(teacher, twin, inputs)
    teacher(*inputs), twin(*inputs)
    assert float(watch.loss().detach()) == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        twin.get_submodule(blocks(twin)[-1].value).weight.normal_()
    twin(*inputs)
    assert float(watch.loss().detach()) > 1e-6
    watch.close()
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in (*teacher.modules(), *twin.modules())
    )


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_a_narrow_and_shallow_student_learns_from_the_inside(transfer: Any) -> None:
    teacher, inputs = encoder(**DEEP), text(8).train.head(8)
    student = narrowed(dry_run(teacher, config(layers=3), BLOCK), 3, 4).module
    watch = transfer(teacher.module, student, inputs)
    learned = [*student.parameters(), *watch.parameters()]
    assert len(learned) - len([*student.parameters()]) == (2 if transfer is HiddenStates else 0)
    optimizer = torch.optim.AdamW(learned, lr=1e-2)
    losses = []
    for _ in range(20):
        with torch.no_grad():
            teacher.module.eval()(*inputs)
        student(*inputs)
        loss = watch.loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 2
    if transfer is HiddenStates:
        assert all(weight.grad is not None for weight in watch.parameters())


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_padding_does_not_matter(transfer: Any) -> None:
    teacher, student = encoder().module.eval(), encoder(seed=1).module.eval()
    ids, mask = text(6).train.head(6)
    watch = transfer(teacher, student, (ids, mask))
    found = []
    for inputs in ((ids, mask), (torch.where(mask.bool(), ids, 9), mask)):
        teacher(*inputs), student(*inputs)
        found.append(float(watch.loss().detach()))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert found[0] > 0


def test_fit_learns_the_projections_too_and_throws_them_away() -> None:
    teacher = encoder()
    student = narrowed(teacher, 2, 4)
    names = set(student.module.state_dict())
    settings = config(compression=2, learning_rate=1e-2)
    lesson = Distillation(teacher=teacher.module, inside={"hidden": 1.0, "attention": 1.0, "features": 0.0})
    fit(student.module, place(), settings, doing="", distillation=lesson)
    assert set(student.module.state_dict()) == names
    assert not any(module._forward_hooks for module in student.module.modules())


def test_a_student_learns_with_help_from_the_inside() -> None:
    there = context(data=text(192))
    teacher = encoder()
    fit(teacher.module, there, config(compression=2, epochs=8, learning_rate=5e-3), doing="")
    assert validate(teacher.module, there).score > 0.9
    student = run(teacher, config(compression=2, epochs=6, learning_rate=5e-3, hidden=1.0, attention=1.0), there)
    assert validate(student.module, there).score > 0.8


def test_the_teachers_dropout_is_off_while_it_is_watched() -> None:
    teacher, modes = encoder(), []
    student = dry_run(teacher, config(layers=1), BLOCK)
    teacher.module.train()
    teacher.module.register_forward_hook(lambda module, inputs, output: modes.append(module.training))
    lesson = Distillation(teacher=teacher.module, inside={"hidden": 1.0})
    fit(student.module, place(), config(layers=1), doing="", distillation=lesson)
    assert len(modes) >= 6  # a batch at a time
    assert not any(modes)


@pytest.mark.parametrize("setting", ["hidden", "attention"])
def test_nets_without_attention_are_refused_early(setting: str) -> None:
    with pytest.raises(StageError, match="the teacher is not a transformer encoder") as failure:
        dry_run(candidate(width=32), config(compression=2, **{setting: 1.0}), BLOCK)
    assert "use features" in failure.value.hint


def test_encoders_have_no_feature_maps() -> None:
    with pytest.raises(StageError, match="no feature maps") as failure:
        dry_run(encoder(), config(layers=1, features=1.0), BLOCK)
    assert "hidden" in failure.value.hint


def test_weights_of_zero_watch_nothing() -> None:
    teacher, student = encoder().module, encoder().module
    assert FeatureLoss({"hidden": 0.0, "features": 0.0}, teacher, student, text(2).train.head(2)).parts == []


def test_heads_leave_whole() -> None:
    teacher = encoder().module
    of_heads = next(axis for axis in axes(teacher, 4) if axis.unit == 8)
    weights = teacher.state_dict()
    whole, kept = dict(weights), of_heads.kept(weights, 0.5)
    assert len(kept) == 2
    of_heads.cut(weights, kept)
    rows = torch.cat([torch.arange(8 * head, 8 * head + 8) for head in kept.tolist()])
    for name, dimension in of_heads.tensors:
        assert torch.equal(weights[name], whole[name].index_select(dimension, rows))
