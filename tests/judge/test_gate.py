"""Budgets held against measurements: a comparison, and nothing unmeasured ever passes."""

import hashlib
import random
import shutil
import zlib
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from factories import budget, build, bundle_files, edgepack, measurement, recipe_file, runtime, sealed, verdict

from edgepack.config.budget_reading import read_budgets
from edgepack.config.budgets import Budget, Waiver
from edgepack.config.document import Document
from edgepack.core.errors import ExitCode, most_decisive
from edgepack.deliver.bundle import pack
from edgepack.deliver.bundle.archive import swap
from edgepack.judge import gate
from edgepack.judge.gate import compare, judge, waive
from edgepack.judge.history import append
from edgepack.records.build import Build
from edgepack.records.verdict import Base, NoBase, Verdict
from edgepack.workflows.baselines import baseline
from edgepack.workflows.rejudge import rejudge

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


# What a figure is worth


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


# Waivers

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


# Against a baseline


class Kept:
    """A baseline of one figure."""

    def __init__(self, held: Base | NoBase) -> None:
        self.held = held

    def find(self, metric: str, artifact: str, sha256: str, environment: Mapping[str, Any]) -> Base | NoBase:
        return self.held


def against(low: float, value: float, high: float, **more: Any) -> Kept:
    return Kept(Base(value=value, low=low, high=high, told="2026-11-20", **more))


def relative(ours: Any, kept: Kept, metric: str = "latency.p50", limit: object = "10 %", **more: Any) -> Verdict:
    budgets = [budget(metric, limit, against="last", **more)]
    (found,) = judge(budgets, ["onnx"], [ours], baseline=kept)
    return found


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


# The command


def recorded(folder: str = "dist/tiny", budgets: Any = None, **more: Any) -> Path:
    """A build.json that a build of these budgets left."""
    built = {"model": {"torchvision": "resnet18", "width": "100 %"}, "data": {"digits": {"size": 32}}}
    said = {"name": "tiny", "task": "image_classification", **built, "device": "board", "export": [{"onnx": {}}]}
    known = (measurement(), measurement(value=40e6, artifact="teacher (onnx)"), measurement("latency.p50", 1.5))
    facts = {"measurements": known, "bundle": "", "bundle_sha256": "", **more}
    path = Path(folder, "build.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    build(recipe={**said, "budgets": budgets or {"size": "600 kB"}}, **facts).save(path)
    return path


def reasons(*overrides: str, **more: Any) -> str:
    """What the verdicts of dist/tiny say, judged again."""
    again = rejudge(Path("dist/tiny/build.json"), overrides=overrides, **more)
    return "; ".join(each.reason for each in again.verdicts)


def test_the_gate_judges_what_was_recorded() -> None:
    path = recorded()
    for named in (str(path), str(path.parent), "tiny"):
        ran = edgepack("gate", named)
        assert (ran.code, ran.err) == (0, "")
        assert "500 kB" in ran.out and "every budget met" in ran.out


def test_the_gate_keeps_the_places_and_findings_of_the_build() -> None:
    said = "its waiver expired on 2026-01-01; at layer4.0"
    missed = verdict("parity", 0.5, "99 %").model_copy(update={"reason": said})
    recorded(budgets={"parity": "99 %"}, verdicts=(missed,), measurements=(measurement("parity", 0.5),))
    ran = edgepack("gate", "tiny")
    assert ran.code == 1
    assert "recipes/tiny.yaml:9" in ran.out
    assert reasons() == "at layer4.0"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("budgets.size=100 kB", 1),
        ("budgets.latency.p50=1 ms", 1),
        ("budgets.latency.p50=2 ms", 0),
        ("budgets.latency.p90=2 ms", 3),
        ("budgets.size={max: 100 kB, level: warn}", 0),
    ],
)
def test_a_budget_can_be_changed_and_what_nobody_measured_does_not_pass(change: str, code: int) -> None:
    recorded()
    ran = edgepack("gate", "tiny", "--set", change)
    assert ran.code == code
    assert "--set" in ran.out


def test_a_waiver_counts_until_its_day_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded(budgets={"size": "100 kB"})
    given = ("--set", "waivers=[{budget: size, until: 2027-01-31, reason: issue 12}]")
    for day, code, said in (
        ("2027-01-30", 0, "waived"),
        ("2027-01-31", 0, "waived until 2027-01-31: issue 12"),
        ("2027-02-01", 1, "its waiver expired on 2027-01-31"),
    ):
        monkeypatch.setattr(gate, "today", lambda day=day: date.fromisoformat(day))
        assert edgepack("gate", "tiny", *given).code == code
        assert said in reasons(*given[1:])


