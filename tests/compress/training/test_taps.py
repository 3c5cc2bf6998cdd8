"""Training leaves out the taps of a convolution that meet padding only: outputs and gradients stay what they were."""

from itertools import product

import pytest
import torch
from torch import nn

from edgepack.compress.training.numerics import taps

WAYS = [*product((1, 2, 3, 5), (1, 2, 3, 5), (1, 2), (0, 1, 2, 3), (1, 2))]


def gradients(layer: nn.Conv2d, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y.square().sum().backward()
    return [y.detach(), x.grad, layer.weight.grad, layer.bias.grad]


@pytest.mark.parametrize("groups", [1, 4])
def test_outputs_and_gradients_are_those_of_the_whole_kernel(groups: int) -> None:
    fewer = 0
    for size, kernel, stride, padding, dilation in WAYS:
        if size + 2 * padding < dilation * (kernel - 1) + 1:
            continue
        layer = nn.Conv2d(4, 8, kernel, stride, padding, dilation, groups).double()
        x = torch.randn(2, 4, size, size + 1, dtype=torch.float64)
        whole = gradients(layer, x)
        with taps.used_only():
            used = gradients(layer, x)
        for expected, given in zip(whole, used, strict=True):
            torch.testing.assert_close(given, expected)
        fewer += taps._used(size, kernel, stride, padding, dilation)[1] < kernel
    assert fewer > 20


def test_one_pixel_has_one_tap() -> None:
    layer = nn.Conv2d(4, 8, 3, padding=1)
    with taps.used_only():
        gradient = gradients(layer, torch.randn(2, 4, 1, 1))[2]
    assert gradient[:, :, 1, 1].all()
    assert gradient.count_nonzero() == 4 * 8


@pytest.mark.parametrize("settings", [{"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}])
def test_other_paddings_are_left_as_they_are(settings: dict[str, object]) -> None:
    layer, x = nn.Conv2d(4, 8, 3, **settings), torch.randn(2, 4, 2, 2)
    expected = layer(x)
    with taps.used_only():
        assert torch.equal(layer(x), expected)


def test_what_is_exported_meanwhile_has_the_whole_kernel() -> None:
    layer, x = nn.Conv2d(4, 8, 3, padding=1).eval(), torch.randn(2, 4, 1, 1)
    with taps.used_only():
        program = torch.export.export(layer, (x,))
    assert not any("slice" in str(node.target) for node in program.graph.nodes)
