"""How each kind of step is done. `Work.ensure` gives a step's entry, from the store or by doing it now."""

import logging
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import cached_property, partial
from itertools import takewhile
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, TypeVar

from edgepack.compress.contract import Context, trainings
from edgepack.config import plugins
from edgepack.config.budgets import strictest
from edgepack.config.device import Controls
from edgepack.config.plugins import Choice
from edgepack.config.recipe import Recipe
from edgepack.config.user_code import reads
from edgepack.core import provenance
from edgepack.core.errors import DeviceError, EdgepackError, RefusedError, StageError
from edgepack.core.events import Emit, Note, StepProgress
from edgepack.core.files import digest, full_disk
from edgepack.core.units import SHARE
from edgepack.data.contract import Task
from edgepack.data.splits import EXAMPLES
from edgepack.export import contract
from edgepack.measure import evaluate, processes
from edgepack.measure.session import Facts, Reach
from edgepack.measure.timing import figures as timing_figures
from edgepack.measure.timing import protocol
from edgepack.records import artifact as artifact_record
from edgepack.records.artifact import Artifact
from edgepack.workflows.build.keys import numbered, plugin_facts
from edgepack.workflows.build.plan import Planner, Step
from edgepack.workflows.build.store import Entry, Store

if TYPE_CHECKING:
    from edgepack.core.signature import Signature
    from edgepack.data.splits import Data, Split
    from edgepack.measure.evaluate import Array
    from edgepack.models.candidate import Candidate
    from edgepack.records.file_contents import Contents

Result = TypeVar("Result")

_CHANCE = 1.5  # times the score of a blind guess, up to which trained weights are doubted
_REFERENCE = "reference outputs"  # the step
_TRIALS = 3  # processes that time a model which a stage only tries
_KEPT = 2  # files of such models
_COMPARED = 8  # samples on which a saved model is compared with what it was saved from
_SEARCH = 3  # bump when locate would tell another sentence of the same file


