"""Small operations on exported graphs."""

from collections.abc import Iterator
from itertools import chain

import torch
from torch import fx, nn


def is_constant(node: fx.Node) -> bool:
    """Return whether no input reaches a node and it can be computed once: not so for int8 weights being dequantized."""
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
    """Return the weight or buffer behind a get_attr node."""
    parent, _, leaf = str(node.target).rpartition(".")
    value: torch.Tensor = getattr(graph.get_submodule(parent), leaf)
    return value.detach()


def add_tensor(graph: fx.GraphModule, of: fx.Node, name: str, value: torch.Tensor) -> fx.Node:
    """Add a tensor with this name to the graph, with a node at the current insertion point."""
    parent, _, leaf = name.rpartition(".")
    _put(graph.get_submodule(parent), leaf, value)
    node = graph.graph.get_attr(name)
    node.meta["val"] = of.meta["val"].fake_mode.from_tensor(value, static_shapes=True)  # the quantizer reads its shape
    return node


def set_tensor(graph: fx.GraphModule, node: fx.Node, value: torch.Tensor) -> None:
    """Replace the tensor of a node; other references to the old tensor keep it."""
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
    """Remove unused operators, then unused weights."""
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
    """Return whether int8 activations get the range of the whole batch: on the device that is one sample."""
    nodes = module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ()
    return any("choose_qparams.tensor" in str(node.target) for node in nodes)


def device_of(module: nn.Module) -> torch.device:
    """Return where the module's tensors are."""
    return next((each.device for each in chain(module.parameters(), module.buffers())), torch.device("cpu"))


def move(graph: fx.GraphModule, device: torch.device) -> None:
    """Move a graph in place: also tensors that are no parameters or buffers, and those that its nodes make."""
    if device_of(graph) == device:
        return
    graph.to(device)
    follow(graph)


def follow(graph: fx.GraphModule) -> None:
    """Move what `Module.to` leaves behind to where a graph's parameters are."""
    device = device_of(graph)
    for node in graph.graph.nodes:
        if "device" in node.kwargs:
            node.update_kwarg("device", device)
        if node.op == "get_attr":
            parent, _, leaf = str(node.target).rpartition(".")
            holder = graph.get_submodule(parent)
            if isinstance(value := getattr(holder, leaf), torch.Tensor) and value.device != device:
                setattr(holder, leaf, value.to(device))
    graph.recompile()
