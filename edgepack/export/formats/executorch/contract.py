"""Define what a backend of ExecuTorch may provide. It is one module; its file name is its name in a recipe."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from edgepack.config import plugins
from edgepack.config.plugins import DEFAULT_QUANTIZER

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

    from edgepack.export.operations import Operation
    from edgepack.export.packing import Array


@dataclass(frozen=True, kw_only=True)
class Part:
    """One operator in a backend's payload, and the constants of the file that it reads, by key.

    `scaled` is its weight as in torch, if batch norm was folded into it.
    """

    kind: str
    constants: "Mapping[str, Array]"
    scaled: "Array | None" = None


class Backend(Protocol):
    """Runs the parts of a model that it supports. Stands in export/formats/executorch/backends/.

    All of it may be left out: such a backend takes no operator, and the file runs on the portable kernels. A backend of
    a vendor:

        "Hexagon, the signal processors of Qualcomm."

        NEEDS = "QnnBackend"
        SOURCE = "backends/qualcomm"


        def partitioners():
            from executorch.backends.qualcomm.partition.qnn_partitioner import QnnPartitioner

            return [QnnPartitioner(...)]
    """

    VERSION: int = 1  # to bump when the same program would give another file
    LIBRARIES: tuple[str, ...] = ()  # packages besides executorch whose version changes the file
    DELEGATE: str = ""  # its name in a file, for operators and bytes in reports; mostly that of NEEDS
    NEEDS: str = ""  # the delegate that a runtime must have to run the file; "" if every runtime will do
    SOURCE: str = "exir"  # folder of its lowering in the package executorch
    PACKAGE: str = ""  # another package that its lowering needs
    QUANTIZER: str = DEFAULT_QUANTIZER  # for its int8 files, a name in compress/stages/quantize/quantizers/
    LOW_BITS: bool = False  # whether it takes int4 weights in groups
    BUILD: str = ""  # the CMake option that builds it into a runtime
    LIBRARY: str = ""  # the library that an app must then link

    def prepared(
        self, program: "ExportedProgram", inputs: "tuple[torch.Tensor, ...]", shapes: "tuple[Any, ...] | None"
    ) -> "ExportedProgram":
        """Rewrite the program as the lowering needs it; `shapes` are its dynamic shapes, if it has any."""
        return program

    def partitioners(self) -> list[Any]:
        """Return ExecuTorch's partitioners, which choose the operators that the backend takes."""
        return []

    def lowering(self) -> AbstractContextManager[None]:
        """Patch the backend's own lowering while it runs: one model must give one file, and a small one."""
        return nullcontext()

    # payload_parts(payload, named) lists the operators in a backend's part of a file; `named` are the constants beside
    # it. None: its format is not known.
    payload_parts: "Callable[[bytes, Mapping[str, bytes]], Iterator[Part]] | None" = None

    # payload_operations(payload) lists what a device computes to run it. None: cannot be read.
    payload_operations: "Callable[[bytes], Iterator[Operation]] | None" = None


def backend_of(delegate: str) -> ModuleType | None:
    """Return the backend with this name in files, or None."""
    backends = (plugins.load("backends", name) for name in plugins.names("backends"))
    return next((each for each in backends if delegate and delegate == each.DELEGATE), None)
