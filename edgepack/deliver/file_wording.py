"""Describe the contents of an exported file in words."""

from collections.abc import Iterable, Iterator

from edgepack.core.units import SIZE
from edgepack.deliver.wording import plural
from edgepack.records.artifact import Artifact
from edgepack.records.file_contents import OPAQUE, UNREAD, Contents, Stored


def largest(tensors: tuple[Stored, ...], most: int) -> Iterator[Stored]:
    """Yield the `most` largest, and the sum of the rest as one."""
    ordered = sorted(tensors, key=lambda each: -each.bytes)
    yield from ordered[:most]
    if rest := ordered[most:]:
        yield Stored(layer=f"({len(rest)} more)", dtype="", bytes=sum(each.bytes for each in rest))


def facts(artifact: Artifact, contents: Contents) -> Iterator[str]:
    """Yield one line per fact: tensors, overhead, operators, delegates, arena."""
    overhead = artifact.bytes - contents.stored_bytes
    yield f"tensors: {SIZE.format(contents.stored_bytes)} ({_listed(contents.by_dtype().items())})"
    yield f"other than tensors: {SIZE.format(overhead)}, {overhead / (artifact.bytes or 1):.1%} of the file"
    for backend, inside in contents.delegated.items():
        pieces = inside.get(OPAQUE, 0)
        whole = f"{plural(pieces, 'opaque part')}, their tensors have the type '{UNREAD}'"
        yield f"delegated to {backend}: {whole if pieces else _counted(inside)}"
    kind = "not delegated" if contents.delegated else "operators"
    yield f"{kind}: {_counted(contents.operators) if contents.operators else 'none'}"
    if contents.arena_bytes is not None:
        yield f"arena: {SIZE.format(contents.arena_bytes)} planned for activations of operators that are not delegated"


def _counted(operators: dict[str, int]) -> str:
    most = sorted(operators.items(), key=lambda pair: (-pair[1], pair[0]))
    return f"{plural(sum(operators.values()), 'operator')} ({', '.join(f'{count} {name}' for name, count in most)})"


def _listed(pairs: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{name} {SIZE.format(size)}" for name, size in pairs)
