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
    """Return the baseline called `name`, for a build of this recipe and device that began at the time `before`.

    When judging `again`, the history must contain the build itself; else a missing entry does not begin a series.

    Builds changed by `--set` are trials, and baselines only for builds with the same `overrides`. Builds that needed a
    waiver are no baselines: a temporary exception must not become the standard. Raises RecipeError if the baseline
    cannot be read.
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
    """Return why the baseline's entry may be missing, or "": a complete history contains the build itself."""
    advice = "name a baseline, or set --history"
    if not history.exists():
        return f"there is no history at {history}: {advice}"
    if all(each.started_at != before for each in lines):
        return f"the build itself is not in the history {history}: {advice}"
    return f"the baseline may be in an unreadable line: {advice}" if damaged else ""


def of_recipe(recipe: "Recipe", device: str, history: Path, before: float) -> Baseline | None:
    """Return the baseline of a recipe's relative budgets, or None. Raises RecipeError if it cannot be read."""
    names = [budget.against for budget in recipe.budgets if budget.against]
    return baseline(names[0], recipe.name, device, history, before, recipe.overrides) if names else None


def _named(path: Path) -> HistoryEntry:
    """Return the entry of a build.json, its folder, or a bundle; of the build next to a bundle if there is one."""
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
    """Return an entry with the sizes of a bundle's files; a bundle has no timings, since these differ between runs."""
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
