"""What can be measured of an exported file, and the limits a recipe sets on it.

    budgets:
      size: 600 kB                                       # the metric's first bound, of every exported file
      accuracy: {min: 95 %, max_drop: 1 %, retain: 98 %} # its own minimum, and against the teacher's
      latency.p50: {max: 2 ms, onnx: 3 ms}               # another limit for the file of one exporter
      latency.load: {max: 150 ms, level: warn}           # said, but no failure
      latency.p99: {max: 8 ms, evidence: estimated}      # an estimate will do
      relative: {baseline: last, latency.p50: 5 %}       # against an earlier build
    waivers:
      - {budget: latency.p50, until: 2027-01-31, reason: "the new head, see issue 12"}

A setting of one bound alone is written in its place: `max_drop: {limit: 1 %, level: warn}`. `plain` writes budgets so.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema

from edgepack.benchmark import Evidence
from edgepack.config import Document, Frozen, KeyPath, unknown
from edgepack.units import DURATION, NUMBER, SHARE, SIZE, Quantity

Level = Literal["error", "warn", "info"]

LAST = "last"  # the baseline: the last passing build of the same recipe and device
FROM_BELOW = ("min", "retain", "max_decrease")  # bounds that the figure must not fall under
AGAINST_TEACHER = ("max_drop", "retain")
_RELATIVE = "relative"
_OPTIONS: dict[str, tuple[str, ...]] = {"level": get_args(Level), "evidence": get_args(Evidence)}


@dataclass(frozen=True, kw_only=True)
class Metric:
    """Something measured on every exported file, and the ways a budget may bound it (the first is the default).

    `within` says what two figures of it must share to be compared: the device and protocol, the data, or nothing.
    """

    quantity: Quantity
    meaning: str
    bounds: tuple[str, ...] = ("max",)
    evidence: Evidence = "estimated"  # the least that a budget accepts unless it says otherwise
    within: Literal["device", "data", ""] = ""
    formats: tuple[str, ...] = ()  # whose files it is measured of; default: all

    def bounds_of(self, relative: bool) -> tuple[str, ...]:
        return (("max_decrease" if self.bounds[0] == "min" else "max_increase"),) if relative else self.bounds


def _timed(meaning: str) -> Metric:
    return Metric(quantity=DURATION, meaning=meaning, evidence="measured", within="device")


def _agreement(meaning: str, quantity: Quantity = SHARE, bound: str = "min") -> Metric:
    return Metric(quantity=quantity, bounds=(bound,), meaning=meaning, within="data")


METRICS: dict[str, Metric] = {
    "size": Metric(quantity=SIZE, meaning="bytes of the exported file"),
    "size.deploy": Metric(quantity=SIZE, meaning="bytes of the file and of what an app ships beside it"),
    "size.download": Metric(quantity=SIZE, meaning="the same, each file compressed for download (deflate)"),
    "latency.p50": _timed("median time of one inference"),
    "latency.p90": _timed("90th percentile of one inference"),
    "latency.p99": _timed("99th percentile of one inference"),
    "latency.load": _timed("time to load the file, page cache warm"),
    "latency.first": _timed("time of the first inference after loading"),
    "memory.peak": Metric(
        quantity=SIZE,
        meaning="peak memory above the runtime's own, load included",
        evidence="measured",
        within="device",
    ),
    "memory.arena": Metric(
        quantity=SIZE, meaning="memory planned for activations outside of backends", formats=("executorch",)
    ),
    "accuracy": Metric(
        quantity=SHARE,
        bounds=("min", "max_drop", "retain"),
        meaning="share of test samples classified right",
        within="data",
    ),
    "parity": _agreement("share of test samples on which it agrees with torch"),
    "parity.difference": _agreement("largest difference of an output from torch's", NUMBER, "max"),
    "parity.cosine": _agreement("cosine between all its outputs and torch's", NUMBER),
    "parity.runtimes": _agreement("share of test samples on which it agrees with the first file"),
    "delegation": Metric(
        quantity=SHARE, bounds=("min",), meaning="share of operators that a backend runs", formats=("executorch",)
    ),
}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """One limit on one metric, in the metric's base unit (bytes, ms, share); that of `max_increase` is a share.

    A relative budget is one that is held `against` a baseline: "last", or the path of a build or bundle.
    """

    metric: str
    bound: str  # max | min | max_drop | retain | max_increase | max_decrease
    limit: float
    place: str  # file:line, for whoever has to change it
    runtime: str = ""  # the exporter whose file alone it is about; default: all that have no limit of their own
    level: Level = "error"
    evidence: Evidence | None = None  # the least it accepts; default: as the metric says
    against: str = ""

    @property
    def name(self) -> str:
        """As waivers and reports call it: "latency.p50", "accuracy.max_drop", "relative.size"."""
        if self.against:
            return f"{_RELATIVE}.{self.metric}"
        return self.metric if self.bound == METRICS[self.metric].bounds[0] else f"{self.metric}.{self.bound}"

    @property
    def quantity(self) -> Quantity:
        """What its limit is written in."""
        return quantity_of(self.metric, self.bound)

    def accepts(self, evidence: str) -> bool:
        order = get_args(Evidence)  # the best first
        return order.index(evidence) <= order.index(self.evidence or METRICS[self.metric].evidence)

    def about(self, label: str, budgets: "Iterable[Budget]") -> bool:
        """Whether the file of this label is held to it, and not to another of `budgets` in its place."""
        if self.runtime:
            return self.runtime == label
        own = any((each.name, each.runtime) == (self.name, label) for each in budgets)
        return not own and label in (METRICS[self.metric].formats or (label,))


def binding(budgets: "Iterable[Budget]", metrics: Iterable[str]) -> "tuple[Budget, ...]":
    """The absolute budgets on these metrics that fail a build: what a stage may go by."""
    wanted = {*metrics}
    return tuple(each for each in budgets if each.metric in wanted and each.level == "error" and not each.against)


def strictest(budgets: "Iterable[Budget]", metric: str, bound: str) -> float | None:
    """The smallest such limit, if there is any."""
    return min((each.limit for each in binding(budgets, [metric]) if each.bound == bound), default=None)


# Waivers


def _day(value: object) -> date:
    """A day, as YAML or a text gives it. Raises ValueError."""
    try:
        return value if type(value) is date else date.fromisoformat(str(value))
    except ValueError:
        raise ValueError(f"expected a day, written as 2027-01-31, got {value!r}") from None


Day = Annotated[
    date,
    BeforeValidator(_day),
    PlainSerializer(date.isoformat, when_used="json"),
    WithJsonSchema({"type": "string", "description": "the last day on which it holds, as 2027-01-31"}),
]


class Waiver(Frozen):
    """Lets a budget be missed until a day, the last one on which it holds."""

    budget: str = Field(description="its name, as reports call it: latency.p90, accuracy.max_drop, relative.size")
    until: Day
    reason: str = Field(min_length=1, description="why, for whoever reads the report")
    runtime: str = Field(default="", description="of the file of this exporter alone")

    def covers(self, budget: str, label: str) -> bool:
        return self.budget == budget and self.runtime in ("", label)


def read_waivers(
    document: Document, value: object, budgets: Sequence[Budget], formats: Sequence[str] = ()
) -> tuple[Waiver, ...]:
    """The waivers of a recipe that exports `formats`; every mistake in them is noted in the document."""
    found = []
    allowed = {"budget": {budget.name for budget in budgets}, "runtime": {*formats, ""}}
    for i, item in enumerate(value if isinstance(value, tuple) else ()):
        waiver = document.check(Waiver, item, ("waivers", i))
        for key, known in allowed.items() if waiver else ():
            if getattr(waiver, key) not in known:
                document.problem(("waivers", i, key), unknown(key, getattr(waiver, key), known - {""}))
        found += [waiver] if waiver else []
    return tuple(found)


# Reading


class _Missing:
    """The limit of a mapping that has none."""


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """One limit as it is written, with what surrounds it."""

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
    """What holds for every limit inside a mapping."""

    formats: tuple[str, ...]
    against: str = ""
    runtime: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def bounds(self, metric: str) -> tuple[str, ...]:
        return METRICS[metric].bounds_of(bool(self.against)) if metric in METRICS else ()

    def within(self, **changes: Any) -> "_Scope":
        return _Scope(**{**vars(self), **changes})


def read_budgets(
    document: Document, value: object, formats: Sequence[str] = (), recorded: str = LAST
) -> tuple[Budget, ...]:
    """The budgets of a recipe that exports `formats`; every mistake in them is noted in the document.

    Of the baseline that was `recorded` all is known: it need not be there.
    """
    if not isinstance(value, dict):
        return ()
    scope = _Scope(formats=tuple(formats))
    absolute = {key: item for key, item in value.items() if key != _RELATIVE}
    entries = [*_flatten(document, absolute, ("budgets",), "", scope)]
    if _RELATIVE in value:
        entries += _relative(document, value[_RELATIVE], scope, recorded)
    found: dict[tuple[str, ...], Budget] = {}
    for entry in entries:
        budget = _checked(document, entry)
        if budget and entry.key in found:
            document.problem(entry.path, f"the budget '{budget.name}' is given twice")
        elif budget:
            found[entry.key] = budget
    return tuple(found.values())


def _relative(document: Document, value: object, scope: _Scope, recorded: str) -> list[_Entry]:
    path: KeyPath = ("budgets", _RELATIVE)
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
    """The limits of `latency.p50: 2 ms`, `latency: {p50: 2 ms}`, `accuracy: {min: 95 %}`, `size: {onnx: 1 MB}`."""
    if prefix in METRICS:
        scope = scope.within(options=_options(document, budgets, path, scope))
    _check_limits(document, budgets, path, {*_OPTIONS} if prefix in METRICS else set())
    for key, value in budgets.items():
        name, here = f"{prefix}.{key}" if prefix else key, (*path, key)
        metric, _, bound = name.rpartition(".")
        if prefix in METRICS and key in _OPTIONS:
            continue
        if prefix in METRICS and key in scope.formats and not scope.runtime:
            inner = value if isinstance(value, dict) else {scope.bounds(prefix)[0]: value}
            yield from _flatten(document, inner, here, prefix, scope.within(runtime=key))
        elif key in scope.bounds(prefix):
            yield _bounded(document, value, here, prefix, key, scope)
        elif name not in METRICS and bound in scope.bounds(metric):
            yield _bounded(document, value, here, metric, bound, scope)
        elif isinstance(value, dict) and _begins_a_metric(name) and not scope.runtime:
            yield from _flatten(document, value, here, name, scope)
        elif prefix in METRICS and (name not in METRICS or scope.runtime):
            yield _Entry(path=here, metric=prefix, bound=key, limit=value, scope=scope)
        else:
            default = (scope.bounds(name) or ("",))[0]
            yield _Entry(path=here, metric=name, bound=default, limit=value, scope=scope)


def _check_limits(document: Document, budgets: Mapping[str, Any], path: KeyPath, settings: set[str]) -> None:
    """A mapping that holds at most settings would be a budget that nobody ever judges."""
    if path != ("budgets",) and not budgets.keys() - settings:
        document.problem(path, "no limit stands here, so nothing would be judged")


def _bounded(document: Document, value: object, path: KeyPath, metric: str, bound: str, scope: _Scope) -> _Entry:
    """A limit, or {limit: ..., level: ...} where it alone has a setting."""
    if isinstance(value, dict):
        for key in value.keys() - {"limit", *_OPTIONS}:
            document.problem((*path, key), unknown("key", key, ("limit", *_OPTIONS)))
        scope = scope.within(options=_options(document, value, path, scope))
        if "limit" not in value:
            document.problem(path, "the key 'limit' is missing")
        value = value.get("limit", _Missing)
    return _Entry(path=path, metric=metric, bound=bound, limit=value, scope=scope)


def _options(document: Document, value: Mapping[str, Any], path: KeyPath, scope: _Scope) -> dict[str, Any]:
    """The settings in force inside this mapping."""
    options = dict(scope.options)
    for key, allowed in _OPTIONS.items():
        if key in value and value[key] in allowed:
            options[key] = value[key]
        elif key in value:
            document.problem((*path, key), unknown(key, value[key], allowed))
    return options


def _checked(document: Document, entry: _Entry) -> Budget | None:
    if entry.limit is _Missing:  # that is told already
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


def _begins_a_metric(name: str) -> bool:
    return any(metric == name or metric.startswith(f"{name}.") for metric in METRICS)


def quantity_of(metric: str, bound: str) -> Quantity:
    """What a limit is written in."""
    return SHARE if bound in ("max_increase", "retain") else METRICS[metric].quantity


def _mistake(entry: _Entry) -> str:
    metric, bound, scope = entry.metric, entry.bound, entry.scope
    if metric not in METRICS:
        known = (*METRICS, *(() if scope.against else (_RELATIVE,)))
        return unknown("budget", metric, known).replace("unknown budget", "nothing measures a budget")
    if bound not in scope.bounds(metric):
        inner = [name.removeprefix(f"{metric}.") for name in METRICS if name.startswith(f"{metric}.")]
        outside = () if scope.runtime else (*inner, *scope.formats)
        return unknown("key", bound, [*scope.bounds(metric), *_OPTIONS, *outside])
    if message := _unmeasured(metric, scope):
        return message
    quantity = quantity_of(metric, bound)
    try:
        value = quantity.parse(entry.limit)
    except ValueError as error:
        return str(error)
    if value < 0:
        return f"a limit cannot be below 0, got {entry.limit!r}"
    whole = quantity is SHARE and bound != "max_increase" and value > 1
    return f"a share cannot be above 100 %, got {entry.limit!r}" if whole else ""


def _unmeasured(metric: str, scope: _Scope) -> str:
    """Why no file of this recipe can have such a figure, or ""."""
    if metric == "parity.runtimes" and len(scope.formats) > 1 and scope.runtime == scope.formats[0]:
        others = " or ".join(scope.formats[1:])
        return f"nothing measures it: {scope.runtime} is the file that the others are compared with; limit {others}"
    formats = METRICS[metric].formats
    asked = (scope.runtime,) if scope.runtime else scope.formats
    if not formats or not asked or {*formats} & {*asked}:
        return ""
    return f"nothing measures it: only files of {' and '.join(formats)} tell their {metric}"


# Writing


def plain(budgets: Sequence[Budget]) -> dict[str, Any]:
    """The budgets as a recipe spells them out."""
    result: dict[str, Any] = {}
    for budget in budgets:
        outer = result
        if budget.against:
            outer = result.setdefault(_RELATIVE, {"baseline": budget.against})
        inner = outer.setdefault(budget.metric, {})
        if budget.runtime:
            inner = inner.setdefault(budget.runtime, {})
        inner[budget.bound] = _written(budget)
    return result


def _written(budget: Budget) -> str | dict[str, str]:
    limit = budget.quantity.exact(budget.limit)
    told = {"level": budget.level if budget.level != "error" else None, "evidence": budget.evidence}
    options = {key: str(value) for key, value in told.items() if value}
    return {"limit": limit, **options} if options else limit


def schema(formats: Iterable[str]) -> dict[str, Any]:
    """The JSON schema of `budgets`, for a recipe that may export any of `formats`."""
    absolute, relative = _group(formats, relative=False), _group(formats, relative=True)
    baseline = {"type": "string", "description": "'last' passing build, a build.json, or a bundle", "default": LAST}
    relative["properties"]["baseline"] = baseline
    absolute["properties"][_RELATIVE] = relative
    return absolute


def _group(formats: Iterable[str], *, relative: bool) -> dict[str, Any]:
    formats = tuple(formats)
    properties: dict[str, Any] = {name: {"anyOf": _metric_schema(name, formats, relative)} for name in METRICS}
    for name in METRICS:  # `accuracy.max_drop: 1 %` is another spelling, and so is `latency: {p50: 2 ms}`
        group, _, inner = name.rpartition(".")
        if group in METRICS:
            properties[group]["anyOf"][-1]["properties"][inner] = properties[name]
        elif group:
            whole = {"type": "object", "properties": {}, "additionalProperties": False}
            properties.setdefault(group, whole)["properties"][inner] = properties[name]
        for bound in METRICS[name].bounds_of(relative):
            properties.setdefault(f"{name}.{bound}", {"anyOf": _bound_schema(name, bound)})
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _metric_schema(name: str, formats: tuple[str, ...], relative: bool) -> list[dict[str, Any]]:
    """A limit, or a mapping: of bounds, of settings, and of exporters to the same again."""
    bounds = {bound: {"anyOf": _bound_schema(name, bound)} for bound in METRICS[name].bounds_of(relative)}
    options = {key: {"enum": list(allowed)} for key, allowed in _OPTIONS.items()}
    inside = {"type": "object", "properties": {**bounds, **options}, "additionalProperties": False}
    limit = _limit_schema(name, next(iter(bounds)))
    own = {format: {"anyOf": [*limit, inside]} for format in formats}
    return [*limit, {**inside, "properties": {**bounds, **options, **own}}]


def _bound_schema(name: str, bound: str) -> list[dict[str, Any]]:
    limit = _limit_schema(name, bound)
    options = {key: {"enum": list(allowed)} for key, allowed in _OPTIONS.items()}
    inside = {"limit": {"anyOf": limit}, **options}
    return [*limit, {"type": "object", "properties": inside, "required": ["limit"], "additionalProperties": False}]


def _limit_schema(name: str, bound: str) -> list[dict[str, Any]]:
    quantity = quantity_of(name, bound)
    told = {"description": f"{METRICS[name].meaning}; {quantity.name}, as {quantity.example}"}
    return [{"type": kind, **told} for kind in (("number", "string") if quantity is NUMBER else ("string",))]
