"""report.md: verdict, budgets, ledger and doubts, for a pull request or a step summary."""

from collections.abc import Iterator, Sequence

from edgepack.reports import _words as words
from edgepack.result import Build

FILE = "report.md"


def render(build: Build) -> str:
    return "\n".join(_lines(build)) + "\n"


def _lines(build: Build) -> Iterator[str]:
    yield f"# {build.name} on {build.device['name']}: {words.headline(build)} (exit code {build.exit_code})"
    yield ""
    for line in words.gains(build):
        yield f"- {line}"
    yield ""
    yield "## Budgets"
    yield ""
    head = ("budget", "file", "value", "limit", "headroom", "verdict", "written at")
    yield from table(
        head,
        [
            (
                each.budget,
                each.artifact,
                words.figure(each.metric, each.value),
                words.limit(each),
                words.headroom(each),
                words.MARKS[each.outcome],
                each.place,
            )
            for each in build.verdicts
        ],
    )
    yield ""
    yield "## Ledger"
    yield ""
    yield "What each stage left: size of all stored tensors, accuracy of the torch model on the validation split."
    yield ""
    columns = ("stage", "parameters", "MACs", "bytes", "accuracy", "seconds")
    yield from table(
        columns,
        [
            (
                each.stage,
                f"{each.parameters:,}",
                f"{each.macs:,}",
                f"{each.bytes:,}",
                f"{each.accuracy:.2%}",
                f"{each.seconds:.1f}",
            )
            for each in build.ledger
        ],
    )
    yield ""
    yield "## Doubts"
    yield ""
    yield from [f"- {doubt}" for doubt in words.doubts(build)] or ["none"]
    if note := words.reused(build):
        yield f"\n{note}"
    yield ""
    yield f"Bundle: `{build.bundle}`, sha256 `{build.bundle_sha256}`"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '/') for cell in row)} |"
