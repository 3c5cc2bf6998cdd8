"""Every finished build in one line, appended to `dist/history.jsonl`; and the baselines of relative budgets.

A line says of each file what it is (sha256) and what was measured of it, and of each figure in which `series` it
stands: figures of one series may be compared. What is damaged, or of a schema not known here, is passed over.
"""

import errno
import hashlib
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from edgepack.artifact import deflated
from edgepack.benchmark import Evidence
from edgepack.budgets import LAST, METRICS
from edgepack.compare import differences, series
from edgepack.config import Frozen, Moment
from edgepack.errors import ExitCode, RecipeError, VerifyError
from edgepack.gate import Base, NoBase
from edgepack.result import Build
from edgepack.store import digest, disk_error

if TYPE_CHECKING:
    from edgepack.recipe import Recipe

FILE = "history.jsonl"
SCHEMA: Literal["edgepack.history/1"] = "edgepack.history/1"
_UNTOLD = ("features", "versions", "data")  # of an environment: too long, or told elsewhere


class Figure(Frozen):
    """A measurement without its samples. `taken` is a digest of all it depends on, `series` of what must agree."""

    metric: str
    artifact: str
    value: float
    low: float
    high: float
    evidence: Evidence
    taken_at: Moment
    series: str
    taken: str


class Line(Frozen):
    """One build. `where` is what people know a device by."""

    schema_: Literal["edgepack.history/1"] = Field(default=SCHEMA, alias="schema")
    recipe: str
    device: str
    overrides: tuple[str, ...] = ()
    started_at: Moment
    exit_code: int
    waived: tuple[str, ...] = ()  # budgets that it met by a waiver alone
    commit: str = ""
    bundle_sha256: str = ""
    file: str = Field(default="", exclude=True)  # the bundle that all this is known from, which tells no date
    artifacts: dict[str, str] = {}  # sha256 by label
    versions: dict[str, str] = {}
    where: dict[str, Any] = {}
    figures: tuple[Figure, ...] = ()

    @classmethod
    def of(cls, build: Build) -> "Line":
        told = next((each.environment for each in build.measurements if each.metric == "latency.p50"), {})
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
            where=_told(told),
            figures=tuple(_figures(build)),
        )

    def find(self, metric: str, artifact: str) -> Figure | None:
        return next((each for each in self.figures if (each.metric, each.artifact) == (metric, artifact)), None)

    @property
    def passed(self) -> bool:
        return self.exit_code == ExitCode.OK and not self.waived

    @property
    def told(self) -> str:
        """The build as a sentence names it."""
        if self.file:
            return f"the bundle {self.file}"
        commit = f", commit {self.commit[:8]}" if self.commit else ""
        return f"the build of {datetime.fromtimestamp(self.started_at, UTC):%Y-%m-%d %H:%M} UTC{commit}"


def _told(environment: Mapping[str, Any]) -> dict[str, Any]:
    """What people know a device by."""
    return {key: value for key, value in environment.items() if key not in _UNTOLD}


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
    """Raises RecipeError where no file can stand, before anything is built."""
    folder = next(each for each in path.absolute().parents if each.exists())
    if path.is_dir() or not folder.is_dir():
        why = f"{path} is a folder" if path.is_dir() else f"{folder} is no folder"
        raise RecipeError(f"the history is one file, and {why}", "name a file: --history dist/history.jsonl")


def append(path: Path, build: Build) -> None:
    """Add the build in one write, so that builds that end at once leave whole lines. Raises DeviceError."""
    text = Line.of(build).model_dump_json(by_alias=True).encode() + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(file).st_size
            torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"  # a build was killed while it wrote
            whole = b"\n" + text if torn else text
            if os.write(file, whole) != len(whole):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(file)
    except OSError as error:
        raise disk_error(error, path) from error


def read(path: Path) -> tuple[tuple[Line, ...], int]:
    """Every line that can be read, in the order they were written, and how many cannot; of no file, none."""
    try:
        texts = [text for text in path.read_bytes().split(b"\n") if text.strip()]
    except FileNotFoundError:
        return (), 0
    except OSError as error:
        raise RecipeError(f"cannot read the history {path}: {error.strerror}") from None
    lines = [line for text in texts if (line := _parsed(text))]
    return tuple(lines), len(texts) - len(lines)


