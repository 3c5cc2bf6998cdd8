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
    """A figure of the baseline, and what it was taken of. `same`: of the same file, device, protocol and versions."""

    value: float
    low: float
    high: float
    told: str
    same: bool = False


@dataclass(frozen=True, kw_only=True)
class NoBase:
    """Why there is no such figure. At the beginning of a series that is no failure."""

    reason: str
    beginning: bool = False


class Verdict(Frozen):
    """One budget held against one artifact, in the metric's base unit. `headroom` is the share of the limit left.

    A latency of 1.5 ms under a limit of 2 ms passes with a headroom of 0.25; one of 2.4 ms fails with -0.2. A relative
    budget allows a change of `relative` against `baseline`: 5 % above 2 ms make a limit of 2.1 ms, which is None while
    there is no baseline to reckon from.
    """

    budget: str
    metric: str
    artifact: str
    bound: str
    limit: float | None
    value: float | None
    outcome: Outcome
    headroom: float | None
    place: str  # where the limit is written: recipes/x.yaml:31
    reason: str = ""
    level: Level = "error"  # a missed budget of another level is told, and fails nothing
    evidence: Evidence | None = None  # of the weakest figure that the value was made of
    relative: float | None = None
    baseline: float | None = None
    against: str = ""  # the build that the baseline's figure is of
    looked_up: Base | NoBase | None = None  # the whole of it, to be judged by again where the baseline is not at hand
    waived: str = ""  # until when and why, of a budget that is not met

    @property
    def code(self) -> ExitCode:
        return _CODES.get(self.outcome, ExitCode.OK) if self.level == "error" else ExitCode.OK

    def because(self, reason: str, **update: Any) -> "Verdict":
        """With one more reason."""
        return self.model_copy(update={"reason": "; ".join(filter(None, (self.reason, reason))), **update})
