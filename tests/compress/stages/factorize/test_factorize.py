import json
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

from edgepack.compress.stages.factorize import Config, dry_run, run
from edgepack.compress.targets import Metric
from edgepack.config import plugins
from edgepack.config.device import Quantization
from edgepack.core.errors import StageError
from edgepack.core.signature import Signature, TensorSpec
from edgepack.data.splits import Split, TrainingData
from edgepack.models.candidate import Candidate
from edgepack.models.complexity import macs, parameters, stored_bytes


def config(energy: str | None = "90 %", epochs: int = 0, **changes: Any) -> Config:
    recover = {"epochs": epochs, "learning_rate": 1e-2, "batch_size": 16}
    goal = {} if {"rank", "target"} & {*changes} else {"energy": energy}
    return Config.model_validate({**goal, "recover": recover, **changes})


def splits(result: Candidate) -> Iterator[tuple[str, int, float]]:
    """(layer, rank, share of its energy that is kept), read from the notes."""
    for note in result.notes:
        if found := re.match(
            r"(\S+): split(?: in space)? at rank (\d+) of \d+, keeping ([\d.]+) % of its energy", note
        ):
            yield found[1], int(found[2]), float(found[3]) / 100


def whole(result: Candidate) -> dict[str, str]:
    """Why layers were left whole."""
    return {name: why for note in result.notes for name, mark, why in [note.partition(": not split: ")] if mark}


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
        result = run(start, config(), context(quantization=Quantization(channel_multiple=multiple)))
        for edit in result.surgery:
            first, second = result.module.get_submodule(edit.layer)
            before = learned(width=32).module.get_submodule(edit.layer)
            assert edit.to["rank"] == len(first.weight)
            assert edit.to["rank"] % multiple == 0
            assert first.weight.numel() + second.weight.numel() <= 0.7 * before.weight.numel()


def test_each_layer_gets_the_scheme_with_fewer_weights() -> None:
    sizes = {}
    for scheme in ("auto", "channel", "spatial"):
        result = run(learned(width=32), config("80 %", scheme=scheme), context())
        sizes[scheme] = {name: weights(result.module.get_submodule(name)) for name in _BLOCKS}
        assert scheme == "auto" or {edit.op for edit in result.surgery if edit.layer in _BLOCKS} == {_OPS[scheme]}
    assert sizes["auto"] == {name: min(sizes["channel"][name], sizes["spatial"][name]) for name in _BLOCKS}


_BLOCKS = tuple(f"blocks.{block}.conv{conv}" for block in (0, 1) for conv in (1, 2))
_OPS = {"channel": "split", "spatial": "split_spatial"}


def weights(module: nn.Module) -> int:
    return sum(tensor.numel() for tensor in module.parameters() if tensor.dim() > 1)


def test_a_layer_that_would_not_get_smaller_is_left_whole() -> None:
    start = learned(width=32)
    before = logits(start.module)
    result = run(start, config("99.99 %", layers=("blocks.0.conv1",)), context())
    assert result.surgery == ()
    assert whole(result)["blocks.0.conv1"].startswith("99.99 % of its energy needs rank")
    assert torch.equal(logits(result.module), before)


def test_a_rank_is_rounded_to_blocks() -> None:
    result = run(learned(width=32), config(rank=7, layers=("blocks.0.*",)), context())
    assert [(edit.op, edit.layer, edit.to) for edit in result.surgery] == [
        ("split", "blocks.0.conv1", {"rank": 8}),
        ("split", "blocks.0.conv2", {"rank": 8}),
    ]
    assert all("(7 rounded to blocks)" in note for note in result.notes)


def test_between_what_pays_and_break_even_the_note_warns() -> None:
    result = run(learned(width=32), config(rank=24, layers=("blocks.0.conv1",)), context())
    assert "(it may not be faster: a split is faster up to rank 17)" in result.notes[0]


def test_a_pattern_may_bring_layers_that_the_rank_is_too_high_for() -> None:
    result = run(learned(width=32), config(rank=12), context())
    assert [name for name, *_ in splits(result)] == [*_BLOCKS]
    assert whole(result)["head"] == "rank 12 saves no weights, its break-even is 2.743"


