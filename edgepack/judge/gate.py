"""Budgets x Measurements -> Verdicts. Pure: it runs no model and reads no file.

What was not measured never passes, nor does what is worth less than the budget accepts, and a figure whose interval
straddles its limit is neither a pass nor a fail.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, Protocol, get_args

from edgepack.config.budgets import Budget, Waiver
from edgepack.core.errors import ExitCode, most_decisive
from edgepack.core.metrics import AGAINST_TEACHER, FROM_BELOW, METRICS, Evidence, compared
from edgepack.core.units import SHARE
from edgepack.records.artifact import TEACHER, label_of
from edgepack.records.measurement import Measurement
from edgepack.records.verdict import Base, NoBase, Outcome, Verdict

if TYPE_CHECKING:
    from edgepack.records.build import Build

# Failures of these metrics are explained: the build finds where the files begin to differ.
EXPLAINED = ("parity", "parity.cosine", "parity.difference", "parity.runtimes")
_COMPUTED = ("parity.cosine", "parity.difference")  # from all outputs: cannot be computed if one is NaN or Inf
EXPIRED = "its waiver expired on"


def today() -> date:
    """Return the date that waivers are compared with, in UTC; all code gets it from here."""
    return datetime.now(UTC).date()


class Baseline(Protocol):
    """Finds the value that a relative budget is compared with."""

    def find(self, metric: str, artifact: str, sha256: str, environment: Mapping[str, Any]) -> Base | NoBase: ...


def judge(
    budgets: Sequence[Budget],
    artifacts: Sequence[str],
    measurements: Sequence[Measurement],
    not_run: Mapping[str, str] = {},
    not_timed: Mapping[str, str] = {},
    *,
    baseline: Baseline | None = None,
) -> tuple[Verdict, ...]:
    """Judge every budget for every artifact label in `artifacts`. Teachers have the label "teacher (<format>)".

    `not_run` says why a file could not be run, `not_timed` why a file that runs was not timed.
    """
    known = {(each.metric, each.artifact): each for each in measurements}
    return tuple(
        _verdict(
            budget, artifact, known, _unmeasured(budget, artifact, artifacts[0], known, not_run, not_timed), baseline
        )
        for budget in budgets
        # Runtimes are compared with the first one, which has no other to be compared with.
        for artifact in (artifacts[1:] or artifacts if budget.metric == "parity.runtimes" else artifacts)
        if budget.about(artifact, budgets)
    )


def waive(verdicts: Sequence[Verdict], waivers: Sequence[Waiver], day: date) -> tuple[Verdict, ...]:
    """Return the verdicts after waivers on this day. An expired waiver changes no outcome; bad verdicts mention it."""
    return tuple(_waived(verdict, waivers, day) for verdict in verdicts)


def _waived(verdict: Verdict, waivers: Sequence[Waiver], day: date) -> Verdict:
    found = [each for each in waivers if each.covers(verdict.budget, verdict.artifact)]
    if verdict.outcome == "pass" or not found:
        return verdict
    last = max(found, key=lambda each: each.until)
    if day <= last.until:
        reason = f"waived until {last.until}: {last.reason}"
        return verdict.because(reason, outcome="waived", waived=reason)
    return verdict.because(f"{EXPIRED} {last.until}")


def judge_build(
    build: "Build", budgets: Sequence[Budget], waivers: Sequence[Waiver] = (), baseline: Baseline | None = None
) -> "Build":
    """Return the build with its verdicts as of today, and the resulting exit code."""
    labels = [artifact.label for artifact in build.shipped()]
    not_timed = {**dict.fromkeys(labels if build.absent else (), build.absent), **build.not_timed}
    found = judge(budgets, labels, build.measurements, build.not_run, not_timed, baseline=baseline)
    verdicts = waive(found, waivers, today())
    missing = build.absent and any(each.outcome == "not_measured" and each.code for each in verdicts)
    code = most_decisive([*(each.code for each in verdicts), ExitCode.DEVICE if missing else ExitCode.OK])
    return build.model_copy(update={"verdicts": verdicts, "exit_code": int(code)})


Known = Mapping[tuple[str, str], Measurement]


def _unmeasured(
    budget: Budget,
    artifact: str,
    first: str,
    known: Known,
    not_run: Mapping[str, str],
    not_timed: Mapping[str, str],
) -> str:
    if artifact in not_run:
        return f"not run here: {not_run[artifact]}"
    if budget.metric == "parity.runtimes" and first in not_run:
        return f"{first} was not run here: {not_run[first]}"
    if METRICS[budget.metric].within == "device" and artifact in not_timed:
        return f"not timed: {not_timed[artifact]}"
    agreed = known.get(("parity", artifact)) if budget.metric in _COMPUTED else None
    if agreed and (rows := agreed.detail.get("not_finite")):
        return f"cannot be computed: {rows} outputs of the file or of torch are NaN or Inf"
    return f"{budget.metric} of {artifact} was not measured"


def _verdict(budget: Budget, artifact: str, known: Known, unmeasured: str, baseline: Baseline | None) -> Verdict:
    """Return the verdict; `unmeasured` is its reason if there is no measurement."""
    open_ = Verdict(
        budget=budget.name,
        metric=budget.metric,
        artifact=artifact,
        bound=budget.bound,
        limit=None if budget.against else budget.limit,
        value=None,
        outcome="not_measured",
        headroom=None,
        place=budget.place,
        reason=unmeasured,
        level=budget.level,
        relative=budget.limit if budget.against else None,
    )
    found = _figures(budget, artifact, known)
    if found is None:
        return open_
    if not budget.accepts(found.evidence):
        return open_.model_copy(update={"evidence": found.evidence, "reason": _too_weak(budget, found)})
    base = _base(budget, known[budget.metric, artifact], baseline) if budget.against else None
    if isinstance(base, NoBase):
        level = "info" if base.beginning else budget.level
        update = {"outcome": "not_comparable", "reason": base.reason, "level": level, "evidence": found.evidence}
        return open_.model_copy(update={**update, "looked_up": base})
    return open_.model_copy(update=_decided(budget, found.rounded() if base else found, base))


def _base(budget: Budget, found: Measurement, baseline: Baseline | None) -> Base | NoBase:
    if baseline is None:
        return NoBase(reason=f"the baseline '{budget.against}' was not looked up")
    return baseline.find(found.metric, found.artifact, found.sha256, found.environment)


def _decided(budget: Budget, found: "_Found", base: Base | None) -> dict[str, Any]:
    limit = allowed(budget, base.value) if base else budget.limit
    decision = outcome(budget, found.low, found.high, base)
    return {
        "limit": limit,
        "value": found.value,
        "outcome": decision,
        "headroom": _headroom(budget, found.value, limit),
        "reason": _reason(budget, decision, found, base),
        "evidence": found.evidence,
        "baseline": base.value if base else None,
        "against": base.told if base else "",
        "looked_up": base,
    }


def outcome(budget: Budget, low: float, high: float, base: Base | None = None) -> Outcome:
    """Return where a figure's interval lies. For a relative budget, the baseline's interval gives the limit one too."""
    if base is None:
        return compare(budget.bound, budget.limit, low, high)
    if base.same:  # any difference is noise
        return "pass"
    at_lowest, at_highest = (
        compare(budget.bound, allowed(budget, value), _rounded(low), _rounded(high)) for value in (base.low, base.high)
    )
    return at_lowest if at_lowest == at_highest else "inconclusive"


def allowed(budget: Budget, base: float) -> float:
    """Return the limit that a relative budget derives from the baseline's value, rounded like the compared values."""
    if budget.bound == "max_increase":
        return _rounded(base * (1 + budget.limit if base >= 0 else 1 - budget.limit))  # a score may be negative
    return _rounded(base - budget.limit)


