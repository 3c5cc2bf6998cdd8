"""Budgets held against measurements: a comparison, and nothing unmeasured ever passes."""

import random
from typing import Any

import pytest
from factories import budget, measurement, verdict

from edgepack.errors import ExitCode, most_decisive
from edgepack.gate import compare, judge

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


def test_what_was_not_measured_never_passes() -> None:
    found = verdict("latency.p50", None, "1 min")
    assert (found.outcome, found.code, found.value, found.headroom) == (
        "not_measured",
        ExitCode.INCONCLUSIVE,
        None,
        None,
    )
    assert found.reason == "nothing measured latency.p50 of onnx"


def test_a_measurement_of_another_file_is_none() -> None:
    (found,) = judge([budget()], ["executorch"], [measurement(artifact="onnx")])
    assert found.outcome == "not_measured"


def test_an_interval_across_the_limit_says_so() -> None:
    found = verdict("latency.p50", 2.0, "2 ms", low=1.9, high=2.1)
    assert (found.outcome, found.code) == ("inconclusive", ExitCode.INCONCLUSIVE)
    assert found.reason == "the 95 % interval [1.9 ms, 2.1 ms] straddles the limit 2 ms"


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
