"""What ExecuTorch's own lowering gets wrong is mended: the .pte loads, runs and answers as the torch model does."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch_factories import Beside, Inside, made, off_each, write
from torch_factories import tiny_models as tiny_models

from edgepack.compress.stages.quantize.capture import capture
from edgepack.compress.stages.quantize.contract import Scheme
from edgepack.compress.stages.quantize.convert import converted
from edgepack.compress.stages.quantize.observers import prepare, take_ranges
from edgepack.export.formats.executorch import tracing
from edgepack.export.formats.executorch.backends.xnnpack import patches
from edgepack.models.candidate import Candidate

RANDOM = torch.Generator().manual_seed(0)
SAMPLES = torch.randn(16, 1, 8, 8, generator=RANDOM) + 2 * torch.randn(16, 1, 1, 1, generator=RANDOM)


class Net(nn.Module):  # type: ignore[misc]
    """A stem, something in between, a convolution and a classifier."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.stem, self.middle, self.last = nn.Conv2d(1, 8, 3, padding=1), middle, nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inside = self.middle(functional.relu(self.stem(x)))
        logits: torch.Tensor = self.head(self.last(inside).mean((2, 3)) if inside.dim() == 4 else inside)
        return logits


class Repeated(nn.Module):  # type: ignore[misc]
    """One layer for several steps, whose inputs grow."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = 0.05 * (x if isinstance(self.layer, nn.Conv2d) else x.mean((2, 3)))
        for _ in range(3):
            x = x + 2 * torch.tanh(self.layer(x))
        return x


class Normed(nn.Module):  # type: ignore[misc]
    """One layer for two steps, each with a norm of its own."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.first, self.second = layer, nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.layer(functional.relu(self.first(self.layer(x)))))


class Decoder(nn.Module):  # type: ignore[misc]
    """Goes back with the weight it came with, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(functional.relu(self.encoder(x.mean((2, 3)))), self.encoder.weight.t())


class Pooled(nn.Module):  # type: ignore[misc]
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.max_pool2d(x, 2)


class SpatialAttention(nn.Module):  # type: ignore[misc]
    """As in CBAM, with the numbers of `greatest`."""

    def __init__(self, greatest: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.greatest, self.mix = greatest, nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = torch.cat([x.mean(1, keepdim=True), self.greatest(x)], 1)
        return x * torch.sigmoid(self.mix(both))


class Generalised(nn.Module):  # type: ignore[misc]
    """A mean between mean and maximum (GeM)."""

    def __init__(self) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.full((1,), 3.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.avg_pool2d(x.clamp(min=1e-6).pow(self.power), 8).pow(1.0 / self.power).flatten(1)


class Everything(nn.Module):  # type: ignore[misc]
    """What the passes of the lowering look for: interpolation, attention, concatenation, pooling, activations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.grow, self.last = nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(16, 8, 3, padding=1)
        self.mix, self.act, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.PReLU(), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.norm(self.stem(x)))
        x = torch.cat((self.grow(functional.max_pool2d(x, 2, 2)), functional.hardswish(x)), 1)
        x = self.act(self.last(functional.pad(x, (0, 1, 0, 1)))).flatten(2).transpose(1, 2)
        logits: torch.Tensor = self.head(self.mix(x, x, x)[0].mean(1))
        return logits


NETS: dict[str, Callable[[], nn.Module]] = {
    "linear, three times": lambda: Repeated(nn.Linear(8, 8)),
    "convolution, three times": lambda: Repeated(nn.Conv2d(8, 8, 3, padding=1)),
    "no bias, three times": lambda: Repeated(nn.Conv2d(8, 8, 3, padding=1, bias=False)),
    "transposed weight": Decoder,
    "pooling without a stride": Pooled,
    "mish": nn.Mish,
    "softplus": lambda: nn.Softplus(beta=0.5),
    "softplus, linear early": lambda: nn.Softplus(threshold=1),
    "log sigmoid": nn.LogSigmoid,
    "hard shrink": nn.Hardshrink,
    "max over channels": lambda: SpatialAttention(lambda x: x.max(1, keepdim=True)[0]),
    "max over channels, which go": lambda: SpatialAttention(lambda x: x.max(1).values.unsqueeze(1)),
    "amax over channels": lambda: SpatialAttention(lambda x: x.amax(1, keepdim=True)),
    "max and where it is": lambda: SpatialAttention(lambda x: x.max(1, keepdim=True)[0] - 0.1 * x.max(1, True)[1]),
    "max, both of one": lambda: Inside(lambda x: torch.add(*x.max(1, keepdim=True)) * x),
    "max over rows and columns": lambda: Inside(lambda x: x.max(-1)[0].max(-1)[0]),
    "max over columns, kept": lambda: Inside(lambda x: x * x.max(3, keepdim=True)[0] + x.max(-2, keepdim=True)[0]),
    "max over places": lambda: Inside(lambda x: x.flatten(2).max(2)[0]),
    "amax over rows": lambda: Inside(lambda x: x.amax(2).amax(-1)),
    "norm of a transposed convolution, in groups": lambda: nn.Sequential(
        nn.ConvTranspose2d(8, 8, 4, stride=2, groups=4, bias=False), nn.BatchNorm2d(8)
    ),
    "two norms of a transposed convolution, in groups": lambda: Normed(nn.ConvTranspose2d(8, 8, 3, groups=2)),
    "norm of the steps of a Linear": lambda: nn.Sequential(
        nn.Flatten(2), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Unflatten(2, (2, 4))
    ),
    "norm of nothing": lambda: nn.BatchNorm2d(8),
    "pyramid of pools": lambda: Inside(
        lambda x: torch.cat([functional.adaptive_max_pool2d(x, k).flatten(2) for k in (1, 2, 4, 8, (2, 8))], 2).mean(2)
    ),
    "pool of a replaced operator": lambda: nn.Sequential(nn.Mish(), nn.AdaptiveMaxPool2d(2)),
    "crop": lambda: Inside(lambda x: functional.pad(x, (-1, -2, 0, -3))),
    "crop and pad": lambda: Inside(lambda x: functional.pad(x, (-1, 1, 2, -2), value=0.5)),
    "limits without zero": lambda: Inside(lambda x: x.clamp(min=1e-6) + (x - 1).clamp(-2, -0.1)),
    "limits without zero of a convolution": lambda: nn.Sequential(
        nn.Conv2d(8, 8, 3), Inside(lambda x: x.clamp(min=0.1)), nn.Conv2d(8, 8, 3), Inside(lambda x: x.clip(max=-0.1))
    ),
    "generalised mean": Generalised,
    "transposed convolution": lambda: nn.ConvTranspose2d(8, 8, 3, stride=2),
}