def test_the_budgets_of_another_recipe() -> None:
    recorded()
    recipe_file("release", budgets={"size": "100 kB"}, export=["onnx"], device="devices/board.yaml")
    ran = edgepack("gate", "tiny", "--recipe", "release")
    assert ran.code == 1
    assert "recipes/release.yaml:9" in ran.out


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"budgets": {"sise": "1 kB"}}, "did you mean 'size'"),
        (
            {"task": "text_classification"},
            "is for the task text_classification, but the build is for image_classification",
        ),
        ({"device": "host-1t"}, "is for the device host-1t, but the build is for board"),
        (
            {"model": {"torchvision": "vgg11"}},
            "is for the model torchvision vgg11, but the build is for torchvision resnet18",
        ),
        ({"data": {"fashion_mnist": {}}}, "is for the data fashion_mnist, but the build is for digits"),
        ({"budgets": {"size": {"executorch": "1 kB"}}}, "unknown key 'executorch'"),
        ({"budgets": ["size"]}, "expected a mapping"),
        ({"waivers": 5}, "expected a list"),
        ({"budgets": None, "budgest": {"size": "1 kB"}}, "unknown key 'budgest': did you mean 'budgets'"),
        ({"budgets": {}}, "sets no budgets, so there is nothing to check"),
        ({"budgets": {"size": {}}}, "no limit given: add a limit or remove the budget"),
        ({"budgets": {"relative": {"baseline": "last"}}}, "no limit given: add a limit or remove the budget"),
    ],
)
def test_a_recipe_that_makes_no_sense_for_the_build(parts: dict[str, Any], said: str) -> None:
    recorded()
    recipe_file("release", **{"device": "board", **parts})
    ran = edgepack("gate", "tiny", "--recipe", "release")
    assert (ran.code, said in ran.err) == (2, True), ran.err


def test_the_gate_tells_a_job_of_github_what_the_build_told(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded(budgets={"size": "100 kB"})
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    assert "::error " in edgepack("gate", "tiny").out
    assert "a budget failed" in Path("summary.md").read_text()
    assert "::error title=edgepack::there is no build 'tinny'" in edgepack("gate", "tinny").out


def test_only_what_was_not_built_can_be_changed() -> None:
    recorded()
    ran = edgepack("gate", "tiny", "--set", "stages.train.epochs=3")
    assert ran.code == 2
    assert "only budgets and waivers" in ran.err


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text[: len(text) // 2], "it is truncated"),
        (lambda text: text.replace("edgepack.build/1", "edgepack.build/2"), "it has the schema 'edgepack.build/2'"),
        (lambda text: "[1]", "it has no schema"),
        (lambda text: text.replace('"started_at": 1700000000.0', '"started_at": "x"'), "at started_at"),
        (lambda text: text.replace('"started_at": 1700000000.0', '"started_at": 1e300'), "at started_at"),
        (lambda text: text.replace('"exit_code": 0', '"exit_code": 9'), "9 is not a valid ExitCode"),
        (lambda text: text.replace('"high": 500000.0', '"high": 0.0'), "size of onnx: 500000.0 is not within its"),
    ],
)
def test_a_build_that_cannot_be_read(damage: Any, said: str) -> None:
    path = recorded()
    path.write_text(damage(path.read_text()))
    ran = edgepack("gate", str(path))
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err


def test_builds_that_are_not_there() -> None:
    recorded()
    ran = edgepack("gate", "tinny")
    assert ran.code == 2
    assert "there is no build 'tinny'" in ran.err and "in dist: tiny" in ran.err
    assert "name the build.json next to it" in edgepack("gate", "dist/tiny/tiny.zip").err


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        ({"exit_code": 5, "error": "prune failed"}, 5),
        ({"exit_code": None}, 3),
        ({"exit_code": 4, "error": "gone"}, 4),
        ({"exit_code": 0, "error": "gone"}, 3),
        ({"exit_code": 0, "artifacts": ()}, 3),
    ],
)
def test_a_build_that_did_not_finish_keeps_its_exit_code(facts: dict[str, Any], code: int) -> None:
    recorded(**facts)
    ran = edgepack("gate", "tiny")
    assert (ran.code, ran.out) == (code, "")
    assert "did not finish" in ran.err


