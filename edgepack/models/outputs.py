"""A model's outputs as a tuple of tensors, whatever structure its forward returns.

    module = flattened(module, signature.outputs, given)    # what it returned once
    tensors(module(*inputs))                                # (boxes, scores), in the order of the task

A candidate's module returns a tensor, or a tuple of several: torch.export, exporters and runtimes keep their order.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from edgepack.core.signature import TensorSpec
    from edgepack.data.contract import Task

_AT_ONCE = 16  # samples that are postprocessed at a time


def tensors(given: "Tensor | Sequence[Tensor]") -> tuple[Tensor, ...]:
    """Return what a candidate's module, or an exported program, gave."""
    return (given,) if isinstance(given, Tensor) else tuple(given)


def flattened(module: nn.Module, specs: "Sequence[TensorSpec]", given: Any) -> nn.Module:
    """Return the module so that it gives a tensor, or a tuple of them in the order of `specs`; `given` is what it gave.

    One that does is returned as it is. The class of another one is replaced by a subclass: a module around it would
    change the names of all layers. Raises KeyError where the outputs are not in what it gave.
    """
    found = picked(given, specs)
    flat = type(given) is tuple and len(found) > 1 and all(isinstance(each, Tensor) for each in given)
    return module if isinstance(given, Tensor) or flat else _answering(module, lambda given: picked(given, specs))


def followed(module: nn.Module, after: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]) -> nn.Module:
    """Return a module with the same layers that gives what `after` makes of the outputs of this one."""
    return _answering(copy.copy(module), lambda given: after(tensors(given)))


def scorable(task: "Task", outputs: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return what is kept of what a file would give, on the CPU. It is postprocessed some samples at a time, which may
    take much memory.
    """
    if task.has_postprocess:
        parts = zip(*(each.split(_AT_ONCE) for each in outputs), strict=True)
        outputs = tuple(map(torch.cat, zip(*map(task.postprocess, parts), strict=True)))
    if not task.condenses:
        return outputs
    arrays, given = (tuple(each.detach().numpy() for each in tensors) for tensors in (outputs, inputs))
    return tuple(torch.from_numpy(each) for each in task.condensed(arrays, given))


def _answering(module: nn.Module, made: Callable[[Any], tuple[Tensor, ...]]) -> nn.Module:
    """Change the class of a module to one that gives what is made of its outputs."""
    kind = type(module)

    @wraps(kind.forward)  # torch.export reads its signature
    def forward(self: nn.Module, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        found = made(kind.forward(self, *inputs))
        return found[0] if len(found) == 1 else found

    module.__class__ = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
    return module


def picked(given: Any, specs: "Sequence[TensorSpec]") -> tuple[Tensor, ...]:
    """Return the tensors that are described: those of these names, of a mapping or a dataclass; else all, in order.

    Raises KeyError where neither fits.
    """
    named = given if isinstance(given, Mapping) else vars(given) if hasattr(given, "__dataclass_fields__") else {}
    if specs and all(isinstance(named.get(spec.name), Tensor) for spec in specs):
        return tuple(named[spec.name] for spec in specs)
    leaves = tuple(each for each in tree_leaves(given) if each is not None)
    if len(leaves) != len(specs) or not all(isinstance(each, Tensor) for each in leaves):
        raise KeyError(", ".join(spec.name for spec in specs))
    return leaves


def rows(given: "Tensor | Sequence[Tensor]") -> Tensor:
    """Return all outputs side by side as floats, [n, ...]: to compare two calls with each other."""
    found = tensors(given)
    if len(found) == 1:
        return found[0].float()
    return torch.cat([each.float().flatten(1) for each in found], dim=1)
