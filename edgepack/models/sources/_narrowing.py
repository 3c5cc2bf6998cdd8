"""Make an untrained model narrower, for sources of models that take a width."""

from typing import Any

import torch
from torch import nn

from edgepack.core.errors import StageError, reason
from edgepack.core.signature import Signature
from edgepack.core.units import SHARE
from edgepack.models.checks.trial import tried
from edgepack.models.structure.channels import cache_channels, cached_channels, describe_reasons
from edgepack.models.structure.dependency_groups import survey
from edgepack.models.structure.encoder.attention import is_fused
from edgepack.models.structure.flow import OUTPUT
from edgepack.models.structure.surgery import first, shrink

_FOLLOWED: dict[Any, Any] = {}  # removable channels by model: one build makes a model several times


_OF_HEADS = "its attention has fixed heads, of which prune and distill remove whole ones"


def narrow(module: nn.Module, signature: Signature, width: float, name: str) -> None:
    """Keep the first channels of every layer, a share of `width`; which ones does not matter before training.

    Raises StageError, with `name` as the model's, where a layer cannot lose channels.
    """
    picture = torch.zeros(2, *signature.inputs[0].shape)
    key = (type(module), name, picture.shape)
    cache_channels(module, _FOLLOWED.get(key))
    try:
        whole = survey(module, (picture,)).whole
        if stay := {layer: why for layer, why in whole.items() if why != OUTPUT}:
            raise StageError(f"not every layer can lose channels ({describe_reasons(stay)})")
        _FOLLOWED[key] = cached_channels(module)
        shrink(module, picture, keep=width, score=first, multiple=1)
        tried(module, signature, name)
    except Exception as error:
        why = error.message if isinstance(error, StageError) else reason(error)
        why = _OF_HEADS if any(is_fused(part) for part in module.modules()) else why
        raise StageError(
            f"{name} cannot be narrowed to {SHARE.format(width)}: {why}",
            "convolutional networks can: ResNet, VGG, DenseNet, MobileNet, EfficientNet, ConvNeXt, SqueezeNet; "
            "or use a smaller model without width",
        ) from error
