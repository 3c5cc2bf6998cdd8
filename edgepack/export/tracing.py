"""What torch does again for every trace of a graph, done once."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from unittest.mock import patch


@contextmanager
def operators_listed_once() -> Iterator[None]:
    """List torch's operators for the first trace only; none may be registered meanwhile."""
    from torch.export import decomp_utils, exported_program

    listed = cache(exported_program._collect_all_valid_cia_ops)  # torch says that it "should never be modified"
    with (
        patch.object(exported_program, "_collect_all_valid_cia_ops", listed),
        patch.object(decomp_utils, "_collect_all_valid_cia_ops", listed),
    ):
        yield
