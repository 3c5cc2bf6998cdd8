"""Read files of weights without running their code."""

import argparse
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy
import torch

from edgepack.core.errors import StageError
from edgepack.models.notes import note
from edgepack.models.weights.file_kinds import is_safetensors, not_weights

State = Mapping[str, torch.Tensor]

# Types besides tensors that training scripts save with argparse and numpy. Loading them runs no code.
_HARMLESS = [argparse.Namespace, numpy.dtype, numpy.float64, numpy.float32, numpy.int64]
_DEEPEST = 8  # depth of nested dicts and lists
_SAVE = "save the weights alone: torch.save(model.state_dict(), ...), or safetensors.torch.save_model(model, ...)"


def read(path: Path) -> Any:
    """Read a safetensors file, or one written by torch.save, by its content; no code in the file is run."""
    from safetensors.torch import load_file

    try:
        if problem := not_weights(path):
            raise StageError(f"{path.name} is {problem}", _SAVE)
        if is_safetensors(path):
            if path.suffix.lower() != ".safetensors":
                note(f"{path.name} was read as a .safetensors file")
            return load_file(path)
        # As an open file: for a file name torch would choose another reader.
        with torch.serialization.safe_globals([*_HARMLESS, *_numpy_internals()]), path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except StageError:
        raise
    except Exception as error:  # a file that is no checkpoint can fail in any way
        raise StageError(  # torch's advice, to load it by running its code, must not be followed
            f"{path.name} cannot be read as weights ({type(error).__name__}): {_unread(error)}", _SAVE
        ) from error


def _unread(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    found = re.search(r"GLOBAL (\S+)", str(error)) or re.search(r"(?:class|Unsupported \w+) (\S+\.\S+)", str(error))
    return f"it holds a {found[1]}, which only code can create" if found else "damaged, or not a weights file"


def _numpy_internals() -> Iterator[Any]:
    """Yield numpy's scalar types, such as that of a best score: under the current name and that before numpy 2."""
    scalar = numpy._core.multiarray.scalar  # type: ignore[attr-defined]  # torch's own advice for such files
    yield scalar
    yield scalar, "numpy.core.multiarray.scalar"
    yield from (type(numpy.dtype(kind)) for kind in ("float64", "float32", "int64", "bool"))


def state_dicts(found: Any, path: Path) -> dict[str, State]:
    """Return every dict of tensors in a file, by its place: "" if the file is one, "folds.0" in a list."""
    dicts = ((place, each) for place, each in _containers(found, "", _DEEPEST, set()) if isinstance(each, dict))
    tensors: dict[str, State]
    tensors = {place: {name: each for name, each in inside.items() if _is_named(name, each)} for place, inside in dicts}
    states = {place: state for place, state in tensors.items() if state or found == {}}
    if not states:
        what = f"a dict of {', '.join(map(str, list(found)[:5]))}" if isinstance(found, dict) else type(found).__name__
        raise StageError(
            f"{path.name} holds {what}, not a state dict", "save it with torch.save(model.state_dict(), ...)"
        )
    return states


def nameless(found: Any) -> dict[str, list[torch.Tensor]]:
    """Return every list of only tensors, by its place: averages of weights are saved so."""
    every = _containers(found, "", _DEEPEST, set())
    lists = {place: [*inside] for place, inside in every if isinstance(inside, list | tuple) and inside}
    return {place: inside for place, inside in lists.items() if all(isinstance(each, torch.Tensor) for each in inside)}


def _containers(found: Any, place: str, depth: int, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Yield each dict and list, then those in it; one that contains itself is visited only once."""
    if not isinstance(found, dict | list | tuple):
        return
    yield place, found
    if depth and id(found) not in seen:
        seen.add(id(found))
        for name, inside in found.items() if isinstance(found, dict) else enumerate(found):
            yield from _containers(inside, f"{place}.{name}".lstrip("."), depth - 1, seen)


def _is_named(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, torch.Tensor) and not name.endswith("_extra_state")
