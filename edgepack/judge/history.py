"""Every finished build in one line, appended to `dist/history.jsonl`; and the baselines of relative budgets.

A line says of each file what it is (sha256) and what was measured of it, and of each figure in which `series` it
stands: figures of one series may be compared. What is damaged, or of a schema not known here, is passed over.
"""

import errno
import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from edgepack.core.errors import ExitCode, RecipeError
from edgepack.core.files import digest, disk_error
from edgepack.core.frozen import Frozen, Moment
from edgepack.core.metrics import METRICS, Evidence
from edgepack.judge.compare import series
from edgepack.records.build import Build

FILE = "history.jsonl"
SCHEMA: Literal["edgepack.history/1"] = "edgepack.history/1"
_LEFT_OUT = ("features", "versions", "data")  # parts of an environment that are too long, or stored elsewhere


class Figure(Frozen):
    """A measurement without its samples. `taken` is a digest of all it depends on, `series` of what two must share."""

    metric: str
    artifact: str
    value: float
    low: float
    high: float
    evidence: Evidence
    taken_at: Moment
    series: str
    taken: str


class HistoryEntry(Frozen):
    """One build. `where` has the facts by which people know a device."""

    schema_: Literal["edgepack.history/1"] = Field(default=SCHEMA, alias="schema")
    recipe: str
    device: str
    overrides: tuple[str, ...] = ()
    started_at: Moment
    exit_code: int
    waived: tuple[str, ...] = ()  # budgets that were met only by a waiver
    commit: str = ""
    bundle_sha256: str = ""
    file: str = Field(default="", exclude=True)  # bundle that these figures come from; it has no date
    artifacts: dict[str, str] = {}  # sha256 by label
    versions: dict[str, str] = {}
    where: dict[str, Any] = {}
    figures: tuple[Figure, ...] = ()
    metric: str = "accuracy"  # the one that selects

    @classmethod
    def of(cls, build: Build) -> "HistoryEntry":
        environment = next((each.environment for each in build.measurements if each.metric == "latency.p50"), {})
        return cls(
            schema=SCHEMA,
            recipe=build.name,
            device=str(build.device["id"]),
            overrides=build.overrides,
            started_at=build.started_at,
            exit_code=build.exit_code or 0,
            waived=tuple(sorted({each.budget for each in build.verdicts if each.outcome == "waived"})),
            commit=str(build.provenance.get("git", {}).get("commit", "")),
            bundle_sha256=build.bundle_sha256,
            artifacts={each.label: each.sha256 for each in build.shipped()},
            versions=dict(build.provenance.get("versions", {})),
            where=name_of_key(environment),
            figures=tuple(_figures(build)),
            metric=build.metric,
        )

    def find(self, metric: str, artifact: str) -> Figure | None:
        return next((each for each in self.figures if (each.metric, each.artifact) == (metric, artifact)), None)

    @property
    def passed(self) -> bool:
        return self.exit_code == ExitCode.OK and not self.waived

    @property
    def description(self) -> str:
        """Return the name of the build for use in a sentence."""
        if self.file:
            return f"the bundle {self.file}"
        commit = f", commit {self.commit[:8]}" if self.commit else ""
        return f"the build of {datetime.fromtimestamp(self.started_at, UTC):%Y-%m-%d %H:%M} UTC{commit}"


def name_of_key(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts by which people know a device."""
    return {key: value for key, value in environment.items() if key not in _LEFT_OUT}


def _figures(build: Build) -> Iterable[Figure]:
    labels = {each.label for each in build.shipped()}
    for each in build.measurements:
        if each.artifact in labels and each.metric in METRICS:
            yield Figure(
                series=key_of(each.metric, each.environment),
                taken=taken(each.sha256, each.environment),
                **each.model_dump(include={*Figure.model_fields} - {"series", "taken"}),
            )


def key_of(metric: str, within: Mapping[str, Any]) -> str:
    return digest(series(metric, within))[:16]


def taken(sha256: str, within: Mapping[str, Any]) -> str:
    return digest([sha256, within])[:16]


def check_named(path: Path) -> None:
    """Raises RecipeError if no file can be written there, before anything is built."""
    folder = next(each for each in path.absolute().parents if each.exists())
    if path.is_dir() or not folder.is_dir():
        why = f"{path} is a folder" if path.is_dir() else f"{folder} is not a folder"
        raise RecipeError(f"the history must be a file, but {why}", "name a file: --history dist/history.jsonl")


def append(path: Path, build: Build) -> None:
    """Add the build in one write, so that builds ending at the same time write whole lines. Raises DeviceError."""
    text = HistoryEntry.of(build).model_dump_json(by_alias=True).encode() + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(file).st_size
            torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"  # a build was killed while writing
            whole = b"\n" + text if torn else text
            if os.write(file, whole) != len(whole):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(file)
    except OSError as error:
        raise disk_error(error, path) from error


def read(path: Path) -> tuple[tuple[HistoryEntry, ...], int]:
    """Return all readable lines in the order they were written, and the number of unreadable ones."""
    try:
        texts = [text for text in path.read_bytes().split(b"\n") if text.strip()]
    except FileNotFoundError:
        return (), 0
    except OSError as error:
        raise RecipeError(f"cannot read the history {path}: {error.strerror}") from None
    lines = [line for text in texts if (line := _parsed(text))]
    return tuple(lines), len(texts) - len(lines)


def _parsed(text: bytes) -> HistoryEntry | None:
    try:
        return HistoryEntry.model_validate_json(text)
    except ValueError:
        return None
