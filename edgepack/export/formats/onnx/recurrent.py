"""Recurrent layers as ONNX has them: one LSTM or GRU operator a layer, with weights in its own order of gates.

    Transpose -> LSTM -> Transpose -> Reshape                   # a layer of torch, both directions in one operator
    Transpose -> DynamicQuantizeLSTM -> Transpose -> Reshape    # one with int8 weights, the same integers as in torch

torch's exporter puts Slice and Concat between the weights and the operator, for the runtime to compute. ONNX Runtime's
int8 LSTM also rounds what the weights multiply, in each inference by its own range: the input as a whole, and what is
remembered in each step.
"""

import copy
import operator
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from edgepack.export.recurrent import GRU, LSTM, Call, Direction, Layer, calls, integers, values
from edgepack.models.structure.fx_graph import drop_unused, tensor_of

aten = torch.ops.aten
# The gates of torch, by their places: input, forget, cell, output; and reset, update, new.
_ORDER = {LSTM: (0, 3, 1, 2), GRU: (1, 0, 2)}
Results = Sequence[Tensor]
_RESULTS = {LSTM: 3, GRU: 2}  # outputs, last hidden state, and that of the cell


def lstm(series: Tensor, inputs: Tensor, hidden: Tensor, bias: Tensor) -> Results:
    """Write ONNX's LSTM, of a series [steps, n, numbers] and weights [directions, gates * hidden, columns]."""
    return _operator("LSTM", (series, inputs, hidden, bias), hidden.shape[2], states=2)


def gru(series: Tensor, inputs: Tensor, hidden: Tensor, bias: Tensor) -> Results:
    """Write ONNX's GRU, as `lstm`; torch applies the reset gate to what the weights made of the state."""
    return _operator("GRU", (series, inputs, hidden, bias), hidden.shape[2], states=1, linear_before_reset=1)


def lstm_int8(
    series: Tensor, inputs: Tensor, hidden: Tensor, bias: Tensor, scales: Tensor, hidden_scales: Tensor, zeros: Tensor
) -> Results:
    """Write ONNX Runtime's LSTM, of int8 weights [directions, columns, gates * hidden] and scales of their rows."""
    given = (series, inputs, hidden, bias, None, None, None, None, scales, zeros, hidden_scales, zeros)
    return _operator("com.microsoft::DynamicQuantizeLSTM", given, hidden.shape[1], states=2)


def _operator(name: str, given: tuple[Tensor | None, ...], width: int, *, states: int, **settings: int) -> Results:
    """Return the outputs, [steps, directions, n, hidden], and the last states."""
    series, inputs = given[:2]
    assert series is not None and inputs is not None
    (steps, samples, _), directions = series.shape, len(inputs)
    facts = {"direction": "bidirectional" if directions == 2 else "forward", "hidden_size": width}
    results: Results = torch.onnx.ops.symbolic_multi_out(
        name,
        given,
        {**facts, **settings},
        dtypes=(torch.float32,) * (1 + states),
        shapes=((steps, directions, samples, width), *[(directions, samples, width)] * states),
        version=1 if "::" in name else None,
    )
    return results


_OPERATORS = {LSTM: lstm, GRU: gru}


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

    def constant(name: str, tensors: list[Tensor]) -> fx.Node:
        return _constant(module, node, f"{name}{number}", torch.stack(tensors))

    call = module.graph.call_function
    bias = constant("bias", [_bias(module, each, order) for each in layer])
    kinds = {"weight_ih": [each.inputs for each in layer], "weight_hh": [each.hidden for each in layer]}
    int8 = {name: [integers(module, each) for each in weights] for name, weights in kinds.items()}
    if node.target is LSTM and all(all(each) for each in int8.values()):
        rows = {name: [each for each in found if each] for name, found in int8.items()}
        weights = [constant(name, [_gates(each, order).T for each, _ in found]) for name, found in rows.items()]
        scales = [constant(f"{name}_scale", [_gates(each, order) for _, each in found]) for name, found in rows.items()]
        zeros = constant("zero_point", [torch.zeros_like(each, dtype=torch.int8) for _, each in rows["weight_hh"]])
        made = call(lstm_int8, (series, *weights, bias, *scales, zeros))
    else:
        floats = {name: [values(module, each) for each in weights] for name, weights in kinds.items()}
        weights = [constant(name, [_gates(each, order) for each in found]) for name, found in floats.items()]
        made = call(_OPERATORS[node.target], (series, *weights, bias))
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
    return torch.zeros(2 * len(values(module, direction.hidden)))


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
