"""What of an exported graph is known before any input comes: batch norm taken into the layer before it, and weights
that are computed from other weights.

A norm is folded only where that changes nothing for anybody else: it alone reads what its layer gives, and no other
operator reads the layer's weight or bias. Any other becomes a scale and a shift.
"""

import copy
from collections import Counter
from operator import attrgetter

import torch
from torch import fx

from edgepack.core.errors import StageError
from edgepack.models.source_lines import of_node
from edgepack.models.structure.fx_graph import add_tensor, constant_value, is_constant, set_tensor, tensor_of

aten, decomposed = torch.ops.aten, torch.ops.quantized_decomposed
NORM = aten.batch_norm.default
TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
CONVOLUTIONS = (
    *(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default),
    *(aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding),
    *TRANSPOSED,
)
LINEAR = aten.linear.default
WEIGHTED = (*CONVOLUTIONS, LINEAR)
_ROLES = {1: "weight", 2: "bias"}  # arguments of a layer
_GROUPS = 6  # the argument of a transposed convolution with its number of groups


def norms(graph: fx.GraphModule) -> list[fx.Node]:
    return [node for node in graph.graph.nodes if node.target is NORM]


def has_statistics(norm: fx.Node) -> bool:
    """Return whether a norm uses running statistics, not those of the batch."""
    return norm.args[3] is not None and not norm.args[5]


def check_norm(norm: fx.Node) -> None:
    """Raises StageError for a norm that uses batch statistics: on the device, a batch is a single sample."""
    if not has_statistics(norm):
        place = f" at {found}" if (found := of_node(norm)) else ""
        raise StageError(
            f"the batch norm{place} takes its statistics from the batch it is given, also in eval mode",
            "give it running statistics (track_running_stats=True), or use GroupNorm or LayerNorm",
        )


def fold(graph: fx.GraphModule, norm: fx.Node) -> bool:
    """Fold a batch norm into the convolution or Linear before it, in place. Return False if that is not possible."""
    layer = norm.args[0]
    if layer.target not in WEIGHTED or not _alone(graph, layer):
        return False
    if layer.target is LINEAR and layer.meta["val"].dim() != 2:  # the norm is then over another dimension
        return False
    scale, shift = factors(graph, norm)
    weight, bias = layer.args[1], layer.args[2] if len(layer.args) > 2 else None
    set_tensor(graph, weight, _scaled(layer, tensor_of(graph, weight), scale))
    if bias is None:
        with graph.graph.inserting_before(layer):
            bias = add_tensor(graph, norm, f"{weight.target}_bias", shift)
        layer.args = (layer.args[0], weight, bias, *layer.args[3:])
    else:
        set_tensor(graph, bias, tensor_of(graph, bias) * scale + shift)
    norm.replace_all_uses_with(layer)
    graph.graph.erase_node(norm)
    return True


def factors(graph: fx.GraphModule, norm: fx.Node) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scale and shift of each channel, [channels]."""
    weight, bias, mean, variance = (None if each is None else tensor_of(graph, each) for each in norm.args[1:5])
    assert mean is not None and variance is not None, "check_norm was here before"
    scale = (1.0 if weight is None else weight) / (variance + norm.args[7]).sqrt()
    return scale, (0.0 if bias is None else bias) - mean * scale


def _alone(graph: fx.GraphModule, layer: fx.Node) -> bool:
    """Return whether only the norm reads the layer's output, and only the layer its weight and bias."""
    values = [each for each in layer.args[1:3] if each is not None]
    return len(layer.users) == 1 and own(graph, *values)


def own(graph: fx.GraphModule, *values: fx.Node | None) -> bool:
    """Return whether these are tensors that only one operator reads, under whatever name."""
    held = Counter(_memory(graph, node) for node in graph.graph.nodes if node.op == "get_attr")
    return all(
        value is not None and value.op == "get_attr" and len(value.users) == 1 and held[_memory(graph, value)] == 1
        for value in values
    )


def _memory(graph: fx.GraphModule, node: fx.Node) -> object:
    """Return an identity for a tensor's memory; an empty tensor has no address of its own."""
    tensor: torch.Tensor = attrgetter(str(node.target))(graph)
    return tensor.untyped_storage().data_ptr() or node.target


def _scaled(layer: fx.Node, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Scale outputs, which lie along the first dimension; in a transposed convolution along the second, per group."""
    if layer.target not in TRANSPOSED:
        return weight * scale.view(-1, *[1] * (weight.dim() - 1))
    groups = layer.args[_GROUPS] if len(layer.args) > _GROUPS else 1
    parts = weight.view(groups, -1, *weight.shape[1:]) * scale.view(groups, 1, -1, *[1] * (weight.dim() - 2))
    return parts.view(weight.shape)


def scale_and_shift(graph: fx.GraphModule, norm: fx.Node) -> list[fx.Node]:
    """Replace a batch norm that cannot be folded (DenseNet, pre-activation) by a depthwise 1 x 1 convolution.

    Per-channel int8 stores its weights exactly, the ReLU after it is fused, and both runtimes have a kernel for it. If
    the input is not an image, a Mul and an Add are used and returned, as they are best left in float.
    """
    inputs, (scale, shift) = norm.args[0], factors(graph, norm)
    dimensions = norm.meta["val"].dim()
    with graph.graph.inserting_before(norm):
        if dimensions == 4:
            factor = add_tensor(graph, norm, f"{norm.name}_scale", scale.reshape(-1, 1, 1, 1))
            settings = ([1, 1], [0, 0], [1, 1], len(scale))
            offset = add_tensor(graph, norm, f"{norm.name}_shift", shift)
            made = [graph.graph.call_function(aten.conv2d.default, (inputs, factor, offset, *settings))]
        else:
            shape = (-1, *[1] * (dimensions - 2))
            factor = add_tensor(graph, norm, f"{norm.name}_scale", scale.reshape(shape))
            product = graph.graph.call_function(aten.mul.Tensor, (inputs, factor))
            offset = add_tensor(graph, norm, f"{norm.name}_shift", shift.reshape(shape))
            made = [product, graph.graph.call_function(aten.add.Tensor, (product, offset))]
    for node in made:
        node.meta = copy.copy(norm.meta)
    norm.replace_all_uses_with(made[-1])
    graph.graph.erase_node(norm)
    return made if dimensions != 4 else []


def fold_weights(graph: fx.GraphModule) -> bool:
    """Compute, in place, the weights and biases of layers that are made of other weights: a transposed or normalised
    one costs time in every inference, and no integer kernel takes it. Return whether there was any.
    """
    found = False
    for layer in [node for node in graph.graph.nodes if node.target in WEIGHTED]:
        for place in _ROLES:
            value = layer.args[place] if len(layer.args) > place else None
            if isinstance(value, fx.Node) and value.op == "call_function" and is_constant(value):
                with torch.no_grad(), graph.graph.inserting_before(layer):
                    made = add_tensor(
                        graph, layer, f"{layer.name}_{_ROLES[place]}", constant_value(graph, value).contiguous().clone()
                    )
                layer.args = (*layer.args[:place], made, *layer.args[place + 1 :])
                found = True
    return found