def quantized(net: nn.Module, how: str) -> Candidate:
    start = replace(made("eager"), module=net.eval())
    if how == "fp32":
        return start
    captured = capture(start, ())
    observed = prepare(captured, Scheme(), training=False)
    with torch.no_grad():
        observed(SAMPLES)
        if how == "qat":
            trained = prepare(captured, Scheme(), training=True)
            trained(SAMPLES)
            take_ranges(trained, observed)
            observed = trained
    return replace(start, module=converted(observed), form="exported")


def answered(small: Candidate, folder: Path) -> torch.Tensor:
    from executorch.runtime import Runtime

    write(small, "executorch", folder / "model.pte")
    method = Runtime.get().load_program(folder / "model.pte").load_method("forward")
    return torch.cat([method.execute([row.contiguous()])[0].clone() for row in SAMPLES.split(1)])


def made_of(name: str) -> nn.Module:
    """The net of this name, its norms knowing something."""
    torch.manual_seed(1)
    net = Net(NETS[name]())
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            for values in filter(None.__ne__, (layer.running_mean, layer.weight, layer.bias, layer.running_var)):
                nn.init.uniform_(values, 0.5, 1.5)
    return net


NAMES = list(NETS)
TOGETHER = 8  # nets in one file: to lower them takes half as long as one by one
SEVERAL = pytest.mark.parametrize(
    "names", [NAMES[at : at + TOGETHER] for at in range(0, len(NAMES), TOGETHER)], ids=", ".join
)


def spread(answers: torch.Tensor) -> torch.Tensor:
    """Return what differs between the samples."""
    return answers - answers.mean(0)


@SEVERAL
def test_a_float_file_answers_as_the_torch_model(names: list[str], tmp_path: Path) -> None:
    net = Beside(made_of(name) for name in names)
    small = quantized(net, "fp32")
    with torch.no_grad():
        expected, answers = net(SAMPLES), answered(small, tmp_path)
    for name, share in zip(names, off_each(answers, expected, spread(expected)), strict=True):
        assert share < 1e-4, name


@SEVERAL
def test_an_int8_file_answers_as_the_torch_model(names: list[str], tmp_path: Path) -> None:
    net = Beside(made_of(name) for name in names)
    small = quantized(net, "ptq")
    with torch.no_grad():
        expected, eager = small.module(SAMPLES), net(SAMPLES)
    for name, share in zip(names, off_each(answered(small, tmp_path), expected, spread(eager)), strict=True):
        assert share < 0.03, name
    for name, share in zip(names, off_each(expected, eager, spread(eager)), strict=True):
        assert share < 0.1, name


def test_a_transposed_convolution_that_was_trained_in_int8_has_a_scale_for_each_output(tmp_path: Path) -> None:
    torch.manual_seed(1)
    net = Net(nn.ConvTranspose2d(8, 8, 3, stride=2))
    small = quantized(net, "qat")
    with torch.no_grad():
        expected = small.module(SAMPLES)
    assert (answered(small, tmp_path) - expected).norm() < 0.03 * (expected - expected.mean(0)).norm()


def test_what_a_left_out_pass_looks_for_has_the_operator_it_is_known_by() -> None:
    from executorch.backends.xnnpack.partition.graphs import bilinear_2d, sdpa

    for source, word in ((bilinear_2d, patches.BILINEAR), (sdpa, patches.ATTENTION)):
        assert source.get_graphs()
        for example in source.get_graphs():
            assert any(word in str(node.target) for node in example.graph.nodes), example.graph


@pytest.mark.parametrize(
    ("net", "how", "looked"),
    [(Net(nn.ReLU()), "ptq", 0), (Everything(), "fp32", 2), (Everything(), "ptq", 2)],
    ids=["nothing to find", "fp32", "int8"],
)
def test_what_lowering_leaves_out_changes_no_byte(
    net: nn.Module, how: str, looked: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from executorch.backends.xnnpack.partition.graphs import bilinear_2d, sdpa

    asked: list[MagicMock] = []
    for source, name in ((bilinear_2d, "get_graphs_dict"), (sdpa, "get_graphs")):
        examples = MagicMock(side_effect=getattr(source, name))
        monkeypatch.setattr(source, name, examples)
        asked.append(examples)
    small, paths = quantized(net, how), (tmp_path / "ours.pte", tmp_path / "theirs.pte")
    write(small, "executorch", paths[0])
    assert sum(examples.called for examples in asked) == looked
    monkeypatch.setattr(patches, "_skip_idle_passes", nullcontext)
    monkeypatch.setattr(tracing, "light_tracing", nullcontext)
    write(small, "executorch", paths[1])
    assert all(examples.called for examples in asked)
    assert paths[0].read_bytes() == paths[1].read_bytes()
