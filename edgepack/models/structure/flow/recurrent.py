"""Units of LSTM and GRU layers: which rows and columns of their weights belong to each."""

from collections.abc import Iterator

import torch
from torch import nn


def is_resizable(layer: nn.Module) -> bool:
    """Return whether it is an LSTM or GRU whose hidden size can change."""
    return isinstance(layer, nn.LSTM | nn.GRU) and not layer.proj_size


def measure(layer: nn.RNNBase) -> None:
    """Set the width attributes of a layer from its weights."""
    layer.input_size, layer.hidden_size = layer.weight_ih_l0.shape[1], layer.weight_hh_l0.shape[1]


def makes_units(tensor: str, dimension: int) -> bool:
    """Return whether the places of a dimension are the units of a layer, one by one: columns of what it remembers."""
    return tensor.startswith("weight_hh") and dimension == 1


def takes_channels(tensor: str, dimension: int) -> bool:
    """Return whether something is read with the places of a dimension: an input, or what is remembered."""
    return tensor.startswith("weight") and dimension == 1


def as_linear(layer: nn.RNNBase, tensor: str) -> nn.Linear:
    """Return a Linear for importances: with the columns of inputs, or for each unit a row of its weights in all gates,
    of inputs and of what is remembered. It has the gradients too.
    """
    linear = nn.Linear(1, 1, bias=False, device="meta")
    if tensor.startswith("weight_ih"):
        linear.weight = layer._parameters[tensor]
        return linear
    both = [layer._parameters[tensor.replace("_hh", kind)] for kind in ("_ih", "_hh")]
    linear.weight = nn.Parameter(_rows([each.detach() for each in both], layer.hidden_size))
    if all(each.grad is not None for each in both):
        linear.weight.grad = _rows([each.grad for each in both], layer.hidden_size)
    return linear


def _rows(weights: list[torch.Tensor], units: int) -> torch.Tensor:
    """Return for each unit what all gates have in its rows, [units, gates * columns]."""
    return torch.cat([each.unflatten(0, (-1, units)).transpose(0, 1).flatten(1) for each in weights], dim=1)


def parameters(layer: nn.RNNBase) -> Iterator[dict[str, str]]:
    """Yield the names of the tensors of each layer and direction in a module, by what they are of."""
    both = ("", "_reverse") if layer.bidirectional else ("",)
    kinds = ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if layer.bias else ()))
    for number in range(layer.num_layers):
        yield from ({kind: f"{kind}_l{number}{end}" for kind in kinds} for end in both)
