"""The runtimes that can load an exported file. This is their only list.

It goes to devices with the worker (measure/worker/archive.py): standard library only, for Python 3.9.
"""

from typing import NamedTuple


class RuntimeInfo(NamedTuple):
    """A runtime: its module, the packages that it consists of, and the suffixes of its files."""

    module: str  # in measure/runtimes
    packages: tuple[str, ...]  # in the order of import
    suffixes: tuple[str, ...]


RUNTIMES = {
    "executorch": RuntimeInfo("executorch_runtime", packages=("torch", "executorch"), suffixes=(".pte",)),
    "onnxruntime": RuntimeInfo("onnx_runtime", packages=("onnxruntime",), suffixes=(".onnx", ".ort")),
}


def runtime_of(suffix: str) -> str:
    """Return the runtime that loads files with this suffix, or "".

    >>> runtime_of(".ort"), runtime_of(".txt")
    ('onnxruntime', '')
    """
    return next((name for name, runtime in RUNTIMES.items() if suffix in runtime.suffixes), "")
