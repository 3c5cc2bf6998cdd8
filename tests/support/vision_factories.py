"""Tiny vision transformers of every family, for the pictures of torch_factories: 8 x 8, in patches of 2 x 2.

This module is a plugin of models too: where `tiny_vits` is imported, {"tiny_vit": "timm"} names one of torchvision's or
timm's kind. Those of transformers come through `huggingface`.
"""

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from factories import published
from torch import nn
from torch_factories import SIGNATURE

from edgepack.config import plugins
from edgepack.core.frozen import Frozen
from edgepack.core.process import libraries
from edgepack.core.signature import Signature
from edgepack.models.candidate import Candidate

Kind = Literal["torchvision", "timm", "timm-deit"]
KINDS = ("torchvision", "timm", "timm-deit", "vit", "deit")  # the last two are transformers'
HEADS, HEAD, WIDTH, NEURONS = 4, 8, 32, 64


class Config(Frozen):
    tiny_vit: Kind
    depth: int = 2


def trained(config: Config, signature: Signature) -> bool:
    return False


def build(config: Config, signature: Signature) -> nn.Module:
    (channels, side, _), classes = signature.inputs[0].shape, len(signature.labels)
    if config.tiny_vit == "torchvision":
        kind = libraries.torchvision().models.VisionTransformer
        module: nn.Module = kind(side, 2, config.depth, HEADS, WIDTH, NEURONS, num_classes=classes)
        module.conv_proj = nn.Conv2d(channels, WIDTH, 2, stride=2)
        nn.init.normal_(module.heads.head.weight, std=0.1)  # zeros, which would hide everything
        return module
    kind = libraries.timm().models
    kind = kind.VisionTransformerDistilled if config.tiny_vit == "timm-deit" else kind.VisionTransformer
    made: nn.Module = kind(
        img_size=side,
        patch_size=2,
        in_chans=channels,
        num_classes=classes,
        embed_dim=WIDTH,
        depth=config.depth,
        num_heads=HEADS,
        mlp_ratio=2,
    )
    return made


@pytest.fixture(autouse=True)
def tiny_vits(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if an installed package published this module as the source of models `tiny_vit`."""
    published(monkeypatch, "models", "tiny_vit", __name__)


def described(kind: str, *, depth: int = 2, **changes: Any) -> str:
    """The folder of a ViT's or DeiT's config.json; without weights."""
    facts = {
        "model_type": kind,
        "hidden_size": WIDTH,
        "num_hidden_layers": depth,
        "num_attention_heads": HEADS,
        "intermediate_size": NEURONS,
        "image_size": 8,
        "patch_size": 2,
        "num_channels": 1,
        **changes,
    }
    folder = Path(f"{kind}-{depth}")
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(facts))
    return str(folder)


def vit(kind: str = "timm", *, seed: int = 0, depth: int = 2) -> Candidate:
    """An untrained vision transformer, whose every head and neuron has a say."""
    torch.manual_seed(seed)
    given = {"tiny_vit": kind, "depth": depth}
    if kind in ("vit", "deit"):
        given = {"huggingface": described(kind, depth=depth), "weights": None}
    made = Candidate.start(plugins.choose("models", given), SIGNATURE)
    with torch.no_grad():
        for name, tensor in made.module.named_parameters():
            tensor.normal_(1.0 if "norm" in name or ".ln" in name else 0.0, 0.3)
    return made
