"""Feature matching: a student learns where its teacher looks, at every resolution that both have.

The maps compared are sums of squares over channels, so teacher and student may differ in width and in kind.
Source: S. Zagoruyko and N. Komodakis, Paying More Attention to Attention, ICLR 2017, arXiv 1612.03928.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from edgepack.errors import StageError

Size = tuple[int, int]


class AttentionTransfer:
    """Watches both models: call both on the same inputs, then `loss()`; `close()` when done.

    Raises StageError when they have no resolution above one pixel in common.
    """

    def __init__(self, teacher: nn.Module, student: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        known, own = _last_of_each_size(teacher, inputs), _last_of_each_size(student, inputs)
        common = [size for size in own if size in known and size != (1, 1)]
        if not common:
            raise StageError(
                "teacher and student have no feature maps of the same size to compare",
                "leave `features` out, or choose a student that works at the teacher's resolutions",
            )
        self.seen: dict[tuple[str, Size], torch.Tensor] = {}
        self.sizes = common
        self.hooks = [
            layer.register_forward_hook(self._keep(role, size))
            for role, layers in (("teacher", known), ("student", own))
            for size, layer in layers.items()
            if size in common
        ]

    def loss(self) -> torch.Tensor:
        """The mean squared distance of the normalised maps of the last calls, summed over resolutions; 0 to 4 each."""
        distances = [
            (_attention(self.seen["student", size]) - _attention(self.seen["teacher", size])).square().sum(1).mean()
            for size in self.sizes
        ]
        return torch.stack(distances).sum()

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()

    def _keep(self, role: str, size: Size) -> Callable[[nn.Module, Any, torch.Tensor], None]:
        def keep(layer: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            if tuple(output.shape[2:]) == size:  # a layer may be called at several resolutions
                self.seen[role, size] = output

        return keep


def _attention(features: torch.Tensor) -> torch.Tensor:
    """[n, c, h, w] -> [n, h * w] of length one."""
    return functional.normalize(features.float().square().mean(1).flatten(1))


def _last_of_each_size(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> dict[Size, nn.Module]:
    """The last layer to give feature maps of each height and width."""
    found: dict[Size, nn.Module] = {}

    def note(layer: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor) and output.dim() == 4:
            found[int(output.shape[2]), int(output.shape[3])] = layer

    hooks = [layer.register_forward_hook(note) for layer in module.modules()]
    module.eval()
    with torch.no_grad():
        module(*inputs)
    for hook in hooks:
        hook.remove()
    return found
