"""Define what an exporter must and may provide, and call exporters."""

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgepack.config import plugins
from edgepack.config.device import Quantization
from edgepack.config.plugins import DEFAULT_QUANTIZER, Choice
from edgepack.core.errors import DeviceError, EdgepackError
from edgepack.core.frozen import Frozen
from edgepack.export.operations import Operation

if TYPE_CHECKING:
    from edgepack.models.candidate import Candidate
    from edgepack.records.file_contents import Contents


class Exporter(Protocol):
    """Writes a model to a file that a runtime loads. Stands in export/formats/.

    What has no default below must be defined; what has one may be left out. A whole exporter:

        "ONNX as torch writes it, for ONNX Runtime."

        from edgepack.core.frozen import Frozen

        RUNTIME = "onnxruntime"
        SUFFIX = ".onnx"
        VERSION = 1


        class Config(Frozen):
            opset: int = 20


        def export(candidate, config, path):
            import torch

            inputs = [spec.name for spec in candidate.signature.inputs]
            program = torch.onnx.export(
                candidate.program(batch=1), dynamo=True, verbose=False, opset_version=config.opset, input_names=inputs
            )
            program.save(str(path), external_data=False)
    """

    RUNTIME: str  # the runtime that loads the file, a key of core/runtimes.py
    SUFFIX: str  # suffix of the file: ".pte"
    VERSION: int  # to bump when the same input would give another file
    Config: type[Frozen]  # its settings in a recipe

    LIBRARIES: tuple[str, ...] = ()  # packages besides torch whose version changes the file
    METHOD: str | None = None  # what an app calls, if a file holds more than one method

    @abstractmethod
    def export(self, candidate: "Candidate", config: Any, path: Path) -> None:
        """Write the file. The candidate may be eager or exported."""

    def check(self, candidate: "Candidate", config: Any) -> None:
        """Raises StageError for a model that `export` would refuse, without writing it: called before any training."""

    def suffix(self, config: Any) -> str:
        """Return the suffix of a file with these settings."""
        return self.SUFFIX

    def suited(self, config: Any, quantization: Quantization) -> Any:
        """Fill in the settings that depend on the device, from the facts of its profile."""
        return config

    def unavailable(self, config: Any) -> str:
        """Say why such a file cannot be written on this computer, or "". Fast and without torch."""
        return ""

    def needs(self, config: Any) -> str:
        """Name the delegate that a runtime must have to run the file, or "". Without torch."""
        return ""

    def uses(self, config: Any) -> dict[str, str]:
        """Name the plugins of other kinds that it uses: {kind: name}. Their VERSION and LIBRARIES count as its own."""
        return {}

    def quantizer(self, config: Any) -> str:
        """Name the quantizer that int8 files with these settings need."""
        return DEFAULT_QUANTIZER

    def low_bits(self, config: Any) -> bool:
        """Return whether such a file can hold int4 weights, and tables of 4 or 2 bits. Without torch."""
        return False

    def inspect(self, path: Path, candidate: "Candidate") -> "Contents | None":
        """Read what is in the file, its tensors by the names of the candidate's layers; None: not known."""
        return None

    def runtime_files(self, path: Path, config: Any) -> dict[str, bytes]:
        """Return the files that a runtime built for this file alone needs, by name, or that one needs beside it.

        Among them, BUILDING.md says how to build it, for the model "$MODEL" in the folder "$BUNDLE". In others,
        "$MODEL" stands for the file's name alone.
        """
        return {}

    # operations(path, quantization, shapes) reads from any file of its kind what a device with these facts computes to
    # run it (operations.py); `shapes` are those of inputs, by name, that the file leaves open. None: cannot be read.
    operations: "Callable[[Path, Quantization, Mapping[str, Sequence[int]]], tuple[Operation, ...]] | None" = None


def write(candidate: "Candidate", exporter: Choice, path: Path) -> None:
    """Export. Raises StageError with the operator that the exporter cannot write, its module and its source line."""
    from edgepack.models import source_lines

    with source_lines.lowering(exporter.name, lambda: candidate.program(batch=1)):
        exporter.module.export(candidate, exporter.config, path)


def suffix(exporter: Choice) -> str:
    """Return the suffix of the files that an exporter with these settings writes."""
    return str(exporter.module.suffix(exporter.config))


def operations(
    runtime: str, file: Path, quantization: Quantization, shapes: Mapping[str, Sequence[int]] = {}
) -> tuple[Operation, ...]:
    """Return what a file computes. Raises DeviceError where no exporter can read that from it."""
    exporters = (plugins.load("exporters", name) for name in plugins.names("exporters"))
    readers = [each for each in exporters if each.operations and runtime == each.RUNTIME]
    if not readers:
        raise DeviceError(f"no exporter can read the operators of a file for {runtime}", "measure it on the device")
    try:
        found: tuple[Operation, ...] = readers[0].operations(file, quantization, shapes)
    except EdgepackError:
        raise
    except Exception as error:
        logging.getLogger(__name__).exception("the operators of %s could not be read", file)
        first = (str(error).strip().splitlines() or [""])[0]
        raise DeviceError(f"the operators of {file} cannot be read: {type(error).__name__}: {first}") from error
    return found
