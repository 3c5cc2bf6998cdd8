"""What `explain --size` shows of each file that ships: its largest layers, its types, its operators, its overhead."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TextIO

from edgepack.artifact import Artifact
from edgepack.contents import OPAQUE, UNREAD, Contents, Stored
from edgepack.reports._words import plural
from edgepack.result import Build
from edgepack.units import SIZE

if TYPE_CHECKING:
    from rich.table import Table

_LARGEST = 15  # lines of the table; the rest is summed in one more


def show(build: Build, stream: TextIO) -> None:
    from rich.console import Console

    console = Console(file=stream, width=None if stream.isatty() else 140, highlight=False)
    if not build.shipped():
        console.print(f"the build has no file to look into{f': {build.error}' if build.error else ''}", markup=False)
    for artifact in build.shipped():
        console.print(f"{artifact.label}: {artifact.file}, {artifact.bytes:,} bytes", style="bold", markup=False)
        if artifact.contents is None:
            why = "its exporter cannot, or an earlier edgepack built it, or build.log tells why not"
            console.print(f"  nobody looked into it: {why}", markup=False)
            continue
        console.print(_layers(artifact.contents, artifact.bytes))
        for line in facts(artifact, artifact.contents):
            console.print(f"  {line}", markup=False, soft_wrap=True)


def _layers(contents: Contents, whole: int) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in ("layer", "type", "bytes", "of the file"):
        table.add_column(column, justify="left" if column in ("layer", "type") else "right", overflow="fold")
    for each in largest(contents.tensors, _LARGEST):
        table.add_row(each.layer, each.dtype, f"{each.bytes:,}", f"{each.bytes / whole:.1%}")
    return table


def largest(tensors: tuple[Stored, ...], most: int) -> Iterator[Stored]:
    """So many of the largest, and the rest as one."""
    ordered = sorted(tensors, key=lambda each: -each.bytes)
    yield from ordered[:most]
    if rest := ordered[most:]:
        yield Stored(layer=f"({len(rest)} more)", dtype="", bytes=sum(each.bytes for each in rest))


def facts(artifact: Artifact, contents: Contents) -> Iterator[str]:
    """One line a question."""
    overhead = artifact.bytes - contents.stored_bytes
    yield f"tensors: {SIZE.format(contents.stored_bytes)} ({_listed(contents.by_dtype().items())})"
    yield f"beyond them: {SIZE.format(overhead)}, {overhead / (artifact.bytes or 1):.1%} of the file"
    for backend, inside in contents.delegated.items():
        pieces = inside.get(OPAQUE, 0)
        whole = f"{plural(pieces, 'piece')} that edgepack cannot look into, their tensors of the type '{UNREAD}'"
        yield f"delegated to {backend}: {whole if pieces else _counted(inside)}"
    kind = "not delegated" if contents.delegated else "operators"
    yield f"{kind}: {_counted(contents.operators) if contents.operators else 'none'}"
    if contents.arena_bytes is not None:
        yield f"arena: {SIZE.format(contents.arena_bytes)} planned for activations outside of what is delegated"


def _counted(operators: dict[str, int]) -> str:
    most = sorted(operators.items(), key=lambda pair: (-pair[1], pair[0]))
    return f"{plural(sum(operators.values()), 'operator')} ({', '.join(f'{count} {name}' for name, count in most)})"


def _listed(pairs: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{name} {SIZE.format(size)}" for name, size in pairs)
