"""A runtime is a module with a class `Runtime`, which imports the runtime's packages as it is made.

These modules go to devices: at the top they import the standard library and each other only, and Python 3.9 reads them.
None bears the name of a package that it imports.
"""

from typing import Any, Protocol

Spec = tuple[str, tuple[Any, ...], str]  # an input: its name, shape and type

NO_OUTPUTS = "it has no outputs"
SUPPORTED_TYPES = "only tensors of float16, float32, float64, integers and booleans are"


class Refused(Exception):
    """Something is wrong with the file, or with its inputs."""


class Runtime(Protocol):
    """Loads and runs a file. Arrays are numpy arrays; `specs` describes the inputs of the loaded file.

    A file that generates text takes states after them, which go from one call to the next, see worker/generation.py.
    """

    specs: list[Spec]
    states: list[Spec]

    def start(self, threads: int) -> None:
        """Start the threads that it runs on. Called before all else."""

    def delegates(self) -> list[str]:
        """Return the delegates that it can hand a model to."""

    def load(self, file: str) -> None:
        """Load a file. Raises Refused where its inputs cannot be made or its outputs not compared."""

    def bind(self, arrays: list[Any]) -> Any:
        """Return the inputs as `run` takes them."""

    def run(self, bound: Any) -> Any:
        """Return the outputs, as the runtime gives them."""

    def arrays(self, outputs: Any) -> list[Any]:
        """Return these outputs as arrays, but for those that are no tensors. Raises Refused if the first is none."""
