"""An exporter is a module with

RUNTIME                             the runtime that loads what it writes, a key of worker.py's RUNTIMES
SUFFIX                              of the file: ".pte"
VERSION, LIBRARIES                  as for stages
Config                              what a recipe may say of it (frozen pydantic)
export(candidate, config, path)     write the file; the candidate may be eager or exported

and, where settings are left to the device,

suited(config, quantization)        the config with them filled in from the profile's facts
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgepack.config import Frozen

if TYPE_CHECKING:
    from edgepack.candidate import Candidate


class Exporter(Protocol):
    RUNTIME: str
    SUFFIX: str
    VERSION: int
    LIBRARIES: tuple[str, ...]
    Config: type[Frozen]

    def export(self, candidate: "Candidate", config: Any, path: Path) -> None: ...
