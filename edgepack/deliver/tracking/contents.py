"""What trackers are told of a build: parameters, tags, curves, figures and verdicts, each under one name."""

import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgepack.core.errors import ExitCode
from edgepack.core.events import Event, StepProgress
from edgepack.core.frozen import Json
from edgepack.core.provenance import without_secrets
from edgepack.deliver import wording
from edgepack.deliver.contract import BuildSummary, Point, TrackedBuild
from edgepack.records.build import Build, StageRecord
from edgepack.records.measurement import Measurement
from edgepack.records.verdict import Verdict

_FILES = ("report.html", "report.md")
_EVERY = 2.0  # seconds between two points of a curve while it trains: a server gets each of them
_LEARNED = ("loss", "learning_rate", "score", "samples_per_second")
_STAGE = ("parameters", "macs", "bytes", "seconds")


def tracked(build: Build) -> TrackedBuild:
    """Describe a build that begins, without secrets. Of the device only its id and name leave the project: the settings
    of its runner may say where it is.
    """
    git, versions = build.provenance.get("git", {}), build.provenance.get("versions", {})
    tags = {
        "recipe_file": build.recipe_file,
        "device": build.device["id"],
        "overrides": "; ".join(build.overrides),
        "git.commit": git.get("commit", ""),
        "git.dirty": str(git["dirty"]).lower() if "dirty" in git else "",
        **{f"version.{name}": version for name, version in versions.items()},
    }
    device = {key: build.device[key] for key in ("id", "name")}
    parameters = flat({"recipe": build.recipe, "device": device})
    return TrackedBuild(
        recipe=build.name,
        started_at=build.started_at,
        parameters={name: without_secrets(value) if isinstance(value, str) else value for name, value in parameters},
        tags=_public(tags),
    )


def _public(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags that have a text, without secrets."""
    return {name: without_secrets(text) for name, text in tags.items() if text}


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str | int | float | bool]]:
    """Yield each value under one name; lists of plain values are one text.

    >>> dict(flat({"seed": 0, "stages": [{"train": {"epochs": 8}}], "fp32": ["fc", "conv1"], "licence": None}))
    {'seed': 0, 'stages.0.train.epochs': 8, 'fp32': 'fc, conv1'}
    """
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, list | tuple) and any(isinstance(each, Mapping) for each in value):
            value = {str(i): each for i, each in enumerate(value)}
        if isinstance(value, Mapping):
            yield from flat(value, f"{name}.")
        elif isinstance(value, list | tuple):
            yield name, ", ".join(map(str, value))
        elif value is not None:
            told = isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
            yield name, value if told else str(value)


class LiveCurves:
    """The curves of trainings while they run, thinned out. A training of a stage that is named as an earlier one gets a
    number.
    """

    def __init__(self) -> None:
        self._begun: dict[tuple[str, str], tuple[int, int]] = {}  # number of the training, its last step
        self._last: dict[str, tuple[float, Json]] = {}  # when the last point of a curve came, and its figures

    def points(self, event: Event) -> Iterator[Point]:
        if not isinstance(event, StepProgress):
            return
        figures = {name: getattr(event, name) for name in _LEARNED}
        known = {name: figure for name, figure in figures.items() if figure is not None and math.isfinite(figure)}
        if not known:
            return
        key = (event.name, event.doing)
        number, step = self._begun.get(key, (1, -1))
        if event.done < step:  # it began again: another training of this name
            number += 1
        self._begun[key] = number, event.done
        curve = f"{_training(*key, number)}/steps"
        at, before = self._last.get(curve, (-math.inf, {}))
        now = time.monotonic()
        if now - at < _EVERY and event.done < event.total:
            return
        self._last[curve] = now, known
        # A score is of the epoch before: once it is logged, it is no news.
        news = {name: figure for name, figure in known.items() if name != "score" or before.get(name) != figure}
        if news:
            yield Point(curve=curve, step=event.done, figures=news)


def stage_points(build: Build, first: int) -> Iterator[Point]:
    """Yield the points of the stages from number `first` on, cached ones too: their trainings, epoch by epoch."""
    for number, record in enumerate(build.ledger[first:], start=first):
        yield from _epochs(record)
        figures = {record.metric: record.score, **{name: float(getattr(record, name)) for name in _STAGE}}
        yield Point(curve="stages", step=number, figures=figures)


def _epochs(record: StageRecord) -> Iterator[Point]:
    named = [training.doing for training in record.trainings]
    for i, training in enumerate(record.trainings):
        curve = f"{_training(record.stage, training.doing, named[: i + 1].count(training.doing))}/epochs"
        for epoch in training.epochs:
            figures = epoch.model_dump(exclude={"epoch"}, exclude_none=True)
            if figures:
                yield Point(curve=curve, step=epoch.epoch, figures=figures)


def _training(stage: str, doing: str, number: int) -> str:
    return f"{stage}/{doing}{f' ({number})' if number > 1 else ''}"


def summary(build: Build, folder: Path) -> BuildSummary:
    statuses = {int(ExitCode.OK): "finished", int(ExitCode.INTERRUPTED): "killed"}
    tags = {
        "summary": wording.headline(build),
        "exit_code": str(build.exit_code),
        "error": wording.one_line(build.error),
        "bundle.sha256": build.bundle_sha256,
        **{f"verdicts/{each.artifact}/{each.budget}": each.outcome for each in build.verdicts},
    }
    return BuildSummary.model_validate(
        {
            "status": statuses.get(build.exit_code if build.exit_code is not None else -1, "failed"),
            "metrics": {name: figure for name, figure in _metrics(build) if math.isfinite(figure)},
            "tags": _public(tags),
            "files": tuple(file.absolute() for name in _FILES if (file := folder / name).is_file()),
        }
    )


def _metrics(build: Build) -> Iterator[tuple[str, float]]:
    yield "stages/total_seconds", sum(record.seconds for record in build.ledger)
    for measurement in build.measurements:
        yield from _measured(measurement)
    for verdict in build.verdicts:
        yield from _judged(verdict)


def _measured(measurement: Measurement) -> Iterator[tuple[str, float]]:
    name = f"files/{measurement.artifact}/{measurement.metric}"
    yield name, measurement.value
    if measurement.low < measurement.high:
        yield from ((f"{name}.low", measurement.low), (f"{name}.high", measurement.high))


def _judged(verdict: Verdict) -> Iterator[tuple[str, float]]:
    figures = {"value": verdict.value, "limit": verdict.limit, "headroom": verdict.headroom}
    for name, figure in figures.items():
        if figure is not None:
            yield f"budgets/{verdict.artifact}/{verdict.budget}/{name}", figure
