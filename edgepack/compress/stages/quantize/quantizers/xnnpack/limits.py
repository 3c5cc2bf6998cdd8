"""ReLU6 and the HardSigmoid of a gate, as a ReLU while XNNPACK's quantizer looks: it fuses ReLU alone."""

from torch import fx

from edgepack.compress.stages.quantize.capture import HARD_SIGMOIDS, aten
from edgepack.models.structure.folding import WEIGHTED, own

_PRODUCTS = (aten.mul.Tensor, aten.mul_.Tensor)
CEILING = "ceiling"  # in a node's meta: a relu that was a ReLU6
GATE = "gate"  # in a node's meta: a relu that was a HardSigmoid


def hide(graph: fx.GraphModule) -> None:
    for node in graph.graph.nodes:
        _plain_relu(node)
        _plain_gate(graph, node)


def restore(prepared: fx.GraphModule) -> None:
    for node in [node for node in prepared.graph.nodes if CEILING in node.meta]:
        _clamp(prepared, node)
    for node in [node for node in prepared.graph.nodes if node.meta.pop(GATE, False)]:
        node.target = aten.hardsigmoid.default


def _plain_relu(node: fx.Node) -> None:
    limit = _upper_limit(node)
    if limit is not None:
        node.meta[CEILING] = limit
        node.target, node.args = aten.relu.default, node.args[:1]


def _plain_gate(graph: fx.GraphModule, node: fx.Node) -> None:
    """Write the HardSigmoid of a layer that gates something as a ReLU.

    Nothing is then rounded between layer and HardSigmoid, and conversion can fold it into the layer.
    """
    from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

    if node.target in HARD_SIGMOIDS and all(user.target in _PRODUCTS for user in node.users):
        layer = node.args[0]
        takes = layer.target in WEIGHTED and len(layer.users) == 1 and len(layer.args) > 2
        int8 = Q_ANNOTATION_KEY not in node.meta and Q_ANNOTATION_KEY not in layer.meta
        if takes and int8 and own(graph, *layer.args[1:3]):
            node.target, node.meta[GATE] = aten.relu.default, True


def _upper_limit(node: fx.Node) -> float | None:
    if node.target in (aten.relu6.default, aten.relu6_.default):
        return 6.0
    if node.target in (aten.hardtanh.default, aten.hardtanh_.default) and len(node.args) == 3 and node.args[1] == 0:
        return float(node.args[2])
    return None


def _clamp(prepared: fx.GraphModule, relu: fx.Node) -> None:
    """Restore the upper limit: as a clamp after an observed ReLU, or in place of a ReLU that stays float."""
    limit = relu.meta.pop(CEILING)
    if not any(user.op == "call_module" for user in relu.users):
        relu.target, relu.args = aten.hardtanh.default, (relu.args[0], 0.0, limit)
        return
    with prepared.graph.inserting_after(relu):
        clamp = prepared.graph.call_function(aten.hardtanh.default, (relu, 0.0, limit))
    clamp.meta = {key: value for key, value in relu.meta.items() if key in ("val", "nn_module_stack", "stack_trace")}
    relu.replace_all_uses_with(clamp, delete_user_cb=lambda user: user is not clamp)
