"""`--set key.path=value`: one value of a document changed from the command line, its mistakes blamed on `--set`."""

from typing import Any

from edgepack.config.document import Document, KeyPath, read_value
from edgepack.core.errors import RecipeError


def override(document: Document, text: str) -> None:
    """Apply `key.path=value`; list items are addressed by index, stages also by name."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {text!r}: write it as key.path=value, for example --set budgets.size=1MB")
    before = document.data
    try:
        # Mistakes are reported with `stages[2].prune`, so this form is accepted too.
        parts = key.replace("[", ".").replace("]", "").split(".")
        document.data, path = _set(before, parts, read_value(value))
    except LookupError as error:
        raise RecipeError(f"--set {key}: {error.args[0]}") from None
    document.came_from("--set", _first_new(before, path))


def _set(node: Any, parts: list[str], value: Any) -> tuple[Any, KeyPath]:
    """Return `node` with the value at `parts` replaced or added, and the path where it is now."""
    if not parts:
        return value, ()
    if isinstance(node, tuple):
        i, rest = _item(node, parts)
        inner, path = _set(node[i], rest, value)
        return (*node[:i], inner, *node[i + 1 :]), (i, *path)
    mapping = node if isinstance(node, dict) else {node: {}} if node == parts[0] else {}
    name, rest = _next_key(mapping, parts)
    inner, path = _set(mapping.get(name), rest, value)
    return {**mapping, name: inner}, (name, *path)


def _next_key(mapping: dict[str, Any], parts: list[str]) -> tuple[str, list[str]]:
    for end in range(len(parts), 0, -1):  # `latency.p50` may be one key in the file
        if (name := ".".join(parts[:end])) in mapping:
            return name, parts[end:]
    return parts[0], parts[1:]


def _item(items: tuple[Any, ...], parts: list[str]) -> tuple[int, list[str]]:
    if parts[0].isdecimal() and int(parts[0]) < len(items):
        return int(parts[0]), parts[1:]
    names = [next(iter(item)) if isinstance(item, dict) and item else str(item) for item in items]
    if parts[0] not in names:
        raise LookupError(f"the list has no '{parts[0]}', only {', '.join(names)}")
    return names.index(parts[0]), parts


def _first_new(before: Any, path: KeyPath) -> KeyPath:
    """Return the part of `path` down to the first new mapping, list or value: what the override wrote."""
    for depth, part in enumerate(path, start=1):
        if isinstance(before, tuple):
            before = before[int(part)]
        else:
            before = before.get(part) if isinstance(before, dict) else None
        if not isinstance(before, dict | tuple):
            return path[:depth]
    return path
