"""Recurrent layers as ONNX has them: one LSTM or GRU operator a layer, with weights in its own order of gates.

    Transpose -> LSTM -> Transpose -> Reshape               # a layer of torch, its two directions in one operator

torch's exporter puts Slice and Concat between the weights and the operator, for the runtime to compute.
"""

import copy
import operator
from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset18 as onnx
from torch import Tensor, fx, nn

from edgepack.export.recurrent import GRU, LSTM, Call, Direction, Layer, calls
from edgepack.models.structure.fx_graph import drop_unused, tensor_of

aten = torch.ops.aten
# The gates of torch, by their places: input, forget, cell, output; and reset, update, new.
_ORDER = {LSTM: (0, 3, 1, 2), GRU: (1, 0, 2)}
_RESULTS = {LSTM: 3, GRU: 2}  # outputs, last hidden state, and that of the cell


@torch.library.custom_op("edgepack::lstm", mutates_args=())  # type: ignore[untyped-decorator]
def _lstm(series: Tensor, inputs: Tensor, hidden: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """ONNX's LSTM, of a series [steps, n, numbers], for export alone."""
    raise NotImplementedError


@torch.library.custom_op("edgepack::gru", mutates_args=())  # type: ignore[untyped-decorator]
def _gru(series: Tensor, inputs: Tensor, hidden: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """ONNX's GRU, as `_lstm`."""
    raise NotImplementedError


@_lstm.register_fake  # type: ignore[untyped-decorator]
def _(series: Tensor, inputs: Tensor, hidden: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    outputs, state = _shapes(series, hidden)
    return outputs, state, state.clone()


@_gru.register_fake  # type: ignore[untyped-decorator]
def _(series: Tensor, inputs: Tensor, hidden: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return _shapes(series, hidden)


def _shapes(series: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    (steps, samples, _), (directions, _, width) = series.shape, hidden.shape
    return (
        series.new_empty((steps, directions, samples, width)),
        series.new_empty((directions, samples, width)),
    )


def _written(operator: Callable[..., Any], **settings: int) -> Callable[..., Any]:
    """Return the translation of a layer; the number of its directions and its width are those of its weights."""

    def translated(series: Any, inputs: Any, hidden: Any, bias: Any) -> Any:
        direction = "bidirectional" if hidden.shape[0] == 2 else "forward"
        return operator(series, inputs, hidden, bias, direction=direction, hidden_size=hidden.shape[2], **settings)

    return translated


TRANSLATIONS: dict[Any, Callable[..., Any]] = {
    torch.ops.edgepack.lstm.default: _written(onnx.LSTM),
    torch.ops.edgepack.gru.default: _written(onnx.GRU, linear_before_reset=1),
}
_OPERATORS = {LSTM: torch.ops.edgepack.lstm.default, GRU: torch.ops.edgepack.gru.default}


def with_onnx_operators(module: fx.GraphModule) -> fx.GraphModule:
    """Return a copy whose recurrent layers are ONNX's operators; one with a state of its own stays as it is."""
    module = copy.deepcopy(module)
    for node, call in calls(module).items():
        _write(module, node, call)
    drop_unused(module)
    return module


def _write(module: fx.GraphModule, node: fx.Node, call: Call) -> None:
    with module.graph.inserting_before(node):
        series = call.series
        if call.batch_first:
            series = module.graph.call_function(aten.transpose.int, (series, 0, 1))
        states: list[list[fx.Node]] = []
        for number, layer in enumerate(call.layers):
            series, *state = _layer(module, node, series, layer, f"_l{number}" * (len(call.layers) > 1))
            states.append(state)
        if call.batch_first:
            series = module.graph.call_function(aten.transpose.int, (series, 0, 1))
        last = [module.graph.call_function(aten.cat.default, ([*each],)) for each in zip(*states, strict=True)]
    for user in [*node.users]:
        user.replace_all_uses_with([series, *last][user.args[1]])
        module.graph.erase_node(user)
    module.graph.erase_node(node)


def _layer(module: fx.GraphModule, node: fx.Node, series: fx.Node, layer: Layer, number: str) -> list[fx.Node]:
    """Add a layer: return its outputs [steps, n, width], and its last states [directions, n, hidden]."""
    order = _ORDER[node.target]
    weights = {
        "weight_ih": [_gates(tensor_of(module, each.inputs), order) for each in layer],
        "weight_hh": [_gates(tensor_of(module, each.hidden), order) for each in layer],
        "bias": [_bias(module, each, order) for each in layer],
    }
    constants = [_constant(module, node, f"{name}{number}", torch.stack(each)) for name, each in weights.items()]
    call = module.graph.call_function
    made = call(_OPERATORS[node.target], (series, *constants))
    outputs, *state = (call(operator.getitem, (made, place)) for place in range(_RESULTS[node.target]))
    outputs = call(aten.flatten.using_ints, (call(aten.transpose.int, (outputs, 1, 2)), 2))
    return [outputs, *state]


def _gates(tensor: Tensor, order: tuple[int, ...]) -> Tensor:
    parts = tensor.chunk(len(order))
    return torch.cat([parts[place] for place in order])


def _bias(module: fx.GraphModule, direction: Direction, order: tuple[int, ...]) -> Tensor:
    """Return the biases of inputs and of hidden states, one after the other."""
    if direction.biases:
        return torch.cat([_gates(tensor_of(module, each), order) for each in direction.biases])
    return torch.zeros(2 * len(tensor_of(module, direction.hidden)))


def _constant(module: fx.GraphModule, node: fx.Node, name: str, value: Tensor) -> fx.Node:
    """Add a tensor, named as one of the layer that the operator is of."""
    names = [str(name) for name, _ in node.meta.get("nn_module_stack", {}).values()]
    place = (names or [""])[-1] or node.name
    try:
        holder = module.get_submodule(place)
    except AttributeError:
        module.add_submodule(place, holder := nn.Module())
    while hasattr(holder, name):  # one module may hold several operators
        name += "_"
    holder.register_buffer(name, value)
    return module.graph.get_attr(f"{place}.{name}")
