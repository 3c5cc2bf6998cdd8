"""Find the first operator of an exported file whose output differs from the torch model.

    find(candidate, exporter, run, samples, progress)   # a Finding: "'layer2.0.conv1', nets.py:41: ...", 0.31, 0.002

The model's graph is cut behind an operator, and the piece exported and run as the whole was. What its answers differ by
says on which side of it to look next. Of branches that run side by side bisection may name a later one, so what leads
to the operator that it finds is looked at too.
"""

import copy
import logging
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.utils._pytree import tree_flatten

from edgepack.core.errors import DeviceError, RefusedError
from edgepack.core.units import SHARE
from edgepack.export.contract import suffix, write
from edgepack.measure import evaluate
from edgepack.measure.timing.protocol import Run
from edgepack.models.source_lines import of_node

if TYPE_CHECKING:
    import numpy

    from edgepack.config.plugins import Choice
    from edgepack.data.splits import Split
    from edgepack.models.candidate import Candidate

    Array = numpy.typing.NDArray[Any]

SAMPLES = 5
_MOST = 24  # pieces; bisection takes about ten
# Relative error that counts: int8 kernels round some values of a layer to a neighbouring step, float ones add in
# another order.
_INT8, _FLOAT = 0.05, 1e-3

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How two arrays differ: `share` is the RMS error relative to the reference, `largest` the largest error as a share
    of its range, and `cosine` their cosine.
    """

    share: float
    largest: float
    cosine: float

    def __str__(self) -> str:
        return (
            f"{SHARE.format(self.share)} (largest {SHARE.format(self.largest)} of the range, cosine {self.cosine:.4f})"
        )


def difference(values: "Array", reference: "Array") -> Difference:
    """
    >>> import numpy
    >>> print(difference(numpy.array([0.0, 1.0, 1.0]), numpy.array([0.0, 1.0, 2.0])))
    44.72 % (largest 50 % of the range, cosine 0.9487)
    """
    import numpy

    values, reference = values.astype("float64"), reference.astype("float64")
    error, norm = values - reference, numpy.linalg.norm(reference)
    if not (numpy.isfinite(values).all() and numpy.isfinite(reference).all()):
        alike = numpy.array_equal(values, reference, equal_nan=True)
        return Difference(share=0.0, largest=0.0, cosine=1.0) if alike else Difference(share=1, largest=1, cosine=0)
    return Difference(
        share=float(numpy.linalg.norm(error) / (norm + 1e-30)),
        largest=float(numpy.abs(error).max() / (numpy.ptp(reference) + 1e-30)),
        cosine=float((values * reference).sum() / (numpy.linalg.norm(values) * norm + 1e-30)),
    )


def find(candidate: "Candidate", exporter: "Choice", run: Run, samples: "Split", progress: Progress) -> str:
    """Say in a sentence where the file begins to differ, or why that is not known. `progress` is called with the number
    of pieces tried so far, and about how many there will be.
    """
    import torchao.quantization.pt2e  # noqa: F401  (registers the operators that exporters look for in every graph)

    graph = candidate.module if candidate.form == "exported" else candidate.program().module(check_guards=False)
    with TemporaryDirectory() as folder:
        search = _Search(candidate, exporter, run, samples, progress, Path(folder), graph, *_watched(graph, samples))
        return search.sentence()


def first_refused(
    candidate: "Candidate", exporter: "Choice", run: Run | None, samples: "Split", progress: Progress
) -> fx.Node | None:
    """Return the first operator with which a file cannot be written, loaded or run; None if pieces do not show it."""
    import torchao.quantization.pt2e  # noqa: F401

    graph = candidate.module if candidate.form == "exported" else candidate.program().module(check_guards=False)
    with TemporaryDirectory() as folder:
        seen = _watched(graph, samples)
        return _Search(candidate, exporter, run, samples, progress, Path(folder), graph, *seen).first_refused()


def _watched(graph: fx.GraphModule, samples: "Split") -> "tuple[dict[fx.Node, Array], list[fx.Node]]":
    """Return the output of each operator in torch, and the operators behind which the graph can be cut."""
    values = _seen(graph, samples)
    return values, [node for node in values if not _rounded(node) and len(values[node]) == len(samples)]


def _seen(graph: fx.GraphModule, samples: "Split") -> "dict[fx.Node, Array]":
    """Return the outputs of operators; for ranges measured in each inference, run one sample at a time, as the file
    does: such a range differs for a batch.
    """
    import numpy

    from edgepack.models.structure.fx_graph import measures_ranges

    found, fed = [], _fed(graph)
    for batch in samples.batches(1 if measures_ranges(graph) else len(samples)):
        seen = _Recorder(graph)
        with torch.no_grad():
            seen.run(*batch.inputs)
        found.append({node: value for node, value in seen.lasting().items() if node in fed})
    kept = [node for node in found[0] if all(node in each for each in found)]
    return {node: numpy.concatenate([each[node] for each in found]) for node in kept}


def _fed(graph: fx.GraphModule) -> set[fx.Node]:
    """Return the operators that depend on the model's inputs; the others compute weights."""
    fed: set[fx.Node] = set()
    for node in graph.graph.nodes:
        if node.op == "placeholder" or any(before in fed for before in node.all_input_nodes):
            fed.add(node)
    return fed


