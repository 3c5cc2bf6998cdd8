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
                                    what a device with these facts computes to run the file (operators.py), of any file
                                    of its kind; `shapes` are those of inputs by name which the file leaves open
runtime_files(path, config)         {name: content}: what a runtime built for this file alone needs. BUILDING.md tells
                                    how to build it, of the model "$MODEL" in the folder "$BUNDLE"

and, where settings are left to the device,

suited(config, quantization)        the config with them filled in from the profile's facts
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgepack.config import Frozen
from edgepack.plugins import Choice

if TYPE_CHECKING:
    from edgepack.candidate import Candidate


class Exporter(Protocol):
    RUNTIME: str
    SUFFIX: str
    VERSION: int
    LIBRARIES: tuple[str, ...]
    Config: type[Frozen]

    def export(self, candidate: "Candidate", config: Any, path: Path) -> None: ...


def write(candidate: "Candidate", exporter: Choice, path: Path) -> None:
    """Export. Raises StageError that names the operator which the exporter cannot write, its module and its line."""
    from edgepack import sources

    with sources.lowering(exporter.name, lambda: candidate.program(batch=1)):
        exporter.module.export(candidate, exporter.config, path)


def suffix(exporter: Choice) -> str:
    """Of the files that an exporter with these settings writes."""
    return str(getattr(exporter.config, "suffix", exporter.module.SUFFIX))
