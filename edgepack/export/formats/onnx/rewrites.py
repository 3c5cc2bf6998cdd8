"""Rewrite the quantized graph so that ONNX Runtime has one fast integer operator for each layer.

    DequantizeLinear -> Conv -> Relu -> QuantizeLinear      # as torch's exporter writes it
    DequantizeLinear -> Conv -> QuantizeLinear              # as the file says it: one QLinearConv

Every function takes a model of onnx_ir and changes it in place. All but three are exact: run operator by operator, the
file answers bit for bit as before. `swishes` and `average_pools` move a number by one step of its eight bits at most.
`aligned_stems` is exact in integers, as ONNX Runtime fuses it; in float it sums the same products in another order. The
limits of the runtime that they get round were measured on 1.32.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy
import onnx_ir as ir
from numpy.typing import NDArray

_BLOCK = 4  # input channels per step of MLAS's direct int8 convolution; other numbers are copied first
_WIDE = 3  # a wider kernel is rewritten as one over blocks of 2 x 2 pixels


def unsigned_activations(model: ir.Model) -> None:
    """Store int8 activations as uint8, 128 higher: the same values, in the form that x86 can fuse.

    Weights stay int8. Source of the limitation: microsoft/onnxruntime issue 12487.
    """
    for node in model.graph:
        quantizes = node.op_type == "QuantizeLinear"
        if quantizes or (node.op_type == "DequantizeLinear" and node.inputs[0].const_value is None):
            zero = node.inputs[2]
            if zero.const_value.dtype.name == "INT8" and not zero.const_value.shape.dims:
                higher = numpy.uint8(int(zero.const_value.numpy()) + 128)
                node.replace_input_with(2, _constant(model, f"{zero.name}_uint8", higher))
                stored = node.outputs[0] if quantizes else node.inputs[0]
                stored.dtype = node.inputs[2].dtype


def enforced_limits(model: ir.Model) -> None:
    """Remove a Relu or Clip if every quantization of its result clips at the same limits or closer ones."""
    for node in list(model.graph):
        if node.op_type in ("Relu", "Clip"):
            limits, result = _limits(node), node.outputs[0]
            uses = [] if limits is None or result.is_graph_output() else [use.node for use in result.uses()]
            if limits and uses and all(use.op_type == "QuantizeLinear" and _within(use, *limits) for use in uses):
                _replace(model, node, node.inputs[0])


def average_pools(model: ir.Model) -> None:
    """Write the mean over an image as GlobalAveragePool: the only form with an integer operator.

    The two sum in another order: a mean half way between two steps may round the other way. With the steps that
    `convert.converted` gives to means there is none, except for means that go into a cat.
    """
    for node in list(model.graph):
        result = _quantized(node.outputs[0]) if node.op_type == "ReduceMean" else None
        if result is None or not _dequantized(node.inputs[0]) or not _over_pictures(node):
            continue
        [pooled] = _before(model, node, "GlobalAveragePool", node.inputs[0])
        if not _integer(node, "keepdims", 1):
            [rounded] = _before(model, result, "QuantizeLinear", pooled, *result.inputs[1:])
            [flat] = _before(model, result, "Flatten", rounded, axis=1)
            _replace(model, result, flat)
        _replace(model, node, pooled)


def _over_pictures(mean: ir.Node) -> bool:
    axes = mean.inputs[1].const_value if len(mean.inputs) > 1 and mean.inputs[1] is not None else None
    rank = len(mean.inputs[0].shape) if mean.inputs[0].shape is not None else 0
    return rank == 4 and axes is not None and sorted(axis % 4 for axis in axes.numpy().tolist()) == [2, 3]


def hard_sigmoids(model: ir.Model) -> None:
    """Write a HardSigmoid quantized to 0..1 as an addition: the quantization itself clips the rest.

    It is left as it is if one of its 256 possible inputs would be rounded differently.
    """
    for node in list(model.graph):
        result = _quantized(node.outputs[0]) if node.op_type == "HardSigmoid" else None
        asked = _dequantized(node.inputs[0]) if result is not None else None
        if result is not None and asked is not None and _torchs(node) and _unit(result):
            scale = _same_rounding(asked)
            if scale is not None:
                added = _three_more(model, node, result.inputs[2])
                _replace(model, node, added)
                result.replace_input_with(1, _constant(model, "six_255ths", scale))


def _same_rounding(asked: ir.Node) -> NDArray[Any] | None:
    """Return a step near 6 / 255 for which (x + 3) / step rounds as (x / 6 + 1 / 2) * 255 for every x, or None."""
    scale, zero = (value.const_value.numpy() for value in asked.inputs[1:3])
    limits, one = numpy.iinfo(zero.dtype), numpy.float32(1)
    x = (numpy.arange(limits.min, limits.max + 1) - int(zero)).astype(numpy.float32) * numpy.float32(scale)
    wanted = numpy.rint(numpy.clip(numpy.float32(1 / 6) * x + one / 2, 0, 1) / numpy.float32(1 / 255))
    middle = numpy.float32(6 / 255)
    for step in (middle, numpy.nextafter(middle, one * 0), numpy.nextafter(middle, one)):
        if (numpy.clip(numpy.rint((x + 3 * one) / step), 0, 255) == wanted).all():
            return numpy.asarray(step)
    return None


def hard_swishes(model: ir.Model) -> None:
    """Write x * HardSigmoid(x) in integers: a Clip and a Mul in place of four float passes.

    If x has exact values for -3 and 3, x clipped there is HardSigmoid(x) with another scale and zero point. It is left
    as it is if they are not exact, or if one value of x would be rounded differently.
    """
    for node in list(model.graph):
        result = _quantized(node.outputs[0]) if node.op_type == "HardSwish" else None
        asked = _dequantized(node.inputs[0]) if result is not None else None
        span = _three(asked) if asked is not None else None
        if result is None or asked is None or span is None or not _same_swish(asked, result, span):
            continue
        integers, scale, zero = asked.inputs
        kind, middle = zero.const_value.numpy().dtype, int(zero.const_value.numpy())
        low = _constant(model, f"low_{middle - span}_{kind}", kind.type(middle - span))
        most = min(middle + span, int(numpy.iinfo(kind).max))
        high = _constant(model, f"high_{most}_{kind}", kind.type(most))
        [kept] = _before(model, node, "Clip", integers, low, high)
        sixth = _constant(model, f"{scale.name}.sixth", scale.const_value.numpy() / numpy.float32(6))
        [factor] = _before(model, node, "DequantizeLinear", kept, sixth, low)
        [product] = _before(model, node, "Mul", node.inputs[0], factor)
        _replace(model, node, product)


def _three(asked: ir.Node) -> int | None:
    """Return how many steps 3 is, if that is a whole number and -3 is representable."""
    scale, zero = (value.const_value.numpy() for value in asked.inputs[1:3])
    if zero.shape:
        return None
    steps = round(3 / float(scale))
    fits = math.isclose(steps * float(scale), 3, rel_tol=1e-6) and int(zero) - steps >= numpy.iinfo(zero.dtype).min
    return steps if fits else None


def _same_swish(asked: ir.Node, result: ir.Node, span: int) -> bool:
    scale, zero = (value.const_value.numpy() for value in asked.inputs[1:3])
    step, origin = (value.const_value.numpy() for value in result.inputs[1:3])
    if origin.shape:
        return False
    limits, steps = numpy.iinfo(zero.dtype), numpy.arange(256) + numpy.iinfo(zero.dtype).min - int(zero)
    x, sixth = steps.astype(numpy.float32) * numpy.float32(scale), numpy.float32(1 / 6)
    before = x * numpy.clip(sixth * x + numpy.float32(0.5), 0, 1)
    factor = (numpy.clip(steps, -span, min(span, limits.max - int(zero))) + span).astype(numpy.float32)
    after = x * (factor * (numpy.float32(scale) / numpy.float32(6)))
    return bool((numpy.rint(before / step) == numpy.rint(after / step)).all())


def swishes(model: ir.Model) -> None:
    """Write x * Sigmoid(x) in integers: the Sigmoid becomes a table of 256 values.

    Not exact: rounding to 255ths changes the result by at most 0.0123 before its own rounding.
    """
    for node in list(model.graph):
        gate = next((value for value in node.inputs if _gate(value)), None) if node.op_type == "Mul" else None
        result = _quantized(node.outputs[0]) if gate is not None else None
        if gate is not None and result is not None:
            scale = _constant(model, "one_255th", numpy.float32(1 / 255))
            lowest = _constant(model, *_lowest(result.inputs[2]))
            [rounded] = _before(model, node, "QuantizeLinear", gate, scale, lowest)
            [factor] = _before(model, node, "DequantizeLinear", rounded, scale, lowest)
            node.replace_input_with(list(node.inputs).index(gate), factor)


def aligned_stems(model: ir.Model) -> None:
    """Rewrite a convolution of images so that its number of input channels is a multiple of what MLAS reads at once.

    Otherwise its inputs are gathered for every pixel (1.32, x86: twice the time of the products).
    """
    for node in list(model.graph):
        if node.op_type == "Conv" and _plain(node):
            picture, weights = _dequantized(node.inputs[0]), _dequantized(node.inputs[1])
            if picture and weights and weights.inputs[0].const_value is not None:
                _align(model, node, picture, weights)


def sums_before_norms(model: ir.Model) -> None:
    """Add residuals by Sum, which is the same as Add, but ONNX Runtime does not fuse it with LayerNormalization.

    The fused operator takes eight times as long as both (1.32, x86, 128 x 384).
    """
    for node in model.graph:
        added = node.inputs[0].producer() if node.op_type == "LayerNormalization" else None
        if added is not None and added.op_type == "Add" and not any(_bias(value) for value in added.inputs):
            added.op_type = "Sum"


def unused(model: ir.Model) -> None:
    """Remove unused operators and constants, and the shapes of intermediate values, which are inferred."""
    for node in reversed(list(model.graph)):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            model.graph.remove(node, safe=True)
    for name in [name for name, value in model.graph.initializers.items() if not value.uses()]:
        del model.graph.initializers[name]
    for value in _between(model):
        value.shape = value.type = None


def _between(model: ir.Model) -> Iterator[ir.Value]:
    for node in model.graph:
        yield from (value for value in node.outputs if not value.is_graph_output())


def _align(model: ir.Model, conv: ir.Node, picture: ir.Node, weights: ir.Node) -> None:
    kernel = weights.inputs[0].const_value.numpy()
    channels, (height, width) = kernel.shape[1], kernel.shape[2:]
    if channels % _BLOCK == 0 or max(height, width) == 1:
        return
    integers, size = picture.inputs[0], conv.inputs[0].shape
    strides, pads = _list(conv, "strides", [1, 1]), _list(conv, "pads", [0, 0, 0, 0])
    halves = strides == [2, 2] and size is not None and all(isinstance(n, int) and n % 2 == 0 for n in size.dims[2:])
    if halves and max(height, width) > _WIDE:
        [wider] = _before(model, picture, "SpaceToDepth", integers, blocksize=2)
        kernel, pads = _over_blocks(kernel, pads, [int(n) for n in size.dims[2:]])
        strides = [1, 1]
    else:
        missing = -channels % _BLOCK
        amounts = _constant(model, f"{missing}_channels", numpy.array([0, 0, 0, 0, 0, missing, 0, 0]))
        [wider] = _before(model, picture, "Pad", integers, amounts, picture.inputs[2])
        kernel = numpy.pad(kernel, ((0, 0), (0, missing), (0, 0), (0, 0)))
    [real] = _before(model, picture, "DequantizeLinear", wider, *picture.inputs[1:])
    conv.replace_input_with(0, real)
    stored = _constant(model, f"{weights.inputs[0].name}.aligned", kernel)
    [whole] = _before(model, conv, "DequantizeLinear", stored, *weights.inputs[1:], axis=0)
    conv.replace_input_with(1, whole)
    for name, value in (("kernel_shape", list(kernel.shape[2:])), ("strides", strides), ("pads", pads)):
        conv.attributes[name] = ir.AttrInt64s(name, value)


def _over_blocks(kernel: NDArray[Any], pads: list[int], size: list[int]) -> tuple[NDArray[Any], list[int]]:
    """Return (weights, pads) with which a stride-1 convolution over blocks of 2 x 2 pixels does what the stride-2
    `kernel` does over the pixels of an image of this `size`.
    """
    spans = [_span(kernel.shape[2 + axis], pads[axis], pads[2 + axis], size[axis]) for axis in (0, 1)]
    (before_y, after_y, tall), (before_x, after_x, wide) = spans
    outputs, channels = kernel.shape[:2]
    blocks = numpy.zeros((outputs, 2, 2, channels, tall, wide), kernel.dtype)
    for y in range(kernel.shape[2]):
        for x in range(kernel.shape[3]):
            row, column = y - pads[0] + 2 * before_y, x - pads[1] + 2 * before_x
            blocks[:, row % 2, column % 2, :, row // 2, column // 2] = kernel[:, :, y, x]
    return blocks.reshape(outputs, 4 * channels, tall, wide), [before_y, before_x, after_y, after_x]


def _span(kernel: int, before: int, after: int, size: int) -> tuple[int, int, int]:
    """Return the number of padding blocks before, of padding blocks after, and of blocks in the kernel."""
    blocks, last = math.ceil(before / 2), (kernel - 1 - before) // 2
    results = (size + before + after - kernel) // 2 + 1
    return blocks, max(0, results + last - size // 2), blocks + last + 1


def _plain(conv: ir.Node) -> bool:
    pictures = conv.inputs[1].shape is not None and len(conv.inputs[1].shape) == 4
    explicit = conv.attributes["auto_pad"].as_string() == "NOTSET" if "auto_pad" in conv.attributes else True
    return pictures and explicit and _integer(conv, "group", 1) and _list(conv, "dilations", [1, 1]) == [1, 1]


def _three_more(model: ir.Model, node: ir.Node, zero: ir.Value) -> ir.Value:
    """Add 3 to the node's input."""
    kind = zero.const_value.numpy().dtype
    constants = [_constant(model, f"{name}_{kind}", kind.type(value)) for name, value in (("one", 1), ("nothing", 0))]
    scale = _constant(model, "three", numpy.float32(3))
    [three] = _before(model, node, "DequantizeLinear", constants[0], scale, constants[1])
    [added] = _before(model, node, "Add", node.inputs[0], three)
    return added


