"""Embedding tables of 4 and 2 bits, packed as ExecuTorch's own kernels read them: `embedding_4bit`, `embedding_2bit`.

ExecuTorch finds such tables by itself only in graphs of torchao's other flow (1.4.1).
"""

import copy

import torch
from executorch.exir.passes import _quant_patterns_and_replacements  # noqa: F401  (defines the operators)
from torch import fx

from edgepack.models.structure.fx_graph import drop_unused, tensor_of

decomposed = torch.ops.quantized_decomposed
LOOKUPS = {4: decomposed.embedding_4bit.dtype, 2: decomposed.embedding_2bit.dtype}


def with_packed_tables(module: fx.GraphModule) -> fx.GraphModule:
    """Return the module, or a copy in which lookups in tables of 4 and 2 bits are those operators."""
    found = {node: bits for node in module.graph.nodes if (bits := _bits(node)) in LOOKUPS}
    if not found:
        return module
    module = copy.deepcopy(module)
    for node in [node for node in module.graph.nodes if _bits(node) in LOOKUPS]:
        _pack(module, node, _bits(node))
    drop_unused(module)
    return module


def _bits(node: fx.Node) -> int:
    """Return the bits of the table that a node looks up in; 0 if it is another operator, or a table without groups."""
    if node.target is not torch.ops.aten.embedding.default:
        return 0
    table = node.args[0]
    grouped = table.target is decomposed.dequantize_per_channel_group.default
    return (table.args[4] - table.args[3]).bit_length() if grouped else 0


def _pack(module: fx.GraphModule, lookup: fx.Node, bits: int) -> None:
    """Scales become float16, which they were rounded to."""
    integers, scale, _, *limits = lookup.args[0].args[:5]
    packed = torch.ops.quant_fusion._pack_embedding_weight(tensor_of(module, integers), bits)
    with module.graph.inserting_before(lookup):
        stored, scales = (
            _constant(module, f"{lookup.name}_{name}", value)
            for name, value in (("packed", packed), ("scales", tensor_of(module, scale).half()))
        )
        call = module.graph.call_function
        made = call(LOOKUPS[bits], (stored, scales, None, *limits, lookup.args[1]), {"dtype": torch.float32})
    made.meta = dict(lookup.meta)
    lookup.replace_all_uses_with(made)
    module.graph.erase_node(lookup)


def _constant(module: fx.GraphModule, name: str, value: torch.Tensor) -> fx.Node:
    module.register_buffer(name, value)
    return module.graph.get_attr(name)
