"""Render report.md: verdict, budgets, ledger, devices and warnings, for a pull request."""

import re
from collections.abc import Iterator, Sequence

from edgepack.deliver import wording
from edgepack.records.build import Build

FILE = "report.md"

_BUDGETS = ("budget", "file", "value", "limit", "headroom", "verdict", "written at")
_LEDGER = ("stage", "parameters", "MACs", "bytes")
_PLACES = ("where", "versions", "files", "figures", "evidence")


def render(build: Build) -> str:
    return "\n".join([*_top(build), *_ledger(build), *_places(build), *_end(build)]) + "\n"


def summary(build: Build) -> str:
    """Return only the verdict, the budgets and the doubts."""
    return "\n".join([*_top(build), *_doubts(build)]) + "\n"


def escaped(text: str) -> str:
    """Return text that GitHub's Markdown shows unchanged, in one line; `code` stays code.

    >>> escaped("a|b *c* `d|e` <f> my_net _g_")
    'a\\\\|b \\\\*c\\\\* `d\\\\|e` &lt;f> my_net \\\\_g\\\\_'
    """
    pieces = re.split("(`[^`]+`)", wording.one_line(text))
    return "".join(_code(piece) if place % 2 else _prose(piece) for place, piece in enumerate(pieces))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(escaped(cell) for cell in row)} |"


def _code(piece: str) -> str:
    return piece.replace("|", "\\|")  # the only escape that works in code, and only in tables


def _prose(piece: str) -> str:
    piece = re.sub(r"([\\`*\[\]|~#])", r"\\\1", piece.replace("&", "&amp;").replace("<", "&lt;"))
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", piece)


def _top(build: Build) -> Iterator[str]:
    title = f"{build.name} on {build.device['name']}: {wording.headline(build)}"
    yield f"# {escaped(title)} (exit code {build.exit_code})"
    yield ""
    if build.error:
        yield f"**The build did not finish:** {escaped(build.error)}\n"
    for warning in wording.warnings(build):
        yield f"**{escaped(warning)}**\n"
    gains = [f"- {escaped(line)}" for line in (*wording.gains(build), wording.cut(build)) if line]
    yield from [*gains, ""] if gains else []
    yield "## Budgets"
    yield ""
    yield from _budgets(build) if build.verdicts else ["no limit checked", ""]


def _budgets(build: Build) -> Iterator[str]:
    rows = [
        (
            each.budget,
            each.artifact,
            wording.value(each),
            wording.limit(each),
            wording.headroom(each),
            wording.mark(each),
            each.place,
        )
        for each in build.verdicts
    ]
    yield from table(_BUDGETS, rows)
    yield ""
    notes = [f"- {escaped(budgets)}: {escaped(why)}" for budgets, why in wording.reasons(build)]
    notes += [f"- {escaped(line)}" for line in wording.baselines(build)]
    yield from [*notes, ""] if notes else []


def _ledger(build: Build) -> Iterator[str]:
    rows = [
        (
            each.stage,
            f"{each.parameters:,}",
            f"{each.macs:,}",
            f"{each.bytes:,}",
            wording.score(each.metric, each.score),
            f"{each.seconds:.1f}",
        )
        for each in build.ledger
    ]
    if rows:
        yield "## Ledger"
        yield ""
        of_torch = f"{build.metric} of the torch model on the validation split"
        yield f"After each stage: size of all stored tensors, {of_torch}."
        yield ""
        yield from table((*_LEDGER, build.metric, "seconds"), rows)
        yield ""


def _places(build: Build) -> Iterator[str]:
    rows = [
        (each.where, each.versions, ", ".join(each.artifacts), ", ".join(each.metrics), _loud(each.evidence))
        for each in wording.places(build)
    ]
    if rows:
        yield "## Where it ran"
        yield ""
        yield from table(_PLACES, rows)
        yield ""
    for label, why in build.not_run.items():
        yield f"- {escaped(label)} was not run here: {escaped(why)}\n"


def _loud(evidence: str) -> str:
    return evidence if evidence == "measured" else evidence.upper()


def _doubts(build: Build) -> Iterator[str]:
    yield "## Warnings"
    yield ""
    yield from [f"- {escaped(doubt)}" for doubt in wording.doubts(build)] or ["none"]
    if note := wording.reused(build):
        yield f"\n{escaped(note)}"
    yield ""


def _end(build: Build) -> Iterator[str]:
    yield from _doubts(build)
    made = (wording.built_on(build), wording.listed(build.provenance.get("versions", {})), wording.commit(build))
    if any(made):
        yield f"Built on {escaped('; '.join(part for part in made if part))}\n"
    if build.bundle:
        yield f"Bundle: `{build.bundle}`, sha256 `{build.bundle_sha256}`"
