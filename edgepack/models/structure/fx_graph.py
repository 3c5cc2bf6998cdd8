"""Small operations on exported graphs."""

from collections.abc import Iterator

import torch
from torch import fx, nn


def is_constant(node: fx.Node) -> bool:
    """Whether no input reaches it, and it stays as it is: not int8 weights on their way to float."""
    if node.op == "get_attr":
        return True
    quantized = str(node.target).startswith("quantized_decomposed")
    drawn = isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags
    return (
        node.op == "call_function"
        and not (quantized or drawn)
        and bool(node.all_input_nodes)
        and all(is_constant(each) for each in node.all_input_nodes)
    )


def constant_value(graph: fx.GraphModule, node: fx.Node) -> torch.Tensor:
    if node.op == "get_attr":
        return tensor_of(graph, node)
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda each: constant_value(graph, each))
    result: torch.Tensor = node.target(*args, **kwargs)
    return result


def tensor_of(graph: fx.GraphModule, node: fx.Node) -> torch.Tensor:
    """The weight or buffer that a node of kind get_attr stands for."""
    parent, _, leaf = str(node.target).rpartition(".")
    value: torch.Tensor = getattr(graph.get_submodule(parent), leaf)
    return value.detach()


def parameter(graph: fx.GraphModule, of: fx.Node, name: str, value: torch.Tensor) -> fx.Node:
    """A new tensor of the graph under this name, put where nodes are inserted now."""
    parent, _, leaf = name.rpartition(".")
    _put(graph.get_submodule(parent), leaf, value)
    node = graph.graph.get_attr(name)
    node.meta["val"] = of.meta["val"].fake_mode.from_tensor(value, static_shapes=True)  # the quantizer asks its shape
    return node


def set(graph: fx.GraphModule, node: fx.Node, value: torch.Tensor) -> None:
    """Another value for the tensor of a node; who had the tensor itself keeps what he had."""
    parent, _, leaf = str(node.target).rpartition(".")
    holder = graph.get_submodule(parent)
    delattr(holder, leaf)
    _put(holder, leaf, value)


def _put(holder: nn.Module, leaf: str, value: torch.Tensor) -> None:
    if value.is_floating_point():
        holder.register_parameter(leaf, nn.Parameter(value))
    else:
        holder.register_buffer(leaf, value)


def drop_unused(graph: fx.GraphModule) -> None:
    """Take out the operators that nothing reads, and then the weights."""
    graph.graph.eliminate_dead_code()
    graph.recompile()
    used = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in _tensors(graph) if name not in used]:
        parent, _, leaf = name.rpartition(".")
        delattr(graph.get_submodule(parent), leaf)


def _tensors(graph: fx.GraphModule) -> Iterator[tuple[str, torch.Tensor]]:
    yield from graph.named_parameters(remove_duplicate=False)
    yield from graph.named_buffers(remove_duplicate=False)


def measures_ranges(module: nn.Module) -> bool:
    """Whether int8 activations get the range of all that comes with them: on the device that is one sample."""
    nodes = module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ()
    return any("choose_qparams" in str(node.target) for node in nodes)
