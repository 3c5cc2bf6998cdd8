"""Define what can be measured of an exported file, and the limits that a recipe sets.

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

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any, get_args

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema

from edgepack.core.frozen import Frozen
from edgepack.core.metrics import METRICS, Evidence, Level, quantity_of
from edgepack.core.units import Quantity

LAST = "last"  # name of the baseline: the last passing build of the same recipe and device
RELATIVE = "relative"
OPTIONS: dict[str, tuple[str, ...]] = {"level": get_args(Level), "evidence": get_args(Evidence)}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """One limit on one metric, in the metric's base unit (bytes, ms, share); for `max_increase` it is a share.

    A relative budget compares with a baseline, `against`: "last", or the path of a build or bundle.
    """

    metric: str
    bound: str  # max | min | max_drop | max_rise | retain | max_increase | max_decrease
    limit: float
    place: str  # file:line, where the limit can be changed
    runtime: str = ""  # exporter whose file it applies to; default: all files without their own limit
    level: Level = "error"
    evidence: Evidence | None = None  # weakest evidence that it accepts; default: the metric's
    against: str = ""

    @property
    def name(self) -> str:
        """Return the name used in waivers and reports: "latency.p50", "accuracy.max_drop", "relative.size"."""
        if self.against:
            return f"{RELATIVE}.{self.metric}"
        return self.metric if self.bound == METRICS[self.metric].bounds[0] else f"{self.metric}.{self.bound}"

    @property
    def quantity(self) -> Quantity:
        """Return the kind of quantity in which the limit is given."""
        return quantity_of(self.metric, self.bound)

    def accepts(self, evidence: str) -> bool:
        order = get_args(Evidence)  # the strongest first
        return order.index(evidence) <= order.index(self.evidence or METRICS[self.metric].evidence)

    def about(self, label: str, budgets: "Iterable[Budget]") -> bool:
        """Return whether it applies to the file with this label, and no budget for just that file replaces it."""
        if self.runtime:
            return self.runtime == label
        own = any((each.name, each.runtime) == (self.name, label) for each in budgets)
        return not own and label in (METRICS[self.metric].formats or (label,))


def binding(budgets: "Iterable[Budget]", metrics: Iterable[str]) -> "tuple[Budget, ...]":
    """Return the absolute budgets on these metrics that can fail a build: those that a stage may aim for."""
    wanted = {*metrics}
    return tuple(each for each in budgets if each.metric in wanted and each.level == "error" and not each.against)


def strictest(budgets: "Iterable[Budget]", metric: str, *bounds: str) -> float | None:
    """Return the smallest of these limits, or None if there is none."""
    return min((each.limit for each in binding(budgets, [metric]) if each.bound in bounds), default=None)


def _day(value: object) -> date:
    """Return the date from YAML or text. Raises ValueError."""
    try:
        return value if type(value) is date else date.fromisoformat(str(value))
    except ValueError:
        raise ValueError(f"expected a date such as 2027-01-31, got {value!r}") from None


Day = Annotated[
    date,
    BeforeValidator(_day),
    PlainSerializer(date.isoformat, when_used="json"),
    WithJsonSchema({"type": "string", "description": "last day of the waiver, such as 2027-01-31"}),
]


class Waiver(Frozen):
    """Permits a missed budget until and including a date."""

    budget: str = Field(description="budget name as in reports: latency.p90, accuracy.max_drop, relative.size")
    until: Day
    reason: str = Field(min_length=1, description="reason, shown in the report")
    runtime: str = Field(default="", description="only for the file of this exporter")

    def covers(self, budget: str, label: str) -> bool:
        return self.budget == budget and self.runtime in ("", label)


def plain(budgets: Sequence[Budget]) -> dict[str, Any]:
    """Return the budgets as written in a recipe."""
    result: dict[str, Any] = {}
    for budget in budgets:
        outer = result
        if budget.against:
            outer = result.setdefault(RELATIVE, {"baseline": budget.against})
        inner = outer.setdefault(budget.metric, {})
        if budget.runtime:
            inner = inner.setdefault(budget.runtime, {})
        inner[budget.bound] = _written(budget)
    return result


def _written(budget: Budget) -> str | dict[str, str]:
    limit = budget.quantity.exact(budget.limit)
    facts = {"level": budget.level if budget.level != "error" else None, "evidence": budget.evidence}
    options = {key: str(value) for key, value in facts.items() if value}
    return {"limit": limit, **options} if options else limit
