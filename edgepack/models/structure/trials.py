"""How a change to a model is tried before it is believed: on a copy with random weights, and part by part."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode

CHANGED = "outputs would change even though nothing uses the removed channels"
OVERFLOWS = "with random weights its outputs overflow, so a cut cannot be checked"
_ROUNDING = 1e-4  # of the largest answer, in float32
_MOST = 1e30  # beyond this float32 is about to overflow

Part = TypeVar("Part")


def separated(parts: Sequence[Part], fault: Callable[[Sequence[Part]], str]) -> tuple[list[Part], list[str]]:
    """Those parts that are good together, and of every part what is wrong with it beside the good ones before, or "".

    Where all at once are at fault, each half is tried on top of what is good: a few odd ones among many take few tries.
    """
    good: list[Part] = []

    def judged(some: Sequence[Part], why: str | None = None) -> list[str]:
        why = fault([*good, *some]) if why is None else why
        if not why:
            good.extend(some)
            return [""] * len(some)
        if len(some) == 1:
            return [why]
        half = len(some) // 2
        before = judged(some[:half])
        # Where nothing is wrong with the first half, the second one with it is what was tried already.
        return before + judged(some[half:], None if any(before) else why)

    reasons = judged(parts) if parts else []
    return good, reasons


def difference(one: Any, other: Any) -> str:
    """What is wrong with an output that should be the same as another but for rounding, or ""."""
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        return ""
    if one.shape != other.shape:
        return CHANGED
    if not other.is_complex():
        one, other = one.double(), other.double()
    finite = other[other.isfinite()].abs()
    largest = float(finite.max()) if finite.numel() else 0.0
    if largest > _MOST or (other.numel() and not finite.numel()):
        return OVERFLOWS
    limit = _ROUNDING * max(largest, 1e-30)
    return "" if torch.allclose(one, other, rtol=0.0, atol=limit, equal_nan=True) else CHANGED


def lively(module: nn.Module, inputs: Sequence[Tensor]) -> nn.Module:
    """A copy in which nothing is zero that may be learned: layers that begin at zero would hide what they do.

    Each layer's weights are of a size that makes it give numbers of about one, so that no depth makes them overflow.
    """
    made, random = copy.deepcopy(module).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in made.parameters():
            if tensor.dim() > 1 and tensor.is_floating_point():
                tensor.normal_(0.0, (2 / max(1, tensor[0].numel())) ** 0.5, generator=random)
            elif tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5, generator=random)
        for name, tensor in made.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                tensor.uniform_(0.5, 1.5, generator=random)
        with _scaled(made):
            made(*inputs)
    return made


@contextmanager
def _scaled(module: nn.Module) -> Iterator[None]:
    """Inside, every layer that runs has its weights divided by how large its outputs are."""

    def scale(layer: nn.Module, given: Any, answer: Any) -> Any:
        size = float(answer.square().mean().sqrt()) if isinstance(answer, Tensor) else 0.0
        if not 0 < size < float("inf"):
            return answer
        for own in (layer.weight, layer.bias):
            if own is not None:
                own.div_(size)
        return answer / size

    layers = [
        each for each in module.modules() if isinstance(each, _ConvNd | nn.Linear) and "weight" in each._parameters
    ]
    hooks = [layer.register_forward_hook(scale) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class Unmixed(TorchDispatchMode):  # type: ignore[misc]
    """Norms over several channels scale and shift alone: what they measure changes with the channels that are there.

    It watches what products give: `has_overflown` where that was infinite, whatever a sigmoid made of it later.
    """

    def __init__(self) -> None:
        super().__init__()
        self.has_overflown = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        answer = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if name in _PRODUCTS:
            self.has_overflown |= not bool(answer.isfinite().all())
        if name not in ("native_layer_norm", "native_group_norm"):
            return answer
        x, weight, bias = (args[0], args[2], args[3]) if "layer" in name else args[:3]
        shape = [1, -1, *[1] * (x.dim() - 2)] if "group" in name else [-1]
        shape = [*weight.shape] if weight is not None and "layer" in name else shape
        for each, turn in ((weight, torch.mul), (bias, torch.add)):
            x = x if each is None else turn(x, each.reshape(shape))
        return (x.clone(), *answer[1:])


_PRODUCTS = ("convolution", "mm", "addmm", "bmm", "baddbmm")
