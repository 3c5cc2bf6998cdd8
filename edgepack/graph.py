"""A model as a torch.export graph, made ready for int8, calibrated, and made int8.

    graph = capture(candidate, fp32=("classifier.*",))        # batch norm folded, what stays float marked
    observed = prepare(graph, Scheme(), training=False)       # observers in it: run calibration samples through
    module = converted(observed)

Through torchao's PT2E flow with the quantizer of ExecuTorch's XNNPACK backend: weights per channel, activations per
tensor, embedding tables per row.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from edgepack.equality import check_equal
from edgepack.errors import StageError
from edgepack.folding import (
    CONVOLUTIONS,
    TRANSPOSED,
    WEIGHTED,
    check_norm,
    drop_unused,
    fold,
    fold_weights,
    norms,
    own,
    scale_and_shift,
    tensor_of,
)
from edgepack.patterns import check_patterns, matches

if TYPE_CHECKING:
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation

    from edgepack.candidate import Candidate

aten, decomposed = torch.ops.aten, torch.ops.quantized_decomposed
_TABLE = aten.embedding.default
_LAYERS = (*WEIGHTED, _TABLE)
EVERYTHING = "*"  # the pattern that leaves the whole model in fp32
_HARD_SIGMOIDS = (aten.hardsigmoid.default, aten.hardsigmoid_.default)
_SQUASHED = (*_HARD_SIGMOIDS, aten.sigmoid.default)
_HARD_SWISHES = (aten.hardswish.default, aten.hardswish_.default)
_HARDTANH = (-1.0, 1.0)  # its limits where none are given
_PRODUCTS = (aten.mul.Tensor, aten.mul_.Tensor)
_MEANS = (aten.adaptive_avg_pool2d.default, aten.mean.dim)
_OFF_TIES = 1 + 2**-10  # times as large a step is given for a mean as for what it is taken of
_COARSER = 1.05  # times as large a step is given for a HardSwish in integers
_ROUNDED = 1e-6  # a share by which a scale in float32 is off
_CEILING = "ceiling"  # of a relu that was a ReLU6, in a node's meta
_GATE = "gate"  # a relu that was a HardSigmoid, in a node's meta


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """What becomes int8, and how. Weights get this many bits; embedding tables have 8, for nothing multiplies them.

    The range of an activation is `dynamic`, measured in each inference, or else fixed by calibration. Between the
    layers of an encoder everything stays float: one range for the residuals would round most of them away, and one for
    the scores of attention would have to hold the mask.
    """

    bits: int = 8
    dynamic: bool = False
    linear_only: bool = False


def capture(candidate: "Candidate", fp32: tuple[str, ...], *, embeddings: bool = True) -> fx.GraphModule:
    """The model without batch norm, its ReLU6 as ReLU, and the layers that `fp32` names kept from the quantizer.

    So are its embedding tables, without `embeddings`. Raises StageError when the model cannot be exported, or a pattern
    matches no layer.
    """
    graph = _exported(candidate)
    layers = _layers(graph, "model" if isinstance(candidate.module, nn.Sequential) else "")
    fold_weights(graph)
    for norm in norms(graph):  # prepare_qat_pt2e would rewrite its eps and momentum (torchao issue 4107)
        check_norm(norm)
        fold(graph, norm)
    _leave_float(graph, layers, fp32, embeddings)
    for norm in norms(graph):
        for node in scale_and_shift(graph, norm):
            _keep_from_quantizer(node)
    drop_unused(graph)
    check_equal(graph, candidate, lambda: _exported(candidate), _without)
    for node in graph.graph.nodes:
        _plain_relu(node)
        _plain_gate(graph, node)
    drop_unused(graph)
    return graph


def _without(graph: fx.GraphModule, norm: fx.Node) -> None:
    if not fold(graph, norm):
        scale_and_shift(graph, norm)


def layers_with_weights(candidate: "Candidate") -> tuple[str, ...]:
    """Those that run, by their names, in the order in which they do. Raises StageError as `capture` does."""
    graph = _exported(candidate)
    layers = _layers(graph, "model" if isinstance(candidate.module, nn.Sequential) else "")
    return tuple(dict.fromkeys(layers[n][-1] for n in graph.graph.nodes if n.target in _LAYERS and layers[n]))


def prepare(graph: fx.GraphModule, scheme: Scheme, *, training: bool) -> fx.GraphModule:
    """A copy with observers in it, or with fake quantizers for training.

    Raises StageError for convolutions that would be dynamic: ONNX Runtime has no fast kernel for them.
    """
    from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e, prepare_qat_pt2e

    if scheme.dynamic and any(node.target in CONVOLUTIONS for node in graph.graph.nodes):
        raise StageError(
            "activations cannot be dynamic in a model with convolutions: the runtimes have no kernels for them",
            "leave `activations` out, or make it static",
        )
    marked = copy.deepcopy(graph)
    _annotate_tables(marked)
    quantizer = _quantizer(scheme, training)
    prepared: fx.GraphModule = (prepare_qat_pt2e if training else prepare_pt2e)(marked, quantizer)
    if training:
        _scale_along_outputs(prepared)
    for node in [node for node in prepared.graph.nodes if _CEILING in node.meta]:
        _clamp(prepared, node)
    for node in [node for node in prepared.graph.nodes if node.meta.pop(_GATE, False)]:
        node.target = aten.hardsigmoid.default
    prepared.recompile()
    return prepared


def _scale_along_outputs(prepared: fx.GraphModule) -> None:
    """Train the weights of transposed convolutions with a scale for each output, which lie along their second
    dimension: what torchao puts there takes the first (0.18), and a file with one scale for each input does not load.
    """
    from torchao.quantization.pt2e import FakeQuantize

    layers = [node for node in prepared.graph.nodes if node.target in TRANSPOSED and node.args[1].op == "call_module"]
    for name in {node.args[1].target for node in layers}:
        along_inputs = prepared.get_submodule(name)
        observer = along_inputs.activation_post_process
        fake = FakeQuantize(
            observer=type(observer),
            quant_min=along_inputs.quant_min,
            quant_max=along_inputs.quant_max,
            dtype=observer.dtype,
            qscheme=observer.qscheme,
            averaging_constant=observer.averaging_constant,
            eps=float(observer.eps),
            ch_axis=1,
        )
        prepared.set_submodule(name, fake)


def _quantizer(scheme: Scheme, training: bool) -> "XNNPACKQuantizer":
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )

    most = 2 ** (scheme.bits - 1) - 1  # symmetric: a channel's largest weight is met exactly, whatever its sign
    config = get_symmetric_quantization_config(
        is_per_channel=True, is_qat=training, is_dynamic=scheme.dynamic, weight_qmin=-most, weight_qmax=most
    )
    quantizer = XNNPACKQuantizer().set_global(config)
    # Searching for batch norm takes a second and a half, and none is left.
    wanted = [known for known in quantizer.SUPPORTED_PATTERNS if "bn" not in known.name]
    quantizer.SUPPORTED_PATTERNS = [known for known in wanted if not scheme.linear_only or "linear" in known.name]
    annotate = quantizer.annotate
    quantizer.annotate = lambda graph: _whole_ranges(annotate(graph))
    return quantizer


def _whole_ranges(graph: fx.GraphModule) -> fx.GraphModule:
    """What lies between 0 and 1 by its nature is given all of that, seen in calibration or not.

    For HardSigmoid the limits of the range then are those of the function, and integer kernels need no other. Where an
    operator such as cat wants one range for several tensors, it is found by calibration: the others may be wider.
    """
    from torchao.quantization.pt2e.quantizer import FixedQParamsQuantizationSpec, QuantizationSpec
    from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

    whole = FixedQParamsQuantizationSpec(
        dtype=torch.int8, scale=1 / 255, zero_point=-128, quant_min=-128, quant_max=127, qscheme=torch.per_tensor_affine
    )
    notes = {node: node.meta[Q_ANNOTATION_KEY] for node in graph.graph.nodes if Q_ANNOTATION_KEY in node.meta}
    shared = {each for note in notes.values() for each in _shared_from(note)}
    for node, note in notes.items():
        for feed, spec in note.input_qspec_map.items():
            alone = isinstance(spec, QuantizationSpec) and not shared & {feed, (feed, node)}
            if (feed.target in _SQUASHED or _GATE in feed.meta) and alone:
                note.input_qspec_map[feed] = whole
        if _GATE in node.meta and isinstance(note.output_qspec, QuantizationSpec):
            note.output_qspec = whole
    return graph


def _shared_from(note: "QuantizationAnnotation") -> Iterator[fx.Node | tuple[fx.Node, fx.Node]]:
    """The nodes and edges whose range an operator takes for its own."""
    from torchao.quantization.pt2e.quantizer import SharedQuantizationSpec

    for spec in (*note.input_qspec_map.values(), note.output_qspec):
        if isinstance(spec, SharedQuantizationSpec):
            yield spec.edge_or_node


def _annotate_tables(graph: fx.GraphModule) -> None:
    """Embedding tables as ExecuTorch's kernel takes them: uint8, each row with a scale and a zero point in float."""
    from torchao.quantization.pt2e import PerChannelMinMaxObserver
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec
    from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

    rows = QuantizationSpec(
        dtype=torch.uint8,
        qscheme=torch.per_channel_affine_float_qparams,
        ch_axis=0,
        observer_or_fake_quant_ctr=PerChannelMinMaxObserver,
    )
    for node in graph.graph.nodes:
        if node.target is _TABLE and Q_ANNOTATION_KEY not in node.meta:
            node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(input_qspec_map={node.args[0]: rows}, _annotated=True)


