"""A runtime is a module with a class `Runtime`, which imports the runtime's packages as it is made.

These modules go to devices: at the top they import the standard library and each other only, and Python 3.9 reads them.
None bears the name of a package that it imports.
"""

from typing import Any, Protocol

Spec = tuple[str, tuple[Any, ...], str]  # of an input: its name, shape and type

NO_OUTPUTS = "it has no outputs"
SUPPORTED_TYPES = "only tensors of float16, float32, float64, integers and booleans are"


class Refused(Exception):
    """What is wrong with the file, or with what it is given."""


class Runtime(Protocol):
    """Arrays are those of numpy. `specs` tells the inputs of the file that was loaded."""

    specs: list[Spec]

    def start(self, threads: int) -> None:
        """Make the threads that it runs on. This comes before all else."""

    def delegates(self) -> list[str]:
        """What it can hand a model to."""

    def load(self, file: str) -> None:
        """Raises Refused where the file cannot be fed or compared."""

    def bind(self, arrays: list[Any]) -> Any:
        """The inputs as `run` takes them."""

    def run(self, bound: Any) -> Any:
        """The first output, as the runtime gives it."""

    def array(self, output: Any) -> Any:
        """That output as an array."""
