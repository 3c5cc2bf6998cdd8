"""Budgets held against measurements: a comparison, and nothing unmeasured ever passes."""

import random
from datetime import date
from typing import Any

import pytest
from factories import budget, measurement, verdict

from edgepack.config.budgets import Budget, Waiver
from edgepack.core.errors import ExitCode, most_decisive
from edgepack.judge import gate
from edgepack.judge.gate import compare, judge, waive
from edgepack.records.verdict import Base

NAN = float("nan")


@pytest.mark.parametrize(
    ("bound", "low", "high", "outcome"),
    [
        ("max", 1.0, 1.9, "pass"),
        ("max", 1.0, 2.0, "pass"),
        ("max", 2.0, 2.0, "pass"),
        ("max", 1.9, 2.1, "inconclusive"),
        ("max", 2.0, 2.1, "inconclusive"),
        ("max", 2.1, 2.2, "fail"),
        ("min", 2.0, 2.1, "pass"),
        ("min", 1.9, 2.0, "inconclusive"),
        ("min", 1.8, 1.9, "fail"),
        ("max_drop", 1.0, 2.0, "pass"),
        ("max_drop", 2.5, 3.0, "fail"),
        ("max", NAN, NAN, "inconclusive"),
        ("min", NAN, NAN, "inconclusive"),
    ],
)
def test_where_the_interval_lies_is_the_verdict(bound: str, low: float, high: float, outcome: str) -> None:
    assert compare(bound, 2.0, low, high) == outcome


@pytest.mark.parametrize(
    ("metric", "value", "limit", "outcome", "headroom"),
    [
        ("size", 450e3, "600 kB", "pass", 0.25),
        ("size", 600e3, "600 kB", "pass", 0.0),
        ("size", 600e3 + 1, "600 kB", "fail", pytest.approx(-1 / 600e3)),
        ("size", 750e3, "600 kB", "fail", -0.25),
        ("latency.p50", 9.6, "8 ms", "fail", pytest.approx(-0.2)),
        ("accuracy", 0.99, "90 %", "pass", pytest.approx(0.1)),
        ("accuracy", 0.81, "90 %", "fail", pytest.approx(-0.1)),
        ("parity", 1.0, "100 %", "pass", 0.0),
        ("parity", 0.5, "0 %", "pass", None),
    ],
)
def test_a_verdict_has_its_headroom(metric: str, value: float, limit: str, outcome: str, headroom: Any) -> None:
    found = verdict(metric, value, limit)
    assert (found.outcome, found.headroom, found.value) == (outcome, headroom, value)
    assert found.place == "recipes/tiny.yaml:9"


@pytest.mark.parametrize(
    ("bound", "limit", "outcome", "value", "headroom"),
    [
        ("max", "3", "pass", 2.5, pytest.approx(1 / 6)),
        ("max", "2", "fail", 2.5, -0.25),
        ("max_rise", "0.5", "pass", 0.5, 0.0),
        ("max_rise", "0.4", "fail", 0.5, pytest.approx(-0.25)),
        ("max_rise", "0", "fail", 0.5, None),
    ],
)
def test_a_score_of_which_less_is_better_has_an_upper_limit(
    bound: str, limit: str, outcome: str, value: float, headroom: Any
) -> None:
    known = [measurement("rmse", 2.5), measurement("rmse", 2.0, artifact="teacher (onnx)")]
    (found,) = judge([budget("rmse", limit, bound)], ["onnx"], known)
    assert (found.outcome, found.value, found.headroom) == (outcome, value, headroom)
    assert found.budget == ("rmse" if bound == "max" else "rmse.max_rise")


def test_a_better_score_than_the_teachers_is_no_rise() -> None:
    known = [measurement("rmse", 1.5), measurement("rmse", 2.0, artifact="teacher (onnx)")]
    (found,) = judge([budget("rmse", "0", "max_rise")], ["onnx"], known)
    assert (found.outcome, found.value) == ("pass", -0.5)


@pytest.mark.parametrize("value", [-10.0, 0.0, 10.0])
def test_a_score_that_did_not_change_is_within_every_increase(value: float) -> None:
    budget = Budget(metric="rmse", bound="max_increase", limit=0.05, place="recipe:1", against="main")
    assert gate.outcome(budget, value, value, Base(value=value, low=value, high=value, told="main")) == "pass"
    assert gate.allowed(budget, value) == value + 0.05 * abs(value)


