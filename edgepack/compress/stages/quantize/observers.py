"""Which tensors are quantized, and where their ranges come from."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from edgepack.compress.stages.quantize.capture import CEILING, GATE, HARD_SIGMOIDS, TABLE, aten
from edgepack.core.errors import StageError
from edgepack.models.structure.folding import CONVOLUTIONS, TRANSPOSED

if TYPE_CHECKING:
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation

_SQUASHED = (*HARD_SIGMOIDS, aten.sigmoid.default)
_HARD_SWISHES = (aten.hardswish.default, aten.hardswish_.default)
_COARSER = 1.05  # times as large a step is given for a HardSwish in integers
_ROUNDED = 1e-6  # a share by which a scale in float32 is off


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
    for node in [node for node in prepared.graph.nodes if CEILING in node.meta]:
        _clamp(prepared, node)
    for node in [node for node in prepared.graph.nodes if node.meta.pop(GATE, False)]:
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
            if (feed.target in _SQUASHED or GATE in feed.meta) and alone:
                note.input_qspec_map[feed] = whole
        if GATE in node.meta and isinstance(note.output_qspec, QuantizationSpec):
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
        if node.target is TABLE and Q_ANNOTATION_KEY not in node.meta:
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
    for fake in asked_by_hard_swishes(prepared):
        _set_range(fake, *is_swish_input(fake))


def _set_range(fake: nn.Module, scale: torch.Tensor, zero_point: torch.Tensor) -> None:
    limits = fake.activation_post_process
    limits.min_val.copy_(((limits.quant_min - zero_point) * scale).squeeze())
    limits.max_val.copy_(((limits.quant_max - zero_point) * scale).squeeze())
    fake.scale.copy_(scale)
    fake.zero_point.copy_(zero_point)


def freeze_ranges(prepared: fx.GraphModule) -> None:
    """Those that the device will find out anew in each inference go on doing so."""
    from torchao.quantization.pt2e import FakeQuantizeBase

    for fake in asked_by_hard_swishes(prepared):
        _set_range(fake, *is_swish_input(fake))  # what is trained from here on is what is kept
    for fake in prepared.modules():
        if isinstance(fake, FakeQuantizeBase) and not fake.is_dynamic:
            fake.disable_observer()


def asked_by_hard_swishes(prepared: fx.GraphModule) -> "list[Any]":
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


def is_swish_input(observer: Any) -> tuple[torch.Tensor, torch.Tensor]:
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


def _clamp(prepared: fx.GraphModule, relu: fx.Node) -> None:
    """Put the ceiling back: after the ReLU where it is observed, in its place where it stays float."""
    limit = relu.meta.pop(CEILING)
    if not any(user.op == "call_module" for user in relu.users):
        relu.target, relu.args = aten.hardtanh.default, (relu.args[0], 0.0, limit)
        return
    with prepared.graph.inserting_after(relu):
        clamp = prepared.graph.call_function(aten.hardtanh.default, (relu, 0.0, limit))
    clamp.meta = {key: value for key, value in relu.meta.items() if key in ("val", "nn_module_stack", "stack_trace")}
    relu.replace_all_uses_with(clamp, delete_user_cb=lambda user: user is not clamp)
