"""Tiny models and data for the tests that train: three classes of 8 x 8 pictures that really can be learned.

This module is a plugin of models too: where `tiny_models` is imported, {"tiny": "residual"} names one of its nets.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pytest
import torch
from caching import cached
from factories import published
from torch import nn

from edgepack.compress.contract import Context
from edgepack.compress.stages import train as train_stage
from edgepack.compress.training import evaluation, numerics
from edgepack.config import plugins
from edgepack.config.device import Quantization
from edgepack.core.events import Event
from edgepack.core.frozen import Frozen
from edgepack.core.provenance import cpu_features, int8_saturates
from edgepack.core.signature import Signature, TensorSpec
from edgepack.data.contract import Task
from edgepack.data.splits import Data, Split, TrainingData
from edgepack.models.candidate import Candidate, Factory
from edgepack.records.file_contents import Contents

SATURATES = int8_saturates(cpu_features())  # here: weights of eight bits are then cut off in ONNX Runtime's sums
BITS = 7 if SATURATES else 8
SIGNATURE = Signature(inputs=(TensorSpec(name="input", shape=(1, 8, 8)),), labels=("rows", "columns", "squares"))
Kind = Literal["residual", "mlp", "depthwise", "scaled"]
How = Literal["eager", "quantized"]
KINDS: tuple[Kind, ...] = ("residual", "mlp", "depthwise")


class Config(Frozen):
    tiny: Kind
    width: int = 16
    eps: float = 1e-5


def trained(config: Config, signature: Signature) -> bool:
    return False


def build(config: Config, signature: Signature) -> nn.Module:
    net = MAKERS[config.tiny](config.width)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = config.eps
    return net


class Residual(nn.Module):  # type: ignore[misc]
    """A stem, two residual blocks, one classifier."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.head = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = nn.functional.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1)
        logits: torch.Tensor = self.head(pooled.flatten(1))
        return logits


class Block(nn.Module):  # type: ignore[misc]
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inside = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(x + self.norm2(self.conv2(inside)))


def mlp(width: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 3))


def depthwise(width: int) -> nn.Module:
    """A depthwise separable convolution with ReLU6, as in MobileNetV2."""
    return nn.Sequential(
        *(nn.Conv2d(1, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU6()),
        *(nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False), nn.BatchNorm2d(width), nn.ReLU6()),
        *(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU6()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3)),
    )


class Scaled(nn.Module):  # type: ignore[misc]
    """Its scale, one number a channel and place, is of no layer: its channels cannot go."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.scale = nn.Conv2d(1, width, 3), nn.Parameter(torch.ones(1, width, 6, 6))
        self.head = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head((self.conv(x) * self.scale).mean((2, 3)))
        return logits


class Inside(nn.Module):  # type: ignore[misc]
    """What `forward` says."""

    def __init__(self, forward: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.said = forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.said(x)


class Beside(nn.Module):  # type: ignore[misc]
    """Several nets in one file, which costs less than one each: a row of logits a net, which share no range."""

    def __init__(self, nets: Iterable[nn.Module]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([net(x) for net in self.nets], 1)


def off_each(answers: torch.Tensor, expected: torch.Tensor, of: torch.Tensor | None = None) -> list[float]:
    """Return for each net of `Beside` the error of its answers, as a share of `of`, by default of what is expected."""
    whole = expected if of is None else of
    return [float(each) for each in (answers - expected).norm(dim=(0, 2)) / whole.norm(dim=(0, 2))]


MAKERS: dict[Kind, Callable[[int], nn.Module]] = {
    "residual": Residual,
    "mlp": mlp,
    "depthwise": depthwise,
    "scaled": Scaled,
}


@pytest.fixture(autouse=True)
def tiny_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if an installed package published this module as the source of models `tiny`."""
    published(monkeypatch, "models", "tiny", __name__)


def candidate(kind: Kind = "residual", *, seed: int = 0, **config: Any) -> Candidate:
    """A tiny net with random weights, the same ones for the same seed."""
    torch.manual_seed(seed)
    settings = Config(tiny=kind, **config)
    factory = Factory(model="tiny", config=settings.model_dump(mode="json"), signature=SIGNATURE)
    return Candidate(module=build(settings, SIGNATURE), factory=factory)


def data(*, seed: int = 0, train: int = 96, augmented: bool = False) -> Data:
    random = torch.Generator().manual_seed(seed)
    augment = (lambda inputs, random: inputs) if augmented else None
    return Data(
        train=replace(_split(train, random), augment=augment),
        validation=_split(48, random),
        test=_split(48, random),
    )