def _lowest(zero: ir.Value) -> tuple[str, NDArray[Any]]:
    kind = zero.const_value.numpy().dtype
    return f"lowest_{kind}", kind.type(numpy.iinfo(kind).min)


def _torchs(sigmoid: ir.Node) -> bool:
    """Return whether it is clip(x / 6 + 1 / 2, 0, 1): ONNX allows other constants."""
    slope, middle = (_real(sigmoid, name, default) for name, default in (("alpha", 0.2), ("beta", 0.5)))
    return math.isclose(slope, 1 / 6, rel_tol=1e-6) and middle == 0.5


def _real(node: ir.Node, name: str, default: float) -> float:
    return node.attributes[name].as_float() if name in node.attributes else default


def _unit(quantize: ir.Node) -> bool:
    """Return whether its values are 0 to 1 in steps of 1 / 255."""
    scale, zero = (value.const_value.numpy() for value in quantize.inputs[1:3])
    return bool(scale == numpy.float32(1 / 255) and zero == numpy.iinfo(zero.dtype).min)


def _limits(node: ir.Node) -> tuple[float, float] | None:
    """Return the limits of a Relu or Clip; None if they are not known before it runs."""
    if node.op_type == "Relu":
        return 0.0, math.inf
    bounds = [*node.inputs[1:3], None, None][:2]
    if any(bound is not None and bound.const_value is None for bound in bounds):
        return None
    low, high = (None if bound is None else float(bound.const_value.numpy()) for bound in bounds)
    return -math.inf if low is None else low, math.inf if high is None else high