def take_ranges(prepared: fx.GraphModule, observed: fx.GraphModule) -> None:
    """Give the fake quantizers of activations the ranges that calibration found.

    Those of a single tensor go on following it. One of several (a block of DenseNet; a picture and its mean) would
    drift to their average, and cut off the widest: it stays as it is.
    """
    from torchao.quantization.pt2e import HistogramObserver

    modules = [prepared.get_submodule(node.target) for node in prepared.graph.nodes if node.op == "call_module"]
    for name, observer in observed.named_children():
        if isinstance(observer, HistogramObserver):
            fake = prepared.get_submodule(name)
            _set_range(fake, *observer.calculate_qparams())
            if modules.count(fake) > 1:
                fake.disable_observer()
    for fake in _asked_by_hard_swishes(prepared):
        _set_range(fake, *_with_three(fake))


def _set_range(fake: nn.Module, scale: torch.Tensor, zero_point: torch.Tensor) -> None:
    limits = fake.activation_post_process
    limits.min_val.copy_(((limits.quant_min - zero_point) * scale).squeeze())
    limits.max_val.copy_(((limits.quant_max - zero_point) * scale).squeeze())
    fake.scale.copy_(scale)
    fake.zero_point.copy_(zero_point)


def freeze_ranges(prepared: fx.GraphModule) -> None:
    """Those that the device will find out anew in each inference go on doing so."""
    from torchao.quantization.pt2e import FakeQuantizeBase

    for fake in _asked_by_hard_swishes(prepared):
        _set_range(fake, *_with_three(fake))  # what is trained from here on is what is kept
    for fake in prepared.modules():
        if isinstance(fake, FakeQuantizeBase) and not fake.is_dynamic:
            fake.disable_observer()