def test_a_device_that_was_absent_can_be_tried_again() -> None:
    known = (measurement(), measurement("latency.p50", 1.0, evidence="estimated"))
    budgets = {"latency.p50": "2 ms", "memory.peak": "1 MB"}
    recorded(budgets=budgets, measurements=known, absent="no phone is attached")
    ran = edgepack("gate", "tiny")
    assert (ran.code, "not timed: no phone is attached" in ran.out) == (4, True)
    recorded(budgets={"latency.p50": "2 ms"}, measurements=known, absent="no phone is attached")
    assert edgepack("gate", "tiny", "--set", "budgets.latency.p50={max: 2 ms, evidence: estimated}").code == 0


def test_several_builds_have_the_most_decisive_code() -> None:
    recorded()
    recorded("dist/other", budgets={"size": "1 kB"})
    recorded("dist/third", budgets={"latency.p90": "1 ms"})
    ran = edgepack("gate", "tiny", "other", "third", "fourth")
    assert ran.code == 2
    assert edgepack("gate", "tiny", "other", "third").code == 1


def test_another_bundle_than_the_one_that_was_judged_does_not_pass() -> None:
    path = recorded(bundle="tiny.zip", bundle_sha256="0" * 64)
    (path.parent / "tiny.zip").write_bytes(b"another")
    ran = edgepack("gate", "tiny")
    assert ran.code == 1
    assert "is not the bundle that dist/tiny/build.json is about" in ran.err


@pytest.mark.parametrize("damage", ["another", "changed", "more", "less"])
def test_an_unpacked_bundle_must_be_the_one_that_was_judged_too(damage: str) -> None:
    files = bundle_files()
    path = recorded(bundle="tiny.zip", bundle_sha256=hashlib.sha256(pack(files)).hexdigest())
    swap(files, path.parent / "bundle")
    assert edgepack("gate", "tiny").code == 0
    if damage == "another":  # that is whole in itself
        swap(bundle_files(tiny=b"another"), path.parent / "bundle")
    (path.parent / "bundle/models/more.onnx").write_bytes(b"") if damage == "more" else None
    (path.parent / "bundle/models/tiny.onnx").unlink() if damage == "less" else None
    (path.parent / "bundle/models/tiny.onnx").write_bytes(b"changed") if damage == "changed" else None
    ran = edgepack("gate", "tiny")
    assert (ran.code, ran.out) == (1, "")
    assert "dist/tiny/bundle" in ran.err


def test_the_gate_points_to_no_report_that_says_something_else() -> None:
    recorded(bundle="tiny.zip", bundle_sha256="0" * 64)
    assert "report" not in edgepack("gate", "tiny").out and "tiny.zip" not in edgepack("gate", "tiny").out


def test_the_gate_writes_reports_of_its_own() -> None:
    path = recorded()
    (path.parent / "report.md").write_text("as it was")
    ran = edgepack("gate", "tiny", "--set", "budgets.size=100 kB", "--reports", "again")
    assert ran.code == 1
    assert "report again/tiny/report.html" in ran.out
    written = sorted(each.name for each in Path("again/tiny").iterdir())
    assert written == ["junit.xml", "report.html", "report.md", "report.sarif"]
    assert "a budget failed" in Path("again/tiny/report.md").read_text()
    assert (path.parent / "report.md").read_text() == "as it was"


@pytest.mark.parametrize(("reports", "name"), [("dist", "tiny"), ("a", ".."), ("a", "/srv/x"), ("a", "b/c")])
def test_reports_go_nowhere_else(reports: str, name: str) -> None:
    path = recorded()
    path.write_text(path.read_text().replace('"name": "tiny"', f'"name": "{name}"'))
    ran = edgepack("gate", str(path), "--reports", reports)
    assert (ran.code, "cannot write reports" in ran.err) == (2, True)


def test_reports_that_cannot_be_written() -> None:
    recorded()
    Path("again").write_text("a file")
    assert edgepack("gate", "tiny", "--reports", "again").code == 4


def test_a_name_is_no_markup() -> None:
    path = recorded()
    path.write_text(path.read_text().replace('"name": "tiny"', '"name": "[/]"'))
    ran = edgepack("gate", str(path))
    assert (ran.code, "[/]: every budget met" in ran.out) == (0, True)


RELATIVE = {"relative": {"size": "2 %", "latency.p50": "5 %"}}


