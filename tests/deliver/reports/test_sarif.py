"""A build as SARIF, as annotations of a CI job, and what of it must fit a log."""

import io
import re
from pathlib import Path

import pytest
from builds import BUILDS, CONTROLS, EVERY_BUILD, LOUD, on_console, rendered, sarif_of
from factories import build, edgepack, recipe_file, verdict
from junitparser import JUnitXml

from edgepack.cli.views import github, verdicts
from edgepack.core.errors import StageError
from edgepack.deliver import wording
from edgepack.deliver.reports.html import charts
from edgepack.records.build import Build


@EVERY_BUILD
def test_sarif_is_what_the_standard_asks_for(name: str) -> None:
    from pydantic_sarif.model import StaticAnalysisResultsFormatSarifVersion210JsonSchema as Standard

    Standard.model_validate_json(rendered("sarif", BUILDS[name]))


@EVERY_BUILD
def test_sarif_has_a_place_and_a_rule_for_every_result(name: str) -> None:
    run = sarif_of(BUILDS[name])
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert len(rules) == len({*rules})
    for result in run["results"]:
        assert result["ruleId"] in rules
        assert result["level"] in ("error", "warning", "note")
        assert result["message"]["text"]
        (place,) = result["locations"]
        assert re.fullmatch(r"[\w%/.~-]+", place["physicalLocation"]["artifactLocation"]["uri"])
        assert place["physicalLocation"]["region"]["startLine"] >= 1


def test_sarif_names_the_line_of_the_recipe_that_sets_the_limit() -> None:
    run = sarif_of(BUILDS["every verdict"])
    assert [result["ruleId"] for result in run["results"]] == [
        "edgepack/latency.p50",
        "edgepack/latency.p90",
        "edgepack/memory.peak",
        "edgepack/size",
    ]
    first, *_, waived = run["results"]
    assert first["locations"] == [
        {"physicalLocation": {"artifactLocation": {"uri": "recipes/tiny.yaml"}, "region": {"startLine": 9}}}
    ]
    assert first["message"]["text"] == "latency.p50 of onnx: FAIL: 9.6 ms, at most 8 ms: over by 1.6 ms (20%)"
    assert waived["suppressions"] == [{"kind": "external", "justification": "until 2027-01-31: the old app"}]
    assert run["invocations"][0]["executionSuccessful"]


@pytest.mark.parametrize(
    ("prefix", "place", "uri"),
    [
        ("", "recipes/tiny.yaml:9", "recipes/tiny.yaml"),
        ("ml/phone models/", "recipes/tiny.yaml:9", "ml/phone%20models/recipes/tiny.yaml"),
        ("ml/", "../recipes/tiny.yaml:9", "recipes/tiny.yaml"),
        ("ml/", "../../elsewhere/tiny.yaml:9", "../../elsewhere/tiny.yaml"),
        ("ml/", "/elsewhere/tiny.yaml:9", "file:///elsewhere/tiny.yaml"),
    ],
)
def test_sarif_names_files_from_the_root_of_the_repository(prefix: str, place: str, uri: str) -> None:
    over = verdict("size", 9e9).model_copy(update={"place": place})
    run = sarif_of(build(verdicts=(over,), provenance={"git": {"commit": "ab" * 20, "prefix": prefix}}))
    assert run["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"] == {"uri": uri}


def test_a_limit_of_the_command_line_stands_at_the_top_of_the_recipe() -> None:
    over = verdict("size", 9e9).model_copy(update={"place": "--set"})
    run = sarif_of(build(verdicts=(over,), recipe_file="products/tiny one.yaml"))
    assert run["results"][0]["locations"][0]["physicalLocation"] == {
        "artifactLocation": {"uri": "products/tiny%20one.yaml"},
        "region": {"startLine": 1},
    }


def test_a_build_that_failed_is_an_error_in_every_report() -> None:
    of = BUILDS["failed early"]
    run = sarif_of(of)
    assert not run["invocations"][0]["executionSuccessful"]
    assert run["results"][0]["ruleId"] == "edgepack/build"
    assert "prune failed" in run["results"][0]["message"]["text"]
    (suite,) = JUnitXml.fromstring(rendered("junit", of).encode())
    assert (suite.tests, suite.errors) == (1, 1)
    assert "**The build did not finish:** prune failed no channels" in rendered("markdown", of)
    assert "The build did not finish." in rendered("html", of)


def test_markdown_shows_text_as_text() -> None:
    text = rendered("markdown", BUILDS["awkward"])
    assert "<script>" not in text
    assert "\x1b" not in text
    assert r"\[x\](y)" in text
    assert "- memory.peak of a_very_long" in text


def test_annotations_stand_at_the_line_of_the_recipe() -> None:
    lines = [*github.annotations(BUILDS["every verdict"])]
    assert [line.split(" ")[0] for line in lines] == ["::error", "::error", "::error", "::notice"]
    assert lines[0] == (
        "::error file=recipes/tiny.yaml,line=9,title=latency.p50 of onnx%3A FAIL"
        "::9.6 ms, at most 8 ms: over by 1.6 ms (20%25)"
    )


