"""A model is tried once when it is built, so that a misfit is told before anything is trained."""

import logging
from typing import TYPE_CHECKING, Any

from edgepack.datasets import Signature
from edgepack.errors import StageError

if TYPE_CHECKING:
    from torch import nn


def tried(module: "nn.Module", signature: Signature, name: str) -> "nn.Module":
    """The module itself. Raises StageError unless it turns inputs of these shapes into one number a class."""
    import torch

    inputs = [torch.zeros(2, *spec.shape, dtype=getattr(torch, spec.dtype)) for spec in signature.inputs]
    takes, wanted, training = _shapes(inputs), [2, len(signature.labels)], module.training
    try:
        with torch.no_grad():
            given = module.eval()(*inputs)
    except Exception as error:
        logging.getLogger(__name__).exception("%s cannot take zeros", name)
        raise StageError(f"{name} cannot take this data, {takes}: {reason(error)}", _MEND) from error
    module.train(training)
    if not isinstance(given, torch.Tensor) or [*given.shape] != wanted:
        raise StageError(f"{name} gives {_shapes([given])} for {takes}, not {wanted}: one number a class", _MEND)
    return module


_MEND = "mend the model, or name one that fits the data's shape and number of classes"


def reason(error: BaseException) -> str:
    """The first line of what went wrong."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}".rstrip(": ")


def _shapes(values: list[Any]) -> str:
    """
    >>> import torch
    >>> _shapes([torch.zeros(2, 3), {"logits": 1}])
    'a tensor of shape [2, 3] and dict'
    """
    shapes = (getattr(value, "shape", None) for value in values)
    named = zip(values, shapes, strict=True)
    return " and ".join(f"a tensor of shape {[*shape]}" if shape else type(value).__name__ for value, shape in named)
