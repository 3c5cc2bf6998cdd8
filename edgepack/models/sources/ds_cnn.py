"""DS-CNN, a small net for keywords and other short sounds, with log-mel features made inside of it.

Features come first where the data is raw sound; else the data makes them. Depthwise separable convolutions follow.
Source: Y. Zhang, N. Suda, L. Lai and V. Chandra, Hello Edge: Keyword Spotting on Microcontrollers, 2017, arXiv
1711.07128; there with the ten lowest coefficients of a cosine transform of the features.
"""

from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from edgepack.core.errors import StageError
from edgepack.core.frozen import Frozen
from edgepack.core.signature import Signature
from edgepack.data.sounds import front_end
from edgepack.models.contract import CheckpointKey, OwnCheckpoint

if TYPE_CHECKING:
    from torch import nn


class Config(Frozen):
    ds_cnn: int = Field(ge=4, le=1024, description="channels; 64, 172 and 276 in the paper")
    blocks: int = Field(default=4, ge=1, le=32, description="depthwise separable convolutions")
    checkpoint: OwnCheckpoint = None
    checkpoint_key: CheckpointKey = None


def trained(config: Config, signature: Signature) -> bool:
    return config.checkpoint is not None


def incompatibility(config: Config, signature: Signature) -> str:
    if front_end.of(signature.preprocessing) is None:
        return f"ds_cnn hears sounds, but the data has inputs of shape {[*signature.inputs[0].shape]}"
    return ""


def files(config: Config) -> tuple[Path, ...]:
    return (Path(config.checkpoint),) if config.checkpoint else ()


def build(config: Config, signature: Signature) -> "nn.Module":
    from edgepack.models.checks.trial import tried
    from edgepack.models.weights.loading import load_weights

    if message := incompatibility(config, signature):
        raise StageError(message)
    module = tried(_net(config, signature), signature, "ds_cnn")
    if config.checkpoint:
        load_weights(module, Path(config.checkpoint), config.checkpoint_key)
    return module


def _net(config: Config, signature: Signature) -> "nn.Module":
    from torch import nn

    from edgepack.models.log_mel import LogMel

    given = front_end.of(signature.preprocessing)
    assert given is not None
    raw, width = len(signature.inputs[0].shape) == 1, config.ds_cnn
    layers: dict[str, Any] = {"front_end": LogMel(**given)} if raw else {}
    layers |= {
        "one_channel": nn.Unflatten(1, (1, given["mels"])),
        "first": _layer(1, width, (4, 10), stride=2, padding=(1, 4)),
        **{f"block{i}": _separable(width) for i in range(1, config.blocks + 1)},
        "pool": nn.AdaptiveAvgPool2d(1),
        "flat": nn.Flatten(),
        "head": nn.Linear(width, signature.width),
    }
    return nn.Sequential(OrderedDict(layers))


def _layer(before: int, after: int, kernel: Any, **settings: Any) -> "nn.Module":
    from torch import nn

    return nn.Sequential(nn.Conv2d(before, after, kernel, bias=False, **settings), nn.BatchNorm2d(after), nn.ReLU())


def _separable(width: int) -> "nn.Module":
    from torch import nn

    return nn.Sequential(
        *_layer(width, width, 3, padding=1, groups=width),
        *_layer(width, width, 1),
    )
