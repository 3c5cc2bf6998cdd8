"""Workspace: what the steps of one build share. It holds and loads; what is done stands in steps/."""

import logging
import shutil
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TypeVar

from edgepack.config import plugins
from edgepack.config.plugins import Choice
from edgepack.config.recipe import Recipe, ResolvedRecipe
from edgepack.config.user_code import reads
from edgepack.core import provenance
from edgepack.core.errors import DeviceError, EdgepackError, StageError
from edgepack.core.events import Emit, Note, StepProgress
from edgepack.core.files import full_disk
from edgepack.core.frozen import Json
from edgepack.data import loading
from edgepack.data.contract import Loading, Task
from edgepack.measure.session import DeviceSession, Facts
from edgepack.records.artifact import MODEL, Artifact
from edgepack.workflows.build.planning.planner import Planner
from edgepack.workflows.build.planning.step import Step, StepId
from edgepack.workflows.build.store import Entry, Store

if TYPE_CHECKING:
    from edgepack.core.signature import Signature
    from edgepack.data.splits import Data
    from edgepack.measure.evaluate import Arrays
    from edgepack.models.candidate import Candidate

Result = TypeVar("Result")


class Workspace:
    """The recipe, its data, the device, and the finished steps with their candidates and files.

    `make` is the runner's function that repeats a step whose entry was damaged.
    """

    def __init__(
        self,
        recipe: ResolvedRecipe,
        session: DeviceSession,
        store: Store,
        planner: Planner,
        make: Callable[[Step], Entry],
    ) -> None:
        self.recipe, self.session, self.store, self.planner, self.make = recipe, session, store, planner, make
        self.device = recipe.profile
        self.emit: Emit = lambda event: None
        self.done: dict[StepId, Step] = {}  # in order of execution
        self.failed: dict[StepId, StageError] = {}  # evaluations that failed: these files are not run again
        self.user_reads: list[str] = []  # sentences on undeclared files and variables that the user's functions read
        self.teacher_outputs: Arrays | None = None  # on the test split
        self._candidates: dict[str, Candidate] = {}  # by key
        self._delegates: dict[str, list[str]] = {}  # by runtime
        self._sha256: dict[StepId, str] = {}  # of each exported file that was used

    @cached_property
    def data(self) -> "Data":
        load = partial(load_data, self.recipe, self.store, self.emit, self.room)
        data = self.watched(self.recipe.data, "the data's function", load)()
        data.check(self.task)
        for note in data.notes:
            self.emit(Note(text=note))
        return data

    @cached_property
    def scratch(self) -> "TemporaryDirectory[str]":
        """Return a folder of this build; `close` removes it."""
        return TemporaryDirectory(prefix="edgepack-")

    def close(self) -> None:
        if "scratch" in self.__dict__:
            self.scratch.cleanup()

    @property
    def test_samples(self) -> int:
        """Return the number of samples of the whole test split if the recipe cuts it, else 0."""
        return self.data.whole["test"] if self.recipe.cuts.test else 0

    @cached_property
    def room(self) -> int:
        """Return the free bytes of the store's disk when the data was loaded: all processes decide by the same."""
        return room_of(self.store)

    @cached_property
    def task(self) -> Task:
        return task_of(self.recipe)

    @property
    def signature(self) -> "Signature":
        return self.task.signature

    def candidate(self, step: Step, *, private: bool = False) -> "Candidate":
        """Return the saved candidate of a step, as a later build would load it. A private copy may be changed."""
        from edgepack.models.candidate import Candidate

        if private or step.key not in self._candidates:
            loaded = Candidate.load(self._whole(step).path)
            if private:
                return loaded
            self._candidates[step.key] = loaded
        return self._candidates[step.key]

    def shipped(self, candidate: "Candidate") -> "Candidate":
        """Return a candidate as its files have it, with what the task computes after a model."""
        from edgepack.export.postprocessing import shipped

        return shipped(candidate, self.task)

    def candidate_of(self, key: str) -> Step:
        """Return the finished candidate step with this key."""
        return next(step for step in self.done.values() if step.kind == "candidate" and step.key == key)

    def entry(self, id: StepId) -> Entry:
        """Return the entry of a finished step, with its files checked."""
        return self._whole(self.done[id])

    def _whole(self, step: Step) -> Entry:
        """Return the step's entry with its files checked; a damaged one is made again."""
        return self.store.get(step.kind, step.key) or self.make(step)

    def file(self, id: StepId) -> tuple[Artifact, Path]:
        """Return the exported file of a step. Raises DeviceError if it was damaged and exporting it again gave another
        file: its figures are outdated.
        """
        export = id.of("artifact")
        entry = self.entry(export)
        artifact = Artifact.model_validate(entry.outcome)
        if self._sha256.setdefault(export, artifact.sha256) != artifact.sha256:
            message = f"the file {artifact.label} was damaged, and exporting it again gave a different file"
            raise DeviceError(message, "build again")
        return artifact, entry.path / artifact.file

    def reference(self, format: str) -> StepId:
        """Return the step with torch's outputs for the model from which the file of this format is made."""
        return StepId("outputs", MODEL, self.planner.variant(self.exporter(format)))

    def exporter(self, format: str) -> Choice:
        return next(each for each in self.recipe.exporters if each.name == format)

    def why_not_run(self, format: str) -> str:
        """Return why the available runtime cannot run a file of this format, or ""."""
        exporter = self.exporter(format)
        runtime = exporter.module.RUNTIME
        if why := self.session.facts.get("lacks", {}).get(runtime):
            return str(why)
        needed = needs(exporter)
        if not needed:
            return ""
        if runtime not in self._delegates:
            job = {"mode": "delegates", "runtime": runtime, "file": exporter.name}
            self._delegates[runtime] = self.session.run(job)["delegates"]
        return "" if needed in self._delegates[runtime] else f"{runtime} on {self.device.name} has no {needed}"

    def timing_job(self, runtime: str, file: Path) -> Json:
        """Return a job for the worker, as JSON."""
        return {**self.planner.protocol.job(), **self.device.controls.job(), "runtime": runtime, "file": str(file)}

    def int8_differs(self, runtime: str, facts: Facts) -> bool:
        """Return whether int8 products saturate on a computer with these facts, but not on the device."""
        features = frozenset(str(facts.get("features", "")).split())
        saturates = runtime == "onnxruntime" and provenance.int8_saturates(features)
        return saturates and not self.device.quantization.int8_saturates

    def watched(self, choice: Choice, whose: str, act: Callable[[], Result]) -> Callable[[], Result]:
        """Return `act`, wrapped to record and report what a user's function reads besides the files in its key."""
        if not choice.module.FOREIGN:
            return act

        def watching() -> Result:
            with reads.watched(choice.module.files(choice.config)) as read:
                result = act()
            names = read()
            self.planner.reads.note(choice, names)
            if there := [name for name in names if name.startswith("$") or Path(name).exists()]:
                self.user_reads.append(f"{whose} {reads.describe(there)}")
                self.emit(Note(text=self.user_reads[-1]))
            return result

        return watching


