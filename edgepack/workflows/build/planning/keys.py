"""Compute the key of a step, and explain why two keys differ."""

from collections.abc import Iterable
from typing import Any

from edgepack.config import plugins
from edgepack.config.plugins import Choice
from edgepack.config.recipe import Recipe
from edgepack.config.user_code import references
from edgepack.core import provenance
from edgepack.core.files import file_digest
from edgepack.records.differences import Difference, differences


def reasons(before: Any, after: Any) -> list[str]:
    """Return why a step runs again: the changed ingredients, in words.

    >>> reasons({"config": {"ratio": "30 %"}}, {"config": {"ratio": "40 %"}})
    ['ratio 30 % -> 40 %']
    >>> reasons({"compute": {"features": "sse avx2"}}, {"compute": {"features": "sse avx2 avx512f"}})
    ['processor features +avx512f']
    """
    return [reason for each in differences(before, after) if (reason := _reason(each))]


def _reason(found: Difference) -> str:
    """Return one change in words, or "" if another reason covers it."""
    name = found.path[-1]
    if found.path[0] == "read":  # first or last read of a file is caused by another change
        return f"{name} changed" if found.before is not None and found.after is not None else ""
    if name == "features" and {"compute", "where"} & {*found.path}:
        return _features(str(found.before or ""), str(found.after or ""))
    return _PHRASES.get(name, found.describe(name))


_PHRASES = {
    "parent": "a step before it changed",
    "teacher": "",
    "reference": "",
    "files": "another file",
    "code": "the trainer's code changed",
    "task code": "the task's code changed",
    "data": "the data changed",
    "cut": "a split is cut differently",
}


def _features(before: str, after: str) -> str:
    """
    >>> _features("sse avx avx2", "sse avx avx512f")
    'processor features +avx512f -avx2'
    """
    had, has = ({*features.split()} for features in (before, after))
    changed = [*(f"+{each}" for each in sorted(has - had)), *(f"-{each}" for each in sorted(had - has))]
    shown = [*changed[:6], "and others"] if len(changed) > 6 else changed or ["in another order"]
    return " ".join(["processor features", *shown])


def plugin_facts(choice: Choice) -> dict[str, Any]:
    facts = {
        "plugin": choice.name,
        "version": choice.module.VERSION,
        "config": choice.plain(),
        "versions": provenance.versions(*provenance.CORE, *choice.module.LIBRARIES),
    }
    inner = {kind: inner_facts(kind, name) for kind, name in choice.module.uses(choice.config).items()}
    return {**facts, **inner}


def trains(stage: Choice) -> bool:
    """Return whether the stage trains anything."""
    return any(each.epochs for each in stage.config.trainings)


def trains_itself(stage: Choice) -> bool:
    """Return whether a user's own trainer works in the stage: it sets up processes and the like by itself."""
    return any(each.trainer for each in stage.config.trainings)


def trainer_facts(trainers: Iterable[str]) -> dict[str, Any]:
    """Return the code of a user's own trainers, and the versions of packages that it imports."""
    named = sorted({*trainers})
    if not named:
        return {}
    code = sorted(file_digest(file) for name in named for file in references.sources(name))
    return {
        "trainer": {"code": code, "versions": {k: v for name in named for k, v in references.libraries(name).items()}}
    }


def inner_facts(kind: str, name: str) -> dict[str, Any]:
    """Return the facts of a plugin that another plugin uses."""
    module = plugins.load(kind, name)
    return {"plugin": name, "version": module.VERSION, "versions": provenance.versions(*module.LIBRARIES)}


def data_fingerprint(data: Choice) -> str:
    return f"{data.name} {data.module.VERSION} {data.module.fingerprint(data.config)}"


def cut_facts(recipe: Recipe, parts: Iterable[str]) -> dict[str, Any]:
    """Return how many samples of these splits are used, if they are cut."""
    cut = {f"{part} samples": count for part, count in recipe.cuts.samples.items() if part in parts}
    return {"cut": cut} if cut else {}


def task_facts(task: Choice) -> dict[str, Any]:
    """Return what a task is: its settings, and a user's own code with the versions of packages that it imports."""
    settings = {"task settings": task.plain()} if task.plain() else {}
    code = sorted(map(file_digest, task.module.files(task.config)))
    own = {"task code": code, "task versions": task.module.installed(task.config)} if code else {}
    return {"task": task.name, "task version": task.module.VERSION, **settings, **own}


def files(models: Iterable[Choice]) -> list[str]:
    """Return the hashes of the models' files: another file under the same name is another model."""
    return [file_digest(path) for model in models for path in model.module.files(model.config)]


def installed(models: Iterable[Choice]) -> dict[str, str]:
    """Return the versions of packages that the user's model code imports."""
    return {name: version for model in models for name, version in model.module.installed(model.config).items()}


def libraries(stage: Choice, models: Iterable[Choice]) -> dict[str, str]:
    """Return the versions of the packages that make the models of a stage, and the optimizers of its trainings."""
    made = {library for model in models for library in model.module.LIBRARIES}
    trained = {library for each in stage.config.trainings for library in each.libraries}
    return {**provenance.versions(*made, *trained), **installed(models)}


def quantizer_of(exporter: Choice) -> str:
    """Return the quantizer for the int8 files of an exporter."""
    return str(exporter.module.quantizer(exporter.config))


def quantizer_facts(name: str) -> dict[str, Any]:
    return {"quantizer": inner_facts("quantizers", name)}
