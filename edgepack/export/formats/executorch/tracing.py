"""How a model is lowered, whatever the backend."""

from collections.abc import Iterator
from contextlib import contextmanager

from edgepack.export.tracing import operators_listed_once


@contextmanager
def light_tracing() -> Iterator[None]:
    """Lowering traces the graph again and again; its nodes keep the line of the model that they came with, and get
    neither a copy of their whole past each time nor the stack of the tracer; and torch's operators are listed once, not
    for every trace. Of an int8 ResNet-18 that is nearly a third of the time, and the file is the same.
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
    ):
        yield
