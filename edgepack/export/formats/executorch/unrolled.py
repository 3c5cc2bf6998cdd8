"""Recurrent layers step by step, as ExecuTorch has no operator for them: Linear layers, sigmoid and tanh for each step.

What comes in is multiplied for all steps at once, and the gates lie in an order in which one sigmoid computes them all;
XNNPACK takes the whole. Layers with int8 weights keep them, and what they multiply is rounded in each inference.
"""

import operator
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from edgepack.core.errors import StageError
from edgepack.export.recurrent import GATES, GRU, LSTM, Call, Direction, calls, integers, values
from edgepack.models.candidate import Candidate
from edgepack.models.source_lines import of_node
from edgepack.models.structure.fx_graph import drop_unused, tensor_of

aten, decomposed = torch.ops.aten, torch.ops.quantized_decomposed
MOST_STEPS = 256  # of all layers and directions; lowering took 34 s for 100 and 107 s for 200, beside other programs
_CONCATENATED = 5  # tensors that XNNPACK puts together at most (1.4.1)
_SMALLEST = 2.0**-12  # scale of what is rounded by its own range, as in the configuration of XNNPACK's quantizer
_STEPS = 1  # the dimension of steps in [1, steps, numbers]
_ORDER = {LSTM: (0, 1, 3, 2), GRU: (0, 1, 2)}  # the gates with a sigmoid first, then the one with tanh


def unrolled(program: ExportedProgram, inputs: tuple[Tensor, ...]) -> ExportedProgram:
    """Return the program of one sample without recurrent operators.

    Raises StageError for one of too many steps, and for one that begins with a state of its own.
    """
    module = program.module(check_guards=False)
    found = _found(module)
    for node, call in found.items():
        _Unroller(module, node, call).write()
    if not found:
        return program
    drop_unused(module)
    return torch.export.export(module, inputs)


def check_steps(candidate: Candidate) -> None:
    """Raises StageError as `unrolled` does."""
    exported = candidate.form == "exported"
    parts = candidate.module.graph.nodes if exported else candidate.module.modules()
    if any(part.target in GATES if exported else isinstance(part, nn.RNNBase) for part in parts):
        _found(candidate.program(batch=1).module(check_guards=False))


def _found(module: fx.GraphModule) -> dict[fx.Node, Call]:
    found = calls(module)
    for node in module.graph.nodes:
        if node.target in GATES and node not in found:
            raise StageError(
                f"ExecuTorch has no recurrent operator, and the layer{_at(node)} cannot be written step by step",
                "call it without a state of its own and without proj_size, or remove executorch from `export`",
            )
    _check_number(found)
    return found


def _at(node: fx.Node) -> str:
    return f" at {place}" if (place := of_node(node)) else ""


def _check_number(found: dict[fx.Node, Call]) -> None:
    each = {node: _steps(call) * sum(map(len, call.layers)) for node, call in found.items()}
    if (steps := sum(each.values())) > MOST_STEPS:
        longest = max(each, key=lambda node: each[node])
        raise StageError(
            f"ExecuTorch has no recurrent operator: layers are written step by step, and {steps:,} steps in all layers "
            f"and directions would take too long to lower, more than {MOST_STEPS}, most of them{_at(longest)}",
            "use shorter inputs (of sounds a longer hop, of texts a smaller max_length) or fewer layers, or remove "
            "executorch from `export`: ONNX has the operator",
        )


def _steps(call: Call) -> int:
    return int(call.series.meta["val"].shape[_STEPS if call.batch_first else 0])