def _rounded(figure: float) -> float:
    """Return the figure rounded, so that the last bit fails no budget: 43 of 450 is within 0 % of 43 of 450."""
    return round(figure, 12)


def compare(bound: str, limit: float, low: float, high: float) -> Outcome:
    """Return where the interval lies: within the limit, beyond it, or across.

    >>> compare("max", 2.0, 1.5, 1.9), compare("max", 2.0, 1.9, 2.1), compare("min", 0.95, 0.90, 0.94)
    ('pass', 'inconclusive', 'fail')
    """
    within, beyond = (low >= limit, high < limit) if bound in FROM_BELOW else (high <= limit, low > limit)
    return "pass" if within else "fail" if beyond else "inconclusive"


@dataclass(frozen=True, kw_only=True)
class _Found:
    """The value that is compared with the limit: a measurement, or a value computed from it and the teacher's."""

    value: float
    low: float
    high: float
    evidence: Evidence

    def rounded(self) -> "_Found":
        return replace(self, value=_rounded(self.value), low=_rounded(self.low), high=_rounded(self.high))


def _figures(budget: Budget, artifact: str, known: Known) -> _Found | None:
    ours = known.get((budget.metric, artifact))
    if ours is None or budget.bound not in AGAINST_TEACHER:
        return _Found(value=ours.value, low=ours.low, high=ours.high, evidence=ours.evidence) if ours else None
    teacher = known.get((budget.metric, label_of(artifact, TEACHER)))
    if teacher is None or (budget.quantity is SHARE and teacher.low <= 0 and budget.bound != "max_drop"):
        return None
    rise = _rise_in_shares if METRICS[budget.metric].in_shares else _rise
    value, low, high = {"max_drop": _drop, "max_rise": rise, "retain": _retained}[budget.bound](teacher, ours)
    weaker = max(ours.evidence, teacher.evidence, key=get_args(Evidence).index)
    return _Found(value=value, low=low, high=high, evidence=weaker).rounded()


