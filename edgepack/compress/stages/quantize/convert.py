"""A graph with observers -> an int8 graph whose two exported files agree."""

import copy
import math
from dataclasses import replace

import torch
from torch import fx

from edgepack.compress.stages.quantize.capture import HARD_SIGMOIDS, TABLE, aten, decomposed, tell_recurrent
from edgepack.compress.stages.quantize.low_bits import GroupedRounding
from edgepack.compress.stages.quantize.observers import BY_ROWS, KEEPS_RANGE, exact_three_qparams, hard_swish_observers
from edgepack.models.structure.folding import WEIGHTED, own
from edgepack.models.structure.fx_graph import drop_unused, tensor_of

_HARDTANH = (-1.0, 1.0)  # its default limits
_MEANS = (aten.adaptive_avg_pool2d.default, aten.mean.dim)
_OFF_TIES = 1 + 2**-10  # the step of a mean is larger than that of its input by this factor


def converted(prepared: fx.GraphModule) -> fx.GraphModule:
    """Return an int8 copy: switching the training graph to eval would set every dropout to 0.5 (torchao issue 2980)."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    observed = _copied(prepared)
    _measure_tables(observed)
    _make_three_exact(observed)
    module: fx.GraphModule = convert_pt2e(observed)
    if prepared.meta.get(BY_ROWS):
        _measure_rows(module)
    for node in module.graph.nodes:
        if node.target in HARD_SIGMOIDS:
            _fold_gate(module, node)
    for node in module.graph.nodes:
        if node.target is aten.hardtanh.default and _is_met_by_rounding(node):
            node.replace_all_uses_with(node.args[0])
        if node.target in _MEANS:
            _avoid_ties(node)
    _round_biases(module)
    tell_recurrent(module, training=False)
    drop_unused(module)  # conversion leaves the float weight beside its int8 copy, and both would be saved
    return module


def _measure_rows(module: fx.GraphModule) -> None:
    """Let dynamic activations have a range for each row instead of one for the whole tensor."""
    kinds = {
        decomposed.quantize_per_tensor.tensor: decomposed.quantize_per_token.default,
        decomposed.dequantize_per_tensor.tensor: decomposed.dequantize_per_token.default,
    }
    for node in module.graph.nodes:
        if node.target is decomposed.choose_qparams.tensor:
            node.target, node.args = decomposed.choose_qparams_per_token_asymmetric.default, (node.args[0], torch.int8)
        elif node.target in kinds:
            last = (torch.float32,) if node.target is decomposed.dequantize_per_tensor.tensor else ()
            node.target, node.args = kinds[node.target], (*node.args, *last)


def _fold_gate(module: fx.GraphModule, gate: fx.Node) -> None:
    """Fold a HardSigmoid into the int8 layer before it, clamped to 0..1: weights / 6, bias / 6 + 1/2.

    Scales change, the integers of the weights do not. The output range has the same limits, so no operator is left of
    it.
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
    """Make the step of a mean slightly coarser than the step of its input.

    With equal steps every 16th mean of 4 x 4 pixels lies half way between two of them, and each runtime rounds it its
    own way: enough to change one output in 150 of a MobileNetV3.
    """
    source = mean.args[0]
    if source.target is decomposed.dequantize_per_tensor.default:
        for rounding in _roundings(mean):
            for held in _in_step(rounding):
                for node in (held, *held.users):
                    node.args = (node.args[0], source.args[1] * _OFF_TIES, *node.args[2:])


def _in_step(rounding: fx.Node) -> list[fx.Node]:
    """Return it, and the roundings after operators that only move its values, which must have the same step.

    Return none if the values go into a cat: its inputs may need equal steps, as in XNNPACK.
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
    """Round biases as integer kernels do, to steps of input scale times weight scale."""
    for layer in [node for node in module.graph.nodes if node.target in WEIGHTED and len(node.args) > 2]:
        inputs, weight, bias = layer.args[:3]
        fixed = inputs.target is decomposed.dequantize_per_tensor.default  # a calibrated range
        rounded = (decomposed.dequantize_per_channel.default, decomposed.dequantize_per_tensor.default)
        int8 = fixed and weight.target in rounded and weight.args[0].op == "get_attr"
        if int8 and own(module, bias):
            scale = weight.args[1]  # one number, or a tensor with one per output
            steps = inputs.args[1] * (tensor_of(module, scale) if isinstance(scale, fx.Node) else torch.tensor(scale))
            value = tensor_of(module, bias)
            if steps.shape in ((), value.shape):  # not so in a transposed convolution with groups
                value.copy_((value / steps).round() * steps)


def _make_three_exact(observed: fx.GraphModule) -> None:
    """Make -3 and 3, the corners of HardSwish, exact in the int8 ranges of its inputs.

    Integer kernels then compute HardSwish exactly. Done only where the steps become at most 5 % coarser.
    """
    for observer in hard_swish_observers(observed):
        found = exact_three_qparams(observer)
        observer.calculate_qparams = lambda found=found: found


def _copied(prepared: fx.GraphModule) -> fx.GraphModule:
    """Return a copy whose annotations refer to its own nodes.

    torchao looks there for the ranges of dynamic activations, and fails if they lie in another graph.
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
    """Measure the rows of embedding tables anew: the observers also saw values from before and during training."""
    for node in [node for node in observed.graph.nodes if node.target is TABLE]:
        observer = observed.get_submodule(node.args[0].target) if node.args[0].op == "call_module" else None
        if observer and not isinstance(observer, GroupedRounding):  # which remembers nothing
            observer.reset_min_max_vals()
            observer(tensor_of(observed, node.args[0].args[0]))


def _is_met_by_rounding(clamp: fx.Node) -> bool:
    """Return whether every int8 tensor made from it ends at the clamp's limits anyway, to a thousandth."""
    low, high = (clamp.args[n] if len(clamp.args) > n else limit for n, limit in enumerate(_HARDTANH, start=1))
    low = -math.inf if low <= 0 and clamp.args[0].target is aten.relu.default else low  # ReLU cuts there already
    return bool(clamp.users) and all(
        user.target is decomposed.quantize_per_tensor.default and _ends_within(user, low, high) for user in clamp.users
    )


def _ends_within(rounding: fx.Node, low: float, high: float) -> bool:
    scale, zero, least, most = rounding.args[1:5]
    return bool((least - zero) * scale >= low - 1e-3 * abs(low) and (most - zero) * scale <= high + 1e-3 * abs(high))
