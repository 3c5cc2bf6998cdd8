"""The numerics of splitting, against the layers themselves."""

from typing import Any

import pytest
import torch
from torch import nn

from edgepack.compress.stages.factorize.low_rank import Curve, SplitScheme, break_even, curves, needed, schemes
from edgepack.core.errors import StageError
from edgepack.data.splits import Split
from edgepack.models.structure import surgery
from edgepack.models.structure.surgery import Edit

CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "3 x 3": {"padding": 1},
    "stride 2": {"stride": 2, "padding": 1},
    "dilated": {"dilation": 2, "padding": (2, 1)},
    "5 x 3": {"kernel_size": (5, 3)},
    "1 x 3": {"kernel_size": (1, 3)},
    "3 x 1": {"kernel_size": (3, 1)},
    "1 x 1": {"kernel_size": 1, "stride": 2},
    "same": {"padding": "same", "bias": False},
    "reflect": {"padding": 1, "padding_mode": "reflect"},
    "circular": {"padding": (1, 2), "padding_mode": "circular", "stride": (2, 1)},
}
PICTURES = torch.randn(40, 6, 9, 11, generator=torch.Generator().manual_seed(1)).cumsum(2).cumsum(3) / 4
CASES = [
    (name, scheme)
    for name, change in CONVOLUTIONS.items()
    for scheme in schemes(nn.Conv2d(6, 8, **{"kernel_size": 3, **change}))
]


def curve(layer: nn.Module, scheme: SplitScheme, inputs: torch.Tensor = PICTURES, **more: Any) -> Curve:
    data = Split(inputs=(inputs,), targets=torch.zeros(len(inputs)))
    [found] = curves(nn.Sequential(layer), {"0": (scheme,)}, data, 1000, **more)["0"]
    return found


def thin(layer: nn.Module, found: Curve, rank: int) -> nn.Module:
    """The two layers that the surgery log makes, with the curve's weights."""
    net = nn.Sequential(layer)
    to = {"rank": rank}
    spatial = found.scheme == "spatial"
    surgery.apply(net, Edit(op="split_spatial", layer="0", to=to) if spatial else Edit(op="split", layer="0", to=to))
    with torch.no_grad():
        for part, weight in zip(net[0], found.thin(rank), strict=True):
            part.weight.copy_(weight)
        if layer.bias is not None:
            net[0][1].bias.copy_(layer.bias)
    return net[0]


def energy_kept(layer: nn.Module, pair: nn.Module, inputs: torch.Tensor = PICTURES) -> float:
    with torch.no_grad():
        whole, off = layer(inputs), layer(inputs) - pair(inputs)
        if layer.bias is not None:
            whole = whole - (layer.bias[:, None, None] if isinstance(layer, nn.Conv2d) else layer.bias)
    return float(1 - off.square().sum() / whole.square().sum())


@pytest.mark.parametrize(("name", "scheme"), CASES)
def test_the_energy_that_is_told_is_the_one_that_is_kept(name: str, scheme: SplitScheme) -> None:
    layer = nn.Conv2d(6, 8, **{"kernel_size": 3, **CONVOLUTIONS[name]})
    found = curve(layer, scheme, upto=10)
    for rank in (1, 3, 5):
        really = energy_kept(layer, thin(layer, found, rank))
        assert found.exactly(rank) == pytest.approx(really, abs=1e-5)
        assert float(found.retained_energy[rank - 1]) <= really + 1e-5
    assert torch.equal(found.retained_energy, found.retained_energy.sort().values)


@pytest.mark.parametrize(("name", "scheme"), CASES)
def test_at_full_rank_the_pair_is_the_layer(name: str, scheme: SplitScheme) -> None:
    """On inputs that calibration has not seen too."""
    layer = nn.Conv2d(6, 8, **{"kernel_size": 3, **CONVOLUTIONS[name]})
    found, strangers = curve(layer, scheme, upto=10), torch.randn(3, 6, 9, 11)
    pair = thin(layer, found, len(found.retained_energy))
    torch.testing.assert_close(pair(strangers), layer(strangers), rtol=1e-3, atol=1e-3)


def test_what_little_data_does_not_show_stays_as_the_weight_has_it() -> None:
    layer, strangers = nn.Conv2d(6, 8, 3), torch.randn(3, 6, 9, 11)
    found = curve(layer, "spatial", torch.randn(2, 6, 3, 4), upto=10)
    assert len(found.retained_energy) == 18
    torch.testing.assert_close(thin(layer, found, 18)(strangers), layer(strangers), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(24, 40), (24, 7, 40)])