def test_a_baseline_by_its_path() -> None:
    recorded("old", measurements=(measurement(), measurement("latency.p50", 1.0, sha256="b" * 64)))
    recorded(budgets=RELATIVE)
    ran = edgepack("gate", "tiny", "--baseline", "old/build.json")
    assert ran.code == 1
    assert "relative.latency.p50" in ran.out and "latency.p50 of onnx 1 ms +5 %" in ran.out


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"device": {"id": "phone", "name": "a phone"}}, "the device 'phone', not 'board'"),
        ({"recipe": {"name": "tiny2"}}, "the recipe 'tiny2', not 'tiny'"),
        ({"measurements": ()}, "has no size of onnx"),
        (
            {"measurements": (measurement(), measurement("latency.p50", 1.5, environment={"cpu": "another"}))},
            "was measured on another device or by another protocol: cpu another -> ours",
        ),
    ],
)
def test_a_baseline_that_cannot_be_compared(facts: dict[str, Any], said: str) -> None:
    known = (measurement(), measurement("latency.p50", 1.5, environment={"cpu": "ours"}))
    recorded(budgets=RELATIVE, measurements=known)
    Path("old").mkdir()
    build(**{"recipe": {"name": "tiny"}, **facts}).save(Path("old/build.json"))
    assert edgepack("gate", "tiny", "--baseline", "old").code == 3
    assert said in reasons(against="old")


def test_the_last_build_that_passed_is_the_baseline_unless_another_is_named() -> None:
    path = recorded(budgets=RELATIVE, started_at=1.7e9 + 60)
    assert edgepack("gate", str(path)).code == 3
    assert "there is no history at dist/history.jsonl" in reasons()
    append(Path("dist/history.jsonl"), Build.read(path))
    assert edgepack("gate", str(path)).code == 0  # nothing before it: that is told, and fails nothing
    assert "there is no baseline yet" in reasons()
    append(
        Path("dist/history.jsonl"),
        Build.read(recorded("old", measurements=(measurement(value=480e3, sha256="b" * 64),))),
    )
    assert edgepack("gate", str(path)).code == 1
    assert edgepack("gate", str(path), "--history", "other.jsonl").code == 3


def held(**more: Any) -> Path:
    """A build as it is recorded once relative budgets were judged: its latency is worse by half than last time."""
    timed = measurement("latency.p50", 1.0, low=0.9, high=1.0, sha256="b" * 64)
    append(Path("dist/history.jsonl"), Build.read(recorded("old", measurements=(measurement(), timed))))
    relative = {"relative": {"baseline": "last", "size": "2 %", "latency.p50": "5 %"}}
    path = recorded(budgets=relative, started_at=1.7e9 + 60, **more)
    judged = gate.judged(Build.read(path), limits(relative), (), baseline("last", "tiny", "board", PAST, 1.7e9 + 60))
    judged.save(path)
    append(PAST, judged)
    return path


PAST = Path("dist/history.jsonl")


def limits(budgets: Any) -> tuple[Budget, ...]:
    document = Document(file="recipe.yaml", data={"budgets": budgets}, lines={})
    found = read_budgets(document, budgets, ["onnx"], budgets["relative"]["baseline"])
    document.raise_problems()
    return found


def test_a_relative_budget_is_judged_again_from_the_build_alone() -> None:
    path, folder = held(), Path("elsewhere")
    there = edgepack("gate", str(path))
    folder.mkdir()
    shutil.copy(path, folder)
    here = edgepack("gate", str(folder))
    assert (here.code, there.code) == (1, 1)
    table = "latency.p50 of onnx 1 ms +5 %"
    assert table in here.out and table in there.out
    for limit, code in (("40 %", 1), ("50 %", 3), ("60 %", 3), ("70 %", 0)):  # with its interval
        assert edgepack("gate", str(folder), "--set", f"budgets.relative.latency.p50={limit}").code == code


def test_a_recorded_failure_is_no_pass_by_a_history_that_lost_its_lines() -> None:
    path = held()
    for kept in (0, 1):
        lines = PAST.read_text().splitlines(keepends=True)
        PAST.write_text("".join(lines[:kept]) + "{\n")
        assert edgepack("gate", str(path)).code == 1
    PAST.write_text("{\n")
    ran = edgepack("gate", str(path), "--history", str(PAST))
    assert ran.code == 3
    assert "the build itself is not in the history dist/history.jsonl" in ran.out
    assert "unreadable lines in dist/history.jsonl: 1" in ran.out
    assert edgepack("gate", str(path), "--baseline", "last").code == 3


