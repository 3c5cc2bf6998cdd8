"""Time an exported file on the device, alternating with the teacher's file."""

import time
from collections.abc import Callable
from pathlib import Path

from edgepack.core.errors import DeviceError
from edgepack.core.events import StepProgress
from edgepack.core.frozen import Json
from edgepack.measure.timing import protocol
from edgepack.measure.timing.figures import Answers, Estimated, Timed
from edgepack.records.artifact import MODEL, TEACHER
from edgepack.workflows.build.outcomes import TimingOutcome
from edgepack.workflows.build.planning.step import Step, StepId
from edgepack.workflows.build.workspace import Workspace


def do(work: Workspace, step: Step, folder: Path) -> TimingOutcome:
    format = step.id.format
    if why := work.why_not_run(format):
        return TimingOutcome(not_run=why)
    if why := why_not_timed(work):
        return TimingOutcome(not_timed=why, teacher_not_timed=why)
    runtime = step.plugin.module.RUNTIME
    files = [work.file(StepId("timing", subject, format))[1] for subject in (MODEL, TEACHER)]
    jobs = [work.timing_job(runtime, file) for file in files]
    if work.device.evidence["time"] == "estimated":
        return _estimated(work, jobs)
    before = _before(work, step)
    work.emit(StepProgress(doing=f"timing {runtime} in fresh processes", done=len(before[0]), total=7))

    def decided(taken: tuple[Answers, ...]) -> bool:
        return work.planner.decided(format, taken[0])

    run, evidence = work.session.run, work.device.evidence
    model, teacher = protocol.time_alternately(run, jobs, before, decided, _progress(work, runtime))
    memory = protocol.peaks(run, evidence, jobs[0])  # no budget is for a teacher's memory
    return TimingOutcome(model=Timed(answers=model, memory=memory), teacher=Timed(answers=teacher))


def _estimated(work: Workspace, jobs: list[Json]) -> TimingOutcome:
    """Return an estimate; if none is possible, that is not an error and the build continues."""
    found, whys = [], []
    for job in jobs:
        try:
            found.append(Timed(estimate=Estimated.model_validate(work.session.run(job))))
            whys.append("")
        except DeviceError as error:
            found.append(Timed())
            whys.append(error.message)
    return TimingOutcome(model=found[0], teacher=found[1], not_timed=whys[0], teacher_not_timed=whys[1])


def _before(work: Workspace, step: Step) -> tuple[Answers, Answers]:
    """Return earlier timings of both files if more runs may decide; after the maximum number of runs, start afresh."""
    known = TimingOutcome.read(step.entry) if step.entry and not work.planner.remeasure else TimingOutcome()
    model, teacher = known.model.answers, known.teacher.answers
    kept = all(map(work.planner.protocol.kept, (model, teacher))) and len(model) == len(teacher) < protocol.MOST
    return (model, teacher) if kept else ([], [])


def why_not_timed(work: Workspace) -> str:
    if "time" in work.device.evidence:
        return ""
    why = work.session.absent or f"its runner, {work.device.runner.name}, cannot time files"
    return f"{why}, and the profile of {work.device.name} has no analytic model to estimate with"


def _progress(work: Workspace, runtime: str) -> Callable[[int, int], None]:
    started = time.monotonic()

    def progress(done: int, total: int) -> None:
        left = (time.monotonic() - started) / done * (total - done) if done else None
        doing = f"timing {runtime} in fresh processes"
        work.emit(StepProgress(doing=doing, done=done, total=total, seconds_left=left))

    return progress
