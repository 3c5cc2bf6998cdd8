"""Check that a captured graph gives the same outputs as the eager model."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from edgepack.core.errors import StageError
from edgepack.models.outputs import rows
from edgepack.models.source_lines import of_node, part_of

if TYPE_CHECKING:
    from edgepack.models.candidate import Candidate

# Relative to all outputs, by root mean square. Float32 adds in another order, an error of about 1e-6 per layer; a
# wrongly folded norm changes whole channels.
_TOLERANCE = 1e-3

Rewrite = Callable[[fx.GraphModule, fx.Node], object]


def check_equal(
    graph: fx.GraphModule, candidate: "Candidate", captured: Callable[[], fx.GraphModule], rewrite: Rewrite
) -> None:
    """Raises StageError naming the layer from which on `graph` gives other outputs than the model.

    `captured` captures the graph again without rewrites; `rewrite` is then applied to one norm after the other.
    """
    inputs = candidate.noise()
    with torch.no_grad():
        expected = rows(candidate.module.eval()(*inputs))
        if _same(rows(graph(*inputs)), expected):
            return
        place = _exported_otherwise(captured(), candidate, inputs) or _rewritten(captured(), rewrite, inputs, expected)
    raise StageError(
        f"the graph to quantize gives other outputs than the model{place}",
        "write that part of the model with other operators, or remove the stage; please report this, the model is not "
        "at fault",
    )


def _same(values: torch.Tensor, expected: torch.Tensor) -> bool:
    off = (values - expected).double().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    finite = torch.equal(values.isfinite(), expected.isfinite())
    reach = expected.double().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).norm()
    return finite and bool(off.norm() <= _TOLERANCE * reach)


def _rewritten(graph: fx.GraphModule, rewrite: Rewrite, inputs: Sequence[torch.Tensor], expected: torch.Tensor) -> str:
    """Return the first rewrite that changes the outputs."""
    from edgepack.models.structure.folding import norms

    for norm in norms(graph):
        place = of_node(norm)
        rewrite(graph, norm)
        graph.recompile()
        if not _same(rows(graph(*inputs)), expected):
            return f", from the batch norm at {place} on"
    return ""


def _exported_otherwise(graph: fx.GraphModule, candidate: "Candidate", inputs: Sequence[torch.Tensor]) -> str:
    """Return the first module whose outputs differ before any rewrite: torch.export captured it wrongly."""
    if _same(rows(graph(*inputs)), rows(candidate.module(*inputs))):
        return ""
    eager = _outputs(candidate.module, inputs)
    ends: dict[str, fx.Node] = {}
    for node in graph.graph.nodes:
        if node.op == "call_function":
            ends[part_of(node)] = node
    seen = _Recorder(graph)
    seen.run(*inputs)
    for name, given in eager.items():
        value = seen.seen.get(ends.get(name))
        if len(given) == 1 and value is not None and value.shape == given[0].shape and not _same(value, given[0]):
            return f", from '{name}' on"
    return ""


def _outputs(module: nn.Module, inputs: Sequence[torch.Tensor]) -> dict[str, list[torch.Tensor]]:
    """Return the outputs of each module without submodules, in the order of its calls."""
    found: dict[str, list[torch.Tensor]] = defaultdict(list)

    def noting(name: str) -> Callable[..., None]:
        return lambda part, given, answer: found[name].append(answer) if isinstance(answer, torch.Tensor) else None

    leaves = [(name, part) for name, part in module.named_modules() if not [*part.children()]]
    hooks = [part.register_forward_hook(noting(name)) for name, part in leaves]
    try:
        module(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


class _Recorder(fx.Interpreter):  # type: ignore[misc]
    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.seen: dict[Any, torch.Tensor] = {}

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        if isinstance(value, torch.Tensor):
            self.seen[node] = value
        return value
