"""Plan the steps of a build one after the other, and look each up in the store.

Pure and without torch, so that `check`, `plan` and an up-to-date `build` are instant. A step's key is the sha256 of all
that its result depends on (`ingredients`), the key of the step before it included; so a change anywhere changes every
key after it and none before.

The steps that look at exported files have keys made of the files' own hashes. While a file is not there yet their key
is empty.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from edgepack.config.budgets import Budget, binding
from edgepack.config.device import Device
from edgepack.config.plugins import Choice
from edgepack.config.recipe import Recipe, ResolvedRecipe, resolve
from edgepack.core import provenance
from edgepack.core.files import digest
from edgepack.core.frozen import Json
from edgepack.core.order_statistics import interval
from edgepack.judge.baseline import Baseline
from edgepack.judge.gate import outcome
from edgepack.measure.session import Facts, known
from edgepack.measure.timing.figures import Answers, timings
from edgepack.measure.timing.protocol import TimingProtocol
from edgepack.records.artifact import MODEL, TEACHER, Artifact
from edgepack.records.differences import numbered
from edgepack.records.verdict import Base
from edgepack.workflows.build.outcomes import EvaluationOutcome, TimingOutcome
from edgepack.workflows.build.planning.keys import (
    cut_facts,
    data_fingerprint,
    files,
    installed,
    libraries,
    plugin_facts,
    quantizer_facts,
    quantizer_of,
    reasons,
    task_facts,
    trainer_facts,
    trains,
    trains_itself,
)
from edgepack.workflows.build.planning.memory import Reads, previous
from edgepack.workflows.build.planning.step import Plan, Step, StepId
from edgepack.workflows.build.store import Store

_EVALUATION = 7  # bump when the same outputs of a file would give other figures


def plan(
    recipe: Recipe, device: Device, store: Store, *, remeasure: bool = False, baseline: Baseline | None = None
) -> Plan:
    """Return what a build of `recipe` for `device` would do now, given the content of `store`."""
    facts = known(device, store.devices)
    return Planner(resolve(recipe, device, facts), store, facts=facts, remeasure=remeasure, baseline=baseline).whole()


class Planner:
    """Plans a build step by step, so that each step can run as soon as it is planned.

    `facts` are the known facts of the device that results depend on. `baseline` is what relative budgets are compared
    with, if it was looked up.
    """

    def __init__(
        self,
        recipe: ResolvedRecipe,
        store: Store,
        *,
        facts: Facts | None,
        remeasure: bool = False,
        baseline: Baseline | None = None,
    ) -> None:
        self.recipe, self.device = recipe, recipe.profile
        self.store, self.facts, self.remeasure, self.baseline = store, facts, remeasure, baseline
        self.protocol = TimingProtocol.of(budget.metric for budget in recipe.budgets)
        self.previous = previous(store, recipe, recipe.profile)
        self.fingerprint = data_fingerprint(recipe.data)
        self.task = task_facts(recipe.task)
        self.reads = Reads(store)
        self.quantizers = tuple(dict.fromkeys(quantizer_of(each) for each in recipe.exporters))
        self.teacher: Step | None = None
        self.last: dict[str, Step] = {}  # candidates by variant: "", or the quantizer
        self._settled: dict[StepId, Step] = {}  # candidates that were not cached
        self._again: dict[StepId, Callable[[], Step]] = {}
        self.sha256: dict[str, str] = {}  # of the files to be timed, by format

    @property
    def count(self) -> int:
        """Return the number of steps: the model, its stages, torch's outputs, and per format two exports, two
        evaluations and one timing.
        """
        variants = [("",), *self.variants()]
        return sum(map(len, variants)) + len(variants[-1]) + 5 * len(self.recipe.exporters)

    def whole(self) -> Plan:
        return Plan(recipe=self.recipe, steps=tuple(self.steps()))

    def steps(self) -> Iterator[Step]:
        yield from self.candidates()
        exports = []
        for export in self.exports():
            yield export
            exports.append(export)
        for variant in self.last:
            yield self.outputs(variant)
        first = None
        for export in exports:
            step = self.evaluation(export, exports)
            first = first or step
            yield step.because("the first file was not run then") if _lacks_runtimes(step, first) else step
        of_format = {(step.id.subject, step.id.format): step for step in exports}
        for exporter in self.recipe.exporters:
            yield self.timing(of_format[MODEL, exporter.name], of_format[TEACHER, exporter.name])

    def variants(self) -> Iterator[tuple[str, ...]]:
        """Yield the candidates that each stage makes: one (""), or one per quantizer from the first stage that uses a
        quantizer, if the files need several.
        """
        variants: tuple[str, ...] = ("",)
        for stage in self.recipe.stages:
            if stage.module.USES_QUANTIZER and len(self.quantizers) > 1:
                variants = self.quantizers
            yield variants

    def exporters_of(self, variant: str) -> list[Choice]:
        """Return the exporters that take candidates of this variant."""
        return [each for each in self.recipe.exporters if variant in ("", quantizer_of(each))]

    def variant(self, exporter: Choice) -> str:
        """Return the variant of the last candidate for an exporter: its quantizer, if each has its own."""
        name = quantizer_of(exporter)
        return name if name in self.last else ""

    def candidates(self) -> Iterator[Step]:
        """Yield the initial model, then one step per stage and variant. Later steps use the key from `renewed`."""
        recipe, whole = self.recipe, True
        names = ["model", *numbered(stage.name for stage in recipe.stages)]
        self.teacher, self.last = None, {}
        for choice, name, variants in zip(
            (recipe.model, *recipe.stages), names, [("",), *self.variants()], strict=True
        ):
            parents = self.last
            # Only until the first compression: a pruned model is no teacher, even if it is trained further.
            whole = whole and (not parents or choice.module.MAKES_TEACHER)
            teacher, made = self.teacher.key if self.teacher else "", {}
            for variant in variants:
                id = StepId("candidate", name, variant)
                parent = (parents.get(variant) or parents[""]).key if parents else ""
                self._again[id] = partial(self._candidate, id, choice, parent, teacher)
                step = self._again[id]()
                yield step
                made[variant] = self._settled.get(id, step)
            self.last = made
            self.teacher = made[""] if whole else self.teacher

    def _candidate(self, id: StepId, choice: Choice, parent: str, teacher: str) -> Step:
        ingredients = self._stage_ingredients(id, choice, parent, teacher) if parent else self._model_ingredients()
        return self._step(id, ingredients, choice=choice)

    def renewed(self, step: Step) -> Step:
        """Return a candidate's step with its current key, just before it runs: what user functions read may be known
        only after they ran, and all later keys depend on it.
        """
        if step.id in self._again:
            step = self._settled[step.id] = self._again[step.id]()
        return step

    def exports(self) -> Iterator[Step]:
        """Yield the export of the model to every format, then that of the teacher."""
        assert self.teacher is not None, "a plan begins with the model, the first teacher"
        for subject in (MODEL, TEACHER):
            for exporter in self.recipe.exporters:
                candidate = self.last[self.variant(exporter)] if subject == MODEL else self.teacher
                ingredients = {**plugin_facts(exporter), "parent": candidate.key, "subject": subject}
                yield self._step(StepId("artifact", subject, exporter.name), ingredients, choice=exporter)

    def outputs(self, variant: str) -> Step:
        """Return the step for torch's outputs on the test split: the reference for parity."""
        ingredients = {
            "parent": self.last[variant].key,
            **self._data(),
            "version": _EVALUATION,
            "versions": provenance.versions(*provenance.CORE),
        }
        return self._step(StepId("outputs", MODEL, variant), ingredients)

    def evaluation(self, export: Step, exports: Sequence[Step]) -> Step:
        """Return the evaluation of a file on the test split; compared with torch, a shipped one also with the first
        file.
        """
        assert self.teacher is not None, "the candidates come first"
        beside = [exports[0]] if export.id.subject == MODEL else []
        shas = [_sha(self.store, step) for step in (export, *beside)]
        torch = self.last[self.variant(export.plugin)] if beside else self.teacher
        ingredients = {
            "files": shas,
            "reference": torch.key,
            **self._data(),
            **self.task,
            "where": self._where(export.plugin, "predict"),
            "version": _EVALUATION,
        }
        return self._about(export.id.of("evaluation"), export, ingredients, shas)

    def timing(self, export: Step, teacher: Step) -> Step:
        """Return the timing of a file and its teacher's in alternating runs: else their ratio would also reflect
        different conditions at the two times.
        """
        shas = [_sha(self.store, each) for each in (export, teacher)]
        self.sha256[export.id.format] = shas[0]
        ingredients = {
            "files": shas,
            "protocol": self.protocol.key(),
            "where": self._where(export.plugin, "time"),
        }
        step = self._about(export.id.of("timing"), export, ingredients, shas)
        known = TimingOutcome.read(step.entry) if step.entry and step.cached else TimingOutcome()
        answers = known.model.answers  # empty if it was not run
        if answers and not (self.protocol.kept(answers) and self.protocol.kept(known.teacher.answers)):
            return step.because("its budget needs more runs")
        if answers and not self.decided(export.id.format, answers):
            return step.because("its budget is not decided yet")
        return step

    def decided(self, format: str, answers: Answers) -> bool:
        """Return whether these timings decide every latency budget of this file."""
        figures = timings(answers)
        budgets = self.recipe.budgets
        bounded = [each for each in budgets if each.metric in figures and each.about(format, budgets)]
        return all(
            outcome(budget, *interval(figures[budget.metric])[1:], self._base(budget, format)) != "inconclusive"
            for budget in bounded
        )

    def _base(self, budget: Budget, format: str) -> Base | None:
        """Return the baseline's value for a relative budget; if there is none, more timings cannot decide it."""
        if not budget.against:
            return None
        exporter = next(each for each in self.recipe.exporters if each.name == format)
        where = {**self._where(exporter, "time"), "protocol": self.protocol.name}
        sha = self.sha256.get(format, "")
        found = self.baseline.find(budget.metric, format, sha, where) if self.baseline else None
        return found if isinstance(found, Base) else Base(value=0.0, low=0.0, high=0.0, told="", same=True)

    def _about(self, id: StepId, export: Step, ingredients: Json, shas: Sequence[str]) -> Step:
        """Return a step on an exported file; its key is known once the file exists."""
        if not all(shas) or self.facts is None:
            reason = "the device was not reached yet" if all(shas) else "its file is not built yet"
            return Step(id=id, key="", ingredients={}, reason=reason, choice=export.choice)
        step = self._step(id, ingredients, choice=export.choice)
        return step.because("requested by --remeasure") if self.remeasure and step.cached else step

    def _measured_by(self, exporter: Choice) -> Json:
        """Return what the timings of a stage's trials depend on."""
        return {
            "export": plugin_facts(exporter),
            "protocol": self.protocol.key(),
            "where": self._where(exporter, "time"),
        }

    def _budgets_used(self, stage: Choice) -> Json:
        """Return the budgets that affect a stage, and the exports that they apply to."""
        used = binding(self.recipe.budgets, stage.config.budgets_used)
        budgets = {f"{each.name} {each.runtime}".rstrip(): each.quantity.exact(each.limit) for each in used}
        return (
            {"budgets": budgets, "exports": [plugin_facts(each) for each in self.recipe.exporters]} if budgets else {}
        )

    def _where(self, exporter: Choice, mode: str) -> Json:
        """Return where a job of this mode runs: facts of the device, its controls, and the relevant versions."""
        facts, runtime = self.facts or {}, exporter.module.RUNTIME
        versions = provenance.versions("edgepack", "torch", "numpy")
        there = {runtime: facts.get("versions", {}).get(runtime, provenance.MISSING)}
        evidence = self.device.evidence.get(mode, "")
        return {**facts, **self.device.controls.job(), "evidence": evidence, "versions": {**versions, **there}}

    def _model_ingredients(self) -> Json:
        recipe = self.recipe
        return {
            "plugin": recipe.model.name,
            "config": recipe.model.plain(),
            "files": files([recipe.model]),
            **self.task,
            "data": self.fingerprint,
            **cut_facts(recipe, ("train", "validation")),
            **self.reads.ingredients(recipe.model, recipe.data),
            "seed": recipe.seed,
            "compute": recipe.hardware.facts(),
            "versions": {
                **provenance.versions(*provenance.CORE, *recipe.model.module.LIBRARIES),
                **installed([recipe.model]),
            },
        }

    def _data(self) -> Json:
        """Return what the test split depends on. It is cut without training anew."""
        recipe = self.recipe
        return {"data": self.fingerprint, **cut_facts(recipe, ("test",)), **self.reads.ingredients(recipe.data)}

    def _stage_ingredients(self, id: StepId, stage: Choice, parent: str, teacher: str) -> Json:
        reads = stage.module.READS
        facts = self.device.quantization.model_dump(mode="json", include=set(reads))
        measured = self._measured_by(self.exporters_of(id.format)[0]) if stage.config.needs_timing else {}
        own = plugin_facts(stage)
        models = [value for _, value in stage.config if isinstance(value, Choice)]
        return {
            **own,
            "versions": {**own["versions"], **libraries(stage, models)},
            **measured,
            **self._budgets_used(stage),
            "parent": parent,
            "device": facts,
            "files": files(models),
            **self.reads.ingredients(*models),
            **trainer_facts(each.trainer for each in stage.config.trainings if each.trainer),
            **self._trained_on(stage),
            "teacher": teacher,
            **(quantizer_facts(id.format or self.quantizers[0]) if stage.module.USES_QUANTIZER else {}),
        }

    def _trained_on(self, stage: Choice) -> Json:
        """Return how the hardware trains, as far as it is not the default; the model's key has the hardware itself."""
        how = self.recipe.hardware.of_training() if trains(stage) else {}
        if trains_itself(stage):
            how = {name: value for name, value in how.items() if name == "precision"}
        return {"training": how} if how else {}

    def _step(self, id: StepId, ingredients: Json, *, choice: Choice | None = None) -> Step:
        key = digest({"kind": id.kind, **ingredients})
        entry = self.store.peek(id.kind, key)
        reason = "" if entry else self._why(id, ingredients)
        return Step(id=id, key=key, ingredients=ingredients, reason=reason, choice=choice, entry=entry)

    def _why(self, id: StepId, ingredients: Json) -> str:
        before = self.previous.get(str(id))
        if before is None:
            return "new step" if self.previous else "first time"
        return ", ".join(reasons(before, ingredients)) or "no longer in the cache"


def _lacks_runtimes(step: Step, first: Step) -> bool:
    """Return whether a cached evaluation lacks the comparison with the first file, which can be run now."""
    if step is first or step.id.subject == TEACHER or step.entry is None or not step.cached:
        return False
    found = EvaluationOutcome.read(step.entry)
    known = EvaluationOutcome.read(first.entry) if first.entry and first.cached else EvaluationOutcome()
    return found.parity is not None and found.runtimes is None and not known.not_run


def _sha(store: Store, export: Step) -> str:
    entry = store.peek("artifact", export.key)
    return Artifact.model_validate(entry.outcome).sha256 if entry else ""