class _Recorder(fx.Interpreter):  # type: ignore[misc]
    """Records the output of every operator that is a float tensor."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.seen: dict[fx.Node, tuple[torch.Tensor, torch.Tensor]] = {}

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        if node.op == "call_function" and isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim():
            self.seen[node] = value, value.clone()
        return value

    def lasting(self) -> "dict[fx.Node, Array]":
        """Return the outputs that no later operator overwrote, as an in-place ReLU does: nothing can be cut there."""
        return {node: kept.numpy() for node, (value, kept) in self.seen.items() if torch.equal(value, kept)}


def _rounded(node: fx.Node) -> bool:
    """Return whether all users of a value quantize it: in a file, only its int8 form may exist."""
    return bool(node.users) and all(".quantize_per_" in str(user.target) for user in node.users)


@dataclass
class _Search:
    candidate: "Candidate"
    exporter: "Choice"
    run: Run | None
    samples: "Split"
    progress: Progress
    folder: Path
    graph: fx.GraphModule
    values: "dict[fx.Node, Array]"
    cuts: list[fx.Node]
    known: dict[fx.Node, Difference | None] = field(default_factory=dict)

    def sentence(self) -> str:
        limit = _FLOAT if self.candidate.form == "eager" else _INT8
        if not self.cuts or (end := self.at(self.cuts[-1])) is None:
            return "the first operator that differs was not found: parts of the model do not run separately"
        if end.share <= limit:
            return f"no single operator causes it: rounding in all of them makes the outputs differ by {end}"
        node = self.first(limit)
        found, named = self.at(node), self.culprit(node)
        place = of_node(named)
        at = f" at {place}" if place else ""
        differs = f"its output differs by {found}{self.before(node)}"
        return f"the first operator that differs is '{named.target}'{at}: {differs}"

    def first(self, limit: float) -> fx.Node:
        """Return an operator that differs while the operators before it do not."""
        low, high = -1, len(self.cuts) - 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.differs(self.cuts[middle], limit) else (middle, high)
        node = self.cuts[high]
        while earlier := next((each for each in self.leading(node) if self.differs(each, limit)), None):
            node = earlier
            if len(self.known) >= _MOST:
                break
        return node

    def first_refused(self) -> fx.Node | None:
        """Search by bisection: what a runtime refuses it also refuses in every longer piece."""
        if not self.cuts or self.runs(self.cuts[-1]):
            return None
        low, high = -1, len(self.cuts) - 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.runs(self.cuts[middle]) else (low, middle)
        return self.culprit(self.cuts[high])

    def runs(self, node: fx.Node) -> bool:
        return self.at(node) is not None

    def leading(self, node: fx.Node) -> list[fx.Node]:
        """Return the nearest operators before this one behind which the graph can be cut."""
        return [each for each in self.behind(node) if each in self.cuts]

    def behind(self, node: fx.Node) -> list[fx.Node]:
        """Return the operators before this one, nearest first, up to those behind which the graph can be cut."""
        found: dict[fx.Node, None] = {}
        left = list(node.all_input_nodes)
        while left:
            each = left.pop(0)
            if each not in found and each not in self.cuts:
                left += each.all_input_nodes
            found[each] = None
        return [*found]

    def culprit(self, node: fx.Node) -> fx.Node:
        """Return the operator of a piece to name: the one with weights, else its last one. An operator that only
        selects one of several results does not count.
        """
        fed = _fed(self.graph)
        held = [node, *(each for each in self.behind(node) if each in fed and each not in self.cuts)]
        own = [each for each in held if _computes(each)]
        weighted = [each for each in own if any(before not in fed for before in each.all_input_nodes)]
        return (weighted or own or held)[0]

    def before(self, node: fx.Node) -> str:
        shares = [found.share for each in self.leading(node) if (found := self.at(each))]
        return f", its input by {SHARE.format(max(shares))}" if shares else ""

    def differs(self, node: fx.Node, limit: float) -> bool:
        """Return whether a piece differs. One that cannot be run does not: the search goes on behind it."""
        found = self.at(node)
        return found is not None and found.share > limit

    def at(self, node: fx.Node) -> Difference | None:
        """Measure how much the file of all operators up to this one differs; None if there is no such file."""
        if node not in self.known:
            self.progress(len(self.known), max(len(self.cuts).bit_length() + 2, len(self.known) + 1))
            self.known[node] = self.measured(node)
        return self.known[node]

    def measured(self, node: fx.Node) -> Difference | None:
        path = self.folder / f"piece{suffix(self.exporter)}"
        piece = replace(self.candidate, module=_cut(self.graph, node), form="exported")
        runtime = self.exporter.module.RUNTIME
        try:
            write(piece, self.exporter, path)
            if self.run is None:
                return Difference(share=0.0, largest=0.0, cosine=1.0)
            (values,) = evaluate.outputs(self.run, file=path, runtime=runtime, split=self.samples, folder=self.folder)
        except RefusedError:
            logging.getLogger(__name__).exception("the file of the piece up to %s is refused", node)
            return None
        except (DeviceError, MemoryError):  # not the model's fault
            raise
        except Exception:
            logging.getLogger(__name__).exception("the piece up to %s does not run by itself", node)
            return None
        return difference(values, self.values[node]) if values.shape == self.values[node].shape else None


def _computes(node: fx.Node) -> bool:
    rounds = "quantize_per_" in str(node.target)
    return node.op == "call_function" and node.target is not operator.getitem and not rounds


def _cut(graph: fx.GraphModule, node: fx.Node) -> fx.GraphModule:
    """Return a copy that outputs `node`."""
    from edgepack.models.structure.fx_graph import drop_unused

    piece = copy.deepcopy(graph)
    [end] = piece.graph.find_nodes(op="output")
    target = next(each for each in piece.graph.nodes if each.name == node.name)
    if len(end.all_input_nodes) == 1:
        end.replace_input_with(end.all_input_nodes[0], target)
    else:
        end.args = ((target,),)
        codegen = piece.graph._codegen
        codegen.pytree_info = codegen.pytree_info._replace(out_spec=tree_flatten((0,))[1])
    drop_unused(piece)
    return piece


def rows(samples: "Split", chosen: Sequence[int]) -> "Split":
    """Return these samples of a split, as the model takes them."""
    picked = samples.chosen(chosen)
    return replace(picked, inputs=picked.head(len(chosen)), samples=None, prepare=None, augment=None, labelled=False)
