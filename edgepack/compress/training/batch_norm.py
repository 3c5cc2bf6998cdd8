"""Statistics of batch norms, taken again after weights changed."""

import torch
from torch import nn

from edgepack.data.splits import Split

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_REMEMBERED = 0.05  # share of batch norm's statistics older than an epoch, above which they are taken anew


def lags(module: nn.Module, steps: int) -> bool:
    """Whether batch norm still remembers what was before these steps: MobileNetV3's, with a momentum of 0.01, would be
    judged by statistics of untrained weights until some 300 steps are done.
    """
    momenta = [norm.momentum for norm in module.modules() if isinstance(norm, _NORMS) and norm.track_running_stats]
    return any(momentum is not None and (1 - momentum) ** steps > _REMEMBERED for momentum in momenta)


def refresh_batch_norm(module: nn.Module, data: Split, samples: int = 1024) -> None:
    """Re-estimate the statistics of batch norm, which a change of structure has made stale, on training data."""
    norms = [layer for layer in module.modules() if isinstance(layer, _NORMS)]
    module.eval()
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over all batches
        norm.train()
    with torch.no_grad():
        for batch in data.first(samples).batches(64):
            if len(batch.targets) > 1:
                module(*batch.inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    module.eval()
