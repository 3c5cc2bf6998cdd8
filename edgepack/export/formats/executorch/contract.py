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
    from edgepack.export.tensor_layers import Array


@dataclass(frozen=True, kw_only=True)
class Part:
    """One operator of what a backend was handed, and the constants of the file that it reads, by keys of theirs.

    `scaled` is its weight as torch has it, where batch norm was taken into that.
    """

    kind: str
    constants: "Mapping[str, Array]"
    scaled: "Array | None" = None


class Backend(Protocol):
    """Takes over what it can compute of a model. Stands in export/formats/executorch/backends/.

    All of it may be left out: such a backend takes nothing, and the file runs on the portable kernels. One of a vendor:

        "Hexagon, the signal processors of Qualcomm."

        NEEDS = "QnnBackend"
        SOURCE = "backends/qualcomm"


        def partitioners():
            from executorch.backends.qualcomm.partition.qnn_partitioner import QnnPartitioner

            return [QnnPartitioner(...)]
    """

    VERSION: int = 1  # to bump when the same program would give another file
    LIBRARIES: tuple[str, ...] = ()  # packages besides executorch whose version changes the file
    DELEGATE: str = ""  # what a file names it by, to tell its operators and bytes in reports; mostly that of NEEDS
    NEEDS: str = ""  # the delegate that a runtime must have to run the file; "" where every runtime will do
    SOURCE: str = "exir"  # its lowering, inside the package executorch
    PACKAGE: str = ""  # what its lowering needs besides
    QUANTIZER: str = DEFAULT_QUANTIZER  # of its int8 files, a name in compress/stages/quantize/quantizers/
    BUILD: str = ""  # the option of CMake that builds it into a runtime
    LIBRARY: str = ""  # what an app links then

    def prepared(self, program: "ExportedProgram", inputs: "tuple[torch.Tensor, ...]") -> "ExportedProgram":
        """Write the program as the lowering takes it."""
        return program

    def partitioners(self) -> list[Any]:
        """ExecuTorch's partitioners, which choose what the backend takes."""
        return []

    def lowering(self) -> AbstractContextManager[None]:
        """Mend the backend's own lowering while it is at work: one model must give one file, and a small one."""
        return nullcontext()

    # payload_parts(payload, named) reads what is inside of what a file hands to the backend; `named` are constants
    # beside it. None: it is in a form of its own.
    payload_parts: "Callable[[bytes, Mapping[str, bytes]], Iterator[Part]] | None" = None

    # payload_operations(payload) tells what a device computes to run it. None: that cannot be told.
    payload_operations: "Callable[[bytes], Iterator[Operation]] | None" = None


def backend_of(delegate: str) -> ModuleType | None:
    """The backend that a file names so, where it is known."""
    backends = (plugins.load("backends", name) for name in plugins.names("backends"))
    return next((each for each in backends if delegate and delegate == each.DELEGATE), None)
