import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch_factories import KINDS, Kind, accuracy, candidate, context, learned, logits, reloaded
from torch_factories import tiny_models as tiny_models

from edgepack.candidate import Candidate, parameters
from edgepack.device import Quantization
from edgepack.errors import StageError
from edgepack.lowrank import break_even
from edgepack.stages.factorize import Config, run


def config(energy: str = "90 %", epochs: int = 0, **changes: Any) -> Config:
    recover = {"epochs": epochs, "learning_rate": 1e-2, "batch_size": 16}
    return Config.model_validate({"energy": energy, "recover": recover, **changes})


def splits(result: Candidate) -> Iterator[tuple[str, int, float]]:
    """(layer, rank, share of its energy that is kept), read from the notes."""
    for note in result.notes:
        if found := re.fullmatch(r"(\S+): split at rank (\d+) of \d+, keeping ([\d.]+) % of its energy", note):
            yield found[1], int(found[2]), float(found[3]) / 100


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_split_and_the_task_stays(kind: Kind, tmp_path: Path) -> None:
    start = learned(kind, width=32)
    before = parameters(start.module)
    result = run(start, config(epochs=3), context(teacher=learned(kind, width=32)))
    assert accuracy(result.module) > 0.9
    assert parameters(result.module) < before
    assert {edit.layer: edit.to["rank"] for edit in result.surgery} == {name: rank for name, rank, _ in splits(result)}
    assert torch.equal(logits(reloaded(result, tmp_path / "saved").module), logits(result.module))


@pytest.mark.parametrize("energy", [50, 80, 90, 95, 99])
def test_at_least_the_energy_that_was_asked_for_is_kept(energy: int) -> None:
    result = run(learned(width=32), config(f"{energy} %"), context())
    kept = [share for _, _, share in splits(result)]
    assert kept and min(kept) >= energy / 100


def test_kept_energy_is_what_the_layer_really_answers() -> None:
    """The share in the notes is that of the squared outputs on the calibration samples (here: all training data)."""
    start = learned("mlp", width=32)
    pictures = context().data.train.inputs[0].flatten(1)
    whole = pictures @ start.module[1].weight.detach().T
    result = run(start, config("80 %", layers=("1",)), context())
    first, second = (thin.weight.detach() for thin in result.module[1])
    thin = pictures @ first.T @ second.T
    [(_, _, kept)] = splits(result)
    assert float(1 - (whole - thin).square().sum() / whole.square().sum()) == pytest.approx(kept, abs=1e-3)


def test_a_layer_of_low_rank_is_split_without_loss() -> None:
    """At the full rank of its weight the two thin layers equal the one, bias included."""
    start = candidate("mlp", width=32)
    layer = start.module[1]
    with torch.no_grad():
        layer.weight.copy_(torch.randn(32, 3) @ torch.randn(3, 64) / 8)
    before = logits(start.module)
    result = run(start, config("99.99 %"), context())
    assert [(name, rank) for name, rank, _ in splits(result)] == [("1", 4)]
    torch.testing.assert_close(logits(result.module), before, rtol=1e-3, atol=1e-4)
    assert torch.equal(result.module[1][1].bias, layer.bias)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_of_low_rank_is_split_without_loss(stride: int) -> None:
    layer = nn.Conv2d(1, 32, 5, stride=stride, padding=2)
    with torch.no_grad():
        layer.weight.copy_((torch.randn(32, 2) @ torch.randn(2, 25)).reshape(32, 1, 5, 5) / 5)
    net = nn.Sequential(layer, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3))
    before = logits(net)
    result = run(replace(candidate(), module=net), config("99.99 %", layers=("0",)), context())
    assert [edit.layer for edit in result.surgery] == ["0"]
    torch.testing.assert_close(logits(result.module), before, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_given_in_words_is_understood(padding: str) -> None:
    net = nn.Sequential(nn.Conv2d(1, 32, 5, padding=padding), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3))
    run(replace(candidate(), module=net), config(), context())


def test_more_energy_gives_closer_answers() -> None:
    before = logits(learned(width=32).module)
    off = [
        float((logits(run(learned(width=32), config(energy), context()).module) - before).norm()) for energy in _MORE
    ]
    assert off == sorted(off, reverse=True)
    assert off[-1] < 0.1 * float(before.norm())


_MORE = ("50 %", "90 %", "99 %", "99.5 %")


def test_ranks_are_blocks_and_always_save_weights() -> None:
    for multiple in (1, 4, 8):
        start = learned(width=32)
        limits = {name: break_even(layer) for name, layer in start.module.named_modules() if hasattr(layer, "weight")}
        result = run(start, config(), context(quantization=Quantization(channel_multiple=multiple)))
        assert all(rank % multiple == 0 and rank < limits[name] for name, rank, _ in splits(result))


def test_a_layer_that_would_not_get_smaller_is_left_whole() -> None:
    start = learned(width=32)
    before = logits(start.module)
    result = run(start, config("99.99 %", layers=("blocks.0.conv1",)), context())
    assert result.surgery == ()
    [note] = result.notes
    assert note.startswith("blocks.0.conv1: left whole: 99.99 % of its energy needs rank")
    assert torch.equal(logits(result.module), before)


@pytest.mark.parametrize(("shape", "rank"), [((64, 64), 32), ((32, 96), 24)])
def test_break_even_is_the_rank_that_saves_nothing(shape: tuple[int, int], rank: int) -> None:
    assert break_even(nn.Linear(*shape)) == rank
    assert break_even(nn.Conv2d(shape[0] // 4, shape[1], 2)) == rank


def test_depthwise_convolutions_are_not_touched() -> None:
    result = run(learned("depthwise", width=32), config("50 %"), context())
    assert not any(note.startswith("3:") for note in result.notes)


@pytest.mark.parametrize("pattern", ["blocks.9.*", "stem.1"])
def test_a_pattern_that_matches_no_layer_lists_those_there_are(pattern: str) -> None:
    with pytest.raises(StageError, match=re.escape(f"no layer matches '{pattern}'")) as failure:
        run(learned(), config(layers=("head", pattern)), context())
    assert "stem.0, blocks.0.conv1" in failure.value.hint


@pytest.mark.parametrize("wrong", [{"energy": "0 %"}, {"energy": "100 %"}, {"energy": 0.9}])
def test_settings_that_cannot_work_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Config.model_validate(wrong)