class _Unroller:
    """Writes one recurrent operator as others, in a graph whose batch is one sample."""

    def __init__(self, module: fx.GraphModule, node: fx.Node, call: Call) -> None:
        self.module, self.node, self.call = module, node, call
        self.meta = {key: value for key, value in node.meta.items() if key in ("nn_module_stack", "stack_trace")}
        self.steps = _steps(call)
        self.count = 0

    def write(self) -> None:
        with self.module.graph.inserting_before(self.node):
            series = self.call.series if self.call.batch_first else self._turned(self.call.series)
            states: list[list[fx.Node]] = []  # of each layer and direction: hidden, and of LSTM that of the cell
            for layer in self.call.layers:
                outputs = []
                for direction in layer:
                    hidden, *state = self._direction(series, direction)
                    outputs.append(hidden)
                    states.append(state)
                series = self._joined(outputs, 2)
            results = [series if self.call.batch_first else self._turned(series)]
            results += [self._turned(self._joined(each, _STEPS)) for each in zip(*states, strict=True)]
        for user in [*self.node.users]:
            user.replace_all_uses_with(results[user.args[1]])
            self.module.graph.erase_node(user)
        self.module.graph.erase_node(self.node)

    def _direction(self, series: fx.Node, direction: Direction) -> list[fx.Node]:
        """Return the outputs [1, steps, hidden] of a direction, and its last states [1, 1, hidden]."""
        biases = [self._gates(tensor_of(self.module, each)) for each in direction.biases]
        size = len(values(self.module, direction.hidden)) // GATES[self.node.target]
        if self.node.target is LSTM:
            given = self._linear(direction.inputs, [sum(biases)] if biases else [])(series)
            step = self._lstm(self._linear(direction.hidden, []), size)
        else:
            given = self._linear(direction.inputs, biases[:1])(series)
            step = self._gru(self._linear(direction.hidden, biases[1:]), size)
        outputs: dict[int, fx.Node] = {}
        state: tuple[fx.Node, ...] = ()
        for place in reversed(range(self.steps)) if direction.reverse else range(self.steps):
            state = step(self._part(given, _STEPS, place, place + 1), state)
            outputs[place] = state[0]
        return [self._joined([outputs[place] for place in range(self.steps)], _STEPS), *state]

    def _linear(self, weight: fx.Node, biases: list[Tensor]) -> "Linear":
        """Return what multiplies by a weight. What it multiplies is rounded by its own range if the weight is int8."""
        bias = [self._constant(each) for each in biases]
        found = integers(self.module, weight)
        if found is None:
            matrix = self._constant(self._gates(tensor_of(self.module, weight)))
            return lambda given: self(aten.linear.default, given, matrix, *bias)
        numbers, scales = (self._constant(self._gates(each)) for each in found)
        zeros = self._constant(torch.zeros(len(found[1]), dtype=torch.int64))
        most = torch.iinfo(torch.int8).max
        rows = self(decomposed.dequantize_per_channel.default, numbers, scales, zeros, 0, -most, most, torch.int8)
        return lambda given: self(aten.linear.default, self._rounded(given), rows, *bias)

    def _rounded(self, given: fx.Node) -> fx.Node:
        limits = (torch.iinfo(torch.int8).min, torch.iinfo(torch.int8).max)
        found = self(decomposed.choose_qparams.tensor, given, *limits, _SMALLEST, torch.int8)
        range_ = (self(operator.getitem, found, 0), self(operator.getitem, found, 1), *limits, torch.int8)
        rounded = self(decomposed.quantize_per_tensor.tensor, given, *range_)
        return self(decomposed.dequantize_per_tensor.tensor, rounded, *range_)

    def _lstm(self, remembers: "Linear", size: int) -> "Step":
        """Return a step of LSTM; before the first all is zero, and there is nothing to forget."""

        def step(given: fx.Node, state: tuple[fx.Node, ...]) -> tuple[fx.Node, ...]:
            if state:
                given = self(aten.add.Tensor, given, remembers(state[0]))
            gates = self(aten.sigmoid.default, self._part(given, 2, 0, 3 * size))
            enters, forgets, leaves = (self._part(gates, 2, at * size, (at + 1) * size) for at in range(3))
            new = self(aten.tanh.default, self._part(given, 2, 3 * size, 4 * size))
            cell = self(aten.mul.Tensor, enters, new)
            if state:
                cell = self(aten.add.Tensor, cell, self(aten.mul.Tensor, forgets, state[1]))
            return self(aten.mul.Tensor, leaves, self(aten.tanh.default, cell)), cell

        return step

    def _gru(self, remembers: "Linear", size: int) -> "Step":
        """Return a step of GRU: new + update * (hidden - new), where the reset gate scales what is remembered."""

        def step(given: fx.Node, state: tuple[fx.Node, ...]) -> tuple[fx.Node, ...]:
            hidden = state[0] if state else self(aten.mul.Tensor, self._part(given, 2, 0, size), self._zero())
            known = remembers(hidden)
            both = (self._part(each, 2, 0, 2 * size) for each in (given, known))
            gates = self(aten.sigmoid.default, self(aten.add.Tensor, *both))
            resets, updates = (self._part(gates, 2, at * size, (at + 1) * size) for at in range(2))
            entered, remembered = (self._part(each, 2, 2 * size, 3 * size) for each in (given, known))
            new = self(aten.add.Tensor, entered, self(aten.mul.Tensor, resets, remembered))
            new = self(aten.tanh.default, new)
            left = self(aten.mul.Tensor, updates, self(aten.sub.Tensor, hidden, new))
            return (self(aten.add.Tensor, new, left),)

        return step

    def __call__(self, function: Callable[..., object], *args: object) -> fx.Node:
        made = self.module.graph.call_function(function, args)
        made.meta = dict(self.meta)
        return made

    def _part(self, tensor: fx.Node, dimension: int, start: int, end: int) -> fx.Node:
        return self(aten.slice.Tensor, tensor, dimension, start, end)

    def _turned(self, tensor: fx.Node) -> fx.Node:
        return self(aten.transpose.int, tensor, 0, 1)

    def _joined(self, tensors: Sequence[fx.Node], dimension: int) -> fx.Node:
        """Put tensors together, a few at a time."""
        while len(tensors) > 1:
            few = [tensors[at : at + _CONCATENATED] for at in range(0, len(tensors), _CONCATENATED)]
            tensors = [self(aten.cat.default, each, dimension) if len(each) > 1 else each[0] for each in few]
        return tensors[0]

    def _gates(self, tensor: Tensor) -> Tensor:
        parts = tensor.chunk(GATES[self.node.target])
        return torch.cat([parts[place] for place in _ORDER[self.node.target]])

    def _zero(self) -> fx.Node:
        return self._constant(torch.zeros(1))

    def _constant(self, value: Tensor) -> fx.Node:
        self.count += 1
        name = f"_edgepack_{self.node.name}_{self.count}"  # not a name that the model uses
        self.module.register_buffer(name, value)
        return self.module.graph.get_attr(name)


Linear = Callable[[fx.Node], fx.Node]
Step = Callable[[fx.Node, tuple[fx.Node, ...]], tuple[fx.Node, ...]]  # (gates of the input, state) -> state