def _parsed(text: bytes) -> Line | None:
    try:
        return Line.model_validate_json(text)
    except ValueError:
        return None


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What relative budgets are held against: of `lines`, the newest first, the first that can be compared.

    A baseline that was `named` has to be comparable; of the history, what is not begins a new series.
    """

    lines: tuple[Line, ...]
    named: str = ""
    unfit: str = ""  # why none of it can be compared
    partial: str = ""  # why what is not in the history need not be the beginning of a series
    damaged: str = ""  # what of the history could not be read

    def find(self, metric: str, artifact: str, sha256: str, environment: Mapping[str, Any]) -> Base | NoBase:
        """Both from the newest line that has the figure in the same series."""
        if self.unfit:
            return NoBase(reason=self.unfit)
        known = [(line, figure) for line in self.lines if (figure := line.find(metric, artifact))]
        wanted = key_of(metric, environment)
        for line, figure in known:
            if figure.series == wanted:
                # What an app ships beside a file may grow while the file stays as it is: only timings are noise.
                same = METRICS[metric].within == "device" and figure.taken == taken(sha256, environment)
                told = f"{line.told}{self.damaged and f' ({self.damaged})'}"
                return Base(value=figure.value, low=figure.low, high=figure.high, told=told, same=same)
        if self.named:
            return NoBase(reason=self._why_not(metric, artifact, known[0][0] if known else None, environment))
        reason = "; ".join(filter(None, (self.partial or _beginning(metric, bool(known)), self.damaged)))
        return NoBase(reason=reason, beginning=not self.partial)

    def _why_not(self, metric: str, artifact: str, line: Line | None, environment: Mapping[str, Any]) -> str:
        if line is None:
            return f"{self.named} tells no {metric} of {artifact}"
        if METRICS[metric].within == "data":
            return f"{self.named} was measured on other test data"
        there, here = (series(metric, _told(each)) for each in (line.where, environment))
        told = ", ".join(differences(there, here)) or "its processor has other features"
        return f"{self.named} was measured on another device or by another protocol: {told}"


def _beginning(metric: str, elsewhere: bool) -> str:
    if not elsewhere:
        return "no earlier build of this recipe and device passed: nothing to compare with yet"
    what = "on this data" if METRICS[metric].within == "data" else "on this very device, by this protocol"
    return f"no earlier build passed {what}: a new series begins"


def baseline(
    name: str,
    recipe: str,
    device: str,
    history: Path,
    before: float,
    overrides: Collection[str] = (),
    *,
    again: bool = False,
) -> Baseline:
    """The baseline called `name`, for a build of this recipe and device that began at the time `before`.

    Of a build that is judged `again` the history must hold the line, or nothing of it is believed to be the beginning.

    What `--set` made of a recipe is a try, and no baseline but of builds with the same `overrides`. Nor is a build that
    needed a waiver: what is let pass until a day must not become the measure of all after it.
    Raises RecipeError when it cannot be read.
    """
    if name == LAST:
        whole, damaged = read(history)
        lines = [each for each in whole if (each.recipe, each.device) == (recipe, device)]
        released = [each for each in lines if {*each.overrides} <= {*overrides}]
        passed = [each for each in released if each.passed and each.started_at < before]
        return Baseline(
            lines=tuple(sorted(passed, key=lambda each: -each.started_at)),
            partial=_partial(history, before, lines, damaged) if again else "",
            damaged=f"{damaged} of the lines in {history} cannot be read" if damaged else "",
        )
    line = _named(Path(name))
    other = [
        f"{kind} '{theirs}', not '{ours}'"
        for kind, theirs, ours in (("the recipe", line.recipe, recipe), ("the device", line.device, device))
        if theirs != ours
    ]
    unfit = f"{name} is a build of {' and '.join(other)}" if other else ""
    return Baseline(lines=(line,), named=name, unfit=unfit)


def _partial(history: Path, before: float, lines: Iterable[Line], damaged: int) -> str:
    """Why the line of a baseline may be missing, or "": a history that was whole holds the build itself."""
    advice = "name a baseline, or give its own --history"
    if not history.exists():
        return f"there is no history at {history}: {advice}"
    if all(each.started_at != before for each in lines):
        return f"the build itself is not in the history {history}: {advice}"
    return f"the baseline may be in what cannot be read: {advice}" if damaged else ""


def looked_up(recipe: "Recipe", device: str, history: Path, before: float) -> "Recipe":
    """The recipe with the baseline of its relative budgets. Raises RecipeError when that cannot be read."""
    names = [budget.against for budget in recipe.budgets if budget.against]
    if not names:
        return recipe
    return replace(recipe, baseline=baseline(names[0], recipe.name, device, history, before, recipe.overrides))


def _named(path: Path) -> Line:
    """A build.json, the folder it lies in, or a bundle; of a bundle with its build beside it, that build."""
    if (path / "build.json").is_file():
        return _judged(path / "build.json")
    if path.suffix == ".json" or not path.exists():
        return _judged(path)
    beside = path.parent / "build.json"
    if path.is_file() and beside.is_file() and Build.read(beside).bundle_sha256 == _sha(path):
        return _judged(beside)
    return _of_bundle(path)


def _judged(path: Path) -> Line:
    build = Build.read(path)
    if build.exit_code is None or build.error:
        raise RecipeError(f"the baseline {path} is of a build that did not finish", "name one that did")
    return Line.of(build)


def _sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _of_bundle(path: Path) -> Line:
    """A bundle tells the sizes of its files, and no timing: those differ from run to run."""
    from edgepack import bundle

    try:
        manifest, files = bundle.read(path)
    except VerifyError as error:
        raise RecipeError(f"the baseline {path} is neither a build nor a whole bundle: {error.message}") from None
    shas = {each.path: each.sha256 for each in manifest.files if each.role == "deploy"}
    entries = {runtime.format: runtime.entry.file for runtime in manifest.runtimes.values()}
    beside = [files[name] for name in shas.keys() - {*entries.values()}]
    return Line(
        schema=SCHEMA,
        recipe=manifest.name,
        device=manifest.device,
        started_at=0.0,
        exit_code=0,
        file=str(path),
        artifacts={label: shas[name] for label, name in entries.items()},
        figures=tuple(
            _weighed(metric, label, shas[name], sum(size(content) for content in weighed))
            for label, name in entries.items()
            for metric, size, weighed in (
                ("size", len, [files[name]]),
                ("size.deploy", len, [files[name], *beside]),
                ("size.download", deflated, [files[name], *beside]),
            )
        ),
    )


def _weighed(metric: str, label: str, sha256: str, size: int) -> Figure:
    value = float(size)
    return Figure(
        metric=metric,
        artifact=label,
        value=value,
        low=value,
        high=value,
        evidence="measured",
        taken_at=0.0,
        series=key_of(metric, {}),
        taken=taken(sha256, {}),
    )
