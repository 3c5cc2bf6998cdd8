"""Recipe x Device -> Build: the whole product on one screen.

build(recipe, device, Store(), dist=Path("dist"))
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgepack import bundle, history, interrupts, openmp, provenance
from edgepack.artifact import Artifact, deflated
from edgepack.config import shown
from edgepack.device import Device
from edgepack.errors import EdgepackError, ExitCode, StageError
from edgepack.events import (
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
from edgepack.gate import EXPLAINED, Verdict, judged
from edgepack.measure import deployed, measurements, tell
from edgepack.plan import Plan, Planner, Step, remember
from edgepack.reach import Facts, Reach
from edgepack.recipe import Recipe
from edgepack.reports import remove_reports, write_reports
from edgepack.result import Build, StageRecord
from edgepack.store import Entry, Store, clear_temporaries, disk_error, full_disk
from edgepack.work import Work


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
    with _alone(folder, emit), ExitStack() as stack:  # an end of the wait withdraws nothing
        clear_temporaries(folder)
        recipe = history.looked_up(recipe, device.id, past, time.time())
        result = _begin(recipe, device)
        steps: list[Step] = []
        try:
            reach = Reach(device, store, lambda facts: not _up_to_date(recipe, device, store, facts, remeasure))
            stack.callback(reach.close)
            result = result.model_copy(update={"absent": reach.absent})
            for exporter in recipe.exporters:
                reach.check(exporter.module.RUNTIME, f"the export to {exporter.name}")
            planner = Planner(recipe, reach.device, store, facts=reach.facts, remeasure=remeasure)
            work = Work(recipe, reach, store, planner)
            device = replace(device, quantization=planner.device.quantization)
            result = result.model_copy(update={"device": {"id": device.id, **device.resolved()}})
            if reach.absent:
                placed(emit, 0, planner.count, device.id)(Note(text=f"{reach.absent}; {_WITHOUT}"))
            for number, step in enumerate(planner.steps(), start=1):
                if not step.cached and all(before.cached for before in steps):
                    _withdraw(result, folder)
                steps.append(step)
                interrupts.check()
                work.emit = placed(_checked(emit), number, planner.count, step.name)
                result = _after(result, work, step, folder)
            work.check_files()
            remember(Plan(recipe=recipe, device=device, steps=tuple(work.done.values())), store)
            result = _judged(_weighed(result, recipe, work), recipe)
            result = _explained(result, work, placed(_checked(emit), planner.count, planner.count, "parity"))
            result = bundle.write(result, recipe, device, work, folder)
            write_reports(result, folder)
            interrupts.check()
            stack.enter_context(interrupts.deferred())  # too late now: a build in the history has its bundle
            history.append(past, result)
        except BaseException as error:
            failure = _reason(error, folder)
            result = _failed(result, failure, folder)
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


@contextmanager
def _alone(folder: Path, emit: Emit) -> Iterator[None]:
    """Hold the folder: two builds into one would mix their files. Nothing is left of the lock, however a build ends."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                emit(Note(step=1, steps=1, name="build", text=f"waiting for another build into {folder}"))
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def output_folder(dist: Path, recipe: Recipe) -> Path:
    """`dist/<recipe>/`, made if need be."""
    folder = dist / recipe.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise disk_error(error, folder) from error
    return folder


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


def _up_to_date(recipe: Recipe, device: Device, store: Store, facts: Facts, remeasure: bool) -> bool:
    return Planner(recipe, device, store, facts=facts, remeasure=remeasure).whole().up_to_date


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
    from edgepack.bundle.contents import beside

    packed = {
        each.label: deflated(work.file(each.label)[1].read_bytes()) if each.compressed is None else each.compressed
        for each in result.shipped()
    }
    more = deployed(result, beside(recipe, work.signature), packed)
    return result.model_copy(update={"measurements": (*result.measurements, *more)})


def _judged(result: Build, recipe: Recipe) -> Build:
    found = judged(result, recipe.budgets, recipe.waivers, recipe.baseline)
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


def _withdraw(result: Build, folder: Path) -> None:
    """Take away what an earlier build left before work begins: whatever ends this one, nothing stale can be shipped."""
    bundle.remove(folder, result.name)
    remove_reports(folder)
    result.save(folder / "build.json")


def _failed(result: Build, error: BaseException, folder: Path) -> Build:
    interrupted = ExitCode.INTERRUPTED if isinstance(error, KeyboardInterrupt) else ExitCode.BUG
    code = error.code if isinstance(error, EdgepackError) else interrupted
    over = {"exit_code": int(code), "error": str(error) or "interrupted", "finished_at": round(time.time(), 3)}
    failed = result.model_copy(update=over)
    with suppress(OSError):  # the disk may be what failed; the error itself is on its way to the user
        _withdraw(failed, folder)
    with suppress(Exception):  # no mistake in a report may hide the error
        write_reports(failed, folder)
    return failed
