"""Budgets held against an earlier build: the interval of the baseline counts too."""

from collections.abc import Mapping
from typing import Any

import pytest
from factories import budget, measurement

from edgepack.core.errors import ExitCode
from edgepack.judge.gate import judge
from edgepack.records.verdict import Base, NoBase, Verdict


class Kept:
    """A baseline of one figure."""

    def __init__(self, held: Base | NoBase) -> None:
        self.held = held

    def find(self, metric: str, artifact: str, sha256: str, environment: Mapping[str, Any]) -> Base | NoBase:
        return self.held


def relative(ours: Any, kept: Kept, metric: str = "latency.p50", limit: object = "10 %", **more: Any) -> Verdict:
    budgets = [budget(metric, limit, against="last", **more)]
    (found,) = judge(budgets, ["onnx"], [ours], baseline=kept)
    return found


def against(low: float, value: float, high: float, **more: Any) -> Kept:
    return Kept(Base(value=value, low=low, high=high, told="2026-11-20", **more))


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [
        (0.9, 1.07, "pass"),  # within 10 % of the lowest that the baseline may be
        (0.9, 1.1, "inconclusive"),
        (1.13, 1.2, "fail"),
        (1.1, 1.2, "inconclusive"),
    ],
)
def test_a_relative_limit_has_the_interval_of_its_baseline(low: float, high: float, outcome: str) -> None:
    ours = measurement("latency.p50", (low + high) / 2, low=low, high=high)
    found = relative(ours, against(0.98, 1.0, 1.02))
    assert (found.outcome, found.budget) == (outcome, "relative.latency.p50")
    assert found.limit == pytest.approx(1.1)
    assert (found.baseline, found.relative, found.against) == (1.0, 0.1, "2026-11-20")


def test_accuracy_is_held_against_the_baseline_in_points() -> None:
    kept = against(0.98, 0.98, 0.98)
    outcomes = [
        relative(measurement("accuracy", each), kept, "accuracy", "1 %").outcome for each in (0.99, 0.97, 0.969)
    ]
    assert outcomes == ["pass", "pass", "fail"]


def test_the_very_figure_of_the_baseline_is_within_0_percent_of_it() -> None:
    for right in range(451):  # 43 / 450 rounds up: a limit that was rounded alone would be above it
        share = right / 450
        found = relative(measurement("accuracy", share), against(share, share, share), "accuracy", "0 %")
        assert (found.outcome, found.headroom) in (("pass", 0.0), ("pass", None))
    grown = relative(measurement("size", 164_000 * 1.02), against(164e3, 164e3, 164e3), "size", "2 %")
    assert grown.outcome == "pass"


def test_the_same_file_in_the_same_place_passes_whatever_the_noise() -> None:
    found = relative(measurement("latency.p50", 1.5), against(0.98, 1.0, 1.02, same=True))
    assert (found.outcome, found.code) == ("pass", ExitCode.OK)
    assert found.reason == "the same file, device, protocol and versions as 2026-11-20"


def test_what_cannot_be_compared_is_no_pass() -> None:
    found = relative(measurement("latency.p50", 1.0), Kept(NoBase(reason="another device")))
    assert (found.outcome, found.code, found.reason) == ("not_comparable", ExitCode.INCONCLUSIVE, "another device")
    assert (found.limit, found.value) == (None, None)


def test_the_first_of_a_series_has_nothing_to_be_compared_with_and_fails_nothing() -> None:
    found = relative(measurement("latency.p50", 1.0), Kept(NoBase(reason="nothing yet", beginning=True)))
    assert (found.outcome, found.level, found.code) == ("not_comparable", "info", ExitCode.OK)


def test_an_estimate_is_not_compared_either() -> None:
    found = relative(measurement("latency.p50", 1.0, evidence="estimated"), against(1, 1, 1))
    assert found.outcome == "not_measured"
