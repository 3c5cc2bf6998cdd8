"""A build that was recorded is judged again as of today: by other budgets, after a waiver ran out, damaged or gone."""

import hashlib
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from factories import bundle_files, edgepack, measurement, recipe_file, verdict
from recorded_builds import reasons, recorded

from edgepack.config import plugins
from edgepack.deliver.bundle import pack
from edgepack.deliver.bundle.archive import swap
from edgepack.judge import gate


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
    assert written == sorted(plugins.load("reports", name).FILE for name in plugins.names("reports"))
    assert {*written} >= {"junit.xml", "report.html", "report.md", "report.sarif"}
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