def converted(prepared: fx.GraphModule) -> fx.GraphModule:
    """An int8 copy: flipping the graph in training to eval would set every dropout to 0.5 (torchao issue 2980)."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    observed = _copied(prepared)
    _measure_tables(observed)
    _tell_three(observed)
    module: fx.GraphModule = convert_pt2e(observed)
    for node in module.graph.nodes:
        if node.target in _HARD_SIGMOIDS:
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

    None where cat puts them beside others: XNNPACK loads no file in which the steps of these differ.
    """
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer_utils import _is_share_obs_or_fq_op as moves

    found, left = [], [rounding]
    while left:
        found.append(each := left.pop())
        readers = [user for real in each.users for user in real.users]
        if any(user.target is aten.cat.default for user in readers):
            return []
        kept = [user for user in readers if moves(user.target) and user.target not in _MEANS]
        left += [again for user in kept for again in _roundings(user) if again.args[1:3] == each.args[1:3]]
    return found


def _roundings(node: fx.Node) -> list[fx.Node]:
    return [user for user in node.users if user.target is decomposed.quantize_per_tensor.default]


def _round_biases(module: fx.GraphModule) -> None:
    """Biases as integer kernels have them, in steps of a product of input and weight: they add up such products."""
    for layer in [node for node in module.graph.nodes if node.target in WEIGHTED and len(node.args) > 2]:
        inputs, weight, bias = layer.args[:3]
        fixed = inputs.target is decomposed.dequantize_per_tensor.default  # the range, by calibration
        int8 = fixed and weight.target is decomposed.dequantize_per_channel.default
        if int8 and own(module, bias):
            steps, value = inputs.args[1] * tensor_of(module, weight.args[1]), tensor_of(module, bias)
            if steps.shape == value.shape:  # they are not in a transposed convolution with groups
                value.copy_((value / steps).round() * steps)


