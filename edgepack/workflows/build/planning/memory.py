"""Remember between builds what steps were made of, and what functions of a user read."""

import json
from collections.abc import Iterable
from pathlib import Path

from edgepack.config.device import Device
from edgepack.config.plugins import Choice
from edgepack.config.recipe import Recipe
from edgepack.config.user_code import reads
from edgepack.core.files import digest, file_digest, write_atomic
from edgepack.core.frozen import Json
from edgepack.workflows.build.planning.step import Plan
from edgepack.workflows.build.store import Store


def remember(plan: Plan, store: Store) -> None:
    """Save the ingredients of this recipe's steps, so that the next plan can say what changed."""
    path = _place(store, plan.recipe, plan.recipe.profile)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps({str(step.id): step.ingredients for step in plan.steps}, indent=1).encode())


def previous(store: Store, recipe: Recipe, device: Device) -> Json:
    """Return the previous ingredients of each step, by the step's id as text; {} if none are known."""
    try:
        before: Json = json.loads(_place(store, recipe, device).read_text())
        return before
    except (OSError, ValueError):
        return {}


def _place(store: Store, recipe: Recipe, device: Device) -> Path:
    return store.root / "plans" / f"{digest([recipe.name, device.id])[:16]}.json"


class Reads:
    """Which undeclared files and variables the user's functions read, and digests of their current content."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._places: dict[int, Path] = {}  # by id() of a choice, which the recipe keeps alive
        self._seen: dict[Path, dict[str, str]] = {}

    def ingredients(self, *choices: Choice) -> Json:
        found = {name: sha for each in choices for name, sha in self._of(each).items()}
        return {"read": found} if found else {}

    def note(self, choice: Choice, names: Iterable[str]) -> None:
        """Save what a function has just read. Earlier reads are kept: one may decide whether others are read.

        Changes from here on are seen by the next plan.
        """
        before = {name for name, sha in self._of(choice).items() if sha}
        if now := sorted({*names, *before}):
            place = self._place(choice)
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(place, json.dumps(now, indent=1).encode())
            self._seen[place] = reads.now(now, of=str(place))

    def _of(self, choice: Choice) -> dict[str, str]:
        if not choice.module.FOREIGN:
            return {}
        place = self._place(choice)
        if place not in self._seen:
            try:
                names: list[str] = json.loads(place.read_text())
            except (OSError, ValueError):
                names = []
            self._seen[place] = reads.now(names, of=str(place))
        return self._seen[place]

    def _place(self, choice: Choice) -> Path:
        """Return the file for these reads, named by the function's code: other code may read something else."""
        if id(choice) not in self._places:
            module, config = choice.module, choice.config
            is_data = choice.kind == "datasets"
            made_of = module.fingerprint(config) if is_data else [file_digest(path) for path in module.files(config)]
            name = digest([choice.name, choice.plain(), made_of])[:16]
            self._places[id(choice)] = self.store.root / "reads" / f"{name}.json"
        return self._places[id(choice)]
