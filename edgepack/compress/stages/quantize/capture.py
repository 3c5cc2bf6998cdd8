"""A model as a torch.export graph, made ready for int8, calibrated, and made int8.

    graph = capture(candidate, fp32=("classifier.*",))        # batch norm folded, what stays float marked
    observed = prepare(graph, Scheme(), training=False)       # observers in it: run calibration samples through
    module = converted(observed)

Through torchao's PT2E flow; which tensors become int8 is for the scheme's quantizer to say.
"""

from typing import TYPE_CHECKING

import torch
from torch import fx, nn

from edgepack.compress.stages.quantize.equality import check_equal
from edgepack.core.errors import StageError
from edgepack.models.structure.folding import WEIGHTED, check_norm, fold, fold_weights, norms, scale_and_shift
from edgepack.models.structure.fx_graph import drop_unused
from edgepack.models.structure.layer_names import check_patterns, matches

if TYPE_CHECKING:
    from edgepack.models.candidate import Candidate


aten, decomposed = torch.ops.aten, torch.ops.quantized_decomposed
TABLE, LSTM, GRU = aten.embedding.default, aten.lstm.input, aten.gru.input
_LAYERS = (*WEIGHTED, TABLE, LSTM)
EVERYTHING = "*"  # the pattern that keeps the whole model in fp32
HARD_SIGMOIDS = (aten.hardsigmoid.default, aten.hardsigmoid_.default)


def capture(candidate: "Candidate", fp32: tuple[str, ...], *, embeddings: bool = True) -> fx.GraphModule:
    """Return the model as a graph without batch norm, in which the layers that `fp32` names are not quantized.

    Without `embeddings`, embedding tables are not quantized either. Raises StageError when the model cannot be
    exported, or a pattern matches no layer.
    """
    graph = _exported(candidate)
    layers = layers_by_name(graph, "model" if isinstance(candidate.module, nn.Sequential) else "")
    fold_weights(graph)
    for norm in norms(graph):  # prepare_qat_pt2e would rewrite its eps and momentum (torchao issue 4107)
        check_norm(norm)
        fold(graph, norm)
    always = {name for name, part in candidate.module.named_modules() if getattr(part, "stays_fp32", False)}
    _leave_float(graph, layers, fp32, embeddings, always)
    for norm in norms(graph):
        for node in scale_and_shift(graph, norm):
            _keep_from_quantizer(node)
    drop_unused(graph)
    check_equal(graph, candidate, lambda: _exported(candidate), _without)
    return graph


def _without(graph: fx.GraphModule, norm: fx.Node) -> None:
    if not fold(graph, norm):
        scale_and_shift(graph, norm)


_TRAIN = 6  # the argument of recurrent operators that says whether they are trained


def tell_recurrent(graph: fx.GraphModule, *, training: bool) -> None:
    """Tell recurrent operators whether they are trained, as torch.export notes what they were: on a GPU they have no
    gradients else.
    """
    for node in graph.graph.nodes:
        if node.target in (LSTM, GRU):
            node.update_arg(_TRAIN, training)
    graph.recompile()


def layers_with_weights(candidate: "Candidate") -> tuple[str, ...]:
    """Return the names of layers with weights, in the order in which they run. Raises StageError as `capture` does."""
    graph = _exported(candidate)
    layers = layers_by_name(graph, "model" if isinstance(candidate.module, nn.Sequential) else "")
    return tuple(dict.fromkeys(layers[n][-1] for n in graph.graph.nodes if n.target in _LAYERS and layers[n]))


def _exported(candidate: "Candidate") -> fx.GraphModule:
    graph: fx.GraphModule = candidate.program().module(check_guards=False)
    return graph


def layers_by_name(graph: fx.GraphModule, wrapper: str) -> dict[fx.Node, tuple[str, ...]]:
    """Return for each node the modules that it lies in, the outermost first, named as in the candidate."""
    stacks = {node: node.meta.get("nn_module_stack", {}).values() for node in graph.graph.nodes}
    skip = f"{wrapper}." if wrapper else ""
    return {
        node: tuple(name.removeprefix(skip) for name, _ in stack if name not in ("", wrapper))
        for node, stack in stacks.items()
    }


def _leave_float(
    graph: fx.GraphModule,
    layers: dict[fx.Node, tuple[str, ...]],
    patterns: tuple[str, ...],
    embeddings: bool,
    always: set[str],
) -> None:
    weighted = [node for node in graph.graph.nodes if node.target in _LAYERS]
    check_patterns(patterns, [layers[node][-1] for node in weighted if layers[node]], "layers with weights")
    chosen = {node for node, names in layers.items() if matches(names[-1] if names else "", patterns)}
    chosen |= {node for node in weighted if node.target is TABLE and not embeddings}
    chosen |= {node for node, names in layers.items() if not always.isdisjoint(names)}
    if weighted and chosen.issuperset(weighted) and EVERYTHING not in patterns:
        advice = f"name fewer layers, remove the stage, or confirm with fp32: ['{EVERYTHING}']"
        raise StageError("fp32 names every layer: nothing is left to quantize", advice)
    for node in graph.graph.nodes:
        if node in chosen:
            _keep_from_quantizer(node)


def _keep_from_quantizer(node: fx.Node) -> None:
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation
    from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

    node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(_annotated=True)
