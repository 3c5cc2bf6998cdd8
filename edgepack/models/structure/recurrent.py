"""LSTM and GRU layers of exported graphs, and of modules.

for layer in layers(node):          # one operator of torch may hold several
    for direction in layer:         # one, or two where it reads from both ends
        direction.inputs            # weights of what comes in, [gates * hidden, inputs], the gates one after the other
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx, nn

aten = torch.ops.aten
LSTM, GRU = aten.lstm.input, aten.gru.input
GATES = {LSTM: 4, GRU: 3}
_WEIGHTS, _BIASES = 2, 2  # of a direction


@dataclass(frozen=True, kw_only=True)
class Direction:
    """What reads a sequence in one direction, by the nodes of its tensors; `reverse` if it begins at the end."""

    inputs: fx.Node
    hidden: fx.Node
    biases: tuple[fx.Node, ...]  # of inputs and of hidden, [gates * hidden] each, or none
    reverse: bool


Layer = tuple[Direction, ...]


@dataclass(frozen=True, kw_only=True)
class Call:
    """The arguments of an operator that can be written in another way."""

    series: fx.Node  # [n, steps, numbers], or [steps, n, numbers]
    layers: tuple[Layer, ...]
    batch_first: bool


def calls(graph: fx.GraphModule) -> dict[fx.Node, Call]:
    """Return the recurrent operators that begin with zeros, as all do that are given no state."""
    found = {node: _call(node) for node in graph.graph.nodes if node.target in GATES}
    return {node: call for node, call in found.items() if call is not None}


def _call(node: fx.Node) -> Call | None:
    series, state, weights, has_biases, count, _, _, bidirectional, batch_first = node.args
    states = state if isinstance(state, list | tuple) else [state]
    each, directions = _WEIGHTS + _BIASES * bool(has_biases), 1 + bool(bidirectional)
    if any(each.target is not aten.zeros.default for each in states) or len(weights) != each * directions * count:
        return None  # weights are more where the output is projected
    parts = [weights[start : start + each] for start in range(0, len(weights), each)]
    found = [_direction(part, reverse=at % directions == 1) for at, part in enumerate(parts)]
    layers = tuple(tuple(found[at : at + directions]) for at in range(0, len(found), directions))
    return Call(series=series, layers=layers, batch_first=bool(batch_first))


def _direction(weights: list[fx.Node], *, reverse: bool) -> Direction:
    inputs, hidden, *biases = weights
    return Direction(inputs=inputs, hidden=hidden, biases=tuple(biases), reverse=reverse)


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
