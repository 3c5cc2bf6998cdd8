"""A graph with observers -> an int8 graph whose two exported files agree."""

import copy
import math
from dataclasses import replace

import torch
from torch import fx

from edgepack.compress.stages.quantize.capture import HARD_SIGMOIDS, TABLE, aten, decomposed
from edgepack.compress.stages.quantize.observers import KEEPS_RANGE, asked_by_hard_swishes, is_swish_input
from edgepack.models.structure.folding import WEIGHTED, own
from edgepack.models.structure.fx_graph import drop_unused, tensor_of

_HARDTANH = (-1.0, 1.0)  # its limits where none are given
_MEANS = (aten.adaptive_avg_pool2d.default, aten.mean.dim)
_OFF_TIES = 1 + 2**-10  # times as large a step is given for a mean as for what it is taken of


def converted(prepared: fx.GraphModule) -> fx.GraphModule:
    """An int8 copy: flipping the graph in training to eval would set every dropout to 0.5 (torchao issue 2980)."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    observed = _copied(prepared)
    _measure_tables(observed)
    _tell_three(observed)
    module: fx.GraphModule = convert_pt2e(observed)
    for node in module.graph.nodes:
        if node.target in HARD_SIGMOIDS:
            _fold_gate(module, node)
    for node in module.graph.nodes:
        if node.target is aten.hardtanh.default and _is_met_by_rounding(node):
            node.replace_all_uses_with(node.args[0])
        if node.target in _MEANS:
            _avoid_ties(node)
    _round_biases(module)
    drop_unused(module)  # conversion leaves the float weight beside its int8 copy, and both would be saved
    return module


def _fold_gate(module: fx.GraphModule, gate: fx.Node) -> None:
    """HardSigmoid of an int8 layer as the layer itself between 0 and 1: a sixth of its weights, and half more of bias.

    The weights keep their integers, and the range of what comes out their limits: no operator is left of it.
    """
    layer = gate.args[0]
    if layer.target not in WEIGHTED or len(layer.users) > 1 or len(layer.args) < 3:
        return
    weight, bias = layer.args[1:3]
    if weight.target is decomposed.dequantize_per_channel.default and own(module, weight.args[1], bias):
        tensor_of(module, weight.args[1]).div_(6)
        tensor_of(module, bias).div_(6).add_(0.5)
        gate.target, gate.args = aten.hardtanh.default, (layer, 0.0, 1.0)


def _avoid_ties(mean: fx.Node) -> None:
    """Make the step of a mean a little coarser than that of what it is taken of.

    In the same steps every 16th mean of 4 x 4 pixels lies half way between two of them, and each runtime rounds it its
    own way: enough to change one answer in 150 of a MobileNetV3.
    """
    source = mean.args[0]
    if source.target is decomposed.dequantize_per_tensor.default:
        for rounding in _roundings(mean):
            for held in _in_step(rounding):
                for node in (held, *held.users):
                    node.args = (node.args[0], source.args[1] * _OFF_TIES, *node.args[2:])


def _in_step(rounding: fx.Node) -> list[fx.Node]:
    """It, and the roundings of what only moves its numbers, which has the same steps by need.

    None where cat puts them beside others: the steps of these may have to be the same, as in XNNPACK.
    """
    found, left = [], [rounding]
    while left:
        found.append(each := left.pop())
        readers = [user for real in each.users for user in real.users]
        if any(user.target is aten.cat.default for user in readers):
            return []
        kept = [user for user in readers if KEEPS_RANGE in user.meta and user.target not in _MEANS]
        left += [again for user in kept for again in _roundings(user) if again.args[1:3] == each.args[1:3]]
    return found


def _roundings(node: fx.Node) -> list[fx.Node]:
    return [user for user in node.users if user.target is decomposed.quantize_per_tensor.default]


def _round_biases(module: fx.GraphModule) -> None:
    """Biases as integer kernels have them, in steps of a product of input and weight: they add up such products."""
    for layer in [node for node in module.graph.nodes if node.target in WEIGHTED and len(node.args) > 2]:
        inputs, weight, bias = layer.args[:3]
        fixed = inputs.target is decomposed.dequantize_per_tensor.default  # the range, by calibration
        rounded = (decomposed.dequantize_per_channel.default, decomposed.dequantize_per_tensor.default)
        int8 = fixed and weight.target in rounded and weight.args[0].op == "get_attr"
        if int8 and own(module, bias):
            scale = weight.args[1]  # one number, or a tensor with one for each output
            steps = inputs.args[1] * (tensor_of(module, scale) if isinstance(scale, fx.Node) else torch.tensor(scale))
            value = tensor_of(module, bias)
            if steps.shape in ((), value.shape):  # they are not in a transposed convolution with groups
                value.copy_((value / steps).round() * steps)


def _tell_three(observed: fx.GraphModule) -> None:
    """Let -3, where HardSwish has a corner, be among the numbers that it may be asked for, and 3 in as many steps.

    Integer kernels then compute HardSwish itself, not nearly so. Only where that makes the steps hardly coarser.
    """
    for observer in asked_by_hard_swishes(observed):
        found = is_swish_input(observer)
        observer.calculate_qparams = lambda found=found: found


def _copied(prepared: fx.GraphModule) -> fx.GraphModule:
    """A copy whose notes on what feeds a node name nodes of its own.

    torchao looks there for the ranges of dynamic activations, and fails where they lie in another graph.
    """
    from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

    copied = copy.deepcopy(prepared)
    own = {node.name: node for node in copied.graph.nodes}
    for node in copied.graph.nodes:
        if note := node.meta.get(Q_ANNOTATION_KEY):
            feeds = {own.get(feed.name, feed): spec for feed, spec in note.input_qspec_map.items()}
            node.meta[Q_ANNOTATION_KEY] = replace(note, input_qspec_map=feeds)
    return copied


def _measure_tables(observed: fx.GraphModule) -> None:
    """A row of an embedding table ranges over what is in it now, not over all that was while it learned."""
    for node in [node for node in observed.graph.nodes if node.target is TABLE]:
        observer = observed.get_submodule(node.args[0].target) if node.args[0].op == "call_module" else None
        if observer:
            observer.reset_min_max_vals()
            observer(tensor_of(observed, node.args[0].args[0]))


def _is_met_by_rounding(clamp: fx.Node) -> bool:
    """Whether every int8 tensor made of it ends at its limits anyway, but for a thousandth."""
    low, high = (clamp.args[n] if len(clamp.args) > n else limit for n, limit in enumerate(_HARDTANH, start=1))
    low = -math.inf if low <= 0 and clamp.args[0].target is aten.relu.default else low  # it has met that one
    return bool(clamp.users) and all(
        user.target is decomposed.quantize_per_tensor.default and _ends_within(user, low, high) for user in clamp.users
    )


def _ends_within(rounding: fx.Node, low: float, high: float) -> bool:
    scale, zero, least, most = rounding.args[1:5]
    return bool((least - zero) * scale >= low - 1e-3 * abs(low) and (most - zero) * scale <= high + 1e-3 * abs(high))
