"""torch's translations to ONNX, read once a process: its exporter parses the source of all 500 for every model, which
takes longer than a small model itself.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch


@contextmanager
def read_once() -> Iterator[None]:
    """Make torch.onnx.export faster, with the same files."""
    from torch.onnx._internal.exporter import _registration, _schemas

    translations, signature = _kept()
    with (
        patch.object(_registration, "onnxscript_apis", SimpleNamespace(get_torchlib_ops=translations)),
        patch.object(_schemas, "op_signature_from_function", signature),
    ):
        yield


@cache
def _kept() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return torch's functions for the list of translations and for a signature, cached: neither sees a model."""
    from torch.onnx._internal.exporter import _registration, _schemas

    return cache(_registration.onnxscript_apis.get_torchlib_ops), cache(_schemas.op_signature_from_function)
