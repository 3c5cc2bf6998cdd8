"""Int8 and int4 as ONNX Runtime has kernels for them, where torch's exporter has no words for it.

    to_onnx = with_onnx_operators(module)                   # for torch.onnx.export, with TRANSLATIONS
    DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul   # what a Linear with dynamic activations becomes in the file
    ReduceMin, ReduceMax ... MatMulInteger -> Cast -> Sub -> Mul   # ... if each row has a range of its own
    MatMulNBits                                             # ... with int4 weights: it quantizes activations itself
    Gather -> Cast -> Sub -> Mul                            # and what an int8 embedding table does
    Gather -> BitShift, BitwiseAnd -> Concat -> ...         # one of 4 or 2 bits is unpacked first

ONNX Runtime makes one operator of the first row. Of a table it reads the rows that a text asks for, where a dequantized
table would be made float as a whole in each inference.
"""

import copy
import operator
from collections.abc import Callable
from typing import Any

import numpy
import onnx_ir as ir
import torch
import torch.ao.quantization.fx._decomposed  # the operators of quantized programs
from onnxscript import opset18 as onnx
from torch import Tensor, fx

from edgepack.models.structure.fx_graph import drop_unused, tensor_of

_MIDDLE = 128  # of uint8: where int8 has its 0

aten = torch.ops.aten
decomposed = torch.ops.quantized_decomposed
_BY_ROWS = decomposed.dequantize_per_channel.default
_IN_GROUPS = decomposed.dequantize_per_channel_group.default
_FLOAT = int(ir.DataType.FLOAT)
_INT8_ACTIVATIONS = 4  # accuracy_level of MatMulNBits: of int8, with a range for each group


@torch.library.custom_op("edgepack::quantize", mutates_args=())  # type: ignore[untyped-decorator]
def _quantize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return `x` as uint8 over the range of `x` and zero, its scale and zero point: ONNX's DynamicQuantizeLinear."""
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = ((high - low) / 255).clamp(min=torch.finfo(torch.float32).tiny)
    zero = (-low / scale).round().clamp(0, 255)
    return ((x / scale).round() + zero).clamp(0, 255).to(torch.uint8), scale, zero.to(torch.uint8)


@_quantize.register_fake  # type: ignore[untyped-decorator]
def _(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=torch.uint8), x.new_empty(()), x.new_empty((), dtype=torch.uint8)


@torch.library.custom_op("edgepack::multiply", mutates_args=())  # type: ignore[untyped-decorator]
def _multiply(x: Tensor, weight: Tensor, zero: Tensor) -> Tensor:
    """Return (x - zero) @ weight in int32, of uint8 [..., inputs] and int8 [inputs, outputs]: ONNX's MatMulInteger."""
    return (x.int() - zero.int()) @ weight.int()


@_multiply.register_fake  # type: ignore[untyped-decorator]
def _(x: Tensor, weight: Tensor, zero: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[1]), dtype=torch.int32)


@torch.library.custom_op("edgepack::unpack", mutates_args=())  # type: ignore[untyped-decorator]
def _unpack(packed: Tensor, bits: int) -> Tensor:
    """Return float32 [..., columns] of uint8 [..., columns * bits / 8], as `_packed` packs them."""
    return torch.cat([packed >> shift & 2**bits - 1 for shift in range(0, 8, bits)], -1).float()


