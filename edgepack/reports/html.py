"""report.html: one self-contained page, verdict first; no script, no network."""

from pathlib import Path

from edgepack.reports import _words as words
from edgepack.result import Build, StageRecord

FILE = "report.html"


def render(build: Build) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    template = environment.get_template("report.html.j2")
    return template.render(build=build, words=words, bars=_bars(build.ledger), code=build.exit_code)


def _bars(ledger: tuple[StageRecord, ...]) -> list[tuple[StageRecord, float]]:
    """Each stage with its size as a share of the largest, for the bars of the ledger."""
    largest = max((record.bytes for record in ledger), default=1)
    return [(record, record.bytes / largest) for record in ledger]