def test_what_was_not_measured_never_passes() -> None:
    found = verdict("latency.p50", None, "1 min")
    assert (found.outcome, found.code, found.value, found.headroom) == (
        "not_measured",
        ExitCode.INCONCLUSIVE,
        None,
        None,
    )
    assert found.reason == "latency.p50 of onnx was not measured"


def test_a_measurement_of_another_file_is_none() -> None:
    (found,) = judge([budget()], ["executorch"], [measurement(artifact="onnx")])
    assert found.outcome == "not_measured"


def test_an_interval_across_the_limit_says_so() -> None:
    found = verdict("latency.p50", 2.0, "2 ms", low=1.9, high=2.1)
    assert (found.outcome, found.code) == ("inconclusive", ExitCode.INCONCLUSIVE)
    assert found.reason == "the 95 % interval [1.9 ms, 2.1 ms] includes the limit 2 ms"


@pytest.mark.parametrize(
    ("teacher", "ours", "outcome"),
    [
        (0.98, 0.97, "pass"),  # in binary 0.98 - 0.97 is a little more than 0.01
        (0.98, 0.99, "pass"),
        (0.98, 0.9699, "fail"),
        (None, 0.98, "not_measured"),
        (0.98, None, "not_measured"),
    ],
)
def test_a_drop_is_against_the_teacher_on_the_same_runtime(
    teacher: float | None, ours: float | None, outcome: str
) -> None:
    known = [measurement("accuracy", 0.5, artifact="teacher (executorch)")]
    known += [measurement("accuracy", teacher, artifact="teacher (onnx)")] if teacher else []
    known += [measurement("accuracy", ours)] if ours else []
    (found,) = judge([budget("accuracy", "1 %", bound="max_drop")], ["onnx"], known)
    assert found.outcome == outcome
    assert found.budget == "accuracy.max_drop"


def test_the_interval_of_a_drop_takes_both_sides_at_their_worst() -> None:
    known = [
        measurement("accuracy", 0.98, artifact="teacher (onnx)", low=0.97, high=0.99),
        measurement("accuracy", 0.975, low=0.97, high=0.98),
    ]
    (found,) = judge([budget("accuracy", "1 %", bound="max_drop")], ["onnx"], known)
    assert found.outcome == "inconclusive"


def test_every_budget_meets_every_file_in_the_order_of_the_recipe() -> None:
    found = judge([budget("size"), budget("parity", "99 %")], ["executorch", "onnx"], [])
    assert [(each.budget, each.artifact) for each in found] == [
        ("size", "executorch"),
        ("size", "onnx"),
        ("parity", "executorch"),
        ("parity", "onnx"),
    ]


def test_runtimes_are_compared_with_the_first_file() -> None:
    found = judge([budget("parity.runtimes", "99 %")], ["executorch", "onnx"], [measurement("parity.runtimes", 1.0)])
    assert [(each.artifact, each.outcome) for each in found] == [("onnx", "pass")]


def test_no_budget_means_no_verdict() -> None:
    assert judge([], ["onnx"], [measurement()]) == ()
    assert most_decisive([]) == ExitCode.OK


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ([0, 0], 0),
        ([0, 3], 3),
        ([3, 4], 4),
        ([3, 4, 1], 1),
        ([1, 5, 0], 5),
        ([5, 2, 1, 4, 3, 0], 2),
        ([2, 70], 70),
        ([70, 130, 0], 130),
    ],
)
def test_the_most_decisive_code_wins(codes: list[int], code: int) -> None:
    assert most_decisive(codes) == most_decisive(reversed(codes)) == code


def test_a_stricter_limit_never_turns_a_failure_into_a_pass() -> None:
    chance, order = random.Random(0), ("fail", "inconclusive", "pass")
    for _ in range(500):
        low, high = sorted((chance.random(), chance.random()))
        strict, loose = sorted((chance.random(), chance.random()))
        for bound, first, second in (("max", strict, loose), ("min", loose, strict)):
            outcomes = [order.index(compare(bound, limit, low, high)) for limit in (first, second)]
            assert outcomes == sorted(outcomes)


@pytest.mark.parametrize(
    ("evidence", "accepted", "outcome"),
    [
        ("measured", None, "pass"),
        ("emulated", None, "not_measured"),
        ("estimated", None, "not_measured"),
        ("estimated", "estimated", "pass"),
        ("emulated", "estimated", "pass"),
        ("estimated", "emulated", "not_measured"),
    ],
)
def test_a_latency_counts_when_the_budget_accepts_its_evidence(evidence: str, accepted: Any, outcome: str) -> None:
    budgets = [budget("latency.p50", "2 ms", evidence=accepted)]
    (found,) = judge(budgets, ["onnx"], [measurement("latency.p50", 1.5, evidence=evidence)])
    assert (found.outcome, found.evidence) == (outcome, evidence)
    if outcome == "not_measured":
        assert found.value is None
        assert found.reason == f"only {evidence}, as 1.5 ms: the budget needs {accepted or 'measured'}"


