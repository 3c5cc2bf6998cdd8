"""The course of each training: loss and score by epoch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.deliver import wording
from edgepack.deliver.reports.html import charts
from edgepack.records.build import Build, StageRecord
from edgepack.records.training import Epoch, TrainingRecord

if TYPE_CHECKING:
    from markupsafe import Markup


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One training: its stage, what it did, what was kept, further facts, and the drawing."""

    stage: str
    doing: str
    kept: str
    facts: str
    drawing: "Markup"


def curves(build: Build) -> list[Curve]:
    """Return every training of more than one point, in order."""
    return [_curve(record, each) for record in build.ledger for each in record.trainings if len(each.epochs) > 1]


def _curve(record: StageRecord, training: TrainingRecord) -> Curve:
    epochs = training.epochs
    kept = next(each for each in epochs if each.epoch == training.kept)
    return Curve(
        stage=record.stage,
        doing=training.doing,
        kept=f"kept epoch {training.kept} of {epochs[-1].epoch}"
        + (f": {wording.figure(record.metric, kept.score)} on validation" if kept.score is not None else ""),
        facts=", ".join(_facts(epochs)),
        drawing=charts.curves(
            _heights([each.loss for each in epochs], log=True),
            _heights([each.validation_loss for each in epochs], log=True),
            _heights([each.score for each in epochs]),
            kept=epochs.index(kept),
        ),
    )


def _heights(values: Sequence[float | None], *, log: bool = False) -> list[float | None]:
    """Return each value in per cent of the range of all, from the bottom; a loss of 0 has no place on a log scale."""
    known = [value if value is not None and (value > 0 or not log) else None for value in values]
    along = charts.scale([value for value in known if value is not None], log=log)
    return [None if value is None else along.at(value) for value in known]


def _facts(epochs: Sequence[Epoch]) -> Iterator[str]:
    first, last = epochs[1], epochs[-1]
    if first.loss is not None and last.loss is not None:
        yield f"training loss {first.loss:.3g} to {last.loss:.3g}"
    if first.validation_loss is not None and last.validation_loss is not None:
        yield f"validation loss {first.validation_loss:.3g} to {last.validation_loss:.3g}"
    if speeds := [each.samples_per_second for each in epochs if each.samples_per_second]:
        yield f"{wording.count(round(sum(speeds) / len(speeds)))} samples per second"
