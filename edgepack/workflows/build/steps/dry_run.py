"""Run an untrained model through every stage and export, before hours of training."""

from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING

from edgepack.config.compute import Hardware
from edgepack.config.device import Controls
from edgepack.config.plugins import Choice
from edgepack.core import provenance
from edgepack.core.events import Note, StepProgress
from edgepack.core.frozen import Json
from edgepack.data.contract import Task
from edgepack.measure.processes import Host
from edgepack.records.differences import numbered
from edgepack.workflows.build.planning.keys import trains
from edgepack.workflows.build.steps.trials import Trials, check_timed
from edgepack.workflows.build.workspace import Workspace, guarded, is_foreign, needs

if TYPE_CHECKING:
    from edgepack.models.candidate import Candidate


def check(work: Workspace) -> None:
    """Raises StageError or DeviceError naming the stage or export that would fail."""
    stages, variants = work.recipe.stages, [*work.planner.variants()]
    for stage, those in zip(stages, variants, strict=True):
        for variant in those if stage.config.needs_timing else ():
            check_timed(work, work.planner.exporters_of(variant)[0])
    warn_of_saturation(work)
    if not (work.recipe.model.module.FOREIGN or any(map(trains, stages))):
        return  # the stages themselves take no longer
    work.emit(StepProgress(doing="dry run of the stages on an untrained model", done=0, total=1))
    candidate = guarded("model, untrained", partial(untrained, work), work.store.root)
    guarded("model, untrained", partial(_check_steady, candidate), work.store.root)
    made = {"": [candidate]}  # by variant, the model and the result of each stage
    names = numbered(stage.name for stage in stages)
    for stage, name, those in zip(stages, names, variants, strict=True):
        # A stage may change its input, so each variant needs its own copy.
        before = {variant: made.get(variant) or [*made[""][:-1], made[""][-1].copy()] for variant in those}
        made = {each: [*given, _dry_run(work, stage, name, given[-1], each)] for each, given in before.items()}
    for variant, given in made.items():
        _try_exports(work, given, work.planner.exporters_of(variant))


def _dry_run(work: Workspace, stage: Choice, name: str, candidate: "Candidate", variant: str) -> "Candidate":
    """Return the candidate after the structural changes of a stage."""
    guarded(name, partial(_check_trainings, stage, work.recipe.hardware), work.store.root)
    guarded(name, partial(_check_mixing, stage, candidate, work.task), work.store.root)
    dry_run = stage.module.dry_run
    if dry_run is None:
        return candidate
    more: Json = {"latency": Trials(work, variant).latency} if stage.config.needs_timing else {}
    if stage.module.USES_QUANTIZER:
        more["quantizer"] = variant or work.planner.quantizers[0]
    act: Callable[[], Candidate] = partial(dry_run, candidate, stage.config, work.device.quantization, **more)
    for model in (value for _, value in stage.config if isinstance(value, Choice)):
        act = work.watched(model, f"the function of {name}'s model", act)
    made = guarded(f"{name}, dry run before any training", act, work.store.root)
    if made.factory != candidate.factory:  # a student
        guarded(f"{name}, untrained", partial(_check_steady, made), work.store.root)
    return made


def _check_mixing(stage: Choice, candidate: "Candidate", task: Task) -> None:
    """Raises StageError where a training is to mix inputs that cannot be mixed."""
    if any(each.mixup or each.cutmix for each in stage.config.trainings):
        from edgepack.compress.training.loss import Mixing

        for each in stage.config.trainings:
            Mixing(mixup=each.mixup, cutmix=each.cutmix).check(candidate.noise(), task)


def untrained(work: Workspace) -> "Candidate":
    """Return the recipe's model built from its source, without pretrained weights."""
    from edgepack.models.candidate import Candidate, Factory
    from edgepack.models.checks.finite import check_finite

    factory = Factory.of(work.recipe.model, work.signature)
    build = work.watched(work.recipe.model, "the model's function", factory.build)
    candidate = Candidate(module=build(), factory=factory)
    check_finite(candidate.module)
    return candidate


