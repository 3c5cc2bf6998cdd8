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
_ROUNDING = 1e-4  # of the largest output, in float32
_MOST = 1e30  # above this, float32 is about to overflow

Part = TypeVar("Part")


def separated(parts: Sequence[Part], fault: Callable[[Sequence[Part]], str]) -> tuple[list[Part], list[str]]:
    """Return the parts that work together, and for every part its fault in addition to the good ones before it, or "".

    If all parts together fail, each half is tried on top of the good ones: a few bad parts among many need few tries.
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
        # If the first half is good, adding the second half gives what was tried already.
        return before + judged(some[half:], None if any(before) else why)

    reasons = judged(parts) if parts else []
    return good, reasons


def difference(one: Any, other: Any) -> str:
    """Say what is wrong with an output that should equal another up to rounding, or ""."""
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
    """Return a copy with random parameters: layers that start at zero would hide what they do.

    The weights of each layer are scaled so that its outputs are about one, so that deep models do not overflow.
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
    """Divide the weights of every layer that runs by the size of its outputs."""

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
    """Reduce norms over several channels to their scale and shift: their statistics depend on the channels present.

    It also checks matrix products: `has_overflown` is set where one was infinite, even if a sigmoid hides it later.
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