@_unpack.register_fake  # type: ignore[untyped-decorator]
def _(packed: Tensor, bits: int) -> Tensor:
    return packed.new_empty((*packed.shape[:-1], packed.shape[-1] * 8 // bits), dtype=torch.float32)


def _unpacked(packed: Any, bits: int) -> Any:
    """Write `_unpack` in ONNX."""
    shifted = [packed, *(onnx.BitShift(packed, _byte(shift), direction="RIGHT") for shift in range(bits, 8, bits))]
    mask = _byte(2**bits - 1)
    last = shifted.pop()  # above it are zeros
    return onnx.Cast(onnx.Concat(*(onnx.BitwiseAnd(each, mask) for each in shifted), last, axis=-1), to=_FLOAT)


def _byte(value: int) -> Any:
    return onnx.Constant(value=ir.tensor(numpy.uint8(value)))


def _multiply_groups(x: Tensor, packed: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """Stand for x @ weight.T + bias of float [..., inputs]: ONNX Runtime's MatMulNBits. Not computed here.

    `packed` are the integers, 8 higher, uint8 [outputs, groups, bytes], the first of two in the low bits.
    """
    outputs, groups, half = packed.shape
    facts = {"K": 2 * groups * half, "N": outputs, "bits": 4, "block_size": 2 * half}
    result: Tensor = torch.onnx.ops.symbolic(
        "com.microsoft::MatMulNBits",
        (x, packed, scales, None, None, bias),
        {**facts, "accuracy_level": _INT8_ACTIVATIONS},
        dtype=torch.float32,
        shape=(*x.shape[:-1], outputs),
        version=1,
    )
    return result


TRANSLATIONS: dict[Any, Callable[..., Any]] = {
    torch.ops.edgepack.quantize.default: lambda x: onnx.DynamicQuantizeLinear(x),
    torch.ops.edgepack.unpack.default: _unpacked,
    torch.ops.edgepack.multiply.default: lambda x, weight, zero: onnx.MatMulInteger(x, weight, zero),
}


def with_onnx_operators(module: fx.GraphModule) -> fx.GraphModule:
    """Return a copy in which dynamic Linear layers and quantized embeddings are written in operators that ONNX has."""
    module = copy.deepcopy(module)
    quantized: dict[fx.Node, tuple[fx.Node, ...]] = {}
    for node in list(module.graph.nodes):
        if node.target is aten.linear.default and _made_by(node.args[1], _IN_GROUPS):
            _multiply_packed(module, node)
        elif node.target is aten.linear.default and _made_by(node.args[0], decomposed.dequantize_per_tensor.tensor):
            _multiply_integers(module, node, quantized)
        elif node.target is aten.linear.default and _made_by(node.args[0], decomposed.dequantize_per_token.default):
            _multiply_rows(module, node, quantized)
        elif node.target is aten.embedding.default and _made_by(node.args[0], _IN_GROUPS):
            _look_up_packed(module, node)
        elif node.target is aten.embedding.default and _made_by(node.args[0], _BY_ROWS):
            _look_up(module, node)
    drop_unused(module)
    return module


def _made_by(node: fx.Node, kind: Any) -> bool:
    return bool(node.target is kind)


def _multiply_integers(module: fx.GraphModule, linear: fx.Node, quantized: dict[fx.Node, tuple[fx.Node, ...]]) -> None:
    """Rewrite a dynamic Linear layer; layers that read the same activation share its int8 form."""
    rounded, weight, *bias = linear.args
    given = rounded.args[0].args[0]
    with module.graph.inserting_before(linear):
        call = module.graph.call_function
        if given not in quantized:
            parts = call(torch.ops.edgepack.quantize.default, (given,))
            quantized[given] = tuple(call(operator.getitem, (parts, place)) for place in range(3))
        integers, scale, zero = quantized[given]
        matrix = _constant(module, f"{linear.name}_weight", tensor_of(module, weight.args[0]).T.contiguous())
        sums = call(torch.ops.edgepack.multiply.default, (integers, matrix, zero))
        scales = call(aten.mul.Tensor, (scale, weight.args[1]))
        result = call(aten.mul.Tensor, (call(aten.to.dtype, (sums, torch.float32)), scales))
        for each in bias:
            result = call(aten.add.Tensor, (result, each)) if each is not None else result
    linear.replace_all_uses_with(result)
    module.graph.erase_node(linear)


def _multiply_rows(module: fx.GraphModule, linear: fx.Node, quantized: dict[fx.Node, tuple[fx.Node, ...]]) -> None:
    """Rewrite a Linear layer whose activations have a range for each row: MatMulInteger knows one zero point only, so
    that of a row is subtracted from the sums, times the sum of each output's weights.
    """
    rounded, weight, *bias = linear.args
    given, whole = rounded.args[0].args[0], tensor_of(module, weight.args[0])
    with module.graph.inserting_before(linear):
        call = module.graph.call_function
        if given not in quantized:
            quantized[given] = _quantized_rows(module, given)
        integers, scale, zero = quantized[given]
        middle = _constant(module, f"{linear.name}_middle", torch.tensor(_MIDDLE, dtype=torch.uint8))
        matrix = _constant(module, f"{linear.name}_weight", whole.T.contiguous())
        totals = _constant(module, f"{linear.name}_totals", whole.sum(1, dtype=torch.float32))
        sums = call(
            aten.to.dtype, (call(torch.ops.edgepack.multiply.default, (integers, matrix, middle)), torch.float32)
        )
        moved = call(aten.sub.Tensor, (sums, call(aten.mul.Tensor, (zero, totals))))
        result = call(aten.mul.Tensor, (call(aten.mul.Tensor, (moved, scale)), weight.args[1]))
        for each in bias:
            result = call(aten.add.Tensor, (result, each)) if each is not None else result
    linear.replace_all_uses_with(result)
    module.graph.erase_node(linear)


def _quantized_rows(module: fx.GraphModule, given: fx.Node) -> tuple[fx.Node, ...]:
    """Return uint8 integers of a float activation, and the scale and zero point of each row, as floats."""
    call = module.graph.call_function
    low = call(aten.clamp_max.default, (call(aten.amin.default, (given, [-1], True)), 0))
    high = call(aten.clamp_min.default, (call(aten.amax.default, (given, [-1], True)), 0))
    steps = call(aten.div.Tensor, (call(aten.sub.Tensor, (high, low)), 255))
    scale = call(aten.clamp_min.default, (steps, torch.finfo(torch.float32).eps))
    lowest = call(aten.neg.default, (call(aten.round.default, (call(aten.div.Tensor, (low, scale)),)),))
    moved = call(aten.add.Tensor, (call(aten.round.default, (call(aten.div.Tensor, (given, scale)),)), lowest))
    integers = call(aten.to.dtype, (call(aten.clamp.default, (moved, 0, 255)), torch.uint8))
    return integers, scale, call(aten.sub.Tensor, (lowest, _MIDDLE))


def _look_up(module: fx.GraphModule, embedding: fx.Node) -> None:
    table, ids = embedding.args[0].args, embedding.args[1]
    with module.graph.inserting_before(embedding):
        call = module.graph.call_function
        scale, zero = (
            _constant(module, f"{embedding.name}_{name}", tensor_of(module, column).float()[:, None])
            for name, column in (("scale", table[1]), ("zero", table[2]))
        )
        integers, scale, zero = (call(aten.embedding.default, (column, ids)) for column in (table[0], scale, zero))
        above = call(aten.sub.Tensor, (call(aten.to.dtype, (integers, torch.float32)), zero))
        result = call(aten.mul.Tensor, (above, scale))
    embedding.replace_all_uses_with(result)
    module.graph.erase_node(embedding)


def _multiply_packed(module: fx.GraphModule, linear: fx.Node) -> None:
    """Rewrite a Linear layer with int4 weights. The runtime rounds its activations."""
    given, weight, *bias = (*linear.args, None)[:3]
    if _made_by(given, decomposed.dequantize_per_token.default):
        given = given.args[0].args[0]
    integers, scales, group = tensor_of(module, weight.args[0]), tensor_of(module, weight.args[1]), weight.args[6]
    packed = (integers[:, ::2] + 8 | integers[:, 1::2] + 8 << 4).view(torch.uint8)
    with module.graph.inserting_before(linear):
        call = module.graph.call_function
        stored = _beside(module, weight.args[0], "packed", packed.unflatten(1, (-1, group // 2)).contiguous())
        steps = _beside(module, weight.args[0], "scales", scales.flatten())
        result = call(_multiply_groups, (given, stored, steps, *bias))
    linear.replace_all_uses_with(result)
    module.graph.erase_node(linear)


def _look_up_packed(module: fx.GraphModule, embedding: fx.Node) -> None:
    """Rewrite a table of 4 or 2 bits."""
    table, ids = embedding.args[0].args, embedding.args[1]
    (least, most), group = table[3:5], table[6]
    bits, higher = (most - least).bit_length(), (tensor_of(module, table[0]) - least).view(torch.uint8)
    with module.graph.inserting_before(embedding):
        call = module.graph.call_function
        stored = _beside(module, table[0], "packed", _packed(higher, bits))
        steps = _beside(module, table[0], "scales", tensor_of(module, table[1]).half())
        rows, scales = (call(aten.embedding.default, (column, ids)) for column in (stored, steps))
        integers = call(aten.add.Scalar, (call(torch.ops.edgepack.unpack.default, (rows, bits)), least))
        grouped = call(aten.unflatten.int, (integers, -1, [-1, group]))
        factors = call(aten.unsqueeze.default, (call(aten.to.dtype, (scales, torch.float32)), -1))
        result = call(aten.flatten.using_ints, (call(aten.mul.Tensor, (grouped, factors)), -2, -1))
    embedding.replace_all_uses_with(result)
    module.graph.erase_node(embedding)


def _packed(numbers: Tensor, bits: int) -> Tensor:
    """Pack uint8 [rows, columns]: a byte holds those at equal places of the halves, or quarters, of a row."""
    parts = [part << bits * place for place, part in enumerate(numbers.chunk(8 // bits, 1))]
    return torch.stack(parts).sum(0, dtype=torch.uint8)


def _beside(module: fx.GraphModule, source: fx.Node, name: str, value: Tensor) -> fx.Node:
    """Store a tensor in the module of another, so that the file names it after its layer."""
    parent, _, leaf = str(source.target).rpartition(".")
    module.get_submodule(parent).register_buffer(f"{leaf}_{name}", value)
    return module.graph.get_attr(f"{source.target}_{name}")


def _constant(module: fx.GraphModule, name: str, value: Tensor) -> fx.Node:
    module.register_buffer(name, value)
    return module.graph.get_attr(name)
