"""The model as it starts, or as a stage leaves it: done, saved, loaded again and compared before it is believed."""

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.compress.contract import Context
from edgepack.compress.training.checkpoints import Checkpoints
from edgepack.config.budgets import strictest
from edgepack.core.errors import StageError
from edgepack.core.events import Note
from edgepack.records.training import TrainingRecord
from edgepack.workflows.build.outcomes import CandidateOutcome
from edgepack.workflows.build.planning.step import Step
from edgepack.workflows.build.steps import followers
from edgepack.workflows.build.steps.outputs import finite_outputs
from edgepack.workflows.build.steps.trials import Trials
from edgepack.workflows.build.workspace import Workspace, is_foreign

if TYPE_CHECKING:
    from edgepack.data.splits import Split
    from edgepack.models.candidate import Candidate

_CHANCE = 1.5  # pretrained weights below this multiple of the score of guessing get a warning
_TRIED = 3  # samples on which the task's methods are tried
_COMPARED = 8  # samples for comparing a saved model with the original


def do(work: Workspace, step: Step, folder: Path) -> CandidateOutcome:
    from edgepack.compress.training import evaluation
    from edgepack.models.candidate import Candidate
    from edgepack.models.checks.finite import check_finite
    from edgepack.models.complexity import macs, parameters, stored_bytes

    started = time.monotonic()
    first = step.choice is work.recipe.model
    trainings: list[TrainingRecord] = []
    candidate = Candidate.start(work.recipe.model, work.signature) if first else _staged(work, step, trainings)
    check_finite(candidate.module)
    candidate.save(folder)
    _check_saved(work, candidate, folder)
    seconds = time.monotonic() - started
    split = work.data.validation
    if first:
        _check_task(work, candidate, split.first(_TRIED))
    # An untrained deep model may give infinite outputs: only outputs after training must be finite.
    untrained = first and not _comes_trained(work)
    score = evaluation.evaluate(candidate.module, split, work.task) if untrained else _scored(work, candidate, split)
    if first:
        warn_of_chance(work, score)
    return CandidateOutcome(
        parameters=parameters(candidate.module),
        macs=macs(candidate),
        bytes=stored_bytes(candidate.module),
        score=score,
        seconds=round(seconds, 2),
        notes=(*candidate.notes, *((*work.user_reads, *work.data.notes) if first else ())),
        decided=candidate.decided,
        trainings=tuple(trainings),
    )


def _check_task(work: Workspace, candidate: "Candidate", split: "Split") -> None:
    import torch

    from edgepack.compress.training import evaluation
    from edgepack.models.checks.task import check_task

    outputs, targets = evaluation.predict(candidate.module, split), torch.cat([*split.truths()])
    check_task(work.task, outputs, split.head(len(split)), targets)


def _scored(work: Workspace, candidate: "Candidate", split: "Split") -> float:
    """Return the score of outputs that must be finite."""
    from edgepack.models.outputs import scorable

    meter = work.task.meter()
    for found, batch in finite_outputs(candidate, split):
        meter.update(scorable(work.task, found, batch.inputs), batch.targets)
    return work.task.scores(meter)[work.task.metric]


def _staged(work: Workspace, step: Step, trainings: list[TrainingRecord]) -> "Candidate":
    import torch

    from edgepack.models.candidate import Candidate

    parent = work.candidate(work.candidate_of(step.ingredients["parent"]), private=True)
    context = replace(_context(work, step), trainings=trainings)
    with followers.of(work, step, context) as team:
        torch.manual_seed(work.recipe.seed)  # here, so that earlier loading does not matter
        result = step.plugin.module.run(parent, step.plugin.config, followers.with_team(context, team))
    if not isinstance(result, Candidate):
        raise StageError(f"run() gave {type(result).__name__}", "a stage returns a candidate: candidate.changed(...)")
    return result


def _context(work: Workspace, step: Step) -> Context:
    trials = Trials(work, step.id.format)
    return Context(
        data=work.data.for_stages(),
        task=work.task,
        quantization=work.device.quantization,
        seed=work.recipe.seed,
        teacher=_teacher(work, step),
        emit=work.emit,
        latency=trials.latency,
        size=trials.size,
        tolerance=strictest(work.recipe.budgets, work.task.metric, "max_drop", "max_rise"),
        quantizer=step.id.format or work.planner.quantizers[0],
        size_budget=strictest(work.recipe.budgets, "size", "max"),
        checkpoints=Checkpoints(folder=work.store.unfinished(step.key), emit=work.emit),
        hardware=work.recipe.hardware,
    )


def _teacher(work: Workspace, step: Step) -> "Candidate | None":
    """Return the teacher for `step`: the last teacher before it, or a pretrained model."""
    teacher = work.candidate_of(step.ingredients["teacher"])
    untrained = teacher.choice is work.recipe.model and not _comes_trained(work)
    return None if untrained else work.candidate(teacher)


def _check_saved(work: Workspace, candidate: "Candidate", folder: Path) -> None:
    """Raises StageError if the loaded model differs from the saved one, or an output depends on the other samples."""
    from edgepack.compress.training import evaluation
    from edgepack.models.candidate import Candidate
    from edgepack.models.checks import steady

    samples = work.data.validation.head(_COMPARED)
    saved = evaluation.eval_mode(candidate.module)
    if candidate.form == "eager" and is_foreign(candidate):
        steady.check_calls(saved, samples, "the model")
    steady.check_alike(saved, evaluation.eval_mode(Candidate.load(folder).module), samples, "the saved model")


def warn_of_chance(work: Workspace, score: float) -> None:
    """Warn if pretrained weights score no better than chance, a common mistake with own models."""
    task, classes = work.task, len(work.signature.labels)
    if _comes_trained(work) and task.chance is not None and score < _CHANCE * task.chance:
        reason = f"its {task.metric} on the validation split is {task.shown(score)}, no better than chance"
        advice = "check the order of the labels and the preprocessing"
        work.emit(Note(text=f"warning: the model is pretrained, but {reason} with {classes} classes: {advice}"))


def _comes_trained(work: Workspace) -> bool:
    model = work.recipe.model
    return bool(model.module.trained(model.config, work.signature))
