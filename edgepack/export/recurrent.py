"""LSTM and GRU layers of exported graphs.

for layer in call.layers:           # one operator of torch may hold several
    for direction in layer:         # one, or two where it reads from both ends
        direction.inputs            # weights of what comes in, [gates * hidden, inputs], the gates one after the other
"""

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from edgepack.models.structure.fx_graph import tensor_of

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
_DEQUANTIZE = torch.ops.quantized_decomposed.dequantize_per_channel.default


def integers(module: fx.GraphModule, weight: fx.Node) -> tuple[Tensor, Tensor] | None:
    """Return an int8 weight and the scale of each of its rows, whose zero points are 0; None for one in fp32."""
    if weight.target is not _DEQUANTIZE:
        return None
    numbers, scales = (tensor_of(module, each) for each in weight.args[:2])
    return numbers, scales.float()


def values(module: fx.GraphModule, weight: fx.Node) -> Tensor:
    """Return a weight in fp32, also of one that is stored as int8."""
    if (found := integers(module, weight)) is None:
        return tensor_of(module, weight)
    numbers, scales = found
    return numbers.float() * scales[:, None]


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
