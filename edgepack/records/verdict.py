"""Define Verdict: the result of the gate for one budget."""

from dataclasses import dataclass
from typing import Any, Literal

from edgepack.core.errors import ExitCode
from edgepack.core.frozen import Frozen
from edgepack.core.metrics import Evidence, Level

Outcome = Literal["pass", "fail", "inconclusive", "not_measured", "not_comparable", "waived"]

_CODES = {
    "fail": ExitCode.BUDGET,
    "inconclusive": ExitCode.INCONCLUSIVE,
    "not_measured": ExitCode.INCONCLUSIVE,
    "not_comparable": ExitCode.INCONCLUSIVE,
}


@dataclass(frozen=True, kw_only=True)
class Base:
    """A value of the baseline and its build. `same`: from the same file, device, protocol and versions."""

    value: float
    low: float
    high: float
    told: str
    same: bool = False


@dataclass(frozen=True, kw_only=True)
class NoBase:
    """Why there is no baseline value. At the beginning of a series this is not a failure."""

    reason: str
    beginning: bool = False


class Verdict(Frozen):
    """One budget applied to one artifact, in the metric's base unit. `headroom` is the share of the limit that is left.

    A latency of 1.5 ms with a limit of 2 ms passes with a headroom of 0.25; 2.4 ms fails with -0.2. A relative budget
    allows a change of `relative` from `baseline`: 5 % above 2 ms gives a limit of 2.1 ms; the limit is None if there is
    no baseline.
    """

    budget: str
    metric: str
    artifact: str
    bound: str
    limit: float | None
    value: float | None
    outcome: Outcome
    headroom: float | None
    place: str  # place of the limit: recipes/x.yaml:31
    reason: str = ""
    level: Level = "error"  # missed budgets of other levels are reported, but do not fail
    evidence: Evidence | None = None  # evidence of the weakest figure used for the value
    relative: float | None = None
    baseline: float | None = None
    against: str = ""  # build that the baseline's value comes from
    looked_up: Base | NoBase | None = None  # all of it, to judge again without the baseline
    waived: str = ""  # until when and why, if the budget was not met

    @property
    def code(self) -> ExitCode:
        return _CODES.get(self.outcome, ExitCode.OK) if self.level == "error" else ExitCode.OK

    def because(self, reason: str, **update: Any) -> "Verdict":
        """Return the verdict with one more reason."""
        return self.model_copy(update={"reason": "; ".join(filter(None, (self.reason, reason))), **update})