def _within(quantize: ir.Node, low: float, high: float) -> bool:
    """Return whether the limits round to its first and last value, or lie beyond."""
    scale, zero = (value.const_value.numpy() for value in quantize.inputs[1:3])
    if zero.shape:
        return False
    first, last = (numpy.rint(numpy.float32(limit) / scale) + int(zero) for limit in (low, high))
    return bool(first <= numpy.iinfo(zero.dtype).min and last >= numpy.iinfo(zero.dtype).max)


def _dequantized(value: ir.Value) -> ir.Node | None:
    node = value.producer()
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _quantized(value: ir.Value) -> ir.Node | None:
    """Return the QuantizeLinear of a value that nothing else reads."""
    uses = [] if value.is_graph_output() else [use.node for use in value.uses()]
    return uses[0] if len(uses) == 1 and uses[0].op_type == "QuantizeLinear" else None


def _gate(value: ir.Value) -> bool:
    """Return whether it is the Sigmoid of what it is multiplied by."""
    node = value.producer()
    if node is None or node.op_type != "Sigmoid" or len(value.uses()) != 1 or not _dequantized(node.inputs[0]):
        return False
    [use] = value.uses()
    return node.inputs[0] in use.node.inputs


def _bias(value: ir.Value) -> bool:
    return value.const_value is not None and len(value.shape) <= 1


