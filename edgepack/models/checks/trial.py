"""Run a new model once, so that errors are found before training."""

import logging
from typing import TYPE_CHECKING, Any

import torch

from edgepack.core.errors import StageError, reason
from edgepack.core.signature import Signature
from edgepack.models import source_lines

if TYPE_CHECKING:
    from torch import nn


Inputs = tuple[torch.Tensor, ...]


def some_inputs(signature: Signature) -> Inputs:
    """Return three very different samples of noise: floats from 0 to 1, which have a square root and stand for pixels;
    integers 0 and 1 only, which every vocabulary and mask has.
    """
    chance = torch.Generator().manual_seed(0)
    shapes = [((3, *spec.shape), getattr(torch, spec.dtype)) for spec in signature.inputs]
    return tuple(
        _unlike(torch.rand(shape, generator=chance))
        if kind.is_floating_point
        else torch.randint(0, 2, shape, generator=chance, dtype=kind)
        for shape, kind in shapes
    )


def _unlike(noise: torch.Tensor) -> torch.Tensor:
    """Scale three samples to values of 0 to 1, of 0.7 to 1, and of 0.1 to 0.3."""
    each = (-1, *[1] * (noise.dim() - 1))
    return noise * torch.tensor([1.0, 0.3, 0.2]).view(each) + torch.tensor([0.0, 0.7, 0.1]).view(each)


def tried(module: "nn.Module", signature: Signature, name: str) -> "nn.Module":
    """Return the module, so that it gives a tensor or a tuple of them: see models/outputs.py.

    Raises StageError unless it maps inputs of these shapes to the outputs of the signature.
    """
    from edgepack.models.outputs import flattened

    training = module.training
    for batch in (2, 1):  # either size may be hard-coded in a model
        inputs = [torch.zeros(batch, *spec.shape, dtype=getattr(torch, spec.dtype)) for spec in signature.inputs]
        takes = _shapes(inputs)
        try:
            with torch.no_grad():
                given = module.eval()(*inputs)
        except Exception as error:
            logging.getLogger(__name__).exception("%s cannot take zeros", name)
            if batch == 1 and (norm := without_statistics(module)):
                raise StageError(f"{name} fails on a single sample{norm}", EACH) from error
            at = f", at {place}" if (place := source_lines.of_error(error, module)) else ""
            raise StageError(f"{name} cannot take this data, {takes}: {reason(error)}{at}", _MEND) from error
        _check_outputs(module, given, inputs, signature, name)
        module = flattened(module, signature.outputs, given)
    return module.train(training)


def _check_outputs(
    module: "nn.Module", given: Any, inputs: "list[torch.Tensor]", signature: Signature, name: str
) -> None:
    from edgepack.models.outputs import picked

    wanted = [[len(inputs[0]), *spec.shape] for spec in signature.outputs]
    try:
        found = picked(given, signature.outputs)
    except KeyError:
        found = ()
    if [[*each.shape] for each in found] != wanted:
        at = f", at {place}" if (place := source_lines.of_answer(module, inputs)) else ""
        asked = " and ".join(f"{spec.name} {shape}" for spec, shape in zip(signature.outputs, wanted, strict=True))
        raise StageError(f"{name} gives {_shapes([given])} for {_shapes(inputs)}, not {asked}{at}", _MEND)
    for spec, each in zip(signature.outputs, found, strict=True):
        kind = str(each.dtype).removeprefix("torch.")
        if kind != spec.dtype:
            at = f", at {place}" if (place := source_lines.of_answer(module, inputs)) else ""
            advice = f"return {spec.name} in {spec.dtype} from forward: {spec.name}.float()"
            raise StageError(f"{name} gives outputs in {kind}, not in {spec.dtype}{at}", advice)


def without_statistics(module: "nn.Module") -> str:
    """Name the first batch norm that uses batch statistics, in words, or ""."""
    from torch import nn

    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    found = [name for name, part in module.named_modules() if isinstance(part, kinds) and part.running_mean is None]
    return f": the batch norm '{found[0]}' keeps no statistics" if found else ""


EACH = "process each sample independently in forward; a batch norm needs track_running_stats=True"
_MEND = "fix the model, or use one that fits the data's shape and number of classes"


def _shapes(values: list[Any]) -> str:
    """
    >>> import torch
    >>> _shapes([torch.zeros(2, 3), {"logits": 1}])
    'a tensor of shape [2, 3] and dict'
    >>> _shapes([(torch.zeros(2, 3), torch.zeros(2, 1))])
    'a tuple of 2 (a tensor of shape [2, 3] and a tensor of shape [2, 1])'
    """
    return " and ".join(map(_shape, values))


def _shape(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)} ({_shapes([*value])})"
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {[*value.shape]}"
    return "nothing" if value is None else type(value).__name__
