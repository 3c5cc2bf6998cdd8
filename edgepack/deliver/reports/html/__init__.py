"""report.html: one self-contained page, verdict first; no script, no network."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.core.metrics import FROM_BELOW, METRICS
from edgepack.core.order_statistics import percentile
from edgepack.core.signature.shown import Shown
from edgepack.core.units import SHARE, SIZE
from edgepack.deliver import file_wording, wording
from edgepack.deliver.ratios import ratio_bounds, times
from edgepack.deliver.reports.html import charts
from edgepack.deliver.reports.html.curves import curves
from edgepack.records.artifact import TEACHER, Artifact, label_of
from edgepack.records.build import Build, StageRecord
from edgepack.records.file_contents import Contents
from edgepack.records.measurement import Measurement
from edgepack.records.verdict import Verdict

if TYPE_CHECKING:
    from markupsafe import Markup

FILE = "report.html"

_LAYERS = 12  # rows of a file's table; the rest is summed in one more row
_FAR = 0.25  # below the best score: an untrained model's, which is not drawn
_NS = 1e-6  # raw samples are nanoseconds


def render(build: Build) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalized,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"prose": prose, "sentence": lambda text: text[:1].upper() + text[1:]}
    return environment.get_template("report.html.j2").render(
        build=build,
        words=wording,
        empty=Shown(),
        cards=cards(build),
        groups=groups(build),
        stages=stages(build),
        exported=exported(build),
        trainings=curves(build),
        timings=timings(build),
        layers=[layers(each, each.contents) for each in build.shipped() if each.contents],
        unread=[each for each in build.shipped() if each.contents is None],
        recipe=json.dumps(build.recipe, indent=1, ensure_ascii=False),
        device=json.dumps(build.device, indent=1, ensure_ascii=False),
    )


def _finalized(value: object) -> object:
    from markupsafe import Markup

    return wording.printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def prose(text: str) -> "Markup":
    """Return escaped text with `code` marked up."""
    from markupsafe import Markup, escape

    pieces = re.split("`([^`]+)`", wording.printable(text))
    code = (Markup("<code>{}</code>").format(piece) if n % 2 else escape(piece) for n, piece in enumerate(pieces))
    return Markup("").join(code)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of a card: the file's value, and its change from the teacher's."""

    name: str
    value: str
    evidence: str
    change: str


def cards(build: Build) -> list[tuple[Artifact, list[Figure]]]:
    """Return each shipped file with its size, latency and score."""
    return [(artifact, list(_figures(build, artifact.label))) for artifact in build.shipped()]


def _figures(build: Build, label: str) -> Iterator[Figure]:
    for metric, name in (
        ("size", "size"),
        ("latency.p50", "latency, p50"),
        (build.metric, f"{build.metric}, test split"),
    ):
        ours, teacher = build.find(metric, label), build.find(metric, label_of(label, TEACHER))
        if ours:
            change = _change(teacher, ours) if teacher else ""
            yield Figure(name=name, value=wording.figure(metric, ours.value), evidence=ours.evidence, change=change)


