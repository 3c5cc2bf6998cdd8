"""Which tensors XNNPACK's kernels want in int8, noted in a graph's nodes as torchao reads it."""

from collections.abc import Iterator
from typing import Any

import torch
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
    QuantizationConfig,
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)
from torch import fx
from torchao.quantization.pt2e import FakeQuantize, PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantizer import (
    FixedQParamsQuantizationSpec,
    QuantizationAnnotation,
    QuantizationSpec,
    SharedQuantizationSpec,
)
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from edgepack.compress.stages.quantize.capture import HARD_SIGMOIDS, LSTM, TABLE, aten
from edgepack.compress.stages.quantize.contract import Scheme
from edgepack.compress.stages.quantize.low_bits import (
    GroupedRounding,
    Groups,
    TokenRounding,
    check_groups,
    table_groups,
    weight_groups,
)
from edgepack.compress.stages.quantize.quantizers.xnnpack import limits
from edgepack.core.errors import StageError
from edgepack.models.structure.folding import CONVOLUTIONS, TRANSPOSED

_SQUASHED = (*HARD_SIGMOIDS, aten.sigmoid.default)


class Annotator(XNNPACKQuantizer):  # type: ignore[misc]
    def __init__(self, scheme: Scheme, *, training: bool) -> None:
        super().__init__()
        self.scheme, self.training = scheme, training
        self.set_global(_low_bits(scheme, training) if scheme.int4 else _int8(scheme, training))
        # Searching for batch norm takes a second and a half, and none is left.
        wanted = [known for known in XNNPACKQuantizer.SUPPORTED_PATTERNS if "bn" not in known.name]
        self.SUPPORTED_PATTERNS = [known for known in wanted if not scheme.linear_only or "linear" in known.name]

    def transform_for_annotation(self, model: fx.GraphModule) -> fx.GraphModule:
        """Raises StageError for dynamic convolutions: ONNX Runtime has no fast kernel for them.

        Those of a vision transformer, which make its tokens, stay float.
        """
        convolutions = not self.scheme.linear_only and any(node.target in CONVOLUTIONS for node in model.graph.nodes)
        if self.scheme.dynamic and convolutions:
            raise StageError(
                "activations cannot be dynamic in a model with convolutions: the runtimes have no kernels for them",
                "remove `activations`, or set it to static",
            )
        check_groups(model, self.scheme)
        limits.hide(model)
        return super().transform_for_annotation(model)

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        _annotate_tables(model, self.scheme, training=self.training)
        if not self.scheme.linear_only:
            _annotate_recurrent(model, self.global_config.weight)
        super().annotate(model)
        _give_whole_ranges(model)
        return model


def _int8(scheme: Scheme, training: bool) -> Any:
    most = 2 ** (scheme.bits - 1) - 1  # symmetric: the largest weight of a channel is exact, whatever its sign
    return get_symmetric_quantization_config(
        is_per_channel=True, is_qat=training, is_dynamic=scheme.dynamic, weight_qmin=-most, weight_qmax=most
    )


def _low_bits(scheme: Scheme, training: bool) -> QuantizationConfig:
    """Describe int4 weights in groups, and int8 activations whose ranges are those of a token in each inference."""
    activation = QuantizationSpec(
        dtype=torch.int8,
        qscheme=torch.per_tensor_affine,  # a condition of XNNPACK's quantizer; nothing reads it
        observer_or_fake_quant_ctr=TokenRounding.with_args(training=training),
    )
    weight = _in_groups(weight_groups(scheme.group), training)
    return QuantizationConfig(activation, None, weight, None, training)


def _in_groups(groups: Groups, training: bool) -> QuantizationSpec:
    """Describe what stands before a tensor. Where two layers share it, torchao gives both the rounding of the first
    unless the facts here differ: a table that is also the weight of the last layer is rounded for each.
    """
    least, most = groups.limits
    return QuantizationSpec(
        dtype=torch.int8,
        quant_min=least,
        quant_max=most,
        qscheme=torch.per_channel_symmetric,
        ch_axis=int(groups.negative),
        observer_or_fake_quant_ctr=GroupedRounding.with_args(groups=groups, training=training),
    )


def _annotate_tables(graph: fx.GraphModule, scheme: Scheme, *, training: bool) -> None:
    """Annotate embedding tables as ExecuTorch's kernels need: uint8, each row with a float scale and zero point; or
    with fewer bits, in groups.
    """
    rows = QuantizationSpec(
        dtype=torch.uint8,
        qscheme=torch.per_channel_affine_float_qparams,
        ch_axis=0,
        observer_or_fake_quant_ctr=PerChannelMinMaxObserver,
    )
    if scheme.table_bits < 8:
        rows = _in_groups(table_groups(scheme.table_bits, scheme.group), training)
    for node in graph.graph.nodes:
        if node.target is TABLE and Q_ANNOTATION_KEY not in node.meta:
            node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(input_qspec_map={node.args[0]: rows}, _annotated=True)


def _annotate_recurrent(graph: fx.GraphModule, rows: QuantizationSpec) -> None:
    """Annotate the weights of LSTM layers, each row of each gate with a scale. What they multiply is rounded by the
    runtimes themselves, step by step: the graph has one operator for all steps.
    """
    for node in graph.graph.nodes:
        if node.target is LSTM and Q_ANNOTATION_KEY not in node.meta:
            weights = [each for each in node.args[2] if each.meta["val"].dim() == 2]
            node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(
                input_qspec_map=dict.fromkeys(weights, rows), _annotated=True
            )


def _give_whole_ranges(graph: fx.GraphModule) -> None:
    """Give outputs that lie between 0 and 1 by definition that whole range, seen in calibration or not.

    The limits of the range are then those of HardSigmoid, and integer kernels need no clamp. Where an operator such as
    cat needs one range for several tensors, calibration finds it: the others may be wider.
    """
    whole = FixedQParamsQuantizationSpec(
        dtype=torch.int8, scale=1 / 255, zero_point=-128, quant_min=-128, quant_max=127, qscheme=torch.per_tensor_affine
    )
    notes = {node: node.meta[Q_ANNOTATION_KEY] for node in graph.graph.nodes if Q_ANNOTATION_KEY in node.meta}
    shared = {each for note in notes.values() for each in _shared_from(note)}
    for node, note in notes.items():
        for feed, spec in note.input_qspec_map.items():
            alone = isinstance(spec, QuantizationSpec) and not shared & {feed, (feed, node)}
            if (feed.target in _SQUASHED or limits.GATE in feed.meta) and alone:
                note.input_qspec_map[feed] = whole
        if limits.GATE in node.meta and isinstance(note.output_qspec, QuantizationSpec):
            note.output_qspec = whole


def _shared_from(note: QuantizationAnnotation) -> Iterator[fx.Node | tuple[fx.Node, fx.Node]]:
    """Yield the nodes and edges whose range an operator shares."""
    for spec in (*note.input_qspec_map.values(), note.output_qspec):
        if isinstance(spec, SharedQuantizationSpec):
            yield spec.edge_or_node


def scale_along_outputs(prepared: fx.GraphModule) -> None:
    """Replace the weight fake quantizers of transposed convolutions by ones per output, their second dimension:
    torchao's use the first (0.18), and a file with one scale per input does not load.
    """
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