def _tell_three(observed: fx.GraphModule) -> None:
    """Let -3, where HardSwish has a corner, be among the numbers that it may be asked for, and 3 in as many steps.

    Integer kernels then compute HardSwish itself, not nearly so. Only where that makes the steps hardly coarser.
    """
    for observer in _asked_by_hard_swishes(observed):
        found = _with_three(observer)
        observer.calculate_qparams = lambda found=found: found


def _asked_by_hard_swishes(prepared: fx.GraphModule) -> "list[Any]":
    """The observers of what HardSwish reads. Where other tensors have the same range by need (the input of a MaxPool,
    what is put side by side) it is theirs too, and kept.
    """
    calls = [node for node in prepared.graph.nodes if node.op == "call_module"]
    modules = [prepared.get_submodule(node.target) for node in calls]
    return [
        module
        for node, module in zip(calls, modules, strict=True)
        if any(user.target in _HARD_SWISHES for user in node.users)
        and modules.count(module) == 1
        and not module.is_dynamic
    ]


def _with_three(observer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    scale, zero = observer.calculate_qparams()
    step, origin = with_three(float(scale), int(zero), observer.quant_min, observer.quant_max)
    return torch.full_like(scale, step), torch.full_like(zero, origin)


def with_three(scale: float, zero: int, least: int, most: int) -> tuple[float, int]:
    """A scale of 3 / n and a zero point that hold the same range to half a step, and -3.

    What they were where the range ends above -3, or the steps would be more than a twentieth coarser.

    >>> with_three(0.07, -40, -128, 127)
    (0.07142857142857142, -42)
    >>> with_three(1 / 128, 0, -128, 127)
    (0.0078125, 0)
    """
    low, high = (least - zero) * scale, (most - zero) * scale
    fewest = math.ceil(3 / (scale * _COARSER))
    for steps in range(int(3 / scale * (1 + _ROUNDED)), fewest - 1, -1):
        step = 3 / steps
        origin = max(round(least - low / step), least + steps)
        if origin <= most and (most - origin) * step >= high - step / 2:
            return step, origin
    return scale, zero


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
    for node in [node for node in observed.graph.nodes if node.target is _TABLE]:
        observer = observed.get_submodule(node.args[0].target) if node.args[0].op == "call_module" else None
        if observer:
            observer.reset_min_max_vals()
            observer(tensor_of(observed, node.args[0].args[0]))


def _exported(candidate: "Candidate") -> fx.GraphModule:
    graph: fx.GraphModule = candidate.program().module(check_guards=False)
    return graph


def _layers(graph: fx.GraphModule, wrapper: str) -> dict[fx.Node, tuple[str, ...]]:
    """For each node the modules it lies in, by their names in the candidate, the outermost first."""
    stacks = {node: node.meta.get("nn_module_stack", {}).values() for node in graph.graph.nodes}
    skip = f"{wrapper}." if wrapper else ""
    return {
        node: tuple(name.removeprefix(skip) for name, _ in stack if name not in ("", wrapper))
        for node, stack in stacks.items()
    }


def _leave_float(
    graph: fx.GraphModule, layers: dict[fx.Node, tuple[str, ...]], patterns: tuple[str, ...], embeddings: bool
) -> None:
    weighted = [node for node in graph.graph.nodes if node.target in _LAYERS]
    check_patterns(patterns, [layers[node][-1] for node in weighted if layers[node]], "layers with weights")
    chosen = {node for node, names in layers.items() if matches(names[-1] if names else "", patterns)}
    chosen |= {node for node in weighted if node.target is _TABLE and not embeddings}
    if weighted and chosen.issuperset(weighted) and EVERYTHING not in patterns:
        advice = f"name fewer, leave the stage out, or say that you mean it: fp32: ['{EVERYTHING}']"
        raise StageError("fp32 names every layer: nothing is left to quantize", advice)
    for node in graph.graph.nodes:
        if node in chosen:
            _keep_from_quantizer(node)


def _keep_from_quantizer(node: fx.Node) -> None:
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation
    from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

    node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(_annotated=True)


def _plain_relu(node: fx.Node) -> None:
    """ReLU6 is not fused by the quantizer, ReLU is: it is one until the quantizer has seen it."""
    limit = _upper_limit(node)
    if limit is not None:
        node.meta[_CEILING] = limit
        node.target, node.args = aten.relu.default, node.args[:1]


def _plain_gate(graph: fx.GraphModule, node: fx.Node) -> None:
    """The HardSigmoid of a layer that gates something is a ReLU, too, until the quantizer has seen it.

    Then nothing is rounded between the two, and `_fold_gate` can take it into the layer.
    """
    from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

    if node.target in _HARD_SIGMOIDS and all(user.target in _PRODUCTS for user in node.users):
        layer = node.args[0]
        takes = layer.target in WEIGHTED and len(layer.users) == 1 and len(layer.args) > 2
        int8 = Q_ANNOTATION_KEY not in node.meta and Q_ANNOTATION_KEY not in layer.meta
        if takes and int8 and own(graph, *layer.args[1:3]):
            node.target, node.meta[_GATE] = aten.relu.default, True


def _upper_limit(node: fx.Node) -> float | None:
    if node.target in (aten.relu6.default, aten.relu6_.default):
        return 6.0
    if node.target in (aten.hardtanh.default, aten.hardtanh_.default) and len(node.args) == 3 and node.args[1] == 0:
        return float(node.args[2])
    return None


def _clamp(prepared: fx.GraphModule, relu: fx.Node) -> None:
    """Put the ceiling back: after the ReLU where it is observed, in its place where it stays float."""
    limit = relu.meta.pop(_CEILING)
    if not any(user.op == "call_module" for user in relu.users):
        relu.target, relu.args = aten.hardtanh.default, (relu.args[0], 0.0, limit)
        return
    with prepared.graph.inserting_after(relu):
        clamp = prepared.graph.call_function(aten.hardtanh.default, (relu, 0.0, limit))
    clamp.meta = {key: value for key, value in relu.meta.items() if key in ("val", "nn_module_stack", "stack_trace")}
    relu.replace_all_uses_with(clamp, delete_user_cb=lambda user: user is not clamp)


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
