"""Print the measurements of `edgepack bench` as tables."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from edgepack.deliver import wording
from edgepack.records.measurement import Measurement
from edgepack.workflows.bench import Bench, Pair

if TYPE_CHECKING:
    from rich.console import Console


def show(found: Bench | Pair, stream: TextIO) -> None:
    console = _console(stream)
    files = found.files if isinstance(found, Pair) else (found,)
    _table(console, files)
    if isinstance(found, Pair):
        console.print(_ratio(found), markup=False)
    _verdicts(console, files)
    _doubts(console, files)


def _ratio(found: Pair) -> str:
    first, second = (each.file for each in found.files)
    word = "slower" if found.low > 1 else "faster" if found.high < 1 else "no significant difference"
    between = f"95 % interval {found.low:.3f}x to {found.high:.3f}x"
    return f"{second} takes {found.ratio:.3f}x the time of {first}, {between}: {word}"


def _console(stream: TextIO) -> "Console":
    from rich.console import Console

    terminal = stream.isatty()
    return Console(file=stream, width=None if terminal else 140, highlight=False, emoji=False, soft_wrap=not terminal)


def _table(console: "Console", files: Sequence[Bench]) -> None:
    from rich import box
    from rich.table import Table

    for found in files:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for column in ("metric", "value", "95 % interval", "evidence", "processes"):
            table.add_column(column, justify="right" if column in ("value", "processes") else "left", overflow="fold")
        for each in found.measurements:
            table.add_row(*_cells(each))
        console.print(f"{found.file} on {found.device}, {_environment(found.measurements[-1])}", markup=False)
        console.print(table)
        if fed := "  ".join(f"{name}={','.join(map(str, shape))}" for name, shape in found.inputs.items()):
            console.print(f"random inputs: {fed}", markup=False)


def _cells(each: Measurement) -> tuple[str, ...]:
    low, high, value = (wording.figure(each.metric, figure) for figure in (each.low, each.high, each.value))
    between = f"{low} to {high}" if each.low != each.high else ""
    return each.metric, value, between, _worth(each), str(each.detail.get("processes", ""))


def _environment(each: Measurement) -> str:
    facts = each.environment
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    threads = f"{wording.plural(facts['threads'], 'thread')}, " if "threads" in facts else ""
    return f"{threads}{facts.get('cpu') or facts.get('model', '')}: {versions}"


def _worth(each: Measurement) -> str:
    return each.evidence if each.evidence == "measured" else each.evidence.upper()


def _verdicts(console: "Console", files: Sequence[Bench]) -> None:
    for each in (verdict for found in files for verdict in found.verdicts):
        text = f"{each.budget}: {wording.MARKS[each.outcome]}, {wording.limit(each)}"
        console.print(f"{text}, {each.reason or wording.headroom(each)}", markup=False)


def _doubts(console: "Console", files: Sequence[Bench]) -> None:
    for found in files:
        for each in found.measurements:
            for doubt in each.doubts:
                console.print(f"warning: {each.metric} of {found.file}: {doubt}", style="yellow", markup=False)
