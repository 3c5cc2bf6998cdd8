"""Batch norm is folded only where nobody else notices, and int8 answers like the eager net wherever it stands."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch_factories import made
from torch_factories import tiny_models as tiny_models

from edgepack.compress.stages.quantize import capture as quantize_capture
from edgepack.compress.stages.quantize.capture import capture
from edgepack.compress.stages.quantize.contract import Scheme
from edgepack.compress.stages.quantize.convert import converted
from edgepack.compress.stages.quantize.observers import prepare
from edgepack.core.errors import StageError
from edgepack.models.candidate import Candidate
from edgepack.models.structure import folding

RANDOM = torch.Generator().manual_seed(0)
SAMPLES = torch.randn(64, 1, 8, 8, generator=RANDOM) + 2 * torch.randn(64, 1, 1, 1, generator=RANDOM)
Forward = Callable[["Net", torch.Tensor], torch.Tensor]


class Net(nn.Module):  # type: ignore[misc]
    """What `forward` says, of a stem of 8 channels and the given layers."""

    def __init__(self, forward: Forward, **layers: nn.Module) -> None:
        super().__init__()
        self.stem, self.head, self.middle = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8, 3), forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inside = self.middle(self, self.stem(x))
        logits: torch.Tensor = self.head(inside.mean((2, 3)) if inside.dim() == 4 else inside)
        return logits


def preactivation(net: Net, x: torch.Tensor) -> torch.Tensor:
    return x + net.conv(functional.relu(net.norm(x)))


def with_raw(net: Net, x: torch.Tensor) -> torch.Tensor:
    raw = net.conv(x)
    return functional.relu(net.norm(raw)) + raw


def two_norms(net: Net, x: torch.Tensor) -> torch.Tensor:
    raw = net.conv(x)
    return functional.relu(net.norm(raw)) + net.other(raw)


def shared_head(net: Net, x: torch.Tensor) -> torch.Tensor:
    fine, coarse = net.norm(net.conv(x)), net.other(net.conv(functional.max_pool2d(x, 2)))
    return functional.relu(fine).mean((2, 3)) + functional.relu(coarse).mean((2, 3))


def tied(net: Net, x: torch.Tensor) -> torch.Tensor:
    return net.other(functional.conv2d(functional.relu(net.norm(net.conv(x))), net.conv.weight, padding=1))


def norm_twice(net: Net, x: torch.Tensor) -> torch.Tensor:
    return net.norm(net.conv(functional.relu(net.norm(x))))


def linear(net: Net, x: torch.Tensor) -> torch.Tensor:
    raw = net.fc(x.mean((2, 3)))
    return functional.relu(net.flat(raw)) + raw


def steps(net: Net, x: torch.Tensor) -> torch.Tensor:
    return net.flat(net.fc(x.flatten(2).transpose(1, 2)).transpose(1, 2)).mean(2)


def normed(net: Net, x: torch.Tensor) -> torch.Tensor:
    return functional.relu(net.norm(net.conv(x)))


def standardised(net: Net, x: torch.Tensor) -> torch.Tensor:
    weight = net.conv.weight - net.conv.weight.mean((1, 2, 3), keepdim=True)
    return net.norm(functional.conv2d(x, weight / weight.std(), net.conv.bias, padding=1))


def conv(**settings: object) -> nn.Module:
    return nn.Conv2d(8, 8, 3, padding=1, **settings)


NETS: dict[str, Callable[[], Net]] = {
    "pre-activation": lambda: Net(preactivation, conv=conv(), norm=nn.BatchNorm2d(8)),
    "read raw too": lambda: Net(with_raw, conv=conv(), norm=nn.BatchNorm2d(8)),
    "two norms": lambda: Net(two_norms, conv=conv(), norm=nn.BatchNorm2d(8), other=nn.BatchNorm2d(8)),
    "shared head": lambda: Net(shared_head, conv=conv(), norm=nn.BatchNorm2d(8), other=nn.BatchNorm2d(8)),
    "tied weight": lambda: Net(tied, conv=conv(bias=False), norm=nn.BatchNorm2d(8), other=nn.BatchNorm2d(8)),
    "one norm twice": lambda: Net(norm_twice, conv=conv(), norm=nn.BatchNorm2d(8)),
    "linear": lambda: Net(linear, fc=nn.Linear(8, 8), flat=nn.BatchNorm1d(8)),
    "linear over steps": lambda: Net(steps, fc=nn.Linear(8, 8), flat=nn.BatchNorm1d(8)),
    "without affine": lambda: Net(normed, conv=conv(bias=False), norm=nn.BatchNorm2d(8, affine=False)),
    "depthwise": lambda: Net(normed, conv=conv(groups=8), norm=nn.BatchNorm2d(8)),
    "same padding": lambda: Net(normed, conv=nn.Conv2d(8, 8, 3, padding="same"), norm=nn.BatchNorm2d(8)),
    "transposed": lambda: Net(normed, conv=nn.ConvTranspose2d(8, 8, 3, stride=2), norm=nn.BatchNorm2d(8)),
    "transposed, in groups": lambda: Net(
        normed, conv=nn.ConvTranspose2d(8, 8, 4, stride=2, groups=4), norm=nn.BatchNorm2d(8)
    ),
    "standardised weight": lambda: Net(standardised, conv=conv(), norm=nn.BatchNorm2d(8)),
}


def candidate(net: Net) -> Candidate:
    """With statistics and weights of norms that tell."""
    torch.manual_seed(1)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            values = [layer.running_mean, layer.weight, layer.bias, layer.running_var]
            for tensor in (each for each in values if each is not None):
                nn.init.uniform_(tensor, 0.3, 2.0)
    return replace(made("eager"), module=net.eval())


@pytest.mark.parametrize("name", NETS)
def test_without_its_norms_a_net_answers_the_same(name: str) -> None:
    net = NETS[name]()
    start = candidate(net)
    captured = capture(start, ())
    assert not folding.norms(captured)
    with torch.no_grad():
        torch.testing.assert_close(captured(SAMPLES), net(SAMPLES), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("training", [False, True], ids=["ptq", "qat"])
def test_int8_is_near_the_eager_net(name: str, training: bool) -> None:
    net = NETS[name]()
    observed = prepare(capture(candidate(net), ()), Scheme(), training=training)
    with torch.no_grad():
        observed(SAMPLES)
        answers, expected = converted(observed)(SAMPLES), net(SAMPLES)
    spread = (expected - expected.mean(0)).norm()
    assert (answers - expected).norm() < 0.1 * spread


def test_a_norm_that_its_layer_alone_reads_costs_no_operator() -> None:
    targets = [node.target for node in capture(candidate(NETS["depthwise"]()), ()).graph.nodes]
    assert sum(target in folding.CONVOLUTIONS for target in targets) == 2  # the stem's and its own


def test_a_norm_of_the_batch_is_refused_with_its_layer() -> None:
    net = Net(normed, conv=conv(), norm=nn.BatchNorm2d(8, track_running_stats=False))
    with pytest.raises(StageError, match=r"batch norm at 'norm'.* takes its statistics from the batch") as caught:
        capture(candidate(net), ())
    assert "track_running_stats=True" in caught.value.hint


def test_a_graph_that_answers_otherwise_than_the_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the rewriting may get wrong one day: here each layer takes a norm that others read as well."""
    monkeypatch.setattr(folding, "_alone", lambda graph, layer: True)
    with pytest.raises(StageError, match="gives other outputs than the model, from the batch norm at 'norm'"):
        capture(candidate(NETS["pre-activation"]()), ())


def test_a_program_that_is_not_the_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    exported = quantize_capture._exported

    def off(start: Candidate) -> torch.fx.GraphModule:
        found = exported(start)
        with torch.no_grad():
            found.get_parameter("conv.weight").mul_(2.0)
        return found

    other = candidate(NETS["depthwise"]())
    monkeypatch.setattr(quantize_capture, "_exported", lambda start: off(replace(start, module=NETS["depthwise"]())))
    with pytest.raises(StageError, match="gives other outputs than the model"):
        capture(other, ())
