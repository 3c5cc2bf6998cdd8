"""How well an exported file does on the test split, run by its own runtime where the device is."""

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.config.device import Controls
from edgepack.core import provenance
from edgepack.core.errors import EdgepackError, RefusedError, StageError
from edgepack.core.events import StepProgress
from edgepack.core.files import digest
from edgepack.core.signature.shown import Shown
from edgepack.data.splits import EXAMPLES
from edgepack.measure import evaluate
from edgepack.measure.processes import Host
from edgepack.records.artifact import MODEL, Artifact
from edgepack.workflows.build.outcomes import AnswersOutcome, EvaluationOutcome, Expected
from edgepack.workflows.build.planning.step import Step, StepId
from edgepack.workflows.build.steps import divergence
from edgepack.workflows.build.steps.dry_run import try_file
from edgepack.workflows.build.steps.outputs import outputs
from edgepack.workflows.build.store import Entry
from edgepack.workflows.build.workspace import Workspace, needs

if TYPE_CHECKING:
    from edgepack.measure.evaluate import Arrays


_ANSWERS = 2  # bump when the same outputs would be kept in another way


def do(work: Workspace, step: Step, folder: Path) -> EvaluationOutcome:
    artifact, file = work.file(step.id)
    if why := work.why_not_run(artifact.format):
        return EvaluationOutcome(not_run=why)
    split = work.data.test

    def progress(done: int, total: int) -> None:
        work.emit(StepProgress(doing=f"running {artifact.runtime} on the test split", done=done, total=total))

    progress(0, len(split))
    try:
        found = evaluate.outputs(
            work.session.run,
            file=file,
            runtime=artifact.runtime,
            split=split,
            folder=folder,
            task=work.task,
            progress=progress,
        )
    except RefusedError as error:
        raise _refused(work, step.id, error) from error
    scored = EvaluationOutcome(
        scores=evaluate.scores(work.task, found, split), rows=len(found[0]), of=work.test_samples
    )
    if step.id.subject != MODEL:
        # Accuracy budgets compare with the teacher's file: if both were wrong in the same way, the model would pass.
        named = f"the {artifact.format} file of the teacher"
        evaluate.check_same(work.task, found, _taught(work), named, evaluate.BROKEN_FLOAT)
        return scored
    first = StepId("evaluation", MODEL, work.recipe.exporters[0].name)
    beside = first if step.id != first and _was_run(work, first) else None
    return EvaluationOutcome(
        scores=scored.scores,
        rows=scored.rows,
        of=scored.of,
        shown=_shown(work, found),
        parity=_agreement(work, found, work.reference(artifact.format)),
        runtimes=_agreement(work, found, beside) if beside else None,
        beside=beside.format if beside else "",
        broken=_broken(work, found, artifact),
    )


def _shown(work: Workspace, found: "Arrays") -> tuple[Shown, ...]:
    """Return what an app would show of the first samples; nothing of NaN and Inf, which end the build."""
    first = tuple(array[:EXAMPLES] for array in found)
    return tuple(work.task.drawn(first)) if evaluate.finite(first).all() else ()


def cases(work: Workspace, entry: Entry) -> tuple[Expected, ...]:
    """Return the outputs of a bundle's samples, from an entry that keeps those of a file."""
    first = tuple(array[:EXAMPLES] for array in evaluate.load(entry.path))
    names = [spec.name for spec in work.task.condensed_outputs()]
    return tuple(
        {name: tuple(array[row].ravel().tolist()) for name, array in zip(names, first, strict=True)}
        for row in range(len(first[0]))
    )


def _was_run(work: Workspace, id: StepId) -> bool:
    return id not in work.failed and not EvaluationOutcome.read(work.entry(id)).not_run


def _agreement(work: Workspace, found: "Arrays", other: StepId) -> evaluate.Agreement:
    return evaluate.parity(work.task, found, evaluate.load(work.entry(other).path))