def _change(teacher: Measurement, ours: Measurement) -> str:
    if METRICS[ours.metric].within == "data":
        change = wording.score_change(ours.metric, teacher.value, ours.value)
        points = " points" if METRICS[ours.metric].quantity is SHARE else ""
        return f"{change}{points}, from {wording.measured(teacher)}"
    ratio = f"{times(teacher, ours)}, " if ours.value and teacher.value else ""
    if bounds := ratio_bounds(teacher, ours):
        ratio += f"95 % interval {bounds}, "
    return f"{ratio}from {wording.measured(teacher)}"


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A verdict with its gauge."""

    verdict: Verdict
    gauge: "Markup | str"


def groups(build: Build) -> list[tuple[Verdict, list[Judged]]]:
    """Return the verdicts grouped by budget, with the first one of each group."""

    def budget(verdict: Verdict) -> tuple[str, str, float | None]:
        return verdict.budget, verdict.place, verdict.limit if verdict.relative is None else verdict.baseline

    found = [list(group) for _, group in groupby(build.verdicts, key=budget)]
    return [(group[0], [Judged(verdict=each, gauge=_gauge(build, each)) for each in group]) for group in found]


def _gauge(build: Build, verdict: Verdict) -> "Markup | str":
    if verdict.value is None or verdict.limit is None:
        return ""
    known = build.find(verdict.metric, verdict.artifact)
    ends = (known.low, known.high) if known and known.value == verdict.value else (verdict.value, verdict.value)
    low, high = sorted(_used(verdict, end, verdict.limit) for end in ends)
    return charts.gauge(_used(verdict, verdict.value, verdict.limit), low, high, wording.tone(verdict))


def _used(verdict: Verdict, value: float, limit: float) -> float:
    """Return the share of a limit that a value uses; for a minimum in per cent, the share of the allowed misses."""
    if verdict.bound in FROM_BELOW:
        if verdict.metric in METRICS and METRICS[verdict.metric].quantity is not SHARE:
            return limit / value if value else 2.0
        value, limit = 1 - value, 1 - limit
    if limit <= 0:
        return 0.0 if value <= limit else 2.0
    return max(0.0, value / limit)


@dataclass(frozen=True)
class Cell:
    """A figure of the ledger with its evidence and its part of the drawing."""

    text: str = ""
    evidence: str = "measured"
    drawing: "Markup | str" = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the ledger."""

    name: str
    detail: str
    size: Cell
    score: Cell
    latency: Cell = Cell()


def stages(build: Build) -> list[Row]:
    """Return a row for the model after each stage."""
    sizes = charts.trail([record.bytes or None for record in build.ledger], _scale(build, "size"))
    good = _scale(build, build.metric)
    scores = charts.trail([each.score if good.low <= each.score <= good.high else None for each in build.ledger], good)
    return [
        Row(
            name=record.stage,
            detail=_detail(record),
            size=Cell(SIZE.format(record.bytes), drawing=size),
            score=Cell(wording.score(record.metric, record.score), drawing=score),
        )
        for record, size, score in zip(build.ledger, sizes, scores, strict=True)
    ]


def _detail(record: StageRecord) -> str:
    counted = f"{wording.count(record.parameters)} parameters, {wording.count(record.macs)} MACs"
    return f"{counted}, {wording.clock(record.seconds)}{', reused' if record.reused else ''}"


def exported(build: Build) -> list[Row]:
    """Return rows for the teacher's file and the shipped file of each format."""
    return [row for pair in _pairs(build) for row in _rows(build, pair)]


def _pairs(build: Build) -> list[list[str]]:
    """Return the labels of the files of each format, shipped ones last."""
    formats = dict.fromkeys(artifact.format for artifact in build.artifacts)
    ordered = sorted(build.artifacts, key=lambda artifact: artifact.subject == "model")
    return [[artifact.label for artifact in ordered if artifact.format == format] for format in formats]


def _rows(build: Build, labels: Sequence[str]) -> Iterator[Row]:
    cells = [_cells(build, metric, labels) for metric in ("size", build.metric, "latency.p50")]
    for label, size, score, latency in zip(labels, *cells, strict=True):
        yield Row(name=label, detail="", size=size, score=score, latency=latency)


def _cells(build: Build, metric: str, labels: Sequence[str]) -> list[Cell]:
    known = [build.find(metric, label) for label in labels]
    along = _scale(build, metric)
    drawn = charts.trail(
        [each.value if each and along.low <= each.value <= along.high else None for each in known], along
    )
    return [
        Cell(wording.figure(metric, each.value), each.evidence, svg) if each else Cell()
        for each, svg in zip(known, drawn, strict=True)
    ]


