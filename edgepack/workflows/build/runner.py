"""Run one step after the other, or take each from the store.

    Runner(recipe, session, store, planner).ensure(step)      # its entry, made now unless it is cached
    run_step(recipe, device, StepId.parse("candidate/prune"), store)

A step needs nothing of this process but what it is given: the recipe, the device, the step's id and the store, which
has what the steps before it gave. `run_step` does one so, in whatever process.
"""

from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

from edgepack.config.device import Device
from edgepack.config.recipe import Recipe, ResolvedRecipe, resolve
from edgepack.core import provenance
from edgepack.core.errors import DeviceError, RecipeError
from edgepack.core.events import Emit, Note
from edgepack.core.frozen import Json
from edgepack.judge.baseline import Baseline
from edgepack.measure.session import DeviceSession
from edgepack.records.artifact import Artifact
from edgepack.workflows.build.outcomes import Outcome
from edgepack.workflows.build.planning.planner import Planner
from edgepack.workflows.build.planning.step import Kind, Step, StepId
from edgepack.workflows.build.steps import artifact, candidate, dry_run, evaluation, followers, outputs, timing
from edgepack.workflows.build.store import Entry, Store
from edgepack.workflows.build.workspace import Workspace, guarded

_DO: dict[Kind, Callable[[Workspace, Step, Path], Outcome | Artifact]] = {
    "candidate": candidate.do,
    "artifact": artifact.do,
    "outputs": outputs.do,
    "evaluation": evaluation.do,
    "timing": timing.do,
}
_WITHOUT_TORCH = ("evaluation", "timing")


class Runner:
    """Runs the steps of one build. They share `work`."""

    def __init__(self, recipe: ResolvedRecipe, session: DeviceSession, store: Store, planner: Planner) -> None:
        self.store, self.planner = store, planner
        self.work = Workspace(recipe, session, store, planner, make=self._make_again)
        self.dry_run_is_due = True

    def ensure(self, step: Step) -> Entry:
        """Return the step's entry; runs the step unless it is cached. Cached files are checked when they are read.

        The entry is stored under the key that results after the user's functions ran and their reads are known.
        """
        if step.kind == "candidate" and not step.cached:
            self._dry_run()
            self._load_foreign_data(step.name)
            step = self.planner.renewed(step)
        self.work.done[step.id] = step
        if step.cached and step.entry:
            self.store.touch(step.entry)
            return step.entry
        return self._make(step)

    def _make(self, step: Step) -> Entry:
        waiting = partial(self.work.emit, Note(text="waiting for another build of the same step"))
        with self.store.lock(step.key, waiting=waiting):
            if step.entry is None and (found := self.store.get(step.kind, step.key)):
                return found  # another build made it while this one waited
            return self.store.make(step.kind, step.key, step.ingredients, lambda folder: self._do(step, folder))

    def _make_again(self, step: Step) -> Entry:
        """Run a step whose entry was damaged."""
        if step.kind == "candidate":
            self._dry_run()
        return self._make(Step(id=step.id, key=step.key, ingredients=step.ingredients, choice=step.choice))

    def _do(self, step: Step, folder: Path) -> Json:
        """Run a step and return its outcome as JSON."""
        do = partial(_DO[step.kind], self.work, step, folder)
        if step.kind in _WITHOUT_TORCH:
            return _stored(guarded(step.name, do, folder))
        from edgepack.compress.training import numerics

        together = step.kind == "candidate" and followers.size_of(self.work, step) > 1
        threads = self.work.recipe.hardware.threads if together else provenance.threads()
        with numerics.deterministic(self.work.recipe.seed, threads):
            return _stored(guarded(step.name, do, folder))

    def _dry_run(self) -> None:
        if self.dry_run_is_due:
            self.dry_run_is_due = False
            dry_run.check(self.work)

    def _load_foreign_data(self, name: str) -> None:
        """Load data made by a user's function with a fixed random state."""
        from edgepack.compress.training import numerics

        if self.work.recipe.data.module.FOREIGN:
            with numerics.deterministic(self.work.recipe.seed, provenance.threads()):
                guarded(name, lambda: self.work.data, self.store.root)


def _stored(outcome: Outcome | Artifact) -> Json:
    return outcome.stored() if isinstance(outcome, Outcome) else outcome.model_dump(mode="json")


def run_step(
    recipe: Recipe,
    device: Device,
    id: StepId,
    store: Store,
    *,
    baseline: Baseline | None = None,
    dry_run: bool = True,
    emit: Emit = lambda event: None,
) -> Entry:
    """Run one step of a recipe's plan unless it is cached; the steps before it must be in the store.

    Without `dry_run` a candidate is assumed to be checked before. Raises RecipeError if the plan has no such step,
    DeviceError if a step before it is missing, and the errors of the step.
    """
    with closing(DeviceSession(device, store.devices, lambda facts: True)) as session:
        resolved = resolve(recipe, session.device, session.facts)
        known = [step.id for step in Planner(resolved, store, facts=session.facts).whole().steps]
        if id not in known:
            raise RecipeError(f"{recipe.name} has no step {id}", f"it has: {', '.join(map(str, known))}")
        planner = Planner(resolved, store, facts=session.facts, baseline=baseline)
        runner = Runner(resolved, session, store, planner)
        runner.work.emit, runner.dry_run_is_due = emit, dry_run
        for step in planner.steps():
            if step.id == id:
                return runner.ensure(step)
            if step.entry is None:
                raise DeviceError(f"{id.name} cannot run: {step.name} is not in the store", f"run {step.id} first")
            runner.work.done[step.id] = step
    raise AssertionError("a plan has the steps that it had a moment ago")
