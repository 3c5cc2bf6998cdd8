"""Embedding tables and the Linear layers of encoders, split by what text makes them answer."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import text_factories as make
import torch
from torch import nn
from torch_factories import context, reloaded

from edgepack.compress.stages import quantize
from edgepack.compress.stages.factorize import Config, dry_run, run
from edgepack.compress.stages.factorize.low_rank import SplitScheme, break_even, curves
from edgepack.compress.training import evaluation
from edgepack.config.device import Quantization
from edgepack.core.errors import StageError
from edgepack.data.splits import TrainingData
from edgepack.models.candidate import Candidate
from edgepack.models.complexity import macs, parameters
from edgepack.models.structure.surgery import Edit


def config(**changes: Any) -> Config:
    return Config.model_validate({"layers": ("*word_embeddings",), "recover": {"epochs": 0}, **changes})


def text(kind: str = "bert") -> TrainingData:
    return make.text(pad=1 if kind == "roberta" else 0)


def answers(module: nn.Module, kind: str = "bert") -> torch.Tensor:
    return evaluation.predict(module, text(kind).validation)[0]


def split(kind: str = "bert", **changes: Any) -> Candidate:
    return run(make.encoder(kind), config(**changes), context(data=text(kind)))


def table(module: nn.Module) -> tuple[str, Any]:
    return next((n, layer) for n, layer in module.named_modules() if n.endswith("word_embeddings"))


@pytest.mark.parametrize("kind", make.KINDS)
def test_a_table_becomes_a_narrow_one_and_a_linear(kind: str, tmp_path: Path) -> None:
    before = parameters(make.encoder(kind).module)
    result = split(kind, rank=8)
    name, (narrow, wide) = table(result.module)
    width = 16 if kind == "electra" else 32
    assert (narrow.weight.shape, wide.weight.shape, wide.bias) == ((make.TOKENS, 8), (width, 8), None)
    assert narrow.padding_idx == (1 if kind == "roberta" else 0)
    assert result.surgery == (Edit(op="split", layer=name, to={"rank": 8}),)
    assert parameters(result.module) == before - make.TOKENS * width + 8 * (make.TOKENS + width)
    again = reloaded(result, tmp_path / "saved")
    assert torch.equal(answers(again.module, kind), answers(result.module, kind))


def test_at_full_rank_the_pair_is_the_table() -> None:
    """For tokens too that no text contains."""
    module = make.encoder().module
    name, layer = table(module)
    [curve] = curves(module, {name: ("channel",)}, text().train, 96, upto=10)[name]
    first, second = curve.thin(32)
    torch.testing.assert_close(first @ second.T, layer.weight.detach(), rtol=1e-4, atol=1e-6)


def test_the_rank_is_chosen_by_what_text_reads() -> None:
    """Of the tokens that are read all lie in two directions; the others go everywhere, and count nothing."""
    start = make.encoder()
    with torch.no_grad():
        layer = table(start.module)[1]
        layer.weight[:50] = torch.randn(50, 2) @ torch.randn(2, 32)
    data = text()
    ids, mask = data.train.inputs
    common = replace(data, train=replace(data.train, inputs=(ids.clamp(max=49), mask)))
    known = layer.weight.detach()[:50].clone()
    result = run(
        start, config(energy="99 %", rank=None), context(data=common, quantization=Quantization(channel_multiple=1))
    )
    narrow, wide = table(result.module)[1]
    assert narrow.embedding_dim == 2
    torch.testing.assert_close((narrow.weight @ wide.weight.T)[1:50], known[1:], rtol=1e-3, atol=1e-4)


def test_more_energy_is_less_error() -> None:
    before = answers(make.encoder().module)
    errors = [float((answers(split(energy=f"{e} %").module) - before).norm()) for e in (40, 80, 97)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 2 * errors[-1]


def test_what_is_told_is_the_energy_that_text_keeps() -> None:
    start, result = make.encoder(), split(rank=8)
    ids, mask = text().train.inputs
    with torch.no_grad():
        whole, cut = (table(each.module)[1](ids)[mask.bool()] for each in (start, result))
    kept = 100 * float(1 - (whole - cut).square().sum() / whole.square().sum())
    energy = result.notes[0].partition("split at rank 8 of 32, keeping ")[2].split()[0]
    assert float(energy) == pytest.approx(kept, abs=1e-2)


def test_every_rank_below_break_even_pays() -> None:
    limit = break_even(table(make.encoder().module)[1])
    assert limit == pytest.approx(60 * 32 / 92)
    assert len(split(rank=20).surgery) == 1
    with pytest.raises(StageError, match=r"at rank 24 a split saves no weights: break-even is at 20\.87"):
        dry_run(make.encoder(), config(rank=24), Quantization())


def test_places_and_segments_are_left_whole() -> None:
    result = split(layers=("*",), energy="60 %")
    notes = dict(note.split(": ", 1) for note in result.notes)
    assert {
        name.split(".")[-1]
        for name, why in notes.items()
        if why == "not split: its output is the same for every sample"
    } == {
        "position_embeddings",
        "token_type_embeddings",
    }
    assert {"word_embeddings", "query", "dense"} <= {edit.layer.split(".")[-1] for edit in result.surgery}


def test_a_target_of_parameters_is_met_with_the_table() -> None:
    before = parameters(make.encoder().module)
    result = split(layers=("*",), target={"params": "60 %"})
    assert parameters(result.module) <= 0.6 * before
    assert any(edit.layer.endswith("word_embeddings") for edit in result.surgery)


def test_a_target_of_macs_leaves_the_table_alone() -> None:
    """To look something up multiplies nothing, to widen it does."""
    before = macs(make.encoder())
    result = split(layers=("*",), target={"macs": "60 %"})
    assert macs(result) <= 0.6 * before
    assert not any(edit.layer.endswith("word_embeddings") for edit in result.surgery)
    assert "no split of it saves MACs" in " ".join(result.notes)


def test_padding_does_not_count() -> None:
    """The same texts, with other numbers behind their ends."""
    data = text()
    ids, mask = data.train.inputs
    noise = torch.randint(10, make.TOKENS, ids.shape, generator=torch.Generator().manual_seed(3))
    noisy = replace(data.train, inputs=(torch.where(mask.bool(), ids, noise), mask))
    module = make.encoder().module
    wanted: dict[str, tuple[SplitScheme, ...]] = {
        name: ("channel",)
        for name, layer in module.named_modules()
        if name.endswith(("word_embeddings", "0.intermediate.dense"))
    }
    clean, other = (curves(module, wanted, split, 96) for split in (data.train, noisy))
    for name in wanted:
        torch.testing.assert_close(clean[name][0].retained_energy, other[name][0].retained_energy)


def test_a_dropped_layer_is_not_looked_at() -> None:
    start = make.encoder()
    start = start.edited(Edit(op="drop", layer="model.bert.encoder.layer.1"))
    result = run(start, config(layers=("*",), energy="60 %"), context(data=text()))
    assert result.surgery[1:] and not any("layer.1" in edit.layer for edit in result.surgery[1:])
    answers(result.module)


def test_recovery_trains_the_narrow_table_and_leaves_padding_zero() -> None:
    before = table(split(rank=8).module)[1][0].weight.detach().clone()
    result = split(rank=8, recover={"epochs": 4, "learning_rate": 1e-2, "batch_size": 16})
    narrow = table(result.module)[1][0].weight.detach()
    assert not torch.equal(narrow, before)
    assert not narrow[0].any()


def test_both_parts_of_a_split_table_become_int8() -> None:
    start = run(make.encoder(layers=1), config(rank=8), context(data=text()))
    before = answers(start.module)
    result = quantize.run(start, quantize.Config(mode="ptq"), context(data=text()))
    assert float((answers(result.module) - before).norm() / before.norm()) < 0.03
    shapes = {tuple(each.shape): each.dtype for each in result.module.state_dict().values() if each.dim() == 2}
    assert (shapes[make.TOKENS, 8], shapes[32, 8]) == (torch.uint8, torch.int8)
    left = dry_run(make.encoder(layers=1), config(rank=8), Quantization())
    mixed = quantize.dry_run(left, quantize.Config(fp32=("*word_embeddings.1",)), Quantization())
    shapes = {tuple(each.shape): each.dtype for each in mixed.module.state_dict().values() if each.dim() == 2}
    assert (shapes[make.TOKENS, 8], shapes[32, 8]) == (torch.uint8, torch.float32)