def test_accuracy_counts_wherever_it_was_found() -> None:
    assert verdict("accuracy", 0.97, "95 %", evidence="emulated").outcome == "pass"


def test_what_is_made_of_two_figures_is_worth_the_weaker() -> None:
    known = [
        measurement("accuracy", 0.98, artifact="teacher (onnx)"),
        measurement("accuracy", 0.97, evidence="emulated"),
    ]
    wanted = budget("accuracy", "2 %", bound="max_drop", evidence="measured")
    assert [each.outcome for each in judge([wanted], ["onnx"], known)] == ["not_measured"]


@pytest.mark.parametrize(
    ("teacher", "ours", "outcome", "value"),
    [
        (0.98, 0.97, "pass", 0.989795918367),
        (0.98, 0.95, "fail", 0.969387755102),
        (0.5, 0.49, "pass", 0.98),
        (0.0, 0.5, "not_measured", None),
        (None, 0.98, "not_measured", None),
    ],
)
def test_the_share_retained_of_the_teachers(
    teacher: float | None, ours: float, outcome: str, value: float | None
) -> None:
    known = [measurement("accuracy", ours)]
    known += [measurement("accuracy", teacher, artifact="teacher (onnx)")] if teacher is not None else []
    (found,) = judge([budget("accuracy", "98 %", bound="retain")], ["onnx"], known)
    assert (found.outcome, found.value, found.budget) == (outcome, value, "accuracy.retain")


@pytest.mark.parametrize("level", ["warn", "info"])
@pytest.mark.parametrize("value", [None, 3.0])
def test_a_budget_of_a_lower_level_fails_nothing(level: Any, value: float | None) -> None:
    known = [] if value is None else [measurement("latency.p50", value)]
    (found,) = judge([budget("latency.p50", "2 ms", level=level)], ["onnx"], known)
    assert found.outcome in ("fail", "not_measured")
    assert (found.code, found.level) == (ExitCode.OK, level)


def test_each_file_is_held_to_its_own_limit() -> None:
    budgets = [budget("size", "600 kB"), budget("size", "400 kB", runtime="onnx")]
    known = [measurement(), measurement(artifact="executorch")]
    found = judge(budgets, ["executorch", "onnx"], known)
    assert [(each.artifact, each.limit, each.outcome) for each in found] == [
        ("executorch", 600e3, "pass"),
        ("onnx", 400e3, "fail"),
    ]


MISSED = verdict("size", 700e3)


DAY = date(2027, 1, 31)


def waiver(budget: str = "size", until: str = "2027-01-31", **more: Any) -> Waiver:
    return Waiver(budget=budget, until=date.fromisoformat(until), reason="the new head", **more)


def test_a_waiver_holds_to_its_last_day() -> None:
    (found,) = waive([MISSED], [waiver()], DAY)
    assert (found.outcome, found.code) == ("waived", ExitCode.OK)
    assert found.waived == found.reason == "waived until 2027-01-31: the new head"


def test_a_waiver_that_ran_out_fails_and_says_when() -> None:
    (found,) = waive([MISSED], [waiver(until="2027-01-30")], DAY)
    assert (found.outcome, found.code, found.reason) == ("fail", ExitCode.BUDGET, "its waiver expired on 2027-01-30")


def test_a_waiver_says_nothing_of_what_is_met_or_not_meant() -> None:
    met, other = verdict("size", 1e3), verdict("latency.p50", 9.6, "8 ms")
    given = [waiver(), waiver(until="2020-01-01"), waiver("latency.p50", runtime="executorch")]
    assert waive([met, other], given, DAY) == (met, other)


def test_what_was_not_decided_can_be_waived_too() -> None:
    given = [verdict("size", None), verdict("size", 600e3, low=500e3, high=700e3)]
    assert {each.outcome for each in waive(given, [waiver()], DAY)} == {"waived"}


def test_the_newest_of_several_waivers_counts() -> None:
    (found,) = waive([MISSED], [waiver(until="2020-01-01"), waiver()], DAY)
    assert found.outcome == "waived"