@EVERY_BUILD
def test_an_annotation_is_one_line_whatever_is_in_it(name: str) -> None:
    for line in github.annotations(BUILDS[name]):
        assert line.isprintable()
        assert re.fullmatch(r"::(error|warning|notice) (\w+=[^,:]*)(,\w+=[^,:]*)*::.*", line)


def test_annotations_name_files_from_the_checkout(own_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (own_place / "apps").mkdir()
    monkeypatch.chdir(own_place / "apps")
    (line,) = github.annotations(build(verdicts=(verdict("size", 9e9),)), str(own_place))
    assert line.startswith("::error file=apps/recipes/tiny.yaml,line=9,")


def test_only_a_job_of_github_is_told(own_place: Path) -> None:
    stream, summary = io.StringIO(), own_place / "summary.md"
    github.tell(LOUD, stream, {"GITHUB_STEP_SUMMARY": str(summary)})
    assert (stream.getvalue(), summary.exists()) == ("", False)
    for _ in range(2):
        github.tell(LOUD, stream, {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)})
    assert stream.getvalue().count("::error file=") == 10
    assert summary.read_text().count("# tiny on the board: a budget failed (exit code 1)\n") == 2


def test_a_mistake_in_a_recipe_is_an_annotation_at_its_line(own_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe_file(budgets={"size": "300 KB"})
    assert "::error" not in edgepack("check", "tiny").out
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    ran = edgepack("check", "tiny")
    assert ran.code == 2
    assert ran.out.startswith("::error file=recipes/tiny.yaml,line=9,title=at budgets.size::unknown unit 'KB' in")
    assert edgepack("verify", "nowhere.zip").out.startswith("::error title=edgepack::nowhere.zip not found%0A  give")


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_build_in_a_job_of_github_tells_it(
    options: tuple[str, ...], own_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe_file()
    monkeypatch.setattr("edgepack.workflows.build.pipeline.build", lambda *_, **__: LOUD)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(own_place / "summary.md"))
    ran = edgepack("build", "tiny", *options)
    assert ran.code == 1
    annotated, other = (ran.err, ran.out) if options else (ran.out, ran.err)  # JSON lines stay JSON
    assert "::error file=recipes/tiny.yaml,line=9,title=latency.p50 of onnx%3A FAIL::9.6 ms EMULATED" in annotated
    assert "::" not in other
    assert (own_place / "summary.md").read_text().startswith("# tiny on the board: a budget failed (exit code 1)\n")


def test_a_build_that_fails_in_a_job_of_github_tells_what_was_done(
    own_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> Build:
        build(error="no channels", exit_code=5, verdicts=()).save(own_place / "dist" / "tiny" / "build.json")
        raise StageError("no channels")

    recipe_file()
    monkeypatch.setattr("edgepack.workflows.build.pipeline.build", fails)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(own_place / "summary.md"))
    ran = edgepack("build", "tiny")
    assert ran.code == 5
    assert "title=tiny%3A a stage or an export failed::no channels\n" in ran.out
    assert "**The build did not finish:** no channels" in (own_place / "summary.md").read_text()


@EVERY_BUILD
def test_no_line_of_a_table_is_wider_than_a_log(name: str) -> None:
    stream = io.StringIO()
    verdicts.show(BUILDS[name], stream, "dist/tiny")
    table = stream.getvalue().partition("\n\n")[0].lstrip("\n") if BUILDS[name].verdicts else ""
    rows = [line for line in table.splitlines() if line.count("  ") > 2]
    assert all(len(line) <= 115 for line in rows)


def test_a_name_in_brackets_is_text_on_the_console() -> None:
    odd = verdict("size", 9e9).model_copy(update={"place": "recipes/[red]x.yaml:3", "artifact": CONTROLS})
    text = on_console(build(verdicts=(odd,), exit_code=1))
    assert "recipes/[red]x.yaml:3" in text
    assert "\x1b" not in text


def test_the_ledger_and_the_distributions_are_drawn() -> None:
    text = rendered("html", LOUD)
    assert text.count('class="trail"') == 6 * 2 + 4 * 3
    assert text.count('class="distribution"') == 4
    assert text.count('class="shape"') == 4
    assert "encoder.layer16.attention.query" in text


def test_what_is_met_but_for_something_says_so() -> None:
    waived = verdict("size", 9e9).model_copy(update={"outcome": "waived"})
    assert wording.headline(build(verdicts=(verdict(), waived))) == "every budget met but for 1 waived"
    assert wording.headline(build()) == "every budget met"


def test_a_scale_has_round_ticks_within_it() -> None:
    for low, high, log in ((0.04, 3.0, True), (1.0, 1.3, True), (1.0, 1e9, True), (0.7, 1.0, False), (5.0, 5.0, True)):
        ticks = charts.Scale(low, high, log).ticks()
        assert 1 <= len(ticks) <= 6
        assert all(low <= tick <= high for tick in ticks)
