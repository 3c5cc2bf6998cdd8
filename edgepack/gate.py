"""Budgets x Measurements -> Verdicts. Pure: it runs no model and reads no file.

What was not measured never passes, and a figure whose interval straddles its limit is neither a pass nor a fail.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from edgepack.benchmark import Measurement
from edgepack.budgets import METRICS, Budget
from edgepack.config import Frozen
from edgepack.errors import ExitCode

Outcome = Literal["pass", "fail", "inconclusive", "not_measured", "waived"]

_CODES = {"fail": ExitCode.BUDGET, "inconclusive": ExitCode.INCONCLUSIVE, "not_measured": ExitCode.INCONCLUSIVE}


class Verdict(Frozen):
    """One budget held against one artifact, in the metric's base unit. `headroom` is the share of the limit left.

    A latency of 1.5 ms under a limit of 2 ms passes with a headroom of 0.25; one of 2.4 ms fails with -0.2.
    """

    budget: str
    metric: str
    artifact: str
    bound: str
    limit: float
    value: float | None
    outcome: Outcome
    headroom: float | None
    place: str  # where the limit is written: recipes/x.yaml:31
    reason: str = ""

    @property
    def code(self) -> ExitCode:
        return _CODES.get(self.outcome, ExitCode.OK)


def judge(
    budgets: Sequence[Budget],
    artifacts: Sequence[str],
    measurements: Sequence[Measurement],
    not_run: Mapping[str, str] = {},
) -> tuple[Verdict, ...]:
    """Every budget against every artifact label in `artifacts`. Teachers are labelled "teacher (<format>)".

    `not_run` says why the runtime at hand could not run a file.
    """
    known = {(each.metric, each.artifact): each for each in measurements}
    return tuple(
        _verdict(budget, artifact, known, _unmeasured(budget, artifact, artifacts[0], not_run))
        for budget in budgets
        # Runtimes are compared with the first one, which has nothing to be compared with itself.
        for artifact in (artifacts[1:] or artifacts if budget.metric == "parity.runtimes" else artifacts)
    )


def _unmeasured(budget: Budget, artifact: str, first: str, not_run: Mapping[str, str]) -> str:
    if artifact in not_run:
        return f"not run here: {not_run[artifact]}"
    if budget.metric == "parity.runtimes" and first in not_run:
        return f"{first} was not run here: {not_run[first]}"
    return f"nothing measured {budget.metric} of {artifact}"


def _verdict(budget: Budget, artifact: str, known: dict[tuple[str, str], Measurement], reason: str) -> Verdict:
    """`reason` is why there is no measurement, should there be none."""
    figures = _figures(budget, artifact, known)
    value = low = high = headroom = None
    outcome: Outcome = "not_measured"
    if figures is not None:
        value, low, high = figures
        outcome, headroom = compare(budget.bound, budget.limit, low, high), _headroom(budget, value)
        reason = _reason(budget, outcome, low, high)
    return Verdict(
        budget=budget.name,
        metric=budget.metric,
        artifact=artifact,
        bound=budget.bound,
        limit=budget.limit,
        value=value,
        outcome=outcome,
        headroom=headroom,
        place=budget.place,
        reason=reason,
    )


def compare(bound: str, limit: float, low: float, high: float) -> Outcome:
    """Where the interval lies: wholly within the limit, wholly beyond it, or across.

    >>> compare("max", 2.0, 1.5, 1.9), compare("max", 2.0, 1.9, 2.1), compare("min", 0.95, 0.90, 0.94)
    ('pass', 'inconclusive', 'fail')
    """
    within, beyond = (low >= limit, high < limit) if bound == "min" else (high <= limit, low > limit)
    return "pass" if within else "fail" if beyond else "inconclusive"


def _figures(
    budget: Budget, artifact: str, known: dict[tuple[str, str], Measurement]
) -> tuple[float, float, float] | None:
    found = known.get((budget.metric, artifact))
    if found is None or budget.bound != "max_drop":
        return (found.value, found.low, found.high) if found else None
    teacher = known.get((budget.metric, f"teacher ({artifact})"))
    if teacher is None:
        return None
    # Rounded: a drop of exactly 1 % must not fail by the last bit of a subtraction.
    value, low, high = teacher.value - found.value, teacher.low - found.high, teacher.high - found.low
    return round(value, 12), round(low, 12), round(high, 12)


def _headroom(budget: Budget, value: float) -> float | None:
    if budget.limit == 0:
        return None
    share = (budget.limit - value) / budget.limit
    return -share if budget.bound == "min" else share


def _reason(budget: Budget, outcome: Outcome, low: float, high: float) -> str:
    if outcome != "inconclusive":
        return ""
    show = METRICS[budget.metric].quantity.format
    return f"the 95 % interval [{show(low)}, {show(high)}] straddles the limit {show(budget.limit)}"
