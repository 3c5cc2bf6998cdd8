"""Define the small networks with random weights that a device is calibrated with.

They run in milliseconds and span what sets the speed of an operator: many pixels or few, many channels or few, weights
that stay in the cache and those that do not.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from edgepack.config.plugins import choose
from edgepack.core.signature import Signature, TensorSpec
from edgepack.models.candidate import Candidate, Factory

Make = Callable[[], Candidate]
_CLASSES = tuple("0123456789")


def nets(folder: Path) -> dict[str, Make]:
    """Return the models by name; files that describe an encoder are written to `folder`."""
    return {
        "stem 112": partial(_net, _stem, (3, 112, 112)),
        "plain 16 x 32": partial(_net, partial(_plain, 16, 4), (16, 32, 32)),
        "plain 64 x 28": partial(_net, partial(_plain, 64, 3), (64, 28, 28)),
        "plain 256 x 7": partial(_net, partial(_plain, 256, 3), (256, 7, 7)),
        "pointwise 32 x 56": partial(_net, partial(_pointwise, 32, 4), (32, 56, 56)),
        "pointwise 192 x 14": partial(_net, partial(_pointwise, 192, 6), (192, 14, 14)),
        "separable 16 x 56": partial(_net, partial(_separable, 16, 1), (16, 56, 56)),
        "separable 32 x 28": partial(_net, partial(_separable, 32, 3), (32, 28, 28)),
        "separable 96 x 4": partial(_net, partial(_separable, 96, 4), (96, 4, 4)),
        "excited 40 x 14": partial(_net, partial(_excited, 40, 3), (40, 14, 14)),
        "linear 256": partial(_net, partial(_linear, 256, 4), (256,)),
        "linear 640": partial(_net, partial(_linear, 640, 3), (640,)),
        "linear 2048": partial(_net, partial(_linear, 2048, 2), (2048,)),
        "encoder 128 x 32": partial(_encoder, folder / "narrow", width=128, layers=3, length=32),
        "encoder 384 x 48": partial(_encoder, folder / "wide", width=384, layers=2, length=48),
    }


def candidate(module: nn.Module, shape: tuple[int, ...]) -> Candidate:
    """Return a model with one input as a candidate; it cannot be saved."""
    signature = Signature(inputs=(TensorSpec(name="input", shape=shape),), labels=_CLASSES)
    return Candidate(module=module.eval(), factory=Factory(model="python", config={}, signature=signature))


def _net(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> Candidate:
    torch.manual_seed(0)
    return candidate(make(), shape)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    padding = kernel // 2
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


def _headed(channels: int, *layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, len(_CLASSES)))


def _stem() -> nn.Module:
    """Return the first layers of typical image models."""
    begin = [*_conv(3, 32, 7, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return _headed(64, *begin, *_conv(32, 64, 3, stride=2), nn.ReLU())


def _plain(channels: int, depth: int) -> nn.Module:
    return _headed(channels, *(Residual(*_conv(channels, channels, 3), nn.ReLU()) for _ in range(depth)))


def _pointwise(channels: int, depth: int) -> nn.Module:
    return _headed(channels, *(layer for _ in range(depth) for layer in (*_conv(channels, channels, 1), nn.ReLU())))


def _separable(channels: int, depth: int) -> nn.Module:
    """Return the blocks of MobileNetV2."""
    wide = 6 * channels
    block = (
        Residual(
            *(*_conv(channels, wide, 1), nn.ReLU6()),
            *(*_conv(wide, wide, 3, groups=wide), nn.ReLU6()),
            *_conv(wide, channels, 1),
        )
        for _ in range(depth)
    )
    return _headed(channels, *block)


def _excited(channels: int, depth: int) -> nn.Module:
    """Return the blocks of MobileNetV3."""
    wide = 6 * channels
    block = (
        Residual(
            *(*_conv(channels, wide, 1), nn.Hardswish()),
            *(*_conv(wide, wide, 5, groups=wide), nn.Hardswish()),
            *(Excitation(wide), *_conv(wide, channels, 1)),
        )
        for _ in range(depth)
    )
    return _headed(channels, *block)


def _linear(width: int, depth: int) -> nn.Module:
    hidden = (layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU()))
    return nn.Sequential(*hidden, nn.Linear(width, len(_CLASSES)))


class Residual(nn.Module):  # type: ignore[misc]
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.inside = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inside(x)


class Excitation(nn.Module):  # type: ignore[misc]
    """Scales channels by their content. Source: J. Hu et al., Squeeze-and-Excitation Networks, CVPR 2018."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = channels // 4
        self.weigh = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            *(nn.Conv2d(channels, narrow, 1), nn.ReLU(), nn.Conv2d(narrow, channels, 1), nn.Hardsigmoid()),
        )

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = x * self.weigh(x)
        return scaled


def _encoder(folder: Path, *, width: int, layers: int, length: int) -> Candidate:
    """Return a BERT with a small vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "model_type": "bert",
        "vocab_size": 1000,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 32,
        "intermediate_size": 4 * width,
        "max_position_embeddings": length,
        "pad_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(facts))
    inputs = tuple(TensorSpec(name=each, shape=(length,), dtype="int64") for each in ("input_ids", "attention_mask"))
    special = {"pad": {"token": "[PAD]", "id": 0}}
    about = {"kind": "text", "vocabulary": 1000, "max_length": length, "special_tokens": special}
    signature = Signature(inputs=inputs, labels=_CLASSES, preprocessing=about)
    torch.manual_seed(0)
    return Candidate.start(choose("models", {"huggingface": str(folder), "weights": None}), signature)