def test_a_linear_keeps_the_most_that_a_rank_can(shape: tuple[int, ...]) -> None:
    """As the truncated singular value decomposition of the outputs does, which nothing can beat."""
    layer, inputs = nn.Linear(40, 16), torch.randn(shape) * torch.arange(40)
    outputs = (layer(inputs) - layer.bias).detach().reshape(-1, 16)
    best = torch.linalg.svdvals(outputs.double()).square()
    found = curve(layer, "channel", inputs)
    for rank in (1, 4, 9):
        assert found.exactly(rank) == pytest.approx(float(best[:rank].sum() / best.sum()), abs=1e-5)
        assert energy_kept(layer, thin(layer, found, rank), inputs) == pytest.approx(found.exactly(rank), abs=1e-5)


def test_fewer_samples_than_outputs_span_what_there_is() -> None:
    layer, inputs = nn.Linear(64, 100), torch.randn(6, 64)
    found = curve(layer, "channel", inputs)
    for rank in (6, 30):
        assert found.exactly(rank) == pytest.approx(1)
        assert energy_kept(layer, thin(layer, found, rank), inputs) == pytest.approx(1, abs=1e-6)


def test_the_two_layers_are_of_equal_norm() -> None:
    first, second = curve(nn.Conv2d(6, 8, 3), "spatial").thin(4)
    torch.testing.assert_close(first.flatten(1).norm(dim=1), second.transpose(0, 1).flatten(1).norm(dim=1))


def test_a_layer_that_runs_twice_is_judged_by_both() -> None:
    class Twice(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.layer(torch.relu(self.layer(x)))
            return out

    net, inputs = Twice(), torch.randn(50, 8)
    data = Split(inputs=(inputs,), targets=torch.zeros(50))
    [found] = curves(net, {"layer": ("channel",)}, data, 50)["layer"]
    seen = torch.cat([inputs, torch.relu(net.layer(inputs))])
    assert energy_kept(net.layer, thin(net.layer, found, 2), seen) == pytest.approx(found.exactly(2), abs=1e-5)


def test_from_large_pictures_positions_are_drawn() -> None:
    layer = nn.Conv2d(3, 8, 3, padding=1)
    pictures = torch.randn(4, 3, 80, 80).cumsum(2).cumsum(3) / 9  # 25,600 places, more than are taken
    found = curve(layer, "spatial", pictures)
    assert energy_kept(layer, thin(layer, found, 2), pictures) == pytest.approx(found.exactly(2), abs=0.02)


def test_what_is_silent_or_idle_has_no_curve() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    nn.init.constant_(net[0].bias, -1e6)
    data = Split(inputs=(torch.randn(8, 4),), targets=torch.zeros(8))
    assert curves(net, {"2": ("channel",)}, data, 8) == {"2": ()}


def test_a_model_that_came_apart_is_an_error() -> None:
    layer = nn.Linear(4, 4)
    nn.init.constant_(layer.weight, float("nan"))
    with pytest.raises(StageError, match="0 outputs NaN or Inf"):
        curve(layer, "channel", torch.randn(8, 4))


@pytest.mark.parametrize(
    ("layer", "scheme", "rank"),
    [
        (nn.Linear(64, 64), "channel", 32),
        (nn.Linear(32, 96), "channel", 24),
        (nn.Conv2d(8, 96, 2), "channel", 24),
        (nn.Conv2d(64, 64, 3), "channel", 57.6),
        (nn.Conv2d(64, 64, 3), "spatial", 96),
        (nn.Conv2d(4, 8, (5, 3)), "spatial", 4 * 8 * 15 / (4 * 5 + 8 * 3)),
    ],
)
def test_break_even_is_the_rank_that_saves_nothing(layer: nn.Module, scheme: SplitScheme, rank: float) -> None:
    assert break_even(layer, scheme) == pytest.approx(rank)


def test_the_rank_that_an_energy_needs() -> None:
    found = curve(nn.Conv2d(6, 8, 3), "channel", upto=10)
    for energy in (0.1, 0.5, 0.9):
        rank = needed(found, energy)
        assert float(found.retained_energy[rank - 1]) >= energy
        assert rank == 1 or float(found.retained_energy[rank - 2]) < energy