@pytest.mark.parametrize(
    ("settings", "limits"),
    [
        ({"rank": 12, "layers": ("blocks.*", "head")}, "2.743 (head)"),
        ({"rank": 12, "layers": ("head", "stem.*")}, "7.024 (stem.0), 2.743 (head)"),
        ({"rank": 28, "layers": ("blocks.0.*",)}, "28.8 (blocks.0.conv1), 28.8 (blocks.0.conv2)"),
        ({"rank": 48, "layers": ("blocks.0.*",), "scheme": "spatial"}, "48 (blocks.0.conv1), 48 (blocks.0.conv2)"),
    ],
)
def test_a_rank_that_saves_nothing_is_refused_before_training(settings: dict[str, Any], limits: str) -> None:
    quantization = Quantization(channel_multiple=16 if settings["rank"] == 28 else 4)
    with pytest.raises(StageError, match=re.escape(f"saves no weights: break-even is at {limits}")):
        dry_run(candidate(width=32), config(**settings), quantization)
    with pytest.raises(StageError, match="saves no weights"):
        run(candidate(width=32), config(**settings), context(quantization=quantization))


@pytest.mark.parametrize("metric", ["params", "macs", "size"])
@pytest.mark.parametrize("share", [80, 60, 40])
def test_a_target_is_reached_and_not_overshot(metric: Metric, share: int) -> None:
    start = learned(width=32)
    before = amount(start, metric)
    result = run(start, config(target={metric: f"{share} %"}), context())
    assert share - 12 <= 100 * amount(result, metric) / before <= share
    note = result.notes[0]
    assert note.startswith(
        f"target {share} % of the {'parameters' if metric == 'params' else metric.replace('macs', 'MACs')}: "
    )
    assert metric == "size" or f" {amount(result, metric):,} " in note


def amount(of: Candidate, metric: Metric) -> int:
    if metric == "macs":
        return macs(of)
    return parameters(of.module) if metric == "params" else stored_bytes(of.module)


def test_a_target_that_is_met_already_changes_nothing() -> None:
    result = run(learned(), config(target={"params": 10**6}), context())
    assert (result.surgery, result.notes[0][:13]) == ((), "nothing to do")


@pytest.mark.parametrize("metric", ["params", "macs", "size"])
def test_a_target_out_of_reach_names_the_closest_in_reach(metric: str) -> None:
    with pytest.raises(StageError, match="splits cannot reach the target of 3 % of the") as failure:
        dry_run(candidate(width=32), config(target={metric: "3 %"}), Quantization(channel_multiple=4))
    found = re.search(r"closest possible target is ([\d.]+ %)", failure.value.hint)
    assert found
    closest = config(target={metric: found[1]})
    assert dry_run(candidate(width=32), closest, Quantization(channel_multiple=4)).surgery == ()
    assert run(learned(width=32), closest, context()).surgery


def test_a_model_with_nothing_to_split_reaches_no_target() -> None:
    with pytest.raises(StageError, match="no layer becomes smaller at one block of 8"):
        dry_run(candidate(width=8), config(target={"params": "90 %"}), Quantization())


def test_a_dry_run_of_an_energy_changes_nothing() -> None:
    start = candidate()
    assert dry_run(start, config(), Quantization()) is not None
    assert dry_run(start, config(), Quantization()).surgery == ()


@pytest.mark.parametrize("scheme", ["auto", "channel", "spatial"])
def test_a_dry_run_of_a_rank_gives_the_structure_that_the_run_will_give(scheme: str) -> None:
    settings = config(rank=8, scheme=scheme)
    planned = dry_run(candidate(width=32), settings, context().quantization)
    result = run(learned(width=32), settings, context())
    assert planned.surgery == result.surgery
    assert shapes(planned.module) == shapes(result.module)


def shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def test_a_pair_can_be_split_again(tmp_path: Path) -> None:
    first = run(learned(width=32), config("95 %", layers=("blocks.*",), scheme="channel"), context())
    second = run(first, config(rank=4, layers=("blocks.0.conv1.*",)), context())
    assert [(edit.op, edit.layer) for edit in second.surgery[-2:]] == [
        ("split", "blocks.0.conv1.0"),
        ("split", "blocks.0.conv1.1"),
    ]
    assert torch.equal(logits(reloaded(second, tmp_path / "saved").module), logits(second.module))


