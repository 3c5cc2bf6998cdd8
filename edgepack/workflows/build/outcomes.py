"""Define the outcome of each kind of step: the values that its cache entry holds as JSON."""

from statistics import median
from typing import Any, Self

from pydantic import AliasChoices, Field

from edgepack.core.frozen import Frozen, Json
from edgepack.core.metrics import METRICS
from edgepack.core.signature.shown import Sample, Shown
from edgepack.core.units import DURATION, SIZE
from edgepack.measure.evaluate import Agreement
from edgepack.measure.timing.figures import Timed, timings
from edgepack.records.artifact import Artifact
from edgepack.records.generated import Generated
from edgepack.records.training import TrainingRecord
from edgepack.workflows.build.planning.step import Step
from edgepack.workflows.build.store import Entry

Expected = dict[str, tuple[float, ...]]  # the numbers of each output of a sample


class Outcome(Frozen):
    """Base of outcomes; fields that are None or empty are not stored."""

    def stored(self) -> Json:
        return self.model_dump(mode="json", exclude_defaults=True)

    @classmethod
    def read(cls, entry: Entry) -> Self:
        return cls.model_validate(entry.outcome, strict=False)  # JSON has lists where values have tuples


class CandidateOutcome(Outcome):
    """An entry of the ledger: see records/build.py, StageRecord."""

    parameters: int
    macs: int
    bytes: int
    score: float = Field(validation_alias=AliasChoices("score", "accuracy"))  # entries of before have the second name
    seconds: float
    notes: tuple[str, ...] = ()
    decided: Json = {}  # settings that the stage chose by measuring, as JSON
    trainings: tuple[TrainingRecord, ...] = ()


class ReferenceOutcome(Outcome):
    """The torch model's scores on the test split by metric, and the targets of the first samples.

    `rows` samples were used, `of` so many if the split is cut.
    """

    scores: dict[str, float]
    rows: int
    of: int = 0
    targets: tuple[Any, ...] = ()
    samples: tuple[Sample, ...] = ()  # the first ones, as reports draw them


class EvaluationOutcome(Outcome):
    """An exported file's scores on the test split, or why it was not run; fields as in ReferenceOutcome."""

    scores: dict[str, float] = {}
    rows: int = 0
    of: int = 0
    shown: tuple[Shown, ...] = ()  # of the first samples
    parity: Agreement | None = None  # agreement with torch
    runtimes: Agreement | None = None  # agreement with the file of `beside`
    beside: str = ""  # a format
    broken: str = ""  # why a file that would ship differs from the exported model
    not_run: str = ""


class TimingOutcome(Outcome):
    """Timings of a file and of the teacher's file of the same format, in alternating runs; or why one was not timed."""

    model: Timed = Timed()
    teacher: Timed = Timed()
    not_run: str = ""
    not_timed: str = ""
    teacher_not_timed: str = ""


class AnswersOutcome(Outcome):
    """Why a file was not run for the bundle's samples; else its outputs are in the entry's folder."""

    not_run: str = ""


class GeneratedOutcome(Outcome):
    """What a file writes after the beginning of each of the bundle's samples, if it writes text."""

    samples: tuple[Generated, ...] = ()


def describe(step: Step, entry: Entry, metric: str) -> str:
    """Return the outcome of a step in a few words; `metric` is the first of the task."""
    match step.kind:
        case "candidate":
            made = CandidateOutcome.read(entry)
            return f"{metric} {_shown(metric, made.score)}, {made.parameters:,} parameters"
        case "artifact":
            return SIZE.format(Artifact.model_validate(entry.outcome).bytes)
        case "timing":
            return _of_timing(TimingOutcome.read(entry))
        case "outputs":
            reference = ReferenceOutcome.read(entry)
            return _of_score(reference, metric)
        case "evaluation":
            found = EvaluationOutcome.read(entry)
            return f"not run here: {found.not_run}" if found.not_run else _of_score(found, metric)


def _of_score(found: ReferenceOutcome | EvaluationOutcome, metric: str) -> str:
    whole = f" of {found.of}" if found.of else ""
    return f"{metric} {_shown(metric, found.scores[metric])} of {found.rows}{whole} test samples"


def _shown(metric: str, score: float) -> str:
    return METRICS[metric].quantity.format(score)


def _of_timing(found: TimingOutcome) -> str:
    if found.not_run:
        return f"not run here: {found.not_run}"
    if found.not_timed:
        return f"not timed: {found.not_timed}"
    if found.model.estimate:
        return f"{DURATION.format(found.model.estimate.value_ms)}, estimated"
    medians = timings(found.model.answers)["latency.p50"]
    return f"{DURATION.format(median(medians))}, {len(medians)} processes"
