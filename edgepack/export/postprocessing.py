"""Add a task's postprocessing to a model: an exported file computes it too, after the model and in fp32.

    contract.write(shipped(candidate, task), exporter, path)

Only what is written or run as a file has it. Stages, and a saved candidate, have the model alone.
"""

import copy
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten

from edgepack.core.errors import StageError, listed
from edgepack.data.contract import Task
from edgepack.models.candidate import Candidate
from edgepack.models.outputs import followed
from edgepack.models.structure.fx_graph import tensor_of

_CONSTANT = "postprocess_{}"  # a tensor that postprocessing reads, such as anchors


def shipped(candidate: Candidate, task: Task) -> Candidate:
    """Return the candidate as a file has it: itself, if its task postprocesses nothing.

    Raises StageError where postprocessing does not give what the task says.
    """
    if not task.has_postprocess:
        return candidate
    outputs = tuple(torch.zeros(2, *spec.shape) for spec in task.signature.outputs)
    _check(task, outputs)
    factory = candidate.factory.model_copy(update={"signature": task.file_signature})
    eager = candidate.form == "eager"
    follow = partial(followed, after=task.postprocess) if eager else partial(_joined, second=_graph(task, outputs))
    return replace(candidate, module=follow(candidate.module), factory=factory)


def _check(task: Task, outputs: tuple[Tensor, ...]) -> None:
    found = [str([*each.shape]) for each in task.postprocess(outputs)]
    wanted = [str([len(outputs[0]), *spec.shape]) for spec in task.file_signature.outputs]
    if found != wanted:
        message = f"postprocess() of the task gives tensors of shapes {listed(found)}, not {listed(wanted)}"
        raise StageError(message, "let file_outputs() of the task say what it gives")


def _graph(task: Task, outputs: tuple[Tensor, ...]) -> fx.GraphModule:
    """Return postprocessing as a graph, for any number of samples."""

    class Postprocess(nn.Module):  # type: ignore[misc]
        def forward(self, *outputs: Tensor) -> tuple[Tensor, ...]:
            return task.postprocess(outputs)

    shapes = tuple({0: torch.export.Dim.DYNAMIC} for _ in outputs)
    program = torch.export.export(Postprocess(), outputs, dynamic_shapes=(shapes,))
    graph: fx.GraphModule = program.module(check_guards=False)
    return graph


def _joined(first: fx.GraphModule, second: fx.GraphModule) -> fx.GraphModule:
    """Return a graph in which the outputs of one are the inputs of another. Layers keep their names."""
    joined = copy.deepcopy(first)
    [end] = joined.graph.find_nodes(op="output")
    given, took = end.all_input_nodes, second.graph.find_nodes(op="placeholder")
    known = dict(zip(took, given, strict=True))
    with joined.graph.inserting_before(end):
        for node in second.graph.nodes:
            if node.op == "get_attr":
                name = _CONSTANT.format(len(known))
                joined.register_buffer(name, tensor_of(second, node))
                known[node] = joined.graph.get_attr(name)
                known[node].meta = dict(node.meta)
            elif node.op == "output":
                found = [known[each] for each in node.all_input_nodes]
            elif node not in known:
                known[node] = joined.graph.node_copy(node, known.__getitem__)
    end.args = (tuple(found),)
    codegen = joined.graph._codegen
    codegen.pytree_info = codegen.pytree_info._replace(out_spec=tree_flatten((0,) * len(found))[1])
    joined.recompile()
    return joined
