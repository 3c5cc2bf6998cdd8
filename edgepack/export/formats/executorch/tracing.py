"""How a model is lowered, whatever the backend."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from edgepack.export.tracing import operators_listed_once


@contextmanager
def light_tracing() -> Iterator[None]:
    """Lower without what is done again for every trace or pass; the file is the same.

    Nodes keep the line of the model that they came with, and get neither a copy of their whole past each time nor the
    stack of the tracer; torch's operators are listed once, not for every trace: nearly a third of the time of an int8
    ResNet-18. Graphs are written as Python code only where that is run: 15 to 20 % of the rest, of small int8 nets.
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
    ):
        yield


@contextmanager
def _code_written_late() -> Iterator[None]:
    """Write a graph as code when it is called: each of some 200 passes writes it anew, and passes interpret graphs.

    torch has a class that does so, `_LazyGraphModule`, but the passes make graphs of the other class.
    """
    from unittest.mock import patch

    from torch.fx import GraphModule
    from torch.fx.graph import _PyTreeCodeGen

    write = GraphModule.recompile

    def written_and_run(self: Any, *args: Any, **kwargs: Any) -> Any:
        write(self)
        return type(self).forward(self, *args, **kwargs)

    def recompile(self: Any) -> Any:
        if "_wrapped_call" not in vars(type(self)):
            return write(self)  # the first time, which makes the class fit to be called
        codegen = self.graph._codegen
        if isinstance(codegen, _PyTreeCodeGen):
            self._in_spec, self._out_spec = codegen.pytree_info.in_spec, codegen.pytree_info.out_spec
        type(self).forward = written_and_run
        return None

    with patch.object(GraphModule, "recompile", recompile):
        yield