def task_of(recipe: Recipe) -> Task:
    """Return the recipe's task for its data."""
    signature = recipe.data.module.describe(recipe.data.config)
    found: Task = recipe.task.module.task(recipe.task.config, signature)
    return found


def load_data(recipe: Recipe, store: Store, emit: Emit = lambda event: None, room: int | None = None) -> "Data":
    """Return the recipe's data, which may keep in the store what took long; `room` is that of its disk, if known."""
    source, compute = recipe.data, recipe.compute
    workers = loading.automatic() // compute.processes if compute.workers == "auto" else compute.workers

    def progress(doing: str, done: int, total: int) -> None:
        emit(StepProgress(doing=doing, done=done, total=total))

    kept = partial(store.keep, waiting=lambda: emit(Note(text="waiting for another build that decodes the same data")))
    how = Loading(
        progress=progress,
        kept=kept,
        room=room_of(store) if room is None else room,
        workers=workers,
        processes=compute.processes,
    )
    data: Data = source.module.load(source.config, *([how] if source.module.KEEPS else []))
    return data.cut(recipe.cuts.samples, task_of(recipe)).read_by(workers)


def room_of(store: Store) -> int:
    """Return the free bytes of the store's disk."""
    root = store.root.absolute()
    there = next(folder for folder in (root, *root.parents) if folder.exists())
    return int(shutil.disk_usage(there).free)


def needs(exporter: Choice) -> str:
    """Return what a runtime needs to run the files of an exporter, or ""."""
    return str(exporter.module.needs(exporter.config))


def is_foreign(candidate: "Candidate") -> bool:
    """Return whether a user's code makes the model, so that nothing is known of its behaviour."""
    return bool(plugins.load("models", candidate.factory.model).FOREIGN)


def guarded(name: str, do: Callable[[], Result], folder: Path) -> Result:
    """Run a plugin's or library's code; raises any failure as an error that names the step."""
    try:
        return do()
    except StageError as error:
        raise StageError(f"{name}: {error.message}", error.hint) from error
    except EdgepackError:
        raise
    except MemoryError as error:
        raise StageError(f"{name} ran out of memory", "use a smaller batch_size, or a larger machine") from error
    except (Exception, SystemExit) as error:  # a stage that calls sys.exit() has failed, whatever its code
        if outside := full_disk(error, folder) or loading.killed(error):
            raise outside from error
        if type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
            raise StageError(f"{name} ran out of the GPU's memory", "use a smaller batch_size or model") from error
        logging.getLogger(__name__).exception("%s failed", name)
        first = (str(error).strip().splitlines() or [""])[0]
        raise StageError(
            f"{name} failed: {type(error).__name__}: {first}", "see build.log for the traceback"
        ) from error
