"""Define the outcome of each kind of step: the values that its cache entry holds as JSON."""

from statistics import median
from typing import Self

from edgepack.core.frozen import Frozen, Json
from edgepack.core.units import DURATION, SHARE, SIZE
from edgepack.measure.evaluate import Agreement
from edgepack.measure.timing.figures import Timed, timings
from edgepack.records.artifact import Artifact
from edgepack.records.training import TrainingRecord
from edgepack.workflows.build.planning.step import Step
from edgepack.workflows.build.store import Entry


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
    accuracy: float
    seconds: float
    notes: tuple[str, ...] = ()
    decided: Json = {}  # settings that the stage chose by measuring, as JSON
    trainings: tuple[TrainingRecord, ...] = ()


class ReferenceOutcome(Outcome):
    """The torch model's score on the test split, and the targets of the first samples.

    `rows` samples were used, `of` so many if the split is cut.
    """

    score: float
    rows: int
    of: int = 0
    targets: tuple[int, ...] = ()


class EvaluationOutcome(Outcome):
    """An exported file's score on the test split, or why it was not run; `rows` and `of` as in ReferenceOutcome."""

    score: float = 0.0
    rows: int = 0
    of: int = 0
    cases: tuple[tuple[float, ...], ...] = ()  # logits of the first samples
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
    """A file's outputs for the bundle's samples, or why it was not run."""

    cases: tuple[tuple[float, ...], ...] = ()
    not_run: str = ""


def describe(step: Step, entry: Entry) -> str:
    """Return the outcome of a step in a few words."""
    match step.kind:
        case "candidate":
            made = CandidateOutcome.read(entry)
            return f"accuracy {SHARE.format(made.accuracy)}, {made.parameters:,} parameters"
        case "artifact":
            return SIZE.format(Artifact.model_validate(entry.outcome).bytes)
        case "timing":
            return _of_timing(TimingOutcome.read(entry))
        case "outputs":
            reference = ReferenceOutcome.read(entry)
            return _of_score(reference)
        case "evaluation":
            found = EvaluationOutcome.read(entry)
            return f"not run here: {found.not_run}" if found.not_run else _of_score(found)


def _of_score(found: ReferenceOutcome | EvaluationOutcome) -> str:
    whole = f" of {found.of}" if found.of else ""
    return f"accuracy {SHARE.format(found.score)} of {found.rows}{whole} test samples"


def _of_timing(found: TimingOutcome) -> str:
    if found.not_run:
        return f"not run here: {found.not_run}"
    if found.not_timed:
        return f"not timed: {found.not_timed}"
    if found.model.estimate:
        return f"{DURATION.format(found.model.estimate.value_ms)}, estimated"
    medians = timings(found.model.answers)["latency.p50"]
    return f"{DURATION.format(median(medians))}, {len(medians)} processes"