def _drop(teacher: Measurement, ours: Measurement) -> tuple[float, float, float]:
    return teacher.value - ours.value, teacher.low - ours.high, teacher.high - ours.low


def _rise(teacher: Measurement, ours: Measurement) -> tuple[float, float, float]:
    return ours.value - teacher.value, ours.low - teacher.high, ours.high - teacher.low


def _rise_in_shares(teacher: Measurement, ours: Measurement) -> tuple[float, float, float]:
    value, low, high = _retained(teacher, ours)
    return value - 1, low - 1, high - 1


def _retained(teacher: Measurement, ours: Measurement) -> tuple[float, float, float]:
    return ours.value / teacher.value, ours.low / teacher.high, ours.high / teacher.low


def _headroom(budget: Budget, value: float, limit: float) -> float | None:
    if limit == 0:
        return None
    share = (limit - value) / abs(limit)
    return -share if budget.bound in FROM_BELOW else share


def _too_weak(budget: Budget, found: _Found) -> str:
    shown = compared(budget.metric, budget.bound).format(found.value)
    return f"only {found.evidence}, as {shown}: the budget needs {budget.evidence or METRICS[budget.metric].evidence}"


def _reason(budget: Budget, decision: Outcome, found: _Found, base: Base | None) -> str:
    show = compared(budget.metric, budget.bound).format
    if base is not None and base.same:
        return f"the same file, device, protocol and versions as {base.told}"
    if decision != "inconclusive":
        return ""
    lowest, highest = (allowed(budget, each) for each in (base.low, base.high)) if base else (budget.limit,) * 2
    limit = show(lowest) if lowest == highest else f"[{show(lowest)}, {show(highest)}]"
    return f"the 95 % interval [{show(found.low)}, {show(found.high)}] includes the limit {limit}"