def _integer(node: ir.Node, name: str, default: int) -> bool:
    """Return whether it is 1."""
    return bool((node.attributes[name].as_int() if name in node.attributes else default) == 1)


def _list(node: ir.Node, name: str, default: list[int]) -> list[int]:
    return list(node.attributes[name].as_ints()) if name in node.attributes else default


def _constant(model: ir.Model, name: str, value: Any) -> ir.Value:
    """Return an initializer of this value: the existing one, or a new one with a name that the model does not use."""
    array, known, free = numpy.asarray(value), model.graph.initializers, f"edgepack.{name}"
    while free in known and not _is(known[free], array):
        free += "."
    if free not in known:
        tensor = ir.tensor(array, name=free)
        known[free] = ir.Value(name=free, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=tensor.shape)
    return known[free]


def _is(constant: ir.Value, array: NDArray[Any]) -> bool:
    held = constant.const_value.numpy()
    return bool(held.dtype == array.dtype and numpy.array_equal(held, array))


def _before(model: ir.Model, node: ir.Node, operator: str, *inputs: ir.Value, **settings: int) -> list[ir.Value]:
    """Insert a new operator before `node` and return its outputs."""
    attributes = [ir.AttrInt64(name, value) for name, value in settings.items()]
    made = ir.Node("", operator, inputs, attributes)
    model.graph.insert_before(node, made)
    return list(made.outputs)


def _replace(model: ir.Model, node: ir.Node, value: ir.Value) -> None:
    node.outputs[0].replace_all_uses_with(value)
    model.graph.remove(node, safe=True)