class Work:
    """Everything that steps share while one recipe is built: the data, the candidates loaded so far, the runner."""

    def __init__(self, recipe: Recipe, reach: Reach, store: Store, planner: Planner) -> None:
        self.recipe, self.reach, self.store, self.planner = recipe, reach, store, planner
        self.device = planner.device
        self.emit: Emit = lambda event: None
        self.task: Task = plugins.load("tasks", recipe.task)
        self.done: dict[str, Step] = {}  # by name, in order
        self.loaded: dict[str, Candidate] = {}
        self.delegates: dict[str, list[str]] = {}  # by runtime, asked for once
        self.seen: dict[str, str] = {}  # the sha256 of each exported file that was looked at
        self.tried: dict[int, tuple[Any, bytes]] = {}  # by the id of a module that is held as long, the last used last
        self.rehearsed = False
        self.broken: dict[str, StageError] = {}  # by the label of the file: it is not run again
        self.read: list[str] = []  # what the user's functions read besides what they name

    def ensure(self, step: Step) -> Entry:
        """The step's entry, made now unless it is cached. The files of a cached one are checked when they are read.

        It is done under the key that it has when the functions of a user have run, and told what they read.
        """
        if step.kind == "candidate" and not step.cached:
            self._rehearse()
            self._load_foreign(step.name)
            step = self.planner.renewed(step)
        self.done[step.name] = step
        if step.cached and step.entry:
            self.store.touch(step.entry)
            return step.entry
        return self._make(step)

    def _make(self, step: Step) -> Entry:
        if step.kind == "candidate":
            self._rehearse()
        with self.store.lock(
            step.key, waiting=lambda: self.emit(Note(text="waiting for another build of the same step"))
        ):
            if step.entry is None and (found := self.store.get(step.kind, step.key)):
                return found  # another build made it while this one waited
            return self.store.make(step.kind, step.key, step.ingredients, lambda folder: self._do(step, folder))

    def _load_foreign(self, name: str) -> None:
        """Data that a user's function makes, which draws as it would if nothing came before."""
        from edgepack.compress.training import numerics

        if getattr(self.recipe.data.module, "FOREIGN", False):
            with numerics.deterministic(self.recipe.seed, provenance.threads()):
                _guarded(name, lambda: self.data, self.store.root)

    def _do(self, step: Step, folder: Path) -> dict[str, Any]:
        do = partial(getattr(self, f"_do_{step.kind}"), step, folder)
        if step.kind in ("evaluation", "timing"):  # these need no torch
            return _guarded(step.name, do, folder)
        from edgepack.compress.training import numerics

        with numerics.deterministic(self.recipe.seed, provenance.threads()):
            return _guarded(step.name, do, folder)

    def _rehearse(self) -> None:
        """Put an untrained model through what every stage does to its structure, before hours are spent on training."""
        if self.rehearsed:
            return
        self.rehearsed = True
        if any(getattr(stage.config, "measures", False) for stage in self.recipe.stages):
            self._check_timed()
        self._doubt_products()
        self.emit(StepProgress(doing="dry run of the stages on an untrained model", done=0, total=1))
        candidate = _guarded("model, untrained", self._untrained, self.store.root)
        _guarded("model, untrained", partial(_check_steady, candidate), self.store.root)
        made = [candidate]
        for stage, name in zip(self.recipe.stages, numbered(stage.name for stage in self.recipe.stages), strict=True):
            if any(each.precision == "bf16" for each in trainings(stage.config)):
                _guarded(name, _check_bf16, self.store.root)
            if rehearse := getattr(stage.module, "rehearse", None):
                timed = {"latency": self._latency} if getattr(stage.config, "measures", False) else {}
                act: Callable[[], Candidate] = partial(
                    rehearse, candidate, stage.config, self.device.quantization, **timed
                )
                for model in (value for _, value in stage.config if isinstance(value, Choice)):
                    act = self._watched(model, f"the function of {name}'s model", act)
                before, candidate = candidate, _guarded(f"{name}, dry run before any training", act, self.store.root)
                if candidate.factory != before.factory:  # a student
                    _guarded(f"{name}, untrained", partial(_check_steady, candidate), self.store.root)
            made.append(candidate)
        self._rehearse_exports(made)

    def _doubt_products(self) -> None:
        """Weights of 8 bits lose accuracy where int8 products saturate: on the device, or on what stands in for it."""
        heeded = any("int8_saturates" in getattr(stage.module, "READS", ()) for stage in self.recipe.stages)
        if not heeded or self.reach.absent or not self._cut_off("onnxruntime", self.reach.facts):
            return
        if self.device.evidence.get("predict") == "measured":
            told = f"int8 products saturate on {self.device.name}, and weights of 8 bits lose accuracy by that"
            self.emit(Note(text=f"warning: {told}: {provenance.SATURATING}"))
        else:
            told = f"int8 products saturate on this computer, which runs the files for {self.device.name}"
            self.emit(Note(text=f"warning: {told}: int8 files of ONNX Runtime lose accuracy here that they keep there"))

    def _rehearse_exports(self, made: "list[Candidate]") -> None:
        """Try the files of the last candidate, and those of the teacher, which is float and has other kernels. Only for
        models of others: what edgepack itself makes of torchvision and transformers can be exported.

        `made` are the model and what each stage gave.
        """
        teaching = takewhile(lambda stage: getattr(stage.module, "MAKES_TEACHER", False), self.recipe.stages)
        teacher, last = made[len([*teaching])], made[-1]
        tried = [("export {}", last)] if _is_foreign(last) else []
        alike = (last.form, last.factory, last.surgery) == (teacher.form, teacher.factory, teacher.surgery)
        if _is_foreign(teacher) and not alike:
            tried.append(("export teacher ({})", teacher.forgotten()))  # a stage may have changed its module since
        with closing(processes.Host(Controls(threads=1))) as here:
            for label, candidate in tried:
                for exporter in self.recipe.exporters:
                    act = partial(self._try_file, candidate, exporter, here)
                    name = label.format(exporter.name)
                    _guarded(f"{name}, dry run before any training", act, self.store.root)

    def _try_file(self, candidate: "Candidate", exporter: Choice, here: processes.Host) -> None:
        """Raises StageError where it cannot be written, or this computer has its runtime and cannot run it."""
        from edgepack.measure import dry_run

        def told(done: int, total: int) -> None:
            self.emit(StepProgress(doing=f"looking for what {exporter.name} cannot take", done=done, total=total))

        run = here.run if self._runs_here(exporter, here) else None
        alike = not self._cut_off(exporter.module.RUNTIME, here.facts)
        dry_run.check(candidate, exporter, run, told, compare=alike)

    def _runs_here(self, exporter: Choice, here: processes.Host) -> bool:
        runtime = exporter.module.RUNTIME
        if runtime not in here.facts["versions"]:
            return False
        needed = self._needed(exporter.name)
        return not needed or needed in here.run({"mode": "delegates", "runtime": runtime})["delegates"]

    def _refused(self, label: str, error: RefusedError) -> EdgepackError:
        """What to raise where a device refuses a file: the file is to blame if this computer refuses it too."""
        step = self.done[f"export {label}"]
        assert step.choice is not None, "an export has an exporter"
        with closing(processes.Host(Controls(threads=1))) as here:
            try:
                self._try_file(self.candidate(self._made(step.ingredients["parent"])), step.choice, here)
            except StageError as found:
                return found
        return error

    def _untrained(self) -> "Candidate":
        from edgepack.models.candidate import Candidate, Factory
        from edgepack.models.checks.finite import check_finite

        factory = Factory.of(self.recipe.model, self.signature)
        build = self._watched(self.recipe.model, "the model's function", factory.build)
        candidate = Candidate(module=build(), factory=factory)
        check_finite(candidate.module)
        return candidate

    def _watched(self, choice: Choice, whose: str, act: Callable[[], Result]) -> Callable[[], Result]:
        """`act` that remembers what a user's function reads besides the files that its key covers, and tells of it."""
        if not getattr(choice.module, "FOREIGN", False):
            return act

        def watched() -> Result:
            with reads.watched(choice.module.files(choice.config)) as read:
                result = act()
            names = read()
            self.planner.note_read(choice, names)
            if there := [name for name in names if name.startswith("$") or Path(name).exists()]:
                self.read.append(f"{whose} {reads.told(there)}")
                self.emit(Note(text=self.read[-1]))
            return result

        return watched

    def _do_candidate(self, step: Step, folder: Path) -> dict[str, Any]:
        from edgepack.models.checks.finite import check_finite

        started = time.monotonic()
        candidate = self._initial() if step.choice is self.recipe.model else self._staged(step)
        check_finite(candidate.module)
        candidate.save(folder)
        self._check_saved(candidate, folder)
        seconds = time.monotonic() - started
        figures = self._figures(candidate, untrained=step.choice is self.recipe.model and not self._comes_trained())
        if step.choice is self.recipe.model:
            self._doubt_chance(figures["accuracy"])
        return {
            **figures,
            "seconds": round(seconds, 2),
            "notes": (*candidate.notes, *(self.read if step.choice is self.recipe.model else ())),
            "decided": candidate.decided,
        }

    def _check_saved(self, candidate: "Candidate", folder: Path) -> None:
        """Before it is believed: what is loaded again must answer as what was saved, and each sample by itself."""
        from edgepack.compress.training import evaluation
        from edgepack.models.candidate import Candidate
        from edgepack.models.checks import steady

        samples = self.data.validation.head(_COMPARED)
        saved = evaluation.eval_mode(candidate.module)
        if candidate.form == "eager" and _is_foreign(candidate):
            steady.check_calls(saved, samples, "the model")
        steady.check_alike(saved, evaluation.eval_mode(Candidate.load(folder).module), samples, "the saved model")

    def _doubt_chance(self, score: float) -> None:
        """Weights that came trained and say nothing of this data are the usual accident with one's own."""
        classes = len(self.signature.labels)
        if self._comes_trained() and score < _CHANCE / classes:
            told = f"its {self.task.METRIC} on the validation split is {SHARE.format(score)}, no more than chance"
            advice = "check the order of the labels and the preprocessing"
            self.emit(Note(text=f"warning: the model comes trained, but {told} with {classes} classes: {advice}"))

    def _comes_trained(self) -> bool:
        model = self.recipe.model
        return bool(model.module.trained(model.config, self.signature))

    def _initial(self) -> "Candidate":
        from edgepack.models.candidate import Candidate

        return Candidate.start(self.recipe.model, self.signature)

    def _staged(self, step: Step) -> "Candidate":
        import torch

        from edgepack.models.candidate import Candidate

        assert step.choice is not None
        parent, context = self.candidate(self._made(step.ingredients["parent"]), private=True), self._context(step)
        torch.manual_seed(self.recipe.seed)  # here, so that what was loaded before does not matter
        result = step.choice.module.run(parent, step.choice.config, context)
        if not isinstance(result, Candidate):
            raise StageError(
                f"run() gave {type(result).__name__}", "a stage returns a candidate: candidate.changed(...)"
            )
        return result

    def _context(self, step: Step) -> Context:
        return Context(
            data=self.data.for_stages(),
            task=self.task,
            quantization=self.device.quantization,
            seed=self.recipe.seed,
            teacher=self._teacher(step),
            emit=self.emit,
            latency=self._latency,
            size=self._size,
            tolerance=strictest(self.recipe.budgets, "accuracy", "max_drop"),
            size_budget=strictest(self.recipe.budgets, "size", "max"),
        )

    def _latency(self, candidate: "Candidate") -> float:
        """What the device takes for one inference of the recipe's first format: the median of three processes, ms."""
        from tempfile import TemporaryDirectory

        self._check_timed()
        exporter = self.recipe.exporters[0]
        content = self._trial(candidate)
        with TemporaryDirectory() as folder:
            path = Path(folder) / f"trial{contract.suffix(exporter)}"
            path.write_bytes(content)
            job = self._timing(exporter.module.RUNTIME, path)
            answers = [self.reach.run(job) for _ in range(_TRIALS)]
        return median(timing_figures.timings(answers)["latency.p50"])

    def _check_timed(self) -> None:
        """Raises DeviceError or StageError where a stage cannot time what it tries."""
        if self.device.evidence.get("time") != "measured":
            why = self.reach.absent or f"the timings of {self.device.name} are not measured"
            raise DeviceError(f"what a stage decides by timing cannot be decided: {why}", "attach the device")
        if why := self._not_run(self.recipe.exporters[0].name):
            raise StageError(f"no latency can be measured: {why}", "put a format that runs here first in `export`")

    def _size(self, candidate: "Candidate") -> float:
        """Bytes of the largest file that the recipe's formats make of it: the one that a size budget would fail."""
        others = (len(_written(exporter, candidate)) for exporter in self.recipe.exporters[1:])
        return max([len(self._trial(candidate)), *others])

    def _trial(self, candidate: "Candidate") -> bytes:
        """Its file of the first format. Those of two exported programs are kept, which nothing changes any more: they
        are timed in turns, and lowering one takes longer than timing it.
        """
        exporter = self.recipe.exporters[0]
        if candidate.form == "eager":
            return _written(exporter, candidate)
        kept = self.tried.pop(id(candidate.module), None) or (candidate.module, _written(exporter, candidate))
        self.tried = dict([*self.tried.items(), (id(candidate.module), kept)][-_KEPT:])
        return kept[1]

    def _teacher(self, step: Step) -> "Candidate | None":
        """What `step` may learn from: the last teacher before it, or a model that came trained."""
        teacher = self._made(step.ingredients["teacher"])
        untrained = teacher.choice is self.recipe.model and not self._comes_trained()
        return None if untrained else self.candidate(teacher)

    def _logits(self, candidate: "Candidate", split: "Split") -> "Array":
        """What the torch model answers. Raises StageError where that is not finite."""
        from edgepack.compress.training import evaluation
        from edgepack.measure import divergence
        from edgepack.models.checks import finite as finite_checks

        logits = evaluation.predict(candidate.module, split)
        if wrong := (~logits.isfinite().all(1)).nonzero().flatten().tolist():
            some = divergence.rows(split, wrong[:1]).inputs
            told = f"the outputs are NaN or infinite for {len(wrong):,} of {len(logits):,} samples"
            raise StageError(
                f"{told}{finite_checks.first_not_finite(candidate.module, some)}", finite_checks.NOT_FINITE
            )
        answers: Array = logits.numpy()
        return answers

    def _figures(self, candidate: "Candidate", *, untrained: bool) -> dict[str, Any]:
        """Untrained, a deep model may give infinite outputs: those after its training count."""
        from edgepack.compress.training import evaluation
        from edgepack.models.complexity import macs, parameters, stored_bytes

        split = self.data.validation
        logits = evaluation.predict(candidate.module, split).numpy() if untrained else self._logits(candidate, split)
        return {
            "parameters": parameters(candidate.module),
            "macs": macs(candidate),
            "bytes": stored_bytes(candidate.module),
            "accuracy": self.task.score(logits, split.targets.numpy()),
        }

    def _do_artifact(self, step: Step, folder: Path) -> dict[str, Any]:
        assert step.choice is not None
        exporter = step.choice.module
        candidate = self.candidate(self._made(step.ingredients["parent"]))
        path = folder / f"{step.subject}{contract.suffix(step.choice)}"
        self.emit(StepProgress(doing=f"writing {path.name}", done=0, total=1))
        contract.write(candidate, step.choice, path)
        contents = None
        if step.subject == "model":
            contents = self._contents(exporter, path, candidate)
            self._keep_runtime_files(step.choice, path)
        artifact = Artifact.of(
            path, format=step.choice.name, runtime=exporter.RUNTIME, subject=step.subject, contents=contents
        )
        return artifact.model_dump(mode="json")

    def _contents(self, exporter: Any, path: Path, candidate: "Candidate") -> "Contents | None":
        """What is in a file, for people: where that cannot be read the file is none the worse."""
        try:
            found: Contents | None = exporter.inspect(path, candidate) if hasattr(exporter, "inspect") else None
        except Exception as error:
            logging.getLogger(__name__).exception("what is in %s could not be read", path.name)
            told = f"what is in {path.name} could not be read ({type(error).__name__}; build.log has the traceback)"
            self.emit(Note(text=f"warning: {told}: no bytes by layer, no delegation and no arena will be told of it"))
            return None
        return found

    def _keep_runtime_files(self, exporter: Choice, path: Path) -> None:
        """Beside the exported file, for the bundle."""
        made = exporter.module.runtime_files(path, exporter.config) if hasattr(exporter.module, "runtime_files") else {}
        for name, content in made.items():
            (path.parent / f"{artifact_record.RUNTIME_FILE}{name}").write_bytes(content)

    def _do_outputs(self, step: Step, folder: Path) -> dict[str, Any]:
        """What the torch model answers on the test split, and a few samples for the bundle's self-test."""
        import numpy

        logits = self._logits(self.candidate(self._made(step.ingredients["parent"])), self.data.test)
        numpy.save(folder / "logits.npy", logits, allow_pickle=False)
        cases = self.data.test.head(EXAMPLES)
        for i in range(len(cases[0])):
            for spec, tensor in zip(self.signature.inputs, cases, strict=True):
                (folder / f"case-{i}-{spec.name}.bin").write_bytes(tensor[i].numpy().tobytes())
        for i, example in enumerate(self.data.examples[:EXAMPLES]):
            (folder / f"case-{i}.txt").write_bytes(example.encode())
        targets = self.data.test.targets
        return {
            "score": self.task.score(logits, targets.numpy()),
            "rows": len(logits),
            "targets": targets[:EXAMPLES].tolist(),
        }

    def _do_evaluation(self, step: Step, folder: Path) -> dict[str, Any]:
        artifact, file = self.file(step.artifact)
        if why := self._not_run(artifact.format):
            return {"not_run": why}
        self.emit(StepProgress(doing=f"running {artifact.runtime} on the test split", done=0, total=1))
        split = self.data.test
        try:
            logits = evaluate.outputs(self.reach.run, file=file, runtime=artifact.runtime, split=split, folder=folder)
        except RefusedError as error:
            raise self._refused(step.artifact, error) from error
        outcome: dict[str, Any] = {"score": self.task.score(logits, split.targets.numpy()), "rows": len(logits)}
        if artifact.subject == "model":
            outcome["cases"] = logits[:EXAMPLES].tolist()
            outcome["parity"] = self._parity(logits, _REFERENCE)
            first = self.recipe.exporters[0].name
            outcome["broken"] = self._broken(logits, artifact)
            if artifact.format != first and self._answered(first):
                outcome["runtimes"] = {"with": first, **self._parity(logits, f"evaluate {first}")}
        else:  # what a model may lose is judged by the teacher's file: two that are wrong alike would pass
            evaluate.check_same(
                self.task, logits, self.taught, f"the {artifact.format} file of the teacher", evaluate.BROKEN_FLOAT
            )
        return outcome

    def _answered(self, label: str) -> bool:
        return label not in self.broken and "not_run" not in self.entry(f"evaluate {label}").outcome

    def _broken(self, logits: Any, artifact: Artifact) -> str:
        """Why the file that would ship is broken, or "": its outputs are kept, to find where that begins."""
        reference = evaluate.load(self.entry(_REFERENCE).path / "logits.npy")
        try:
            evaluate.check_same(self.task, logits, reference, f"the {artifact.format} file")
        except StageError as error:
            return error.message
        return ""

    def check_files(self) -> None:
        """Raises StageError where a file failed as it ran, or is broken, after all others were evaluated."""
        for error in self.broken.values():
            raise error
        for step in [step for step in self.done.values() if step.kind == "evaluation"]:
            outcome = self.entry(step.name).outcome
            why, finite = outcome.get("broken"), "not_finite" not in outcome.get("parity", {})
            if why and not (finite and self._saturates_here(step.artifact)):
                raise StageError(f"{step.name}: {why}: {self.difference(step.artifact)}", evaluate.BROKEN)

    def _saturates_here(self, label: str) -> bool:
        """Whether this computer stands in for a device, and what its own products cut off says nothing of the file."""
        artifact, _ = self.file(label)
        emulated = self.device.evidence.get("predict") != "measured"
        return emulated and self._cut_off(artifact.runtime, self.reach.facts)

    def _cut_off(self, runtime: str, facts: Facts) -> bool:
        """Whether int8 products saturate where these are the facts, and not on the device."""
        features = frozenset(str(facts.get("features", "")).split())
        saturates = runtime == "onnxruntime" and provenance.int8_saturates(features)
        return saturates and not self.device.quantization.int8_saturates

    @cached_property
    def taught(self) -> Any:
        """What the torch teacher answers on the test split."""
        assert self.planner.teacher is not None, "a plan begins with the model, the first teacher"
        key = self.planner.teacher.key
        if key == self.done[_REFERENCE].ingredients["parent"]:
            return evaluate.load(self.entry(_REFERENCE).path / "logits.npy")
        from edgepack.compress.training import numerics

        with numerics.deterministic(self.recipe.seed, provenance.threads()):
            return self._logits(self.candidate(self._made(key)), self.data.test)

    def answers(self, label: str) -> dict[str, Any]:
        """What a file answers to the samples of the bundle on one thread of this computer: {"cases"}, or why it cannot,
        {"not_run"}. So a bundle is the same whether its device was there or not.
        """
        with closing(processes.Host(Controls(threads=1))) as here:
            return self._answers(label, here)

    def _answers(self, label: str, here: processes.Host) -> dict[str, Any]:
        artifact, _ = self.file(label)
        versions = {**provenance.versions("edgepack", "torch", "numpy"), **provenance.installed(artifact.runtime)}
        samples = self.done[_REFERENCE].key
        ingredients = {"file": artifact.sha256, "samples": samples, "where": {**here.facts, "versions": versions}}
        key = digest({"kind": "answers", **ingredients})
        do = partial(self._do_answers, label, here)
        found = self.store.get("answers", key) or self.store.make("answers", key, ingredients, do)
        return found.outcome

    def _do_answers(self, label: str, here: processes.Host, folder: Path) -> dict[str, Any]:
        artifact, file = self.file(label)
        job = {"mode": "delegates", "runtime": artifact.runtime, "file": label}
        if (needed := self._needed(artifact.format)) and needed not in here.run(job)["delegates"]:
            return {"not_run": f"{artifact.runtime} on the computer that built it has no {needed}"}
        split = self.data.test.first(EXAMPLES)
        logits = evaluate.outputs(here.run, file=file, runtime=artifact.runtime, split=split, folder=folder)
        return {"cases": logits.tolist()}

    def difference(self, label: str) -> str:
        """Where a file begins to answer otherwise than torch, or why that is not known: a verdict is no better for an
        error on the way.
        """
        exporter = self.done[f"export {label}"].choice
        assert exporter is not None, "an export has an exporter"
        ingredients = {
            "evaluation": self.done[f"evaluate {label}"].key,
            "exporter": plugin_facts(exporter),
            "version": _SEARCH,
        }
        key = digest({"kind": "difference", **ingredients})
        try:
            found = self.store.get("difference", key)
            if found is None:
                self.emit(Note(text=f"looking for where {label} begins to differ from torch"))
                do = partial(self._do_difference, label, exporter)
                found = self.store.make("difference", key, ingredients, do)
            return str(found.outcome["told"])
        except Exception as error:
            logging.getLogger(__name__).exception("where %s differs was not found", label)
            return f"where that begins was not found: {type(error).__name__}, build.log has the traceback"

    def _do_difference(self, label: str, exporter: Choice, folder: Path) -> dict[str, Any]:
        from edgepack.compress.training import numerics
        from edgepack.measure import divergence

        file, torch = (
            evaluate.load(self.entry(name).path / "logits.npy") for name in (f"evaluate {label}", _REFERENCE)
        )
        with numerics.deterministic(self.recipe.seed, provenance.threads()):
            samples = divergence.rows(self.data.test, evaluate.unlike(self.task, file, torch, divergence.SAMPLES))
            candidate = self.candidate(self._made(self.done[f"export {label}"].ingredients["parent"]))

            def told(done: int, total: int) -> None:
                self.emit(StepProgress(doing=f"exporting pieces to {label}", done=done, total=total))

            return {"told": divergence.find(candidate, exporter, self.reach.run, samples, told)}

    def _parity(self, logits: Any, other: str) -> dict[str, float]:
        return evaluate.parity(self.task, logits, evaluate.load(self.entry(other).path / "logits.npy"))

    def _do_timing(self, step: Step, folder: Path) -> dict[str, Any]:
        artifact, file = self.file(step.artifact)
        if why := self._not_run(artifact.format):
            return {"not_run": why}
        if why := self._not_timed():
            return {"not_timed": why}
        job = self._timing(artifact.runtime, file)
        before = step.entry.outcome["answers"] if step.entry and not self.planner.remeasure else []
        # As many as ever are taken did not decide, or they are too short: try afresh.
        before = before if len(before) < protocol.MOST and self.planner.protocol.kept(before) else []
        self.emit(StepProgress(doing=f"timing {artifact.runtime} in fresh processes", done=len(before), total=7))
        decided = partial(self.planner.decided, step.artifact)
        told, memory = self._told(artifact.runtime), artifact.subject == "model"  # nobody budgets that of a teacher
        try:
            return protocol.outcome(self.reach.run, self.device.evidence, job, before, decided, told, memory=memory)
        except DeviceError as error:
            if self.device.evidence["time"] != "estimated":
                raise
            return {"not_timed": error.message}  # nobody can work it out, today or tomorrow: all else goes on

    def _timing(self, runtime: str, file: Path) -> dict[str, Any]:
        return {**self.planner.protocol.job(), **self.device.controls.job(), "runtime": runtime, "file": str(file)}

    def _not_timed(self) -> str:
        if "time" in self.device.evidence:
            return ""
        why = self.reach.absent or f"its runner, {self.device.runner.name}, times nothing"
        return f"{why}, and the profile of {self.device.name} has no analytic model to estimate with"

    def _not_run(self, format: str) -> str:
        """Why the runtime at hand cannot run a file of this format, or ""."""
        exporter = next(each for each in self.recipe.exporters if each.name == format)
        if why := self.reach.facts.get("lacks", {}).get(exporter.module.RUNTIME):
            return str(why)
        needed = self._needed(format)
        if not needed:
            return ""
        runtime = exporter.module.RUNTIME
        if runtime not in self.delegates:
            job = {"mode": "delegates", "runtime": runtime, "file": exporter.name}
            self.delegates[runtime] = self.reach.run(job)["delegates"]
        return "" if needed in self.delegates[runtime] else f"{runtime} on {self.device.name} has no {needed}"

    def _needed(self, format: str) -> str:
        """What the runtime must have to run a file of this format, or ""."""
        exporter = next(each for each in self.recipe.exporters if each.name == format)
        return str(exporter.module.needs(exporter.config)) if hasattr(exporter.module, "needs") else ""

    def _told(self, runtime: str) -> Callable[[int, int], None]:
        started = time.monotonic()

        def told(done: int, total: int) -> None:
            left = (time.monotonic() - started) / done * (total - done) if done else None
            doing = f"timing {runtime} in fresh processes"
            self.emit(StepProgress(doing=doing, done=done, total=total, seconds_left=left))

        return told

    def candidate(self, step: Step, *, private: bool = False) -> "Candidate":
        """The saved candidate of a step: always what a later build would load too. A private one may be changed."""
        from edgepack.models.candidate import Candidate

        if private or step.key not in self.loaded:
            loaded = Candidate.load(self._remade(step).path)
            if private:
                return loaded
            self.loaded[step.key] = loaded
        return self.loaded[step.key]

    def file(self, label: str) -> tuple[Artifact, Path]:
        """An exported file. Raises DeviceError when it was damaged and came out different: its figures are stale."""
        entry = self.entry(f"export {label}")
        artifact = Artifact.model_validate(entry.outcome)
        if self.seen.setdefault(label, artifact.sha256) != artifact.sha256:
            raise DeviceError(f"the file {label} was damaged and came out different when made again", "build again")
        return artifact, entry.path / artifact.file

    def _made(self, key: str) -> Step:
        return next(step for step in self.done.values() if step.key == key)

    def entry(self, name: str) -> Entry:
        """The entry of the step of this name, its files checked."""
        return self._remade(self.done[name])

    def _remade(self, step: Step) -> Entry:
        """The step's entry with its files checked; a damaged one is made again."""
        return self.store.get(step.kind, step.key) or self._make(replace(step, entry=None))

    @cached_property
    def data(self) -> "Data":
        load = partial(self.recipe.data.module.load, self.recipe.data.config)
        data: Data = self._watched(self.recipe.data, "the data's function", load)()
        for note in data.notes:
            self.emit(Note(text=note))
        return data

    @cached_property
    def signature(self) -> "Signature":
        found: Signature = self.recipe.data.module.describe(self.recipe.data.config)
        return found