def _broken(work: Workspace, found: "Arrays", artifact: Artifact) -> str:
    """Return why the file that would ship is broken, or "". Its outputs are kept to find where they begin to differ."""
    reference = evaluate.load(work.entry(work.reference(artifact.format)).path)
    try:
        evaluate.check_same(work.task, found, reference, f"the {artifact.format} file")
    except StageError as error:
        return error.message
    return ""


def _taught(work: Workspace) -> "Arrays":
    """Return the torch teacher's outputs on the test split."""
    if work.teacher_outputs is None:
        assert work.planner.teacher is not None, "a plan begins with the model, the first teacher"
        key = work.planner.teacher.key
        known = [id for id, step in work.done.items() if id.kind == "outputs" and step.ingredients["parent"] == key]
        if known:
            work.teacher_outputs = evaluate.load(work.entry(known[0]).path)
        else:
            from edgepack.compress.training import numerics

            with numerics.deterministic(work.recipe.seed, provenance.threads()):
                folder = Path(work.scratch.name)
                work.teacher_outputs = outputs(work, work.candidate(work.candidate_of(key)), folder)
    return work.teacher_outputs


def _refused(work: Workspace, id: StepId, error: RefusedError) -> EdgepackError:
    """Return the error to raise if a device refuses a file: a StageError if this computer refuses it too."""
    export = work.done[id.of("artifact")]
    with closing(Host(Controls(threads=1))) as here:
        try:
            candidate = work.candidate(work.candidate_of(export.ingredients["parent"]))
            try_file(work, candidate, export.plugin, here)
        except StageError as found:
            return found
    return error


def check_files(work: Workspace) -> None:
    """Raises StageError if a file failed to run or is broken, after all others were evaluated."""
    for error in work.failed.values():
        raise error
    for id in [id for id in work.done if id.kind == "evaluation"]:
        found = EvaluationOutcome.read(work.entry(id))
        finite = found.parity is None or found.parity.not_finite is None
        if found.broken and not (finite and _saturates_here(work, id)):
            raise StageError(f"{id.name}: {found.broken}: {divergence.where(work, id)}", evaluate.BROKEN)


def _saturates_here(work: Workspace, id: StepId) -> bool:
    """Return whether this computer replaces the device and saturates int8 products where the device does not."""
    artifact, _ = work.file(id)
    emulated = work.device.evidence.get("predict") != "measured"
    return emulated and work.int8_differs(artifact.runtime, work.session.facts)


def answers(work: Workspace, id: StepId) -> Entry:
    """Return an entry with a file's outputs for the bundle's samples, on one thread of this computer, or why it cannot
    run. Thus the bundle does not depend on whether the device was available.
    """
    with closing(Host(Controls(threads=1))) as here:
        artifact, _ = work.file(id)
        versions = {**provenance.versions("edgepack", "torch", "numpy"), **provenance.installed(artifact.runtime)}
        where = {**here.facts, "versions": versions}
        ingredients = {"file": artifact.sha256, "samples": work.done[work.reference(id.format)].key, "where": where}
        key = digest({"kind": "answers", "version": _ANSWERS, **ingredients})
        do = partial(_answers, work, id, here)
        return work.store.get("answers", key) or work.store.make(
            "answers", key, ingredients, lambda folder: do(folder).stored()
        )


def _answers(work: Workspace, id: StepId, here: Host, folder: Path) -> AnswersOutcome:
    artifact, file = work.file(id)
    job = {"mode": "delegates", "runtime": artifact.runtime, "file": artifact.label}
    if (needed := needs(work.exporter(artifact.format))) and needed not in here.run(job)["delegates"]:
        return AnswersOutcome(not_run=f"{artifact.runtime} on the computer that built it has no {needed}")
    split = work.data.test.first(EXAMPLES)
    found = evaluate.outputs(here.run, file=file, runtime=artifact.runtime, split=split, folder=folder, task=work.task)
    if not evaluate.finite(found).all():
        raise StageError(
            f"the {artifact.format} file outputs NaN or Inf on the computer that built it", evaluate.BROKEN
        )
    return AnswersOutcome()
