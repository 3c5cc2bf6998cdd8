from typing import Any

import pytest
import torch
from torch import nn
from torch_factories import KINDS, Kind, candidate
from torch_factories import tiny_models as tiny_models

from edgepack.models.candidate import rebuild
from edgepack.models.complexity import parameters
from edgepack.models.structure import surgery
from edgepack.models.structure.dependency_groups import Score
from edgepack.models.structure.surgery import Edit

EXAMPLE = torch.zeros(2, 1, 8, 8)


def shrink(
    module: nn.Module, keep: float, score: Score = surgery.first, multiple: int = 4, **more: dict[str, int]
) -> None:
    surgery.shrink(module.eval(), EXAMPLE, keep=keep, score=score, multiple=multiple, **more)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("keep", "left"), [(0.5, 8), (0.6, 8), (0.7, 12), (0.05, 4), (0.99, 16)])
def test_every_layer_is_left_with_the_nearest_multiple_of_channels(kind: Kind, keep: float, left: int) -> None:
    module = candidate(kind).module
    before = parameters(module)
    shrink(module, keep)
    outputs = {
        name: width.get("out_channels", width.get("out_features")) for name, width in surgery.sizes(module).items()
    }
    assert {size for size in outputs.values() if size} == {left, 3}
    assert module(torch.rand(5, 1, 8, 8)).shape == (5, 3)
    assert (parameters(module) < before) is (left < 16)


def test_tensors_lose_the_channels_too() -> None:
    module = candidate("residual").module
    shrink(module, 0.5)
    state = module.state_dict()
    assert state["stem.0.weight"].shape == (8, 1, 3, 3)
    assert state["stem.1.running_mean"].shape == (8,)
    assert state["blocks.0.conv2.weight"].shape == (8, 8, 3, 3)
    assert state["head.weight"].shape == (3, 8)


def test_depthwise_convolutions_stay_depthwise() -> None:
    module = candidate("depthwise").module
    shrink(module, 0.5)
    assert surgery.sizes(module)["3"] == {"in_channels": 8, "out_channels": 8, "groups": 8}


def test_a_model_narrower_than_a_block_is_left_alone() -> None:
    module = candidate("residual", width=6).module
    shrink(module, 0.5, multiple=8)
    assert surgery.sizes(module) == surgery.sizes(candidate("residual", width=6).module)


def test_the_least_important_channels_go() -> None:
    """Channels that nothing listens to are given the lowest score; without them the answers are what they were."""
    module = candidate("mlp").module
    silent = torch.arange(16) % 2 == 0
    with torch.no_grad():
        module[3].weight[:, silent] = 0
    inputs = torch.rand(4, 1, 8, 8)
    expected = module(inputs)
    shrink(module, 0.5, score=lambda group: module[3].weight.abs().sum(0))
    assert module[1].out_features == 8
    torch.testing.assert_close(module(inputs), expected)


def test_shares_of_the_original_widths_lead_there_in_steps() -> None:
    at_once, in_steps = candidate("residual").module, candidate("residual").module
    shrink(at_once, 0.25)
    original = {name: width.get("out_channels", 0) for name, width in surgery.sizes(in_steps).items()}
    for keep in (0.75, 0.5, 0.25):
        shrink(in_steps, keep, original=original)
        assert in_steps.stem[0].out_channels == 16 * keep
    assert surgery.sizes(in_steps) == surgery.sizes(at_once)


@pytest.mark.parametrize("kind", KINDS)
def test_the_log_rebuilds_the_same_shapes(kind: Kind) -> None:
    start = candidate(kind)
    before = surgery.sizes(start.module)
    shrink(start.module, 0.5)
    edits = surgery.resizes(before, start.module)
    assert {edit.layer: edit.was for edit in edits} == {edit.layer: before[edit.layer] for edit in edits}
    stored = tuple(Edit.model_validate_json(edit.model_dump_json()) for edit in edits)
    again = rebuild(start.factory, stored)
    assert _shapes(again) == _shapes(start.module)
    assert again.eval()(EXAMPLE).shape == (2, 3)