def test_the_beginning_that_a_build_was_is_recorded_too() -> None:
    relative = {"relative": {"baseline": "last", "size": "2 %"}}
    path = recorded(budgets=relative)
    gate.judged(Build.read(path), limits(relative), (), baseline("last", "tiny", "board", PAST, 1.7e9)).save(path)
    assert edgepack("gate", str(path)).code == 0
    assert "there is no baseline yet" in reasons()
    ran = edgepack("gate", str(path), "--set", "budgets.relative.latency.p50=5 %")  # which was not looked up
    assert ran.code == 3
    assert "there is no history at dist/history.jsonl" in ran.out


def test_a_baseline_that_is_gone_is_remembered() -> None:
    relative = {"relative": {"baseline": "old.json", "size": "2 %"}}
    build(measurements=(measurement(value=400e3),)).save(Path("old.json"))
    path = recorded(budgets=relative)
    gate.judged(Build.read(path), limits(relative), (), baseline("old.json", "tiny", "board", PAST, 1.7e9)).save(path)
    Path("old.json").unlink()
    assert edgepack("gate", str(path)).code == 1
    assert "size of onnx 400 kB +2 %" in edgepack("gate", str(path)).out
    assert edgepack("gate", str(path), "--history", "other.jsonl").code == 1  # which says nothing of it
    assert "old.json no longer exists" in reasons("budgets.relative.latency.p50=5 %")
    assert edgepack("gate", str(path), "--baseline", "old.json").code == 2


def test_the_history_is_found_from_within_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    path = recorded(budgets=RELATIVE)
    append(PAST, Build.read(path))
    monkeypatch.chdir("dist/tiny")
    assert edgepack("gate", "build.json").code == 0


@pytest.mark.parametrize(
    ("baseline", "said"),
    [("nothing.json", "there is no 'nothing.json'"), ("broken.json", "it is truncated"), ("stopped", "did not finish")],
)
def test_a_baseline_that_cannot_be_read(baseline: str, said: str) -> None:
    recorded(budgets=RELATIVE)
    Path("broken.json").write_text("{")
    recorded("stopped", exit_code=5, error="prune failed")
    ran = edgepack("gate", "tiny", "--baseline", baseline)
    assert (ran.code, said in ran.err) == (2, True), ran.err


def test_a_baseline_without_a_relative_budget() -> None:
    recorded()
    ran = edgepack("gate", "tiny", "--baseline", str(recorded("old")))
    assert ran.code == 2
    assert "--baseline needs a relative budget" in ran.err


def test_a_bundle_tells_sizes_and_no_timing() -> None:
    entry = {"file": "models/tiny.onnx", "method": None}
    runtimes = {"onnxruntime": {"version": "1", "format": "onnx", "needs": None, "entry": entry}}
    Path("old.zip").write_bytes(pack(sealed({"models/tiny.onnx": bytes(499_000)}, runtimes=runtimes)))
    recorded(budgets={"relative": {"size": "2 %"}})
    ran = edgepack("gate", "tiny", "--baseline", "old.zip")
    assert ran.code == 0
    assert "relative to the bundle old.zip: size of onnx 499 kB +2 %" in ran.out
    recorded(budgets=RELATIVE)
    assert edgepack("gate", "tiny", "--baseline", "old.zip").code == 3
    assert "old.zip has no latency.p50 of onnx" in reasons(against="old.zip")


def test_a_bundle_tells_what_an_app_ships_of_it() -> None:
    files = {"models/tiny.onnx": bytes(1000), "io/labels.txt": bytes(200), "selftest/a.bin": bytes(9000)}
    Path("old.zip").write_bytes(pack(sealed(files, runtimes={"onnxruntime": runtime("models/tiny.onnx")})))
    packed = sum(len(zlib.compress(files[name])) for name in ("models/tiny.onnx", "io/labels.txt"))
    held = baseline("old.zip", "tiny", "board", Path("none"), 0.0)
    for metric, size in (("size", 1000), ("size.deploy", 1200), ("size.download", packed)):
        found = held.find(metric, "onnx", "", {})
        assert isinstance(found, Base)
        assert found.value == size


def test_a_bundle_stands_for_the_build_beside_it() -> None:
    packed = pack(sealed({"models/tiny.onnx": b"a model"}))
    old = recorded("old", bundle="tiny.zip", bundle_sha256=hashlib.sha256(packed).hexdigest())
    (old.parent / "tiny.zip").write_bytes(packed)
    recorded(budgets=RELATIVE)
    assert edgepack("gate", "tiny", "--baseline", "old/tiny.zip").code == 0
