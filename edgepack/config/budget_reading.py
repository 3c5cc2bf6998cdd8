"""Budgets and waivers as a recipe writes them -> Budget, Waiver; every mistake with its place."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgepack.config import plugins
from edgepack.config.budgets import LAST, OPTIONS, RELATIVE, Budget, Waiver
from edgepack.config.document import Document, KeyPath, unknown
from edgepack.config.plugins import Choice
from edgepack.core.metrics import METRICS, OF_EVERY_FILE, OF_GENERATION, define, quantity_of
from edgepack.core.units import SHARE


def read_waivers(
    document: Document, value: object, budgets: Sequence[Budget], formats: Sequence[str] = ()
) -> tuple[Waiver, ...]:
    """Return the waivers of a recipe that exports `formats`; every mistake is noted in the document."""
    found = []
    allowed = {"budget": {budget.name for budget in budgets}, "runtime": {*formats, ""}}
    for i, item in enumerate(value if isinstance(value, tuple) else ()):
        waiver = document.check(Waiver, item, ("waivers", i))
        for key, known in allowed.items() if waiver else ():
            if getattr(waiver, key) not in known:
                document.problem(("waivers", i, key), unknown(key, getattr(waiver, key), known - {""}))
        found += [waiver] if waiver else []
    return tuple(found)


class _Missing:
    """Stands for the limit in a mapping that gives none."""


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """One limit as written, with the settings around it."""

    path: KeyPath
    metric: str
    bound: str
    limit: object
    scope: "_Scope"

    @property
    def key(self) -> tuple[str, ...]:
        return self.metric, self.bound, self.scope.runtime, self.scope.against


@dataclass(frozen=True, kw_only=True)
class _Scope:
    """Settings that apply to every limit inside a mapping."""

    formats: tuple[str, ...]
    metrics: frozenset[str]
    against: str = ""
    runtime: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def bounds(self, metric: str) -> tuple[str, ...]:
        return METRICS[metric].bounds_of(bool(self.against)) if metric in self.metrics else ()

    def within(self, **changes: Any) -> "_Scope":
        return _Scope(**{**vars(self), **changes})


def read_budgets(
    document: Document,
    value: object,
    formats: Sequence[str] = (),
    task: Choice | None = None,
    recorded: str = LAST,
) -> tuple[Budget, ...]:
    """Return the budgets of a recipe that exports `formats`; every mistake is noted in the document.

    Without a task, because it is unknown, the metrics of any are allowed.

    The `recorded` baseline need not exist as a file: its values are already known.
    """
    if not isinstance(value, dict):
        return ()
    scope = _Scope(formats=tuple(formats), metrics=_allowed(task))
    absolute = {key: item for key, item in value.items() if key != RELATIVE}
    entries = [*_flatten(document, absolute, ("budgets",), "", scope)]
    if RELATIVE in value:
        entries += _relative(document, value[RELATIVE], scope, recorded)
    found: dict[tuple[str, ...], Budget] = {}
    for entry in entries:
        budget = _checked(document, entry)
        if budget and entry.key in found:
            document.problem(entry.path, f"the budget '{budget.name}' is given twice")
        elif budget:
            found[entry.key] = budget
    return tuple(found.values())


def _relative(document: Document, value: object, scope: _Scope, recorded: str) -> list[_Entry]:
    path: KeyPath = ("budgets", RELATIVE)
    if not isinstance(value, dict):
        document.problem(path, "expected a mapping: {baseline: last, latency.p50: 5 %}")
        return []
    baseline = value.get("baseline", LAST)
    if not isinstance(baseline, str) or not (baseline in (LAST, recorded) or Path(baseline).exists()):
        message = f"there is no {baseline!r}: name a build.json, a bundle, or 'last' for the last build that passed"
        document.problem((*path, "baseline"), message)
        baseline = LAST
    limits = {key: item for key, item in value.items() if key != "baseline"}
    return [*_flatten(document, limits, path, "", scope.within(against=baseline))]


def _flatten(
    document: Document, budgets: Mapping[str, Any], path: KeyPath, prefix: str, scope: _Scope
) -> Iterator[_Entry]:
    """Yield limits: `latency.p50: 2 ms`, `latency: {p50: 2 ms}`, `accuracy: {min: 95 %}`, `size: {onnx: 1 MB}`."""
    if prefix in scope.metrics:
        scope = scope.within(options=_options(document, budgets, path, scope))
    _check_limits(document, budgets, path, {*OPTIONS} if prefix in scope.metrics else set())
    for key, value in budgets.items():
        name, here = f"{prefix}.{key}" if prefix else key, (*path, key)
        metric, _, bound = name.rpartition(".")
        if prefix in scope.metrics and key in OPTIONS:
            continue
        if prefix in scope.metrics and key in scope.formats and not scope.runtime:
            inner = value if isinstance(value, dict) else {scope.bounds(prefix)[0]: value}
            yield from _flatten(document, inner, here, prefix, scope.within(runtime=key))
        elif key in scope.bounds(prefix):
            yield _bounded(document, value, here, prefix, key, scope)
        elif name not in scope.metrics and bound in scope.bounds(metric):
            yield _bounded(document, value, here, metric, bound, scope)
        elif isinstance(value, dict) and _begins_a_metric(name, scope) and not scope.runtime:
            yield from _flatten(document, value, here, name, scope)
        elif prefix in scope.metrics and (name not in scope.metrics or scope.runtime):
            yield _Entry(path=here, metric=prefix, bound=key, limit=value, scope=scope)
        else:
            default = (scope.bounds(name) or ("",))[0]
            yield _Entry(path=here, metric=name, bound=default, limit=value, scope=scope)


def _check_limits(document: Document, budgets: Mapping[str, Any], path: KeyPath, settings: set[str]) -> None:
    """Note a mistake if a mapping has settings but no limit: such a budget would never be judged."""
    if path != ("budgets",) and not budgets.keys() - settings:
        document.problem(path, "no limit given: add a limit or remove the budget")


def _bounded(document: Document, value: object, path: KeyPath, metric: str, bound: str, scope: _Scope) -> _Entry:
    """Return an entry from a limit, or from {limit: ..., level: ...} where this bound has its own settings."""
    if isinstance(value, dict):
        for key in value.keys() - {"limit", *OPTIONS}:
            document.problem((*path, key), unknown("key", key, ("limit", *OPTIONS)))
        scope = scope.within(options=_options(document, value, path, scope))
        if "limit" not in value:
            document.problem(path, "the key 'limit' is missing")
        value = value.get("limit", _Missing)
    return _Entry(path=path, metric=metric, bound=bound, limit=value, scope=scope)


def _options(document: Document, value: Mapping[str, Any], path: KeyPath, scope: _Scope) -> dict[str, Any]:
    """Return the settings that apply inside this mapping."""
    options = dict(scope.options)
    for key, allowed in OPTIONS.items():
        if key in value and value[key] in allowed:
            options[key] = value[key]
        elif key in value:
            document.problem((*path, key), unknown(key, value[key], allowed))
    return options


def _checked(document: Document, entry: _Entry) -> Budget | None:
    if entry.limit is _Missing:  # already reported
        return None
    if message := _mistake(entry):
        document.problem(entry.path, message)
        return None
    return Budget(
        metric=entry.metric,
        bound=entry.bound,
        limit=quantity_of(entry.metric, entry.bound).parse(entry.limit),
        place=document.place(entry.path),
        runtime=entry.scope.runtime,
        against=entry.scope.against,
        **entry.scope.options,
    )


def _begins_a_metric(name: str, scope: _Scope) -> bool:
    return any(metric == name or metric.startswith(f"{name}.") for metric in scope.metrics)


def _mistake(entry: _Entry) -> str:
    metric, bound, scope = entry.metric, entry.bound, entry.scope
    if metric not in scope.metrics:
        if tasks := _tasks_with(metric):
            own = ", ".join(each for each in METRICS if each in scope.metrics - OF_EVERY_FILE)
            return f"{metric} is a metric of {' and '.join(tasks)}; this recipe's task has {own}"
        known = (*(each for each in METRICS if each in scope.metrics), *(() if scope.against else (RELATIVE,)))
        return unknown("budget", metric, known).replace("unknown budget", "nothing measures a budget")
    if bound not in scope.bounds(metric):
        inner = [name.removeprefix(f"{metric}.") for name in scope.metrics if name.startswith(f"{metric}.")]
        outside = () if scope.runtime else (*inner, *scope.formats)
        return unknown("key", bound, [*scope.bounds(metric), *OPTIONS, *outside])
    if message := _unmeasured(metric, scope):
        return message
    quantity = quantity_of(metric, bound)
    try:
        value = quantity.parse(entry.limit)
    except ValueError as error:
        return str(error)
    if value < 0:
        return f"a limit cannot be below 0, got {entry.limit!r}"
    whole = quantity is SHARE and bound not in ("max_increase", "max_rise") and value > 1
    return f"a percentage cannot be above 100 %, got {entry.limit!r}" if whole else ""


def _unmeasured(metric: str, scope: _Scope) -> str:
    """Return why no file of this recipe can have this metric, or ""."""
    if metric == "parity.runtimes" and len(scope.formats) > 1 and scope.runtime == scope.formats[0]:
        others = " or ".join(scope.formats[1:])
        return f"no limit possible: {scope.runtime} is the reference that other files are compared with; limit {others}"
    formats = METRICS[metric].formats
    asked = (scope.runtime,) if scope.runtime else scope.formats
    if not formats or not asked or {*formats} & {*asked}:
        return ""
    return f"not measured: only {' and '.join(formats)} files have {metric}"


def _allowed(task: Choice | None) -> frozenset[str]:
    """Return the metrics that a recipe may limit: those of every file and of its task; all, if that is unknown."""
    if task is None:
        return frozenset(METRICS)
    own = task.module.metrics(task.config)
    define(own)
    return OF_EVERY_FILE | {*own, *(OF_GENERATION if task.module.GENERATES else ())}


def _tasks_with(metric: str) -> list[str]:
    """Return the tasks that have a metric; those of a task that needs settings are not known without."""
    modules = {name: plugins.load("tasks", name) for name in plugins.names("tasks")}
    return [
        name
        for name, module in modules.items()
        if not any(field.is_required() for field in module.Config.model_fields.values())
        and metric in {**module.metrics(module.Config()), **(OF_GENERATION if module.GENERATES else {})}
    ]