def test_cuts_and_splits_are_replayed_in_order() -> None:
    """A half of a pair can be split again."""
    start = candidate("residual")
    before = surgery.sizes(start.module)
    shrink(start.module, 0.5)
    splits = (
        Edit(op="split", layer="blocks.0.conv1", to={"rank": 2}),
        Edit(op="split_spatial", layer="blocks.0.conv2", to={"rank": 4}),
        Edit(op="split_spatial", layer="blocks.0.conv1.0", to={"rank": 3}),
    )
    edits = (*surgery.resizes(before, start.module), *splits)
    for edit in splits:
        surgery.apply(start.module, edit)
    assert start.module.blocks[0].conv1[0][0].weight.shape == (3, 8, 3, 1)
    assert _shapes(rebuild(start.factory, edits)) == _shapes(start.module)


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


LAYERS = {
    "linear": (nn.Linear(12, 8), (4, 12)),
    "linear without bias": (nn.Linear(12, 8, bias=False), (4, 12)),
    "convolution": (nn.Conv2d(6, 8, 3, stride=2, padding=1), (4, 6, 9, 9)),
    "dilated": (nn.Conv2d(6, 8, (3, 1), dilation=2, padding=(2, 0), bias=False), (4, 6, 9, 9)),
    "circular": (nn.Conv2d(6, 8, 3, padding=1, padding_mode="circular"), (4, 6, 9, 9)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_two_thin_layers_stand_for_one(name: str) -> None:
    layer, shape = LAYERS[name]
    pair = surgery.split(layer, 3)
    assert pair(torch.rand(shape)).shape == layer(torch.rand(shape)).shape
    assert [thin.weight.shape[0] for thin in pair] == [3, 8]
    assert (pair[0].bias, pair[1].bias is None) == (None, layer.bias is None)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"stride": 2},
        {"stride": (1, 2), "padding": (0, 1)},
        {"dilation": 2, "padding": 2},
        {"kernel_size": (3, 5), "padding": (1, 2), "bias": False},
        {"kernel_size": (1, 3)},
        {"padding": "same", "dilation": (1, 2)},
        {"padding": "valid"},
        {"padding": 1, "padding_mode": "reflect", "stride": 2},
        {"padding": (2, 1), "padding_mode": "circular"},
    ],
    ids=str,
)
def test_a_column_and_a_row_stand_for_a_kernel(change: dict[str, Any]) -> None:
    """For a weight that is their product the two answer as the one does, whatever its stride, padding and dilation."""
    layer = nn.Conv2d(4, 6, **{"kernel_size": 3, **change})
    pair = surgery.split_spatial(layer, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.einsum("rckx,nryl->nckl", pair[0].weight, pair[1].weight))
        if layer.bias is not None:
            pair[1].bias.copy_(layer.bias)
    inputs = torch.randn(2, 4, 9, 11)
    torch.testing.assert_close(pair(inputs), layer(inputs))
    assert pair[0].bias is None


@pytest.mark.parametrize("layer", [nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8)])
def test_what_cannot_be_split_is_refused(layer: nn.Module) -> None:
    for split in (surgery.split, surgery.split_spatial):
        with pytest.raises(TypeError, match="cannot split"):
            split(layer, 2)


def test_resizing_keeps_everything_but_the_widths() -> None:
    convolution = surgery.resized(
        nn.Conv2d(8, 8, 3, stride=2, padding=1, dilation=2, groups=8, bias=False),
        {"in_channels": 4, "out_channels": 4, "groups": 4},
    )
    assert str(convolution) == str(nn.Conv2d(4, 4, 3, stride=2, padding=1, dilation=2, groups=4, bias=False))
    norm = surgery.resized(nn.BatchNorm2d(8, eps=1e-3, momentum=0.01), {"num_features": 4})
    assert str(norm) == str(nn.BatchNorm2d(4, eps=1e-3, momentum=0.01))
    assert str(surgery.resized(nn.LayerNorm(8, eps=1e-3), {"normalized_shape": 4})) == str(nn.LayerNorm(4, eps=1e-3))
    table = surgery.resized(nn.Embedding(9, 8, padding_idx=1), {"num_embeddings": 9, "embedding_dim": 4})
    assert str(table) == str(nn.Embedding(9, 4, padding_idx=1))
    with pytest.raises(TypeError, match="cannot resize"):
        surgery.resized(nn.Bilinear(8, 8, 8), {"out_features": 4})
