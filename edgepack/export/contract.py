"""An exporter is a module with

RUNTIME                             the runtime that loads what it writes, a key of worker.py's RUNTIMES
SUFFIX                              of the file: ".pte"; a Config with a `suffix` of its own says otherwise
VERSION, LIBRARIES                  as for stages
Config                              what a recipe may say of it (frozen pydantic)
export(candidate, config, path)     write the file; the candidate may be eager or exported

and, where a file holds more than one thing to call,

METHOD                              what an app calls

and, where what its settings ask for is not to be had everywhere,

unavailable(config) -> str          why such a file cannot be written here, or ""; instant, no torch
needs(config) -> str                the delegate that a runtime must have to run the file, or ""; no torch

and, where it can,

inspect(path, candidate)            what is in the file, its tensors by the names of the candidate's layers
operations(path, quantization, shapes)
                                    what a device with these facts computes to run the file (operations.py), of any file
                                    of its kind; `shapes` are those of inputs by name which the file leaves open
runtime_files(path, config)         {name: content}: what a runtime built for this file alone needs. BUILDING.md tells
                                    how to build it, of the model "$MODEL" in the folder "$BUNDLE"

and, where settings are left to the device,

suited(config, quantization)        the config with them filled in from the profile's facts
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgepack.config import plugins
from edgepack.config.device import Quantization
from edgepack.config.plugins import Choice
from edgepack.core.errors import DeviceError, EdgepackError
from edgepack.core.frozen import Frozen
from edgepack.export.operations import Operation

if TYPE_CHECKING:
    from edgepack.models.candidate import Candidate


class Exporter(Protocol):
    RUNTIME: str
    SUFFIX: str
    VERSION: int
    LIBRARIES: tuple[str, ...]
    Config: type[Frozen]

    def export(self, candidate: "Candidate", config: Any, path: Path) -> None: ...


def write(candidate: "Candidate", exporter: Choice, path: Path) -> None:
    """Export. Raises StageError that names the operator which the exporter cannot write, its module and its line."""
    from edgepack.models import source_lines

    with source_lines.lowering(exporter.name, lambda: candidate.program(batch=1)):
        exporter.module.export(candidate, exporter.config, path)


def suffix(exporter: Choice) -> str:
    """Of the files that an exporter with these settings writes."""
    return str(getattr(exporter.config, "suffix", exporter.module.SUFFIX))


def operations(
    runtime: str, file: Path, quantization: Quantization, shapes: Mapping[str, Sequence[int]] = {}
) -> tuple[Operation, ...]:
    """What a file computes. Raises DeviceError where nobody can read that out of it."""
    exporters = (plugins.load("exporters", name) for name in plugins.names("exporters"))
    readers = [each for each in exporters if hasattr(each, "operations") and runtime == each.RUNTIME]
    if not readers:
        raise DeviceError(f"no exporter can tell the operators of a file for {runtime}", "run it on the device")
    try:
        found: tuple[Operation, ...] = readers[0].operations(file, quantization, shapes)
    except EdgepackError:
        raise
    except Exception as error:
        logging.getLogger(__name__).exception("the operators of %s could not be read", file)
        first = (str(error).strip().splitlines() or [""])[0]
        raise DeviceError(f"the operators of {file} cannot be read: {type(error).__name__}: {first}") from error
    return found
