"""Recipe x Device -> Plan: the steps of a build, each with its key, and whether it is cached or why it must run.

Pure and without torch, so that `check`, `plan` and an up-to-date `build` are instant. A step's key is the sha256 of all
that its result depends on (`ingredients`), the key of the step before it included; so a change anywhere changes every
key after it and none before.

The steps that look at exported files have keys made of the files' own hashes. While a file is not there yet their key
is empty.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from edgepack.config.budgets import Budget, binding
from edgepack.config.device import Device
from edgepack.config.plugins import Choice
from edgepack.config.recipe import Recipe
from edgepack.config.user_code import reads as user_reads
from edgepack.core import provenance
from edgepack.core.files import digest, write_atomic
from edgepack.core.order_statistics import interval
from edgepack.judge.baseline import Baseline
from edgepack.judge.gate import outcome
from edgepack.measure.session import Facts, known
from edgepack.measure.timing.figures import Answers, timings
from edgepack.measure.timing.protocol import TimingProtocol
from edgepack.records.artifact import Artifact
from edgepack.records.verdict import Base
from edgepack.workflows.build.keys import differences, files, installed, numbered, plugin_facts, reads_memory
from edgepack.workflows.build.store import Entry, Store

_EVALUATION = 4  # bump when the same answers of a file would give other figures

Kind = Literal["candidate", "artifact", "outputs", "evaluation", "timing"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One piece of work. `name` is what a person calls it: "prune", "export onnx", "time teacher (onnx)"."""

    kind: Kind
    name: str
    key: str
    ingredients: dict[str, Any]
    reason: str = ""  # why it must run; empty when it is cached
    choice: Choice | None = None  # the plugin at work, where there is one
    artifact: str = ""  # label of the artifact it is about
    entry: Entry | None = None

    @property
    def cached(self) -> bool:
        return not self.reason

    @property
    def subject(self) -> str:
        return "teacher" if self.artifact.startswith("teacher") else "model"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Every step of a build in the order of the work.

    >>> [(step.name, step.reason) for step in plan(recipe, device, Store()).steps]    # doctest: +SKIP
    [('model', ''), ('train', ''), ('distill', ''), ('prune', 'ratio 30 % -> 40 %'), ('quantize', 'prune runs'), ...]
    """

    recipe: Recipe
    device: Device
    steps: tuple[Step, ...]

    @property
    def up_to_date(self) -> bool:
        return all(step.cached for step in self.steps)


def plan(
    recipe: Recipe, device: Device, store: Store, *, remeasure: bool = False, baseline: Baseline | None = None
) -> Plan:
    """What a build of `recipe` for `device` would do now, given what is in `store`."""
    facts = known(device, store.devices)
    return Planner(recipe, device, store, facts=facts, remeasure=remeasure, baseline=baseline).whole()


class Planner:
    """Gives one step after the other, looking into the store anew for each, so a build can run them as they come.

    `facts` is what is known of the device: what its answers depend on. `baseline` is what relative budgets are held
    against, where that was looked up.
    """

    def __init__(
        self,
        recipe: Recipe,
        device: Device,
        store: Store,
        *,
        facts: Facts | None,
        remeasure: bool = False,
        baseline: Baseline | None = None,
    ) -> None:
        self.device = device.settled(facts or {})
        self.recipe = recipe.suited(self.device.quantization)
        self.store, self.facts, self.remeasure, self.baseline = store, facts, remeasure, baseline
        self.protocol = TimingProtocol.of(budget.metric for budget in recipe.budgets)
        self.previous = _previous(store, recipe, device)
        self.fingerprint = recipe.data.module.fingerprint(recipe.data.config)
        self.teacher: Step | None = None
        self._memories: dict[int, Path] = {}  # by the id of a choice, which the recipe holds
        self._seen: dict[Path, dict[str, str]] = {}  # what functions read, and what that was
        self._settled: dict[str, Step] = {}  # candidates that were not cached, by name
        self._again: dict[str, Callable[[], Step]] = {}  # by the name of a candidate's step
        self.files: dict[str, str] = {}  # sha256 by label, of those that are about to be timed

    @property
    def count(self) -> int:
        """How many steps there will be: the model, its stages, and per format two files, each evaluated and timed."""
        return 2 + len(self.recipe.stages) + 6 * len(self.recipe.exporters)

    def whole(self) -> Plan:
        return Plan(recipe=self.recipe, device=self.device, steps=tuple(self.steps()))

    def steps(self) -> Iterator[Step]:
        last = None
        for step in self.candidates():
            yield step
            last = self._settled.get(step.name, step)
        assert last is not None, "a plan begins with the model"
        exports = []
        for export in self.exports(last):
            yield export
            exports.append(export)
        yield self.outputs(last)
        first = None
        for export in exports:
            step = self.evaluation(export, exports, last)
            first = first or step
            yield _because(step, "the first file was not run then") if _lacks_runtimes(step, first) else step
        for export in exports:
            yield self.timing(export)

    def candidates(self) -> Iterator[Step]:
        """The model as it starts, then one step a stage. What comes after it goes by the key that `renewed` gave."""
        recipe, parent, whole = self.recipe, "", True
        names = ["model", *numbered(stage.name for stage in recipe.stages)]
        for choice, name in zip((recipe.model, *recipe.stages), names, strict=True):
            self._again[name] = partial(self._candidate, choice, name, parent, self.teacher.key if self.teacher else "")
            step = self._again[name]()
            # Only until the first compression: a pruned model that is trained on is no teacher to be judged by.
            whole = whole and (not parent or getattr(choice.module, "MAKES_TEACHER", False))
            yield step
            step = self._settled.get(name, step)
            self.teacher, parent = step if whole else self.teacher, step.key

    def _candidate(self, choice: Choice, name: str, parent: str, teacher: str) -> Step:
        ingredients = self._stage_ingredients(choice, parent, teacher) if parent else self._model_ingredients()
        return self._step("candidate", name, ingredients, choice=choice)

    def renewed(self, step: Step) -> Step:
        """A candidate's step as it is now, just before it is done: what functions of a user read may be known only
        since they ran, and its key and all after it depend on that.
        """
        if step.name in self._again:
            step = self._settled[step.name] = self._again[step.name]()
        return step

    def exports(self, last: Step) -> Iterator[Step]:
        """The model in every format, then the teacher it is compared with."""
        assert self.teacher is not None
        for subject, candidate in (("model", last), ("teacher", self.teacher)):
            for exporter in self.recipe.exporters:
                label = exporter.name if subject == "model" else f"teacher ({exporter.name})"
                ingredients = {**plugin_facts(exporter), "parent": candidate.key, "subject": subject}
                yield self._step("artifact", f"export {label}", ingredients, choice=exporter, artifact=label)

    def outputs(self, last: Step) -> Step:
        """What the torch model answers on the test split: the reference for parity."""
        ingredients = {
            "parent": last.key,
            **self._data(),
            "versions": provenance.versions(*provenance.CORE),
        }
        return self._step("outputs", "reference outputs", ingredients)

    def evaluation(self, export: Step, exports: Sequence[Step], last: Step) -> Step:
        """How well a file does on the test split; each is held against its torch model, ours against the first."""
        assert self.teacher is not None, "the candidates come first"
        beside = [exports[0]] if export.subject == "model" else []
        shas = [_sha(self.store, step) for step in (export, *beside)]
        ingredients = {
            "files": shas,
            "reference": last.key if beside else self.teacher.key,
            **self._data(),
            "task": self.recipe.task,
            "where": self._where(_exporter(export), "predict"),
            "version": _EVALUATION,
        }
        return self._about(export, "evaluation", f"evaluate {export.artifact}", ingredients, shas)

    def timing(self, export: Step) -> Step:
        shas = [_sha(self.store, export)]
        self.files[export.artifact] = shas[0]
        ingredients = {
            "files": shas,
            "protocol": self.protocol.key(),
            "where": self._where(_exporter(export), "time"),
        }
        step = self._about(export, "timing", f"time {export.artifact}", ingredients, shas)
        answers = step.entry.outcome.get("answers") if step.entry and step.cached else None  # none: it was not run
        if answers and not self.protocol.kept(answers):
            return _because(step, "its budget needs more runs")
        if answers and not self.decided(step.artifact, answers):
            return _because(step, "its budget is not decided yet")
        return step

    def decided(self, artifact: str, answers: Answers) -> bool:
        """Whether these timings put every latency budget of this artifact on one side; a teacher has none."""
        figures = timings(answers)
        budgets = self.recipe.budgets
        bounded = [each for each in budgets if each.metric in figures and each.about(artifact, budgets)]
        return artifact.startswith("teacher") or all(
            outcome(budget, *interval(figures[budget.metric])[1:], self._base(budget, artifact)) != "inconclusive"
            for budget in bounded
        )

    def _base(self, budget: Budget, artifact: str) -> Base | None:
        """What a relative budget is held against; where there is nothing, more timings decide nothing."""
        if not budget.against:
            return None
        exporter = next(each for each in self.recipe.exporters if each.name == artifact)
        where = {**self._where(exporter, "time"), "protocol": self.protocol.name}
        sha = self.files.get(artifact, "")
        found = self.baseline.find(budget.metric, artifact, sha, where) if self.baseline else None
        return found if isinstance(found, Base) else Base(value=0.0, low=0.0, high=0.0, told="", same=True)

    def _about(self, export: Step, kind: Kind, name: str, ingredients: dict[str, Any], shas: Sequence[str]) -> Step:
        """A step that looks at an exported file; its key is known once the file is there."""
        if not all(shas) or self.facts is None:
            reason = "the device was not reached yet" if all(shas) else "its file is not built yet"
            return Step(kind=kind, name=name, key="", ingredients={}, reason=reason, artifact=export.artifact)
        step = self._step(kind, name, ingredients, artifact=export.artifact, choice=export.choice)
        return _because(step, "asked for by --remeasure") if self.remeasure and step.cached else step

    def _measured_by(self, exporter: Choice) -> dict[str, Any]:
        """What the timings that a stage takes depend on."""
        return {
            "export": plugin_facts(exporter),
            "protocol": self.protocol.key(),
            "where": self._where(exporter, "time"),
        }

    def _heeded(self, stage: Choice) -> dict[str, Any]:
        """The budgets that what a stage does depends on, and the files that they are about."""
        metrics = getattr(stage.config, "heeds", ())
        heeded = binding(self.recipe.budgets, metrics)
        budgets = {f"{each.name} {each.runtime}".rstrip(): each.quantity.exact(each.limit) for each in heeded}
        return (
            {"budgets": budgets, "exports": [plugin_facts(each) for each in self.recipe.exporters]} if budgets else {}
        )

    def _where(self, exporter: Choice, mode: str) -> dict[str, Any]:
        """Where a job of this mode is done: what is known of the device, its controls, the versions that matter."""
        facts, runtime = self.facts or {}, exporter.module.RUNTIME
        versions = provenance.versions("edgepack", "torch", "numpy")
        there = {runtime: facts.get("versions", {}).get(runtime, provenance.MISSING)}
        evidence = self.device.evidence.get(mode, "")
        return {**facts, **self.device.controls.job(), "evidence": evidence, "versions": {**versions, **there}}

    def _model_ingredients(self) -> dict[str, Any]:
        recipe = self.recipe
        return {
            "plugin": recipe.model.name,
            "config": recipe.model.plain(),
            "files": files([recipe.model]),
            "task": recipe.task,
            "data": self.fingerprint,
            **self._read(recipe.model, recipe.data),
            "seed": recipe.seed,
            "compute": provenance.compute(),
            "versions": {
                **provenance.versions(*provenance.CORE, *getattr(recipe.model.module, "LIBRARIES", ())),
                **installed([recipe.model]),
            },
        }

    def _data(self) -> dict[str, Any]:
        return {"data": self.fingerprint, **self._read(self.recipe.data)}

    def _read(self, *choices: Choice) -> dict[str, Any]:
        """What functions of a user were seen to read besides what they name, as it is now."""
        found = {name: sha for each in choices for name, sha in self._read_by(each).items()}
        return {"read": found} if found else {}

    def _read_by(self, choice: Choice) -> dict[str, str]:
        if not getattr(choice.module, "FOREIGN", False):
            return {}
        memory = self._memory(choice)
        if memory not in self._seen:
            try:
                names: list[str] = json.loads(memory.read_text())
            except (OSError, ValueError):
                names = []
            self._seen[memory] = user_reads.now(names, of=str(memory))
        return self._seen[memory]

    def note_read(self, choice: Choice, names: Iterable[str]) -> None:
        """Keep what a function has just read. What it read before stays: one thing may decide whether it reads another.

        What changes from here on is seen by the next plan.
        """
        before = {name for name, sha in self._read_by(choice).items() if sha}
        if now := sorted({*names, *before}):
            memory = self._memory(choice)
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(memory, json.dumps(now, indent=1).encode())
            self._seen[memory] = user_reads.now(now, of=str(memory))

    def _memory(self, choice: Choice) -> Path:
        if id(choice) not in self._memories:
            self._memories[id(choice)] = reads_memory(choice, self.store)
        return self._memories[id(choice)]

    def _stage_ingredients(self, stage: Choice, parent: str, teacher: str) -> dict[str, Any]:
        reads = getattr(stage.module, "READS", ())
        facts = self.device.quantization.model_dump(mode="json", include=set(reads))
        measured = self._measured_by(self.recipe.exporters[0]) if getattr(stage.config, "measures", False) else {}
        own = plugin_facts(stage)
        models = [value for _, value in stage.config if isinstance(value, Choice)]
        return {
            **own,
            "versions": {**own["versions"], **installed(models)},
            **measured,
            **self._heeded(stage),
            "parent": parent,
            "device": facts,
            "files": files(models),
            **self._read(*models),
            "teacher": teacher,
        }

    def _step(
        self, kind: Kind, name: str, ingredients: dict[str, Any], *, choice: Choice | None = None, artifact: str = ""
    ) -> Step:
        key = digest({"kind": kind, **ingredients})
        entry = self.store.peek(kind, key)
        reason = "" if entry else self._why(name, ingredients)
        return Step(
            kind=kind,
            name=name,
            key=key,
            ingredients=ingredients,
            reason=reason,
            choice=choice,
            artifact=artifact,
            entry=entry,
        )

    def _why(self, name: str, ingredients: dict[str, Any]) -> str:
        if name not in self.previous:
            return "first time" if not self.previous else "new step"
        return ", ".join(differences(self.previous[name], ingredients)) or "no longer in the store"


def _lacks_runtimes(step: Step, first: Step) -> bool:
    """Whether what is known of a file does not compare it with the first one, which can be run by now."""
    if step is first or step.subject == "teacher" or step.entry is None or not step.cached:
        return False
    known = first.entry.outcome if first.entry and first.cached else {}
    return "parity" in step.entry.outcome and "runtimes" not in step.entry.outcome and "not_run" not in known


def remember(plan: Plan, store: Store) -> None:
    """Keep what this recipe's steps were made of, so that the next plan can say what changed."""
    path = _memory(store, plan.recipe, plan.device)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps({step.name: step.ingredients for step in plan.steps}, indent=1).encode())


def _previous(store: Store, recipe: Recipe, device: Device) -> dict[str, Any]:
    try:
        before: dict[str, Any] = json.loads(_memory(store, recipe, device).read_text())
        return before
    except (OSError, ValueError):
        return {}


def _memory(store: Store, recipe: Recipe, device: Device) -> Path:
    return store.root / "plans" / f"{digest([recipe.name, device.id])[:16]}.json"


def _exporter(export: Step) -> Choice:
    assert export.choice is not None, "an export has an exporter"
    return export.choice


def _sha(store: Store, export: Step) -> str:
    entry = store.peek("artifact", export.key)
    return Artifact.model_validate(entry.outcome).sha256 if entry else ""


def _because(step: Step, reason: str) -> Step:
    return replace(step, reason=reason)
