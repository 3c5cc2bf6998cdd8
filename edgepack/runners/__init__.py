"""A runner takes exported files to where they must run. It is a module with

Config                               what a device profile may say of it (frozen pydantic)
EVIDENCE                             "measured", "emulated" or "estimated": what its figures are worth
unavailable(config, controls)        why it cannot be used now, or ""; instant
fingerprint(config, controls)        what a timing depends on besides the file: a JSON mapping, instant
run(config, controls, job) -> dict   one job of worker.py in a fresh process there; raises DeviceError
"""

from typing import Any, Protocol

from edgepack.config import Frozen
from edgepack.device import Controls


class Runner(Protocol):
    Config: type[Frozen]
    EVIDENCE: str

    def unavailable(self, config: Any, controls: Controls) -> str: ...
    def fingerprint(self, config: Any, controls: Controls) -> dict[str, Any]: ...
    def run(self, config: Any, controls: Controls, job: dict[str, Any]) -> dict[str, Any]: ...
