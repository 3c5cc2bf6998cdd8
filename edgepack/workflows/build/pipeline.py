"""Recipe x Device -> Build: the whole product on one screen.

build(recipe, device, Store(), dist=Path("dist"))
"""

import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgepack.config.device import Device
from edgepack.config.document import shown
from edgepack.config.recipe import Recipe
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
from edgepack.core.process import interrupts, openmp
from edgepack.deliver import bundle
from edgepack.deliver.contract import write_reports
from edgepack.judge import history
from edgepack.judge.baseline import Baseline
from edgepack.judge.gate import EXPLAINED, judged
from edgepack.measure.session import Facts, Reach
from edgepack.records.artifact import Artifact, deflated
from edgepack.records.build import Build, StageRecord
from edgepack.records.verdict import Verdict
from edgepack.workflows import baselines
from edgepack.workflows.build.bundling import bundle_parts
from edgepack.workflows.build.outcomes import deployed, measurements, tell
from edgepack.workflows.build.output import alone, output_folder, record_failure, withdraw
from edgepack.workflows.build.plan import Plan, Planner, Step, remember
from edgepack.workflows.build.store import Entry, Store, clear_temporaries
from edgepack.workflows.build.workspace import Work


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
    """Do what the plan says is not done yet, measure the exported files, judge them, and write `dist/<recipe>/`.

    The build is added to the history in the file `record`, `dist/history.jsonl` unless it is given.
    Raises RecipeError where that can be no file; StageError or DeviceError when a step fails: build.json then holds
    what was done before, and the exit code.
    Ctrl-C raises KeyboardInterrupt, also where a library swallowed it.
    """
    openmp.wait_asleep()
    with interrupts.heeded():
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
    recipe = recipe.suited(device.quantization)
    folder = output_folder(dist, recipe)
    past = Path(record or dist / history.FILE)
    if record:
        history.check_named(past)
    emit(BuildStarted(recipe=recipe.name, device=device.name))
    with alone(folder, emit), ExitStack() as stack:  # an end of the wait withdraws nothing
        clear_temporaries(folder)
        baseline = baselines.of_recipe(recipe, device.id, past, time.time())
        result = _begin(recipe, device)
        steps: list[Step] = []

        def planner_of(device: Device, facts: Facts) -> Planner:
            return Planner(recipe, device, store, facts=facts, remeasure=remeasure, baseline=baseline)

        try:
            reach = Reach(device, store.devices, lambda facts: not planner_of(device, facts).whole().up_to_date)
            stack.callback(reach.close)
            result = result.model_copy(update={"absent": reach.absent})
            for exporter in recipe.exporters:
                reach.check(exporter.module.RUNTIME, f"the export to {exporter.name}")
            planner = planner_of(reach.device, reach.facts)
            work = Work(recipe, reach, store, planner)
            device = replace(device, quantization=planner.device.quantization)
            result = result.model_copy(update={"device": {"id": device.id, **device.resolved()}})
            if reach.absent:
                placed(emit, 0, planner.count, device.id)(Note(text=f"{reach.absent}; {_WITHOUT}"))
            for number, step in enumerate(planner.steps(), start=1):
                if not step.cached and all(before.cached for before in steps):
                    withdraw(result, folder)
                steps.append(step)
                interrupts.check()
                work.emit = placed(_checked(emit), number, planner.count, step.name)
                result = _after(result, work, step, folder)
            work.check_files()
            remember(Plan(recipe=recipe, device=device, steps=tuple(work.done.values())), store)
            result = _judged(_weighed(result, recipe, work), recipe, baseline)
            result = _explained(result, work, placed(_checked(emit), planner.count, planner.count, "parity"))
            result = bundle.write(result, recipe, device, bundle_parts(result, device, work), folder)
            write_reports(result, folder)
            interrupts.check()
            stack.enter_context(interrupts.deferred())  # too late now: a build in the history has its bundle
            history.append(past, result)
        except BaseException as error:
            failure = _reason(error, folder)
            result = record_failure(result, failure, folder)
            emit(
                BuildFinished(recipe=recipe.name, exit_code=result.exit_code or 0, dist=str(folder), error=result.error)
            )
            if failure is error:
                raise
            raise failure from error
    emit(BuildFinished(recipe=recipe.name, exit_code=result.exit_code or 0, dist=str(folder)))
    return result


