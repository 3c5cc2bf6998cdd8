"""Print what `explain --size` shows of each exported file: layers, types, operators, overhead."""

from typing import TYPE_CHECKING, TextIO

from edgepack.deliver.file_wording import facts, largest
from edgepack.records.build import Build
from edgepack.records.file_contents import Contents

if TYPE_CHECKING:
    from rich.table import Table


_LARGEST = 15  # rows of the table; the rest is summed in one more row


def show(build: Build, stream: TextIO) -> None:
    from rich.console import Console

    console = Console(file=stream, width=None if stream.isatty() else 140, highlight=False)
    if not build.shipped():
        console.print(f"the build exported no file{f': {build.error}' if build.error else ''}", markup=False)
    for artifact in build.shipped():
        console.print(f"{artifact.label}: {artifact.file}, {artifact.bytes:,} bytes", style="bold", markup=False)
        if artifact.contents is None:
            why = "its exporter cannot read it, or an earlier edgepack built it, or see build.log"
            console.print(f"  contents not available: {why}", markup=False)
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
