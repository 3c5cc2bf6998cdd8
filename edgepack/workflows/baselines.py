"""Where a baseline is looked up: a build, a bundle, or the history."""

import hashlib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.config.budgets import LAST
from edgepack.core.errors import RecipeError, VerifyError
from edgepack.judge.baseline import Baseline
from edgepack.judge.history import SCHEMA, Figure, HistoryEntry, key_of, read, taken
from edgepack.records.artifact import deflated
from edgepack.records.build import Build

if TYPE_CHECKING:
    from edgepack.config.recipe import Recipe


def baseline(
    name: str,
    recipe: str,
    device: str,
    history: Path,
    before: float,
    overrides: Collection[str] = (),
    *,
    again: bool = False,
) -> Baseline:
    """The baseline called `name`, for a build of this recipe and device that began at the time `before`.

    Of a build that is judged `again` the history must hold the line, or nothing of it is believed to be the beginning.

    What `--set` made of a recipe is a try, and no baseline but of builds with the same `overrides`. Nor is a build that
    needed a waiver: what is let pass until a day must not become the measure of all after it.
    Raises RecipeError when it cannot be read.
    """
    if name == LAST:
        whole, damaged = read(history)
        lines = [each for each in whole if (each.recipe, each.device) == (recipe, device)]
        released = [each for each in lines if {*each.overrides} <= {*overrides}]
        passed = [each for each in released if each.passed and each.started_at < before]
        return Baseline(
            lines=tuple(sorted(passed, key=lambda each: -each.started_at)),
            partial=_partial(history, before, lines, damaged) if again else "",
            damaged=f"unreadable lines in {history}: {damaged}" if damaged else "",
        )
    line = _named(Path(name))
    other = [
        f"{kind} '{theirs}', not '{ours}'"
        for kind, theirs, ours in (("the recipe", line.recipe, recipe), ("the device", line.device, device))
        if theirs != ours
    ]
    unfit = f"{name} is a build of {' and '.join(other)}" if other else ""
    return Baseline(lines=(line,), named=name, unfit=unfit)


def _partial(history: Path, before: float, lines: Iterable[HistoryEntry], damaged: int) -> str:
    """Why the line of a baseline may be missing, or "": a history that was whole holds the build itself."""
    advice = "name a baseline, or set --history"
    if not history.exists():
        return f"there is no history at {history}: {advice}"
    if all(each.started_at != before for each in lines):
        return f"the build itself is not in the history {history}: {advice}"
    return f"the baseline may be in an unreadable line: {advice}" if damaged else ""


def of_recipe(recipe: "Recipe", device: str, history: Path, before: float) -> Baseline | None:
    """The baseline of its relative budgets, if it has any. Raises RecipeError when that cannot be read."""
    names = [budget.against for budget in recipe.budgets if budget.against]
    return baseline(names[0], recipe.name, device, history, before, recipe.overrides) if names else None


def _named(path: Path) -> HistoryEntry:
    """A build.json, the folder it lies in, or a bundle; of a bundle with its build beside it, that build."""
    if (path / "build.json").is_file():
        return _judged(path / "build.json")
    if path.suffix == ".json" or not path.exists():
        return _judged(path)
    beside = path.parent / "build.json"
    if path.is_file() and beside.is_file() and Build.read(beside).bundle_sha256 == _sha(path):
        return _judged(beside)
    return _of_bundle(path)


def _judged(path: Path) -> HistoryEntry:
    build = Build.read(path)
    if build.exit_code is None or build.error:
        raise RecipeError(f"the baseline {path} is of a build that did not finish", "name one that finished")
    return HistoryEntry.of(build)


def _sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _of_bundle(path: Path) -> HistoryEntry:
    """A bundle tells the sizes of its files, and no timing: those differ from run to run."""
    from edgepack.deliver import bundle

    try:
        manifest, files = bundle.read(path)
    except VerifyError as error:
        raise RecipeError(f"the baseline {path} is neither a build nor a valid bundle: {error.message}") from None
    shas = {each.path: each.sha256 for each in manifest.files if each.role == "deploy"}
    entries = {runtime.format: runtime.entry.file for runtime in manifest.runtimes.values()}
    beside = [files[name] for name in shas.keys() - {*entries.values()}]
    return HistoryEntry(
        schema=SCHEMA,
        recipe=manifest.name,
        device=manifest.device,
        started_at=0.0,
        exit_code=0,
        file=str(path),
        artifacts={label: shas[name] for label, name in entries.items()},
        figures=tuple(
            _weighed(metric, label, shas[name], sum(size(content) for content in weighed))
            for label, name in entries.items()
            for metric, size, weighed in (
                ("size", len, [files[name]]),
                ("size.deploy", len, [files[name], *beside]),
                ("size.download", deflated, [files[name], *beside]),
            )
        ),
    )


def _weighed(metric: str, label: str, sha256: str, size: int) -> Figure:
    value = float(size)
    return Figure(
        metric=metric,
        artifact=label,
        value=value,
        low=value,
        high=value,
        evidence="measured",
        taken_at=0.0,
        series=key_of(metric, {}),
        taken=taken(sha256, {}),
    )
