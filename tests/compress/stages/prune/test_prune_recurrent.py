"""LSTM and GRU lose units: a row in each gate, a column of what is remembered, and what reads them."""

from pathlib import Path

import pytest
import torch
from recurrent_factories import net, series, signature
from torch import nn
from torch_factories import reloaded

from edgepack.compress.stages import distill, prune
from edgepack.config.device import Quantization
from edgepack.models.complexity import parameters
from edgepack.models.structure.dependency_groups import survey
from edgepack.models.structure.flow.recurrent import parameters as tensors
from edgepack.models.structure.surgery import outputs, sizes

HALF = prune.Config.model_validate({"ratio": "50 %", "importance": "l2"})
BLOCKS_OF_4 = Quantization(channel_multiple=4)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("what", ["sounds", "texts", "series"])
def test_half_of_the_units_of_every_layer_can_go(what: str, bidirectional: bool, kind: str, tmp_path: Path) -> None:
    start = net(signature(what), kind, layers=2, bidirectional=bidirectional)
    made = prune.dry_run(start, HALF, BLOCKS_OF_4)
    layers = {name: left for name, left in outputs(made.module).items() if name.startswith("layers")}
    assert len(layers) == (4 if what == "texts" and bidirectional else 2)
    assert set(layers.values()) == {8}
    inputs = made.noise()
    assert torch.equal(reloaded(made, tmp_path / "saved").module.eval()(*inputs), made.module.eval()(*inputs))


@pytest.mark.parametrize("importance", ["l1", "l2", "taylor", "lamp", "random"])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_every_importance_scores_units(kind: str, importance: str) -> None:
    config = HALF.model_copy(update={"importance": importance})
    assert outputs(prune.dry_run(net(series(), kind), config, BLOCKS_OF_4).module)["layers.0"] == 8


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_units_with_small_weights_go_and_outputs_stay(bidirectional: bool, kind: str) -> None:
    """Units whose weights and readers are zero are those with the least importance; without them nothing changes."""
    start = net(series(), kind, layers=2, bidirectional=bidirectional)
    first = start.module.layers[0]
    silent = torch.arange(16) % 2 == 0
    with torch.no_grad():
        for each in tensors(first):
            for name in each.values():
                first.get_parameter(name)[silent.repeat(len(first.get_parameter(name)) // 16)] = 0
            first.get_parameter(each["weight_hh"])[:, silent] = 0
        for each in tensors(start.module.layers[1]):
            start.module.layers[1].get_parameter(each["weight_ih"])[:, silent.repeat(2 if bidirectional else 1)] = 0
    inputs = (torch.randn(3, 7, 5),)
    expected = start.module.eval()(*inputs)
    made = prune.dry_run(start, HALF.model_copy(update={"exclude": ("layers.1",)}), BLOCKS_OF_4)
    assert outputs(made.module)["layers.0"] == 8
    torch.testing.assert_close(made.module.eval()(*inputs), expected)


def test_the_log_has_the_widths_of_both_sides() -> None:
    made = prune.dry_run(net(series(), layers=2, bidirectional=True), HALF, BLOCKS_OF_4)
    found = {edit.layer: edit.to for edit in made.surgery}
    assert found["layers.0"] == {"input_size": 5, "hidden_size": 8}
    assert found["layers.1"] == {"input_size": 16, "hidden_size": 8}
    assert found["head"] == {"in_features": 16, "out_features": 3}
    assert sizes(made.module)["layers.1"] == {"input_size": 16, "hidden_size": 8}


def test_a_cut_model_learns_on() -> None:
    """torch keeps a list of a layer's weights besides: it must be that of the new ones."""
    made = prune.dry_run(net(series(), bidirectional=True), HALF, BLOCKS_OF_4)
    made.module.train()(torch.rand(4, 7, 5)).square().sum().backward()
    assert all(each.grad is not None for each in made.module.parameters())


def test_a_target_is_reached_and_a_narrower_student_derived() -> None:
    start = net(signature("texts"), layers=2, hidden=32)
    for target in ({"params": "50 %"}, {"macs": "40 %"}):
        config = prune.Config.model_validate({"target": target, "importance": "l2"})
        assert parameters(prune.dry_run(start.copy(), config, BLOCKS_OF_4).module) < parameters(start.module)
    student = distill.dry_run(start, distill.Config.model_validate({"compression": 2}), BLOCKS_OF_4)
    assert 2 <= parameters(start.module) / parameters(student.module) < 3


class Own(nn.Module):  # type: ignore[misc]
    """Two layers in one operator, which lose the same units, with a sum past them."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.rnn = nn.Linear(5, 16), nn.LSTM(16, 16, 2, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        given = self.before(series)
        outputs, (hidden, _) = self.rnn(given)
        logits: torch.Tensor = self.head((given + outputs).mean(1) + hidden[-1])
        return logits


class Translates(nn.Module):  # type: ignore[misc]
    """The second operator begins with the last state of the first, which has as many units."""

    def __init__(self) -> None:
        super().__init__()
        self.reads, self.writes = nn.LSTM(5, 16, batch_first=True), nn.LSTM(5, 16, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.writes(series, self.reads(series)[1])[0].mean(1))
        return logits


def test_units_go_from_both_sides_of_a_state() -> None:
    [group] = survey(Translates().eval(), (torch.zeros(2, 7, 5),)).groups
    assert (group.size, {*group.loses_outputs}) == (16, {"reads", "writes"})


def test_units_follow_the_channels_that_they_are_added_to() -> None:
    [group] = survey(Own().eval(), (torch.zeros(2, 7, 5),)).groups
    assert (group.size, {*group.loses_outputs}) == (16, {"before", "rnn"})
    group.remove([0, 3])
