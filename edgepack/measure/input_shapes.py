"""Determine the input shapes for `edgepack bench`: those of the file, and those from --shape.

read_shapes(["ids=1,128"])                         # {"ids": (1, 128)}
fixed([Path("net.onnx")], [specs], {"ids": (1, 128)})   # the inputs of each file in shapes of numbers
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgepack.core.errors import DeviceError, RecipeError
from edgepack.core.units import SIZE
from edgepack.measure.runtimes.contract import Spec

_COPIES = 6  # of the inputs in memory at once, while they are made


def read_shapes(texts: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """
    >>> read_shapes(["ids=1,128"])
    {'ids': (1, 128)}
    """
    found = {}
    for text in texts:
        name, _, sizes = text.rpartition("=")
        parts = sizes.split(",")
        if not name or not all(part.strip().isdecimal() and int(part) for part in parts):
            raise RecipeError(f"--shape {text!r}: write it as INPUT=1,3,224,224")
        found[name] = tuple(int(part) for part in parts)
    return found


def fixed(
    files: Sequence[Path], described: Sequence[Sequence[Spec]], shapes: Mapping[str, Sequence[int]]
) -> list[list[Spec]]:
    """Return the inputs of each file with fixed shapes.

    Raises RecipeError with all problems of the shapes, DeviceError where there is not enough memory for them.
    """
    for file, specs in zip(files, described, strict=True):
        given = [(name, tuple(shapes[name]), dtype) for name, _, dtype in specs if name in shapes]
        if _bytes(given) * _COPIES > _free():
            raise too_large(file, given)
    known = {name for specs in described for name, _, _ in specs}
    have = "; ".join(f"{file} has {_listed(specs)}" for file, specs in zip(files, described, strict=True))
    wrong = [f"--shape {name}: there is no such input: {have}" for name in shapes if name not in known]
    found = []
    for file, specs in zip(files, described, strict=True):
        wrong += [f"{file}: {problem}" for spec in specs if (problem := _problem(file, spec, shapes))]
        found.append([(name, tuple(shapes.get(name, shape)), dtype) for name, shape, dtype in specs])
    if wrong:
        raise RecipeError("\n".join(dict.fromkeys(wrong)))
    for file, specs in zip(files, found, strict=True):
        if _bytes(specs) * _COPIES > _free():
            raise too_large(file, specs)
    return found


def _problem(file: Path, spec: Spec, shapes: Mapping[str, Sequence[int]]) -> str:
    name, shape, _ = spec
    given, ranked = shapes.get(name), bool(shape) or not _unranked(file, name)
    if 0 in shape:
        return f"a dimension of {name} is 0 ({_shown(shape)}): it has no elements, so there is nothing to time"
    if given is None:
        open_ = not ranked or not all(_is_size(size) for size in shape)
        return (
            f"the shape of {name} is dynamic ({_shown(shape, ranked)}): give {_example(name, shape)}" if open_ else ""
        )
    if not ranked or (len(given) == len(shape) and all(map(_fits(file), given, shape))):
        return ""
    return f"--shape {name}={','.join(map(str, given))} does not fit: the file has {name}={_shown(shape, ranked)}"


def _fits(file: Path) -> Any:
    """Return a check for one size. Sizes in a .pte are maxima: only running it shows whether smaller ones work."""
    largest = file.suffix.lower() == ".pte"
    return lambda given, size: not _is_size(size) or given == size or (largest and given < size)


def _is_size(size: object) -> bool:
    return isinstance(size, int) and size > 0


def _shown(shape: Sequence[Any], ranked: bool = True) -> str:
    """
    >>> _shown(("batch", None, 8))
    'batch,?,8'
    """
    if not ranked:
        return "of any number of axes"
    return ",".join("?" if size is None else str(size) for size in shape) or "one number"


def _example(name: str, shape: Sequence[Any]) -> str:
    sizes = [size if _is_size(size) else 1 for size in shape] or [1, 8]
    return f"--shape {f'{name}=' + ','.join(map(str, sizes))!r}" if " " in name else f"--shape {name}={_shown(sizes)}"


def _listed(specs: Sequence[Spec]) -> str:
    return ", ".join(f"{name}={_shown(shape)}" for name, shape, _ in specs) or "no inputs"


def _unranked(file: Path, name: str) -> bool:
    """Return whether an ONNX file leaves the rank of an input open; the runtime reports such an input as a scalar."""
    if file.suffix.lower() != ".onnx":
        return False
    import onnx

    inputs = onnx.load(file, load_external_data=False).graph.input
    return any(each.name == name and not each.type.tensor_type.HasField("shape") for each in inputs)


def _bytes(specs: Sequence[Spec]) -> int:
    import numpy

    return sum(math.prod(shape) * numpy.dtype(dtype).itemsize for _, shape, dtype in specs)


def _free() -> float:
    """Return the bytes of memory that a process may still use; a container may have less than its machine."""
    free = math.inf
    with suppress(OSError, IndexError, ValueError):  # a system without that file
        free = float(Path("/proc/meminfo").read_text().partition("MemAvailable:")[2].split()[0]) * 1024
    with suppress(OSError, ValueError, KeyError):  # no container, or one without a limit
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        facts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        cached = sum(int(facts[name]) for name in ("inactive_file", "active_file"))  # released when needed
        free = min(free, max(limit - used + cached, 0))
    return free


def too_large(file: object, specs: Sequence[Spec]) -> DeviceError:
    message = f"{file}: inputs of {_listed(specs)} are {SIZE.format(_bytes(specs))}, more than the free memory"
    return DeviceError(message, "give a smaller --shape, or use a computer with more memory")