def _is_foreign(candidate: "Candidate") -> bool:
    return bool(getattr(plugins.load("models", candidate.factory.model), "FOREIGN", False))


def _check_steady(candidate: "Candidate") -> None:
    """Raises StageError for a model of others that answers otherwise each time it is called, or made again."""
    from edgepack.models.candidate import rebuild
    from edgepack.models.checks import steady, trial

    if candidate.form == "exported" or not _is_foreign(candidate):
        return
    inputs, tried = trial.some_inputs(candidate.signature), candidate.copy()
    steady.disturb(tried.module)
    steady.check_calls(tried.module, inputs, "the model")
    make = partial(rebuild, candidate.factory, candidate.surgery)
    steady.check_made_again(tried.module, make, inputs, "the model")
    steady.check_in_process(tried, inputs, "the model")


def _check_bf16() -> None:
    from edgepack.compress.training import numerics

    numerics.check_bf16()


def _written(exporter: Choice, candidate: "Candidate") -> bytes:
    """What the exporter makes of it."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        path = Path(folder) / f"trial{contract.suffix(exporter)}"
        contract.write(candidate, exporter, path)
        return path.read_bytes()


def _guarded(name: str, do: Callable[[], Result], folder: Path) -> Result:
    """Any failure of a plugin or a library, as an error that names the step."""
    try:
        return do()
    except StageError as error:
        raise StageError(f"{name}: {error.message}", error.hint) from error
    except EdgepackError:
        raise
    except MemoryError as error:
        raise StageError(f"{name} ran out of memory", "use a smaller batch_size, or a larger machine") from error
    except (Exception, SystemExit) as error:  # a stage that calls sys.exit() has failed, whatever its code
        if disk := full_disk(error, folder):
            raise disk from error
        logging.getLogger(__name__).exception("%s failed", name)
        first = (str(error).strip().splitlines() or [""])[0]
        raise StageError(f"{name} failed: {type(error).__name__}: {first}", "build.log has the traceback") from error
