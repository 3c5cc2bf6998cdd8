"""The optimizer, its learning rate over the steps, and a running average of the weights."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from edgepack.compress import timm_optimizers
from edgepack.compress.contract import Training
from edgepack.models.structure.surgery import keeps_zeros

_MOMENTUM = 0.9  # of SGD, with Nesterov's correction


def optimizer_of(parameters: Sequence[nn.Parameter], settings: Training) -> torch.optim.Optimizer:
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer.startswith(timm_optimizers.PREFIX):
        return timm_optimizers.made(parameters, settings.optimizer, rate, decay)
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=_MOMENTUM, nesterov=True, weight_decay=decay)
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)


def keep_zeros(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put weights that pruning set to zero back to zero after each step: some optimizers mix the weights of a layer, as
    Muon does, so that one moves without a gradient.
    """
    masks = [(layer.weight, layer.weight.detach() != 0) for layer in module.modules() if keeps_zeros(layer)]

    def zero(*_: Any) -> None:
        with torch.no_grad():
            for weight, kept in masks:
                weight.mul_(kept)

    if masks:
        optimizer.register_step_post_hook(zero)


def schedule_of(optimizer: torch.optim.Optimizer, settings: Training, steps: int) -> LambdaLR:
    return LambdaLR(optimizer, lambda step: rate(settings, step, steps))


def rate(settings: Training, step: int, steps: int) -> float:
    """Return the share of the peak learning rate at a step, from 0, of so many.

    >>> from edgepack.compress.contract import Training
    >>> [rate(Training(epochs=1, warm_up="20 %", schedule="linear"), step, 10) for step in (0, 1, 2, 6, 10)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    warm = max(1, round(steps * settings.warm_up))
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    match settings.schedule:
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        case "linear":
            return 1 - done
        case "constant":
            return 1.0


class Average:
    """A running average of a module's weights and statistics; it follows faster at the beginning.

    Source: B. Polyak and A. Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay = module, decay
        self.values = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    def update(self, step: int) -> None:
        """Follow the module after this step, counted from 1."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, tensor in self.module.state_dict().items():
            kept = self.values[name]
            if kept.is_floating_point():
                kept.lerp_(tensor, share)
            else:
                kept.copy_(tensor)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the module the average while the block runs."""
        own = {name: tensor.detach().clone() for name, tensor in self.module.state_dict().items()}
        self.module.load_state_dict(self.values)
        try:
            yield
        finally:
            self.module.load_state_dict(own)
