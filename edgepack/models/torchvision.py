"""Any classifier of torchvision by its name, at any width, with as many inputs and classes as the data has."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from edgepack.config import Frozen, unknown
from edgepack.datasets import Signature
from edgepack.units import SHARE, Share

if TYPE_CHECKING:
    from torch import nn


_AUXILIARY = ("googlenet", "inception_v3")  # these give more than logits while they train, unless told not to


class Config(Frozen):
    torchvision: str = Field(description="the name of the model's builder, for example resnet18")
    width: Share = Field(default=1.0, description="share of the channels of every layer that is kept")
    in_channels: int | None = Field(default=None, ge=1, description="default: as many as the data has")
    checkpoint: str | None = Field(default=None, description="weights of this very model, a .safetensors file")

    @field_validator("torchvision")
    @classmethod
    def _exists(cls, name: str) -> str:
        if name not in names():
            raise ValueError(unknown("torchvision model", name, names()))
        return name

    @field_validator("width")
    @classmethod
    def _narrower(cls, width: float) -> float:
        if not 0 < width <= 1:
            raise ValueError(
                f"width is a share of the model's own channels, above 0 % and up to 100 %, got {SHARE.format(width)}"
            )
        return width

    @field_validator("checkpoint")
    @classmethod
    def _readable(cls, checkpoint: str | None) -> str | None:
        if checkpoint is not None and Path(checkpoint).suffix != ".safetensors":
            raise ValueError(
                f"a checkpoint is a .safetensors file, which holds weights and no code; got {checkpoint!r}"
            )
        if checkpoint is not None and not Path(checkpoint).is_file():
            raise ValueError(f"there is no file {checkpoint!r}")
        return checkpoint


def trained(config: Config) -> bool:
    return config.checkpoint is not None


def misfit(config: Config, signature: Signature) -> str:
    channels = signature.inputs[0].shape[0]
    if config.in_channels not in (None, channels):
        return f"in_channels is {config.in_channels}, but the data has {channels}: leave it out"
    return ""


def build(config: Config, signature: Signature) -> "nn.Module":
    from edgepack.models._vision import torchvision

    extra = {"aux_logits": False, "init_weights": True} if config.torchvision in _AUXILIARY else {}
    module: nn.Module = torchvision().models.get_model(config.torchvision, num_classes=len(signature.labels), **extra)
    channels = signature.inputs[0].shape[0]
    if channels != 3:
        _take_channels(module, channels)
    if config.width < 1:
        _narrow(module, config.width, signature)
    if config.checkpoint:
        from edgepack.candidate import load_weights

        load_weights(module, Path(config.checkpoint))
    return module


@cache
def names() -> tuple[str, ...]:
    """Every classifier that torchvision builds, read from its source without importing it.

    A builder is a function decorated with `@register_model()` in a file of torchvision/models itself; its detection,
    segmentation, video, optical-flow and quantized models live in folders below and are no classifiers for us.
    """
    import re

    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        return ()
    sources = (file.read_text(encoding="utf-8") for file in (Path(spec.origin).parent / "models").glob("*.py"))
    return tuple(
        sorted({name for text in sources for name in re.findall(r"@register_model\(\)\n(?:@.*\n)*def (\w+)\(", text)})
    )


def _take_channels(module: "nn.Module", channels: int) -> None:
    """Give the first convolution another number of input channels."""
    from torch import nn

    from edgepack.surgery import replace_layer, resized

    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d):
            sizes: dict[str, Any] = {
                "in_channels": channels,
                "out_channels": layer.out_channels,
                "groups": layer.groups,
            }
            replace_layer(module, name, resized(layer, sizes))
            return


def _narrow(module: "nn.Module", width: float, signature: Signature) -> None:
    """Keep the first share of the channels of every layer; which ones does not matter before training."""
    import torch

    from edgepack.surgery import first, shrink

    shrink(module, torch.zeros(2, *signature.inputs[0].shape), keep=width, score=first, multiple=1)