class Odd(nn.Module):  # type: ignore[misc]
    """Layers that must not be split, each for another reason."""

    def __init__(self) -> None:
        super().__init__()
        self.usual = nn.Conv2d(1, 32, 5, padding=2)
        self.grouped = nn.Conv2d(32, 32, 3, padding=1, groups=4)
        self.idle = nn.Conv2d(32, 32, 3)
        self.shared = nn.Conv2d(32, 32, 1)
        self.again = self.shared
        self.tied, self.tied_too = nn.Linear(32, 32), nn.Linear(32, 32)
        self.tied_too.weight = self.tied.weight
        self.special = Doubling(32, 32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.twice, self.head = nn.Linear(32, 32), nn.Linear(32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = self.again(self.shared(self.grouped(self.usual(x)))).mean((2, 3))
        seen = self.special(self.tied_too(self.tied(pooled)))[:, None]
        out: torch.Tensor = self.head(self.twice(self.twice(self.attention(seen, seen, seen)[0][:, 0])))
        return out


class Doubling(nn.Linear):  # type: ignore[misc]
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def test_every_layer_is_split_or_says_why_not() -> None:
    result = run(replace(candidate(), module=Odd()), config("60 %"), context())
    assert [note.partition(":")[0] for note in result.notes] == [
        *("usual", "grouped", "idle", "shared", "tied", "tied_too", "special"),
        *("attention.out_proj", "twice", "head"),
    ]
    reasons = whole(result)
    assert reasons["grouped"] == "it is a convolution in 4 groups"
    assert reasons["idle"].startswith("it is never called")
    assert reasons["shared"] == reasons["tied"] == reasons["tied_too"] == "its weight is used twice in the model"
    assert reasons["special"] == "a Doubling does more than a Conv2d, Linear or Embedding"
    assert "uses it in other ways than calling it" in reasons["attention.out_proj"]
    assert "of its energy needs rank" in reasons["head"]
    assert {"usual", "twice"} <= {edit.layer for edit in result.surgery}
    assert logits(result.module).shape == (48, 3)


def test_macs_of_a_layer_that_runs_twice_are_counted_twice() -> None:
    start = replace(candidate(), module=Odd())
    before = macs(start)
    result = run(start, config(rank=4, layers=("twice",)), context())
    assert before - macs(result) == 2 * (32 * 32 - 4 * 64)


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("blocks.9.conv1", "did you mean blocks.1.conv1"),
        ("everything", "there are stem.0, blocks.0.conv1, blocks.0.conv2, blocks.1.conv1, blocks.1.conv2, head"),
        ("stem.1", "it is a BatchNorm2d: only Conv2d, Linear and Embedding are split"),
    ],
)
def test_a_pattern_that_matches_no_layer_is_refused_before_training(pattern: str, hint: str) -> None:
    with pytest.raises(StageError, match=re.escape(f"no layer that can be split matches '{pattern}'")) as failure:
        dry_run(candidate(), config(layers=("head", pattern)), Quantization())
    assert failure.value.hint.startswith(hint)


def test_naming_a_layer_that_can_never_be_split_says_why() -> None:
    with pytest.raises(StageError, match="3: it is a convolution in 16 groups"):
        dry_run(candidate("depthwise"), config(layers=("3",)), Quantization())


FAMILIES = ("resnet18", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "vgg11_bn", "densenet121")


@pytest.mark.parametrize("family", FAMILIES)
def test_families_of_torchvision_are_split_saved_and_loaded(family: str, tmp_path: Path) -> None:
    start = torchvision(family)
    before, layers = parameters(start.module), shapes(start.module)
    result = run(start, config("90 %", calibration=16), replace(context(), data=pictures()))
    assert result.surgery
    assert parameters(result.module) < before
    for edit in result.surgery:
        pair = result.module.get_submodule(edit.layer)
        assert len(pair[0].weight) == edit.to["rank"] < layers[f"{edit.layer}.weight"].numel()
    again = reloaded(result, tmp_path / "saved").module.eval()
    inputs = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(inputs), result.module.eval()(inputs))


def torchvision(family: str) -> Candidate:
    torch.manual_seed(0)
    signature = Signature(inputs=(TensorSpec(name="input", shape=(3, 32, 32)),), labels=("a", "b", "c"))
    return Candidate.start(plugins.choose("models", {"torchvision": family, "width": "25 %"}), signature)


def pictures() -> TrainingData:
    split = Split(inputs=(torch.rand(16, 3, 32, 32),), targets=torch.arange(16) % 3)
    return TrainingData(train=split, validation=split)


@pytest.mark.parametrize(
    "wrong",
    [
        {"energy": "0 %"},
        {"energy": "100 %"},
        {"energy": 0.9},
        {"rank": 0},
        {"rank": True},
        {"rank": "50 %"},
        {"energy": "95 %", "rank": 8},
        {"rank": 8, "target": {"params": "60 %"}},
        {"target": {"latency": "60 %"}},
        {"target": {"params": "60 %", "macs": "60 %"}},
        {"target": {}},
        {"scheme": "tucker"},
        {"calibration": 0},
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Config.model_validate(wrong)


def test_without_a_goal_the_energy_is_95_percent() -> None:
    assert Config().energy == 0.95
    assert Config(scheme="spatial").model_dump(mode="json")["energy"] == "95 %"
    assert Config(rank=8).energy is None
    for given in (Config(), Config(rank=8), config(target={"macs": 10**6})):
        assert Config.model_validate(json.loads(given.model_dump_json()) | {"layers": ("*",)}) == given