def _checked(emit: Emit) -> Emit:
    """`emit` that raises again what a library has swallowed meanwhile."""

    def tell(event: Event) -> None:
        interrupts.check()
        emit(event)

    return tell


def _reason(error: BaseException, folder: Path) -> BaseException:
    """What ended a build, whatever a library has made of it; from here on it is tidied undisturbed."""
    if interrupts.behind(error):
        interrupts.heard()
        return error if isinstance(error, KeyboardInterrupt) else KeyboardInterrupt()
    return full_disk(error, folder) or error


_WITHOUT = "without it files are run by this computer, and times are estimated where its profile has figures for that"


def _after(result: Build, work: Work, step: Step, folder: Path) -> Build:
    """The build after one more step. A file that fails as it runs keeps no other from being evaluated."""
    if step.kind in ("evaluation", "timing") and step.artifact in work.broken:
        return result
    try:
        entry = _do(work, step)
        result = _with(result, work.done[step.name], entry)
    except StageError as error:
        if step.kind != "evaluation":
            raise
        work.broken[step.artifact] = error
        return result
    if not step.cached:
        result.save(folder / "build.json")
    return result


def _do(work: Work, step: Step) -> Entry:
    if step.cached:
        entry = work.ensure(step)
        work.emit(StepCached(key=step.key, result=tell(step, entry)))
        return entry
    work.emit(StepStarted(why=step.reason))
    started = time.monotonic()
    try:
        entry = work.ensure(step)
    except EdgepackError as error:
        work.emit(StepFailed(message=str(error)))
        raise
    work.emit(StepFinished(seconds=time.monotonic() - started, result=tell(step, entry)))
    return entry


def _begin(recipe: Recipe, device: Device) -> Build:
    return Build(
        schema="edgepack.build/1",
        recipe=recipe.resolved(),
        recipe_file=shown(recipe.file),
        overrides=recipe.overrides,
        device={"id": device.id, **device.resolved()},
        started_at=round(time.time(), 3),
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
    "tokenizers",
    "transformers",
)


def _with(result: Build, step: Step, entry: Entry) -> Build:
    """The build with what one more step found out."""
    more: dict[str, Any] = {"measurements": (*result.measurements, *measurements(result, step, entry))}
    if step.kind == "candidate":
        reused = entry.made_at < result.started_at
        outcome = {**entry.outcome, "notes": tuple(entry.outcome["notes"])}
        more["ledger"] = (*result.ledger, StageRecord(stage=step.name, key=step.key, reused=reused, **outcome))
    if step.kind == "artifact":
        more["artifacts"] = (*result.artifacts, Artifact.model_validate(entry.outcome))
    if step.kind == "evaluation" and "not_run" in entry.outcome:
        more["not_run"] = {**result.not_run, step.artifact: entry.outcome["not_run"]}
    if "not_timed" in entry.outcome:
        more["not_timed"] = {**result.not_timed, step.artifact: entry.outcome["not_timed"]}
    return result.model_copy(update=more)


def _weighed(result: Build, recipe: Recipe, work: Work) -> Build:
    """The build with what the files come to in an app."""
    from edgepack.deliver.bundle.assemble import beside

    packed = {
        each.label: deflated(work.file(each.label)[1].read_bytes()) if each.compressed is None else each.compressed
        for each in result.shipped()
    }
    more = deployed(result, beside(recipe, work.signature), packed)
    return result.model_copy(update={"measurements": (*result.measurements, *more)})


def _judged(result: Build, recipe: Recipe, baseline: Baseline | None) -> Build:
    found = judged(result, recipe.budgets, recipe.waivers, baseline)
    return found.model_copy(update={"finished_at": round(time.time(), 3)})


def _explained(result: Build, work: Work, emit: Emit) -> Build:
    """Every parity budget that was missed tells where the files begin to differ."""
    work.emit = emit
    first = result.shipped()[0].label if result.artifacts else ""
    verdicts = [
        verdict.because(_origin(verdict, first, work))
        if verdict.outcome == "fail" and verdict.metric in EXPLAINED
        else verdict
        for verdict in result.verdicts
    ]
    return result.model_copy(update={"verdicts": tuple(verdicts)})


def _origin(verdict: Verdict, first: str, work: Work) -> str:
    if verdict.metric != "parity.runtimes":
        return work.difference(verdict.artifact)
    return "; ".join(f"{label} and torch: {work.difference(label)}" for label in (verdict.artifact, first))