def warn_of_saturation(work: Workspace) -> None:
    """Warn if int8 products saturate, on the device or on this computer in its place: 8-bit weights lose accuracy."""
    used = any("int8_saturates" in stage.module.READS for stage in work.recipe.stages)
    if not used or work.session.absent or not work.int8_differs("onnxruntime", work.session.facts):
        return
    if work.device.evidence.get("predict") == "measured":
        message = f"int8 products saturate on {work.device.name}, so 8-bit weights lose accuracy"
        work.emit(Note(text=f"warning: {message}: {provenance.SATURATION_HINT}"))
    else:
        message = f"int8 products saturate on this computer, which runs the files for {work.device.name}"
        work.emit(Note(text=f"warning: {message}: int8 ONNX Runtime files lose accuracy here, but not on the device"))


def _try_exports(work: Workspace, made: "list[Candidate]", exporters: Sequence[Choice]) -> None:
    """Try to export the last candidate, and the teacher, which is float and uses other kernels. Only for models from a
    user's code: of those of edgepack's own sources each exporter tells whether it can write them.

    `made` are the model and the result of each stage.
    """
    for exporter in exporters:
        refuse = partial(exporter.module.check, made[-1], exporter.config)
        guarded(f"export {exporter.name}, dry run before any training", refuse, work.store.root)
    teaching = takewhile(lambda stage: stage.module.MAKES_TEACHER, work.recipe.stages)
    teacher, last = made[len([*teaching])], made[-1]
    tried = [("export {}", last)] if is_foreign(last) else []
    alike = (last.form, last.factory, last.surgery) == (teacher.form, teacher.factory, teacher.surgery)
    if is_foreign(teacher) and not alike:
        tried.append(("export teacher ({})", teacher.forgotten()))  # a stage may have changed its module since
    with closing(Host(Controls(threads=1))) as here:
        for label, candidate in tried:
            for exporter in exporters:
                act = partial(try_file, work, candidate, exporter, here, complete=candidate is last)
                name = label.format(exporter.name)
                guarded(f"{name}, dry run before any training", act, work.store.root)


def try_file(work: Workspace, candidate: "Candidate", exporter: Choice, here: Host, *, complete: bool = True) -> None:
    """Raises StageError if the file cannot be written, or this computer has its runtime and cannot run it: that of the
    model, and if `complete` that of the model with what its task computes after it.
    """
    from edgepack.measure import dry_run

    def progress(done: int, total: int) -> None:
        work.emit(StepProgress(doing=f"finding what {exporter.name} cannot export", done=done, total=total))

    run: Callable[[Json], Json] | None = here.run if _runs_here(exporter, here) else None
    alike = not work.int8_differs(exporter.module.RUNTIME, here.facts)
    dry_run.check(candidate, exporter, run, progress, compare=alike)
    if complete and work.task.has_postprocess:  # of noise, its outputs say little
        dry_run.check(work.shipped(candidate), exporter, run, progress, compare=False)


def _runs_here(exporter: Choice, here: Host) -> bool:
    runtime = exporter.module.RUNTIME
    if runtime not in here.facts["versions"]:
        return False
    needed = needs(exporter)
    return not needed or needed in here.run({"mode": "delegates", "runtime": runtime})["delegates"]


def _check_steady(candidate: "Candidate") -> None:
    """Raises StageError if a model from a user's code gives other outputs when called or built again."""
    from edgepack.models.candidate import rebuild
    from edgepack.models.checks import steady, trial

    if candidate.form == "exported" or not is_foreign(candidate):
        return
    inputs, tried = trial.some_inputs(candidate.signature), candidate.copy()
    steady.disturb(tried.module)
    steady.check_calls(tried.module, inputs, "the model")
    make = partial(rebuild, candidate.factory, candidate.surgery)
    steady.check_made_again(tried.module, make, inputs, "the model")
    steady.check_in_process(tried, inputs, "the model")


def _check_trainings(stage: Choice, hardware: Hardware) -> None:
    if trains(stage):
        from edgepack.compress.training import loop, numerics, own_trainer

        for each in stage.config.trainings:
            if each.trainer:
                own_trainer.check_arguments(each.trainer, each.trainer_args)
            else:
                numerics.check_precision(each.precision, hardware)
                loop.check_parts(each.batch_size, hardware)
