"""Judge a build again from its build.json, without running a model.

That holds for relative budgets too: the verdicts tell what was looked up of the baseline. Another baseline, or
history, is looked up where it is named.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from edgepack.config.budget_reading import read_budgets, read_waivers
from edgepack.config.budgets import LAST, Budget, Waiver
from edgepack.config.document import Document, unknown
from edgepack.config.document.overrides import override
from edgepack.core.errors import EdgepackError, ExitCode, RecipeError, VerifyError
from edgepack.judge.baseline import Baseline
from edgepack.judge.gate import EXPIRED, EXPLAINED, judge_build
from edgepack.judge.history import FILE
from edgepack.records.build import Build
from edgepack.records.verdict import Base, NoBase, Verdict
from edgepack.workflows.baselines import baseline

_PARTS = ("budgets", "waivers")  # parts of a recipe that can change without building again
_HINT = "run `edgepack build` for a new build"


def rejudge(
    path: Path,
    *,
    recipe: Path | None = None,
    overrides: Sequence[str] = (),
    against: str | None = None,
    history: Path | None = None,
) -> Build:
    """Return the build in the file `path`, judged as of today by the budgets of `recipe` (default: its recorded ones).

    Relative budgets use the baseline values recorded in the build. `against` names another baseline, `history` another
    history (default: that of the build's dist folder). Raises RecipeError if an input cannot be read or makes no sense,
    VerifyError if the bundle next to it belongs to another build, and the build's own failure if it did not finish.
    """
    build = Build.read(path)
    if build.error or build.exit_code is None or not build.shipped():
        raise _unfinished(path, build)
    _check_bundle(path, build)
    recorded = {} if against or (history and _name_of(build) == LAST) else _looked_up(build)
    document = _given(recipe, build) if recipe else _recorded(path, build)
    for text in overrides:
        _change(document, text)
    if against:
        _set_baseline(document, against)
    budgets, waivers = _read(document, build, _name_of(build) if recorded else LAST)
    if recipe and not budgets:
        raise _nothing(recipe)
    names = [budget.against for budget in budgets if budget.against]
    recorded_baseline = None
    if names:
        past = history or Path(os.path.relpath(path.resolve().parent.parent / FILE))
        recorded_baseline = _RecordedBaseline(
            name=names[0], build=build, history=past, recorded=recorded if names[0] == _name_of(build) else {}
        )
    again = judge_build(build, budgets, waivers, recorded_baseline)
    return again.model_copy(update={"verdicts": tuple(_as_before(each, build, str(path)) for each in again.verdicts)})


@dataclass(frozen=True, kw_only=True)
class _RecordedBaseline:
    """The baseline called `name`: values `recorded` in the build, others looked up now."""

    name: str
    build: Build
    history: Path
    recorded: Mapping[tuple[str, str], Base | NoBase]

    def find(self, metric: str, artifact: str, sha256: str, environment: Mapping[str, Any]) -> Base | NoBase:
        return self.recorded.get((metric, artifact)) or self._now.find(metric, artifact, sha256, environment)

    @cached_property
    def _now(self) -> Baseline:
        build = self.build
        if self.recorded and self.name != LAST and not Path(self.name).exists():
            return Baseline(lines=(), unfit=f"{self.name} no longer exists, and the build did not record this figure")
        device, began = str(build.device["id"]), build.started_at
        return baseline(self.name, build.name, device, self.history, began, build.overrides, again=True)


def _looked_up(build: Build) -> dict[tuple[str, str], Base | NoBase]:
    """Return what the build found in its baseline, by metric and file."""
    return {(each.metric, each.artifact): each.looked_up for each in build.verdicts if each.looked_up}


def _name_of(build: Build) -> str:
    """Return the build's name for its baseline."""
    relative = build.recipe.get("budgets", {}).get("relative")
    return str(relative.get("baseline", LAST)) if isinstance(relative, dict) else LAST


def _unfinished(path: Path, build: Build) -> EdgepackError:
    """Return an error with the exit code of the unfinished build."""
    error = EdgepackError(f"the build of {path} did not finish: {build.error or 'it was killed, or still runs'}")
    error.code = ExitCode(build.exit_code or ExitCode.INCONCLUSIVE)
    return error


def _check_bundle(path: Path, build: Build) -> None:
    """Raises VerifyError if the bundle next to the build, packed or unpacked, is not the one that was judged."""
    if not build.bundle_sha256:
        return
    packed, folder = path.parent / (build.bundle or f"{build.name}.zip"), path.parent / "bundle"
    if packed.is_file():
        _same(packed, packed.read_bytes(), path, build)
    if folder.is_dir():
        from edgepack.deliver import bundle

        _same(folder, bundle.pack(bundle.read(folder)[1]), path, build)


def _same(bundle: Path, content: bytes, path: Path, build: Build) -> None:
    if hashlib.sha256(content).hexdigest() != build.bundle_sha256:
        raise VerifyError(f"{bundle} is not the bundle that {path} is about", "build again, and ship the new bundle")


def _given(recipe: Path, build: Build) -> Document:
    """Return a checked recipe. Raises errors if invalid, without budgets or for another model: all would pass."""
    from edgepack.config.recipe import RecipeFile

    document = Document.read(recipe)
    for key in document.data.keys() - RecipeFile.model_fields.keys():
        document.problem((key,), unknown("key", key, RecipeFile.model_fields))
    document.raise_problems()
    if not document.data.get("budgets"):
        raise _nothing(recipe)
    about = _about(document.data)
    for part, built in {**_about(build.recipe), "device": str(build.device["id"])}.items():
        if about.get(part, built) != built:
            message = f"{recipe} is for the {part} {about[part]}, but the build is for {built}"
            raise RecipeError(message, "use a recipe for the same task, model, data and device")
    return document


def _nothing(recipe: Path) -> RecipeError:
    return RecipeError(f"{recipe} sets no budgets, so there is nothing to check", "use a recipe with budgets")


def _recorded(path: Path, build: Build) -> Document:
    recipe = build.recipe
    return Document(file=str(path), data={**recipe, "waivers": tuple(recipe.get("waivers", ()))}, lines={})


def _change(document: Document, text: str, option: str = "--set") -> None:
    part = text.partition("=")[0].partition(".")[0].partition("[")[0]
    if part not in _PARTS:
        raise RecipeError(f"--set {text}: what was built cannot be changed, only {' and '.join(_PARTS)}", _HINT)
    override(document, text)
    if option != "--set":
        document.came_from(option, ("budgets", "relative", "baseline"))


def _set_baseline(document: Document, baseline: str) -> None:
    budgets = document.data.get("budgets")
    if isinstance(budgets, dict) and not budgets.get("relative"):
        raise RecipeError(
            "--baseline needs a relative budget, and there is none", "add one: --set 'budgets.relative={size: 2 %}'"
        )
    _change(document, f"budgets.relative.baseline={json.dumps(baseline)}", "--baseline")


def _read(document: Document, build: Build, recorded: str) -> tuple[tuple[Budget, ...], tuple[Waiver, ...]]:
    """Return the budgets and waivers of a recipe; the `recorded` baseline need not exist any more.

    Raises ConfigError.
    """
    data = document.data
    for part, kind in zip(_PARTS, (dict, tuple), strict=True):
        if not isinstance(data.get(part, kind()), kind):
            document.problem((part,), f"expected {'a mapping (key: value)' if kind is dict else 'a list'}")
    formats = [_name(each) for each in build.recipe.get("export", ())]
    budgets = read_budgets(document, data.get("budgets"), formats, recorded=recorded)
    waivers = read_waivers(document, data.get("waivers"), budgets, formats)
    document.raise_problems()
    return budgets, waivers


def _about(recipe: Mapping[str, Any]) -> dict[str, str]:
    """Return what a recipe is for, one word per part; parts that it does not state are left out."""
    return {part: _word(recipe[part]) for part in ("task", "model", "data", "device") if part in recipe}


def _word(value: Any) -> str:
    """Return the name of a plugin with its main value, or the name of a file.

    >>> _word({"torchvision": "resnet18", "width": "50 %"}), _word({"digits": {"size": 32}}), _word("devices/host.yaml")
    ('torchvision resnet18', 'digits', 'host')
    """
    if not isinstance(value, Mapping):
        return Path(str(value)).name.removesuffix(".yaml").removesuffix(".yml")
    name, chosen = next(iter(value.items()), ("", None))
    return str(name) if chosen is None or isinstance(chosen, Mapping) else f"{name} {chosen}"


def _name(exporter: Any) -> str:
    return str(next(iter(exporter))) if isinstance(exporter, dict) else str(exporter)


def _as_before(verdict: Verdict, build: Build, file: str) -> Verdict:
    """Return the verdict with the place of its limit and the found difference from the original build."""
    known = (each for each in build.verdicts if (each.budget, each.artifact) == (verdict.budget, verdict.artifact))
    before = next(known, None)
    if before is None:
        return verdict
    place = before.place if verdict.place.startswith(file) else verdict.place
    explained = verdict.metric in EXPLAINED and verdict.outcome == before.outcome == "fail"
    found = [each for each in before.reason.split("; ") if explained and not each.startswith(EXPIRED)]
    return verdict.because("; ".join(found), place=place)