def _scale(build: Build, metric: str) -> charts.Scale:
    """Return one scale for stages and files, without an untrained model's score, which would squeeze the others."""
    values = [each.value for each in build.measurements if each.metric == metric]
    if metric == "size":
        return charts.scale([*values, *(record.bytes for record in build.ledger)], log=True)
    if metric == build.metric:
        scores = [*values, *(record.score for record in build.ledger)]
        if METRICS[metric].quantity is SHARE:
            best = (max if METRICS[metric].higher else min)(scores, default=1.0)
            return charts.scale([score for score in scores if abs(score - best) <= _FAR])
        return charts.scale([*values, *(record.score for record in build.ledger[1:])] or scores)
    return charts.scale(values, log=True)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The latency of one file."""

    name: str
    p50: Measurement
    facts: str
    drawing: "Markup"


def timings(build: Build) -> tuple[list[Timing], list[tuple[float, str]]]:
    """Return every timed file on one scale, and the ticks of the scale: (per cent, text)."""
    order = {label: place for place, label in enumerate(chain.from_iterable(_pairs(build)))}
    found = [each for each in build.measurements if each.metric == "latency.p50" and each.value > 0]
    found.sort(key=lambda each: order.get(each.artifact, len(order)))
    samples = {each.artifact: _samples(each) for each in found}
    if not found:
        return [], []
    along = charts.scale(chain.from_iterable(_ends(each, samples[each.artifact]) for each in found), log=True)
    rows = [_timing(build, each, samples[each.artifact], along) for each in found]
    return rows, [(along.at(tick), wording.figure("latency.p50", tick)) for tick in along.ticks()]


def _samples(measurement: Measurement) -> list[float]:
    """Return every inference of every process, in milliseconds."""
    return [sample * _NS for process in measurement.samples for sample in process if sample > 0]


def _ends(measurement: Measurement, samples: Sequence[float]) -> tuple[float, ...]:
    """Return the values that the drawing must show: all but rare inferences, the interval and every process."""
    ends = (percentile(samples, 0.002), percentile(samples, 0.995)) if samples else ()
    return (*ends, measurement.low, measurement.high, *_processes(measurement))


def _processes(measurement: Measurement) -> tuple[float, ...]:
    each = measurement.detail.get("each")
    return tuple(value for value in each if value > 0) if isinstance(each, list | tuple) else ()


def _timing(build: Build, p50: Measurement, samples: Sequence[float], along: charts.Scale) -> Timing:
    limits = [each.limit for each in build.verdicts if (each.budget, each.artifact) == ("latency.p50", p50.artifact)]
    drawing = charts.distribution(
        samples, _processes(p50), (p50.value, p50.low, p50.high), limits[0] if limits else None, along
    )
    return Timing(name=p50.artifact, p50=p50, facts=", ".join(_spread(build, p50, samples)), drawing=drawing)


def _spread(build: Build, p50: Measurement, samples: Sequence[float]) -> Iterator[str]:
    if p90 := build.find("latency.p90", p50.artifact):
        yield f"p90 {wording.measured(p90)}"
    if samples:
        yield f"slowest {wording.figure('latency.p50', max(samples))}"
        yield f"{len(samples):,} inferences in {len(p50.samples)} process{'' if len(p50.samples) == 1 else 'es'}"
    yield wording.when(p50)


@dataclass(frozen=True, kw_only=True)
class Layers:
    """Contents of a file: (layer, type, bytes, share of the file, bar) of the largest layers, and facts on all."""

    artifact: Artifact
    rows: list[tuple[str, str, str, str, "Markup"]]
    facts: list[str]


def layers(artifact: Artifact, contents: Contents) -> Layers:
    largest = list(file_wording.largest(contents.tensors, _LAYERS))
    overhead = max(0, artifact.bytes - contents.stored_bytes)
    most = max([each.bytes for each in largest] + [overhead, 1])
    sizes = [(each.layer, each.dtype, each.bytes) for each in largest] + [("other than tensors", "", overhead)]
    rows = [
        (layer, dtype, SIZE.format(size), f"{size / (artifact.bytes or 1) * 100:.1f} %", charts.bar(size / most))
        for layer, dtype, size in sizes
    ]
    return Layers(artifact=artifact, rows=rows, facts=list(file_wording.facts(artifact, contents)))
