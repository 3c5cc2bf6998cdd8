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

# Besides tensors: what argparse and numpy leave in the files of training scripts. None of it runs code.
_HARMLESS = [argparse.Namespace, numpy.dtype, numpy.float64, numpy.float32, numpy.int64]
_DEEPEST = 8  # dicts and lists inside of each other
_SAVE = "save the weights alone: torch.save(model.state_dict(), ...), or safetensors.torch.save_model(model, ...)"


def read(path: Path) -> Any:
    """What is in a file of safetensors, or in one that torch.save wrote, by its content; no code of the file runs."""
    from safetensors.torch import load_file

    try:
        if problem := not_weights(path):
            raise StageError(f"{path.name} is {problem}", _SAVE)
        if is_safetensors(path):
            if path.suffix.lower() != ".safetensors":
                note(f"{path.name} was read as a .safetensors file")
            return load_file(path)
        # From an open file: by its name torch would choose another reader.
        with torch.serialization.safe_globals([*_HARMLESS, *_numpy_internals()]), path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except StageError:
        raise
    except Exception as error:  # what is no checkpoint can fail in any way
        raise StageError(  # torch's own advice, to load it with its code, is no advice
            f"{path.name} cannot be read as weights ({type(error).__name__}): {_unread(error)}", _SAVE
        ) from error


def _unread(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    found = re.search(r"GLOBAL (\S+)", str(error)) or re.search(r"(?:class|Unsupported \w+) (\S+\.\S+)", str(error))
    return f"it holds a {found[1]}, which only code can create" if found else "damaged, or not a weights file"


def _numpy_internals() -> Iterator[Any]:
    """Numbers of numpy, as a best score is one: under their name of today and the one before numpy 2."""
    scalar = numpy._core.multiarray.scalar  # type: ignore[attr-defined]  # torch's own advice for such files
    yield scalar
    yield scalar, "numpy.core.multiarray.scalar"
    yield from (type(numpy.dtype(kind)) for kind in ("float64", "float32", "int64", "bool"))


def state_dicts(found: Any, path: Path) -> dict[str, State]:
    """Every dict of tensors in a file, by where it lies in it: "" where the file is one, "folds.0" in a list."""
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
    """Every list of tensors alone, by where it lies: averages of weights are kept so."""
    every = _containers(found, "", _DEEPEST, set())
    lists = {place: [*inside] for place, inside in every if isinstance(inside, list | tuple) and inside}
    return {place: inside for place, inside in lists.items() if all(isinstance(each, torch.Tensor) for each in inside)}


def _containers(found: Any, place: str, depth: int, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Each dict and list, then those in it, but once, though it were its own part."""
    if not isinstance(found, dict | list | tuple):
        return
    yield place, found
    if depth and id(found) not in seen:
        seen.add(id(found))
        for name, inside in found.items() if isinstance(found, dict) else enumerate(found):
            yield from _containers(inside, f"{place}.{name}".lstrip("."), depth - 1, seen)


def _is_named(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, torch.Tensor) and not name.endswith("_extra_state")
