"""Layers named in a recipe: by name, by a pattern, by a block that they lie in; those of an encoder by their place."""

from collections.abc import Iterable
from difflib import get_close_matches
from fnmatch import fnmatch

from edgepack.core.errors import StageError, listed

_SHOWN = 8  # names listed in an error


def matches(name: str, patterns: Iterable[str]) -> bool:
    """
    >>> matches("layer4.0.conv1", ["layer4"]), matches("layer4.0.conv1", ["*.conv1"]), matches("fc", ["fc.1"])
    (True, True, False)
    """
    parts = name.split(".")
    around = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return any(fnmatch(each, pattern) for each in around for pattern in patterns)


def check_patterns(patterns: Iterable[str], names: Iterable[str], what: str, *, sure: bool = True) -> None:
    """Raises StageError for the first pattern that matches none of `names`, with the most similar names.

    Unless the names are `sure`, a layer may still be split in two, so a pattern for a part of one is accepted.
    """
    known = list(names)
    for pattern in patterns:
        inside = not sure and any(pattern.startswith(f"{name}.") for name in known)
        if not inside and not any(matches(name, [pattern]) for name in known):
            close = get_close_matches(pattern, known, n=1, cutoff=0.6)
            hint = f"did you mean '{close[0]}'? " if close else ""
            raise StageError(f"no layer matches '{pattern}'", f"{hint}{what}: {listed(known, _SHOWN)}")


def chosen(layers: int | tuple[int, ...], known: int, of: str) -> int | tuple[int, ...]:
    """Return the layers as given. Raises ValueError unless a model of `known` layers has them, each once and in order.

    >>> chosen((0, 2), 6, "the model"), chosen(3, 6, "the model")
    ((0, 2), 3)
    """
    if isinstance(layers, int):
        if not 1 <= layers <= known:
            raise ValueError(f"{of} has {known} layers, {layers} cannot be kept")
        return layers
    if not layers or list(layers) != sorted({*layers}):
        raise ValueError(f"layers are indices from 0, each once and in order, got {[*layers]}")
    if layers[0] < 0 or layers[-1] >= known:
        raise ValueError(f"{of} has the layers 0 to {known - 1}, got {[*layers]}")
    return layers
