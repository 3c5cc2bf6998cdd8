"""Statistics of batch norms, taken again after weights changed."""

import torch
from torch import nn

from edgepack.data.splits import Split
from edgepack.models.structure.fx_graph import device_of

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_REMEMBERED = 0.05  # statistics are re-estimated if more than this share of them is older than one epoch


def lags(module: nn.Module, steps: int) -> bool:
    """Return whether statistics still contain values from before these steps: those of MobileNetV3, with a momentum of
    0.01, contain untrained weights until some 300 steps are done.
    """
    momenta = [norm.momentum for norm in module.modules() if isinstance(norm, _NORMS) and norm.track_running_stats]
    return any(momentum is not None and (1 - momentum) ** steps > _REMEMBERED for momentum in momenta)


def refresh_batch_norm(module: nn.Module, data: Split, samples: int = 1024) -> None:
    """Re-estimate the batch norm statistics on training data, after a change of structure."""
    norms = [layer for layer in module.modules() if isinstance(layer, _NORMS)]
    module.eval()
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over all batches
        norm.train()
    device = device_of(module)
    with torch.no_grad():
        for batch in data.first(samples).batches(64):
            if len(batch.targets) > 1:
                module(*(each.to(device) for each in batch.inputs))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    module.eval()
