"""How a model is lowered, whatever the backend."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache


@contextmanager
def light_tracing() -> Iterator[None]:
    """Lowering traces the graph again and again; its nodes keep the line of the model that they came with, and get
    neither a copy of their whole past each time nor the stack of the tracer; and torch's operators are listed once, not
    for every trace. Of an int8 ResNet-18 that is nearly a third of the time, and the file is the same.
    """
    import copy
    from types import SimpleNamespace
    from unittest.mock import patch

    from torch.export import decomp_utils, exported_program
    from torch.fx import config, traceback

    shared = SimpleNamespace(copy=copy.copy, deepcopy=list)  # of what a node came from, which nobody changes
    listed = cache(exported_program._collect_all_valid_cia_ops)  # "should never be modified", says torch
    with (
        patch.object(traceback, "copy", shared),
        patch.object(config, "do_not_emit_stack_traces", True),
        patch.object(exported_program, "_collect_all_valid_cia_ops", listed),
        patch.object(decomp_utils, "_collect_all_valid_cia_ops", listed),
    ):
        yield