def _split(samples: int, random: torch.Generator) -> Split:
    """Bright rows, bright columns or a board of squares, each brightness and all noise drawn anew."""
    line = (torch.arange(8) // 2 % 2).float()
    kinds = torch.stack([line[:, None].expand(8, 8), line.expand(8, 8), (line[:, None] != line).float()])
    targets = torch.arange(samples) % 3
    light = 0.5 + 0.5 * torch.rand(samples, 1, 1, 1, generator=random)
    noise = 0.3 * torch.randn(samples, 1, 8, 8, generator=random)
    return Split(inputs=(kinds[targets][:, None] * light + noise,), targets=targets)


def task(signature: Signature = SIGNATURE) -> Task:
    """The classification that most tests are about."""
    made: Task = plugins.load("tasks", "image_classification").task(None, signature)
    return made


def context(*, teacher: Candidate | None = None, events: list[Event] | None = None, **changes: Any) -> Context:
    """What a stage is given, with the tiny data; events are kept in `events`."""
    kept: list[Event] = [] if events is None else events
    basic = Context(
        data=data(),
        task=task(),
        quantization=Quantization(channel_multiple=4, int8_saturates=SATURATES),
        seed=0,
        teacher=teacher,
        emit=kept.append,
    )
    return replace(basic, **changes)


def learned(kind: Kind = "residual", **config: Any) -> Candidate:
    """A tiny net that knows the tiny data; trained once a session, given as a private copy."""
    taught = _taught(kind, tuple(config.items()))
    return replace(taught, module=copy.deepcopy(taught.module))


@cache
def _taught(kind: Kind, config: tuple[tuple[str, Any], ...]) -> Candidate:
    settings = train_stage.Config(epochs=8, learning_rate=1e-2, batch_size=16)
    with numerics.deterministic(0, 1):
        return train_stage.run(candidate(kind, **dict(config)), settings, context())


def accuracy(module: nn.Module, split: Split | None = None) -> float:
    return evaluation.evaluate(module, split or data().validation, task())


def logits(module: nn.Module) -> torch.Tensor:
    """What the model says about the tiny test split."""
    return evaluation.predict(module, data().test)[0]


def reloaded(candidate: Candidate, folder: Path) -> Candidate:
    """What a later build would find in the store."""
    folder.mkdir(parents=True, exist_ok=True)
    candidate.save(folder)
    return Candidate.load(folder)


@cached
def made(how: How, kind: Kind = "residual") -> Candidate:
    """A net that has learned, as it is or in int8; shared, so not to be changed."""
    from edgepack.compress.stages import quantize

    start = learned(kind)
    return start if how == "eager" else quantize.run(start, quantize.Config(epochs=0), context())


def write(made: Candidate, format: str, path: Path) -> bytes:
    """What the exporter of this name writes."""
    exporter = plugins.load("exporters", format)
    exporter.export(made, exporter.Config(), path)
    return path.read_bytes()


@cached
def exported(format: str, how: How = "eager", kind: Kind = "residual") -> bytes:
    with TemporaryDirectory() as folder:
        return write(made(how, kind), format, Path(folder) / "model")


def inspected(format: str, content: bytes, candidate: Candidate, folder: Path) -> Contents:
    exporter = plugins.load("exporters", format)
    path = folder / f"model{exporter.SUFFIX}"
    path.write_bytes(content)
    contents: Contents = exporter.inspect(path, candidate)
    assert contents.stored_bytes < len(content) <= 1.02 * contents.stored_bytes + 60_000
    return contents


@dataclass(frozen=True)
class Pictures:
    """A handful of colour pictures, 32 x 32, for nets that want no smaller ones."""

    signature: Signature
    data: TrainingData


@cache
def pictures() -> Pictures:
    random = torch.Generator().manual_seed(0)
    spec = TensorSpec(name="input", shape=(3, 32, 32))

    def some(number: int) -> Split:
        inputs = torch.rand(number, *spec.shape, generator=random)
        return Split(inputs=(inputs,), targets=torch.arange(number) % 3)

    return Pictures(Signature(inputs=(spec,), labels=("a", "b", "c")), TrainingData(train=some(16), validation=some(8)))


def logits_of(candidate: Candidate) -> torch.Tensor:
    return evaluation.predict(candidate.module, pictures().data.validation)[0]
