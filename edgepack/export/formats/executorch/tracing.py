"""How a model is lowered, whatever the backend."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import Parameter, Signature
from keyword import iskeyword
from typing import Any

from edgepack.export.tracing import operators_listed_once


@contextmanager
def light_tracing() -> Iterator[None]:
    """Lower without what is done again for every trace or pass; the file is the same.

    Nodes keep the line of the model that they came with, and get neither a copy of their whole past each time nor the
    stack of the tracer; torch's operators are listed once, not for every trace: nearly a third of the time of an int8
    ResNet-18. Graphs are written as Python code only where that is run, operators are run on fake tensors only where
    these are new, and a graph is decomposed only if it has an operator to decompose: half of the rest, of small int8
    nets (benchmarks/lowering.md).
    """
    import copy
    from types import SimpleNamespace
    from unittest.mock import patch

    from torch.fx import config, traceback

    shared = SimpleNamespace(copy=copy.copy, deepcopy=list)  # of what a node came from, which nobody changes
    with (
        patch.object(traceback, "copy", shared),
        patch.object(config, "do_not_emit_stack_traces", True),
        operators_listed_once(),
        _code_written_late(),
        _results_kept(),
        _decomposed_if_needed(),
    ):
        yield


@contextmanager
def _code_written_late() -> Iterator[None]:
    """Write a graph as code when it is called: each of some 200 passes writes it anew, and passes interpret graphs.

    torch has a class that does so, `_LazyGraphModule`, but the passes make graphs of the other class.
    """
    from unittest.mock import patch

    from torch.fx import Graph, GraphModule
    from torch.fx.graph import PythonCode, _PyTreeCodeGen

    write, code_of = GraphModule.recompile, Graph.python_code
    nothing = PythonCode("def forward(self): pass", {}, {}, 0)

    def recompile(self: Any) -> Any:
        info = self.graph._codegen.pytree_info if isinstance(self.graph._codegen, _PyTreeCodeGen) else None
        names = info.orig_args if info else [str(node.target) for node in self.graph.nodes if node.op == "placeholder"]
        if not all(name.isidentifier() and not iskeyword(name) for name in names):  # *args
            return write(self)
        if "_wrapped_call" not in vars(type(self)):  # the first time, which makes the class fit to be called

            def python_code(graph: Any, *args: Any, **kwargs: Any) -> Any:
                return nothing if graph is self.graph else code_of(graph, *args, **kwargs)

            with patch.object(Graph, "python_code", python_code):
                write(self)
        if info:
            self._in_spec, self._out_spec = info.in_spec, info.out_spec

        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            write(self)
            return type(self).forward(self, *args, **kwargs)

        # A trace names its inputs after it, and Core ML's files do so too.
        own = ("self", *(name for name in names if name != "self"))
        vars(forward)["__signature__"] = Signature([Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in own])
        type(self).forward = forward
        return None

    with patch.object(GraphModule, "recompile", recompile):
        yield


@contextmanager
def _results_kept() -> Iterator[None]:
    """Keep what an operator gave for these very fake tensors: each of some 60 passes runs the whole graph again.

    The inputs are kept too, so that their ids stay theirs. A graph that holds an operator twice, on the same inputs,
    has a result of its own for each. Nothing is kept while a trace records what is run.
    """
    from unittest.mock import patch

    from executorch.exir.dialects.edge._ops import EdgeOpOverload
    from torch.fx import Interpreter
    from torch.fx.experimental.proxy_tensor import get_proxy_mode

    run, call = Interpreter.run, EdgeOpOverload.__call__
    kept: dict[object, tuple[list[object], object]] = {}
    runs: list[Counter[object]] = []  # of the runs of graphs that are on: how often each call was seen

    def run_counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        runs.append(Counter())
        try:
            return run(self, *args, **kwargs)
        finally:
            runs.pop()

    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        inputs: list[object] = []
        key = self, _equal_for_equal(args, inputs), _equal_for_equal([*kwargs.items()], inputs)
        if not (inputs and runs) or self._op._schema.is_mutable or get_proxy_mode() or not _hashable(key):
            return call(self, *args, **kwargs)
        runs[-1][key] += 1
        if (place := (key, runs[-1][key])) not in kept:
            kept[place] = inputs, call(self, *args, **kwargs)
        return kept[place][1]

    with patch.object(Interpreter, "run", run_counted), patch.object(EdgeOpOverload, "__call__", called):
        yield


def _equal_for_equal(value: Any, tensors: list[object]) -> object:
    """Return what is equal for equal arguments. Tensors without data are known by their ids, and put into `tensors`."""
    from torch import SymBool, SymFloat, SymInt
    from torch._subclasses import FakeTensor

    if isinstance(value, list | tuple):
        return tuple(_equal_for_equal(each, tensors) for each in value)
    if isinstance(value, FakeTensor):
        tensors.append(value)
        return id(value)
    if isinstance(value, SymInt | SymFloat | SymBool):
        return []  # which has no hash: that of a symbol would fix its value
    return type(value), value  # 1, 1.0 and True are equal


def _hashable(key: object) -> bool:
    try:
        hash(key)
    except TypeError:
        return False
    return True


@contextmanager
def _decomposed_if_needed() -> Iterator[None]:
    """Trace a functional graph again only if it has an operator to decompose; ExecuTorch always does, twice (1.4.1)."""
    from unittest.mock import patch

    from torch.export import ExportedProgram
    from torch.fx import GraphModule

    decompose = ExportedProgram.run_decompositions

    def decomposed(self: Any, table: Any = None, *args: Any, **kwargs: Any) -> Any:
        graphs = [each.graph for each in self.graph_module.modules() if isinstance(each, GraphModule)]  # branches too
        functional = self.verifier.dialect == "ATEN"  # which a trace with an empty table makes it
        if functional and table and not {node.target for graph in graphs for node in graph.nodes} & table.keys():
            return self
        return decompose(self, table, *args, **kwargs)

    with patch.object(ExportedProgram, "run_decompositions", decomposed):
        yield
