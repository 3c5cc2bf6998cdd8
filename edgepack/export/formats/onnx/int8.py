"""Int8 as ONNX Runtime has kernels for it, where torch's exporter has no words for it.

    to_onnx = with_onnx_operators(module)                   # for torch.onnx.export, with TRANSLATIONS
    DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul   # what a Linear with dynamic activations becomes in the file
    Gather -> Cast -> Sub -> Mul                            # and what an int8 embedding table does

ONNX Runtime makes one operator of the first row. Of the second it reads the rows that a text asks for, where a
dequantized table would be made float as a whole in each inference.
"""

import copy
import operator
from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset18 as onnx
from torch import Tensor, fx

from edgepack.models.structure.fx_graph import drop_unused, tensor_of

aten = torch.ops.aten
decomposed = torch.ops.quantized_decomposed


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


TRANSLATIONS: dict[Any, Callable[..., Any]] = {
    torch.ops.edgepack.quantize.default: lambda x: onnx.DynamicQuantizeLinear(x),
    torch.ops.edgepack.multiply.default: lambda x, weight, zero: onnx.MatMulInteger(x, weight, zero),
}


def with_onnx_operators(module: fx.GraphModule) -> fx.GraphModule:
    """Return a copy in which dynamic Linear layers and int8 embeddings are written in operators that ONNX has."""
    module = copy.deepcopy(module)
    quantized: dict[fx.Node, tuple[fx.Node, ...]] = {}
    for node in list(module.graph.nodes):
        if node.target is aten.linear.default and _made_by(node.args[0], decomposed.dequantize_per_tensor.tensor):
            _multiply_integers(module, node, quantized)
        if node.target is aten.embedding.default and _made_by(node.args[0], decomposed.dequantize_per_channel.default):
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


def _constant(module: fx.GraphModule, name: str, value: Tensor) -> fx.Node:
    module.register_buffer(name, value)
    return module.graph.get_attr(name)
