"""Recipe x Device -> Build: the whole product on one screen.

build(recipe, device, Store(), dist=Path("dist"))
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from edgepack.config.compute import Hardware
from edgepack.config.device import Device
from edgepack.config.document import shown
from edgepack.config.recipe import Recipe, resolve
from edgepack.core import provenance
from edgepack.core.errors import EdgepackError, StageError
from edgepack.core.events import (
    BuildFinished,
    BuildStarted,
    Emit,
    Event,
    Note,
    StepCached,
    StepFailed,
    StepFinished,
    StepStarted,
    placed,
)
from edgepack.core.files import full_disk
from edgepack.core.files.unchanged import one_look
from edgepack.core.frozen import Json
from edgepack.core.process import interrupts, openmp
from edgepack.core.signature.shown import Sample, Shown
from edgepack.deliver import bundle
from edgepack.deliver.bundle.assemble import beside
from edgepack.deliver.contract import write_reports
from edgepack.deliver.tracking import Tracking
from edgepack.judge import history
from edgepack.judge.baseline import Baseline
from edgepack.judge.gate import EXPLAINED, judge_build
from edgepack.measure.session import DeviceSession, Facts
from edgepack.records.artifact import MODEL, TEACHER, Artifact, deflated, label_of
from edgepack.records.build import Build, MetricRecord, StageRecord
from edgepack.records.verdict import Verdict
from edgepack.workflows import baselines
from edgepack.workflows.build.bundling import bundle_parts
from edgepack.workflows.build.measurements import deployed, measurements
from edgepack.workflows.build.outcomes import (
    CandidateOutcome,
    EvaluationOutcome,
    ReferenceOutcome,
    TimingOutcome,
    describe,
)
from edgepack.workflows.build.output import alone, output_folder, record_failure, withdraw
from edgepack.workflows.build.planning.memory import remember
from edgepack.workflows.build.planning.planner import Planner
from edgepack.workflows.build.planning.step import Plan, Step, StepId
from edgepack.workflows.build.runner import Runner
from edgepack.workflows.build.steps import divergence
from edgepack.workflows.build.steps.evaluation import check_files
from edgepack.workflows.build.store import Entry, Store, clear_temporaries
from edgepack.workflows.build.workspace import Workspace


def build(
    recipe: Recipe,
    device: Device,
    store: Store,
    *,
    dist: str | Path,
    emit: Emit = lambda event: None,
    remeasure: bool = False,
    record: str | Path | None = None,
) -> Build:
    """Run all steps that are not cached, measure and judge the exported files, and write `dist/<recipe>/`.

    Adds the build to the history file `record`, default `dist/history.jsonl`. Raises RecipeError if that cannot be a
    file; StageError or DeviceError if a step fails: build.json then holds what was done before, and the exit code.
    Ctrl-C raises KeyboardInterrupt, even if a library swallowed it.
    """
    openmp.wait_asleep()
    with interrupts.heeded(), one_look():
        return _build(recipe, device, store, Path(dist), emit, remeasure, record)


def _build(
    recipe: Recipe,
    device: Device,
    store: Store,
    dist: Path,
    emit: Emit,
    remeasure: bool,
    record: str | Path | None,
) -> Build:
    folder = output_folder(dist, recipe)
    past = Path(record or dist / history.FILE)
    if record:
        history.check_named(past)
    emit(BuildStarted(recipe=recipe.name, device=device.name))
    with alone(folder, emit), ExitStack() as stack:  # stopping while waiting removes no results
        clear_temporaries(folder)
        tracking = Tracking(recipe.trackers, emit)
        stack.callback(tracking.close)
        emit = tracking.emit
        baseline = baselines.of_recipe(recipe, device.id, past, time.time())
        result = _begin(recipe, device)

        def planned(device: Device, facts: Facts) -> Planner:
            resolved = resolve(recipe, device, facts)
            return Planner(resolved, store, facts=facts, remeasure=remeasure, baseline=baseline)

        try:
            session = DeviceSession(device, store.devices, lambda facts: not planned(device, facts).whole().up_to_date)
            stack.callback(session.close)
            result = result.model_copy(update={"absent": session.absent})
            for exporter in recipe.exporters:
                session.check(exporter.module.RUNTIME, f"the export to {exporter.name}")
            planner = planned(session.device, session.facts)
            runner = Runner(planner.recipe, session, store, planner)
            work = runner.work
            stack.callback(work.close)
            device = replace(device, quantization=planner.device.quantization)
            about = {"recipe": planner.recipe.plain(), "device": {"id": device.id, **device.plain()}}
            environment = {**provenance.environment(), "trained_on": planner.recipe.hardware.describe()}
            made_with = {**result.provenance, "environment": environment}
            result = result.model_copy(update={**about, "provenance": made_with})
            tracking.start(result, planner.count)
            if session.absent:
                placed(emit, 0, planner.count, device.id)(Note(text=f"{session.absent}; {_WITHOUT}"))
            for number, step in enumerate(planner.steps(), start=1):
                if not step.cached and all(before.cached for before in work.done.values()):
                    withdraw(result, folder)
                interrupts.check()
                work.emit = placed(_checked(emit), number, planner.count, step.name)
                result = _after(result, runner, step, folder)
                tracking.log_stages(result)
            check_files(work)
            remember(Plan(recipe=planner.recipe, steps=tuple(work.done.values())), store)
            result = _judged(_weighed(result, work), recipe, baseline)
            result = _explained(result, work, placed(_checked(emit), planner.count, planner.count, "parity"))
            result = bundle.write(result, planner.recipe, device, bundle_parts(result, device, work), folder)
            write_reports(result, folder)
            interrupts.check()
            stack.enter_context(interrupts.deferred())  # too late to stop: a build in the history has its bundle
            history.append(past, result)
        except BaseException as error:
            failure = _reason(error, folder)
            result = record_failure(result, failure, folder)
            tracking.end(result, folder)
            emit(
                BuildFinished(recipe=recipe.name, exit_code=result.exit_code or 0, dist=str(folder), error=result.error)
            )
            if failure is error:
                raise
            raise failure from error
        tracking.end(result, folder)
    emit(BuildFinished(recipe=recipe.name, exit_code=result.exit_code or 0, dist=str(folder)))
    return result


def _checked(emit: Emit) -> Emit:
    """Return an `emit` that first raises an interrupt that a library swallowed."""

    def tell(event: Event) -> None:
        interrupts.check()
        emit(event)

    return tell


def _reason(error: BaseException, folder: Path) -> BaseException:
    """Return the real cause of an error, even if a library changed it; from here on cleaning up is not interrupted."""
    if interrupts.behind(error):
        interrupts.heard()
        return error if isinstance(error, KeyboardInterrupt) else KeyboardInterrupt()
    return full_disk(error, folder) or error


_WITHOUT = "without it, files run on this computer, and times are estimated if the profile has figures for that"


def _after(result: Build, runner: Runner, step: Step, folder: Path) -> Build:
    """Return the build after one more step. A file that fails to run does not stop the evaluation of others."""
    failed = runner.work.failed
    ran = [id for id in failed if id.format == step.id.format]  # the model's or the teacher's file: both are timed
    if step.kind == "timing" and ran:
        return result
    try:
        entry = _do(runner, step)
        result = _with(result, runner.work.done[step.id], entry)
    except StageError as error:
        if step.kind != "evaluation":
            raise
        failed[step.id] = error
        return result
    if not step.cached:
        result.save(folder / "build.json")
    return result


def _do(runner: Runner, step: Step) -> Entry:
    emit = runner.work.emit
    if step.cached:
        entry = runner.ensure(step)
        emit(StepCached(key=step.key, result=describe(step, entry, runner.work.task.metric)))
        return entry
    emit(StepStarted(why=step.reason))
    started = time.monotonic()
    try:
        entry = runner.ensure(step)
    except EdgepackError as error:
        emit(StepFailed(message=str(error)))
        raise
    emit(StepFinished(seconds=time.monotonic() - started, result=describe(step, entry, runner.work.task.metric)))
    return entry


def _begin(recipe: Recipe, device: Device) -> Build:
    return Build(
        schema="edgepack.build/1",
        recipe=resolve(recipe, device, on=Hardware()).plain(),
        recipe_file=shown(recipe.file),
        overrides=recipe.overrides,
        device={"id": device.id, **device.plain()},
        started_at=round(time.time(), 3),
        metrics=tuple(MetricRecord.of(*each) for each in recipe.task.module.metrics(recipe.task.config).items()),
        provenance={
            "versions": provenance.versions(*_PACKAGES),
            "git": provenance.git_state(recipe.file.parent),
            "environment": provenance.environment(),
        },
    )


_PACKAGES = (
    "edgepack",
    "torch",
    "torchvision",
    "torchao",
    "executorch",
    "coremltools",
    "torch-pruning",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxruntime",
    "timm",
    "tokenizers",
    "transformers",
)


def _with(result: Build, step: Step, entry: Entry) -> Build:
    """Return the build with the results of one more step."""
    more: dict[str, object] = {"measurements": (*result.measurements, *measurements(result, step, entry))}
    match step.kind:
        case "candidate":
            made = CandidateOutcome.read(entry)
            reused = entry.made_at < result.started_at
            about: Json = {"stage": step.name, "key": step.key, "reused": reused, "metric": result.metric}
            record = StageRecord.model_validate({**about, **made.model_dump()})
            more["ledger"] = (*result.ledger, record)
        case "artifact":
            more["artifacts"] = (*result.artifacts, Artifact.model_validate(entry.outcome))
        case "outputs" if not result.samples:  # those of other variants are the same
            more["samples"] = ReferenceOutcome.read(entry).samples
        case "evaluation":
            seen = EvaluationOutcome.read(entry)
            more["samples"] = _shown(result.samples, step.id.label, seen.shown)
            if seen.not_run:
                more["not_run"] = {**result.not_run, step.id.label: seen.not_run}
        case "timing":
            found = TimingOutcome.read(entry)
            whys = ((MODEL, found.not_timed), (TEACHER, found.teacher_not_timed))
            reasons = {label_of(step.id.format, subject): why for subject, why in whys if why}
            more["not_timed"] = {**result.not_timed, **reasons}
    return result.model_copy(update=more)


def _shown(samples: Sequence[Sample], label: str, shown: Sequence[Shown]) -> tuple[Sample, ...]:
    """Return the samples with what a file gives of them."""
    if not shown:
        return tuple(samples)
    pairs = zip(samples, shown, strict=True)
    return tuple(each.model_copy(update={"files": {**each.files, label: given}}) for each, given in pairs)


def _weighed(result: Build, work: Workspace) -> Build:
    """Return the build with what an app has to ship for each file."""
    packed = {
        each.label: deflated(work.file(StepId("artifact", each.subject, each.format))[1].read_bytes())
        if each.compressed is None
        else each.compressed
        for each in result.shipped()
    }
    more = deployed(result, beside(work.recipe, work.task.file_signature), packed)
    return result.model_copy(update={"measurements": (*result.measurements, *more)})


def _judged(result: Build, recipe: Recipe, baseline: Baseline | None) -> Build:
    found = judge_build(result, recipe.budgets, recipe.waivers, baseline)
    return found.model_copy(update={"finished_at": round(time.time(), 3)})


def _explained(result: Build, work: Workspace, emit: Emit) -> Build:
    """Add to each missed parity budget where the files begin to differ."""
    work.emit = emit
    verdicts = [
        verdict.because(_origin(verdict, work))
        if verdict.outcome == "fail" and verdict.metric in EXPLAINED
        else verdict
        for verdict in result.verdicts
    ]
    return result.model_copy(update={"verdicts": tuple(verdicts)})


def _origin(verdict: Verdict, work: Workspace) -> str:
    """Return where files differ; a verdict on parity is about a shipped file, whose label is its format."""
    if verdict.metric != "parity.runtimes":
        return divergence.where(work, StepId("evaluation", MODEL, verdict.artifact))
    formats = (verdict.artifact, work.recipe.exporters[0].name)
    return "; ".join(
        f"{format} and torch: {divergence.where(work, StepId('evaluation', MODEL, format))}" for format in formats
    )
