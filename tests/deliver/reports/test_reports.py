"""The same build in every form a person or a CI server reads."""

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from builds import AWKWARD, BUILDS, EVERY_BUILD, LOUD, on_console, rendered, sarif_of
from factories import artifact, budget, build, edgepack, measurement, record, verdict
from junitparser import Error, Failure, JUnitXml

from edgepack.cli.views import github, progress, verdicts
from edgepack.core.errors import RecipeError
from edgepack.core.events import (
    BuildFinished,
    BuildStarted,
    Event,
    Note,
    StepCached,
    StepFailed,
    StepFinished,
    StepProgress,
    StepStarted,
)
from edgepack.core.metrics import METRICS
from edgepack.deliver import wording
from edgepack.deliver.contract import write_reports
from edgepack.deliver.wording import doubts
from edgepack.judge.gate import judge
from edgepack.judge.history import append
from edgepack.records.build import Build, MetricRecord
from edgepack.records.training import Epoch, TrainingRecord


@EVERY_BUILD
def test_markdown_tables_have_as_many_cells_in_every_row(name: str) -> None:
    text = rendered("markdown", BUILDS[name])
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        rows = block.splitlines()
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
        assert set(rows[1]) == {"|", "-"}


def test_markdown_says_the_verdict_first_and_by_how_much() -> None:
    lines = rendered("markdown", BUILDS["every verdict"]).splitlines()
    assert lines[0] == "# tiny on the board: a budget failed (exit code 1)"
    (row,) = (line for line in lines if "latency.p50" in line)
    assert row == "| latency.p50 | onnx | 9.6 ms | at most 8 ms | over by 1.6 ms (20%) | FAIL | recipes/tiny.yaml:9 |"
    assert "- onnx: 80x smaller (40 MB -> 500 kB), against the fp32 teacher on onnxruntime" in lines


def test_markdown_of_two_equal_builds_is_the_same() -> None:
    assert rendered("markdown", build()) == rendered("markdown", build())


@EVERY_BUILD
def test_junit_parses_and_has_one_case_a_verdict(name: str) -> None:
    found = JUnitXml.fromstring(rendered("junit", BUILDS[name]).encode())
    (suite,) = found
    assert next(case.name for case in suite) == "the build"
    assert suite.tests == len([*suite]) == len(BUILDS[name].verdicts) + 1


def test_junit_tells_a_failure_from_what_was_not_decided() -> None:
    (suite,) = JUnitXml.fromstring(rendered("junit", BUILDS["every verdict"]).encode())
    kinds = [[type(result) for result in case.result] for case in suite][1:]
    assert kinds[:4] == [[], [Failure], [Error], [Error]]
    assert (suite.failures, suite.errors, suite.skipped) == (1, 2, 1)
    failure = [*suite][2]
    assert failure.name == "latency.p50 of onnx"
    assert "9.6 ms, at most 8 ms: over by 1.6 ms" in failure.result[0].message
    assert "recipes/tiny.yaml:9" in failure.result[0].message


class _Page(HTMLParser):
    """Notes every tag, that each is closed in order, and every address the page names."""

    VOID = {"meta", "br", "img", "link", "hr", "input"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src", "action", "data", "srcset")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@EVERY_BUILD
def test_html_is_well_formed_and_needs_nothing_else(name: str) -> None:
    text = rendered("html", BUILDS[name])
    page = _Page(text)
    assert not {"script", "link", "iframe", "img"} & page.seen
    assert all(address.startswith("#") for address in page.addresses)
    assert not re.search(r"https?://|url\(|@import|//\w", text)


def test_html_shows_text_as_text() -> None:
    text = _Page(rendered("html", BUILDS["awkward"])).text
    assert text.count(AWKWARD.replace("`", "")) >= 3  # what stands between backticks is set as code
    assert "a\ufffdb\ufffd[31mc\ufffdd" in text


def test_html_draws_the_course_of_every_training() -> None:
    page = rendered("html", BUILDS["everything"])
    assert page.count('<svg class="curves"') == 4  # train, two cuts of prune, quantize
    assert "recovering after cut 2 of 2: kept epoch 6 of 7: 98.1 % on validation" in page
    assert "training loss 1.15 to 0.018, validation loss 1.39 to 0.134, 1.24 k samples per second" in page
    assert 'id="training"' not in rendered("html", build())


def test_html_says_the_verdict_first() -> None:
    text = rendered("html", BUILDS["every verdict"])
    assert text.index("A budget failed") < text.index('id="budgets"') < text.index("What each stage cost")
    assert "taken 2023-11-14 22:13 UTC" in text


@EVERY_BUILD
def test_a_log_has_no_escapes_and_shows_every_budget(name: str) -> None:
    text = on_console(BUILDS[name])
    assert "\x1b" not in text
    assert all(each.budget in text for each in BUILDS[name].verdicts)


def test_the_end_of_a_build_shows_what_matters() -> None:
    text = on_console(BUILDS["every verdict"])
    for expected in (
        "9.6 ms",
        "at most 8 ms",
        "over by 1.6 ms",
        "not measured",
        "includes the limit",
        "recipes/tiny.yaml:9",
        "dist/tiny",
    ):
        assert expected in text


EVENTS: list[Event] = [
    BuildStarted(recipe="tiny", device="the board"),
    StepCached(step=1, steps=3, name="train", key="abcdef0123", result="accuracy 98 %"),
    StepStarted(step=2, steps=3, name="prune", why="ratio 30 % -> 40 %"),
    StepProgress(step=2, steps=3, name="prune", doing="cutting", done=1, total=4, seconds_left=75.0),
    Note(step=2, steps=3, name="prune", text="fc [left] alone"),
    StepFinished(step=2, steps=3, name="prune", seconds=3.2, result="accuracy 97 %"),
    StepStarted(step=3, steps=3, name="quantize", why="first time"),
    StepFailed(step=3, steps=3, name="quantize", message="no"),
    BuildFinished(recipe="tiny", exit_code=0, dist="dist/tiny"),
]


def test_plain_progress_is_a_line_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    stream = io.StringIO()
    watch = progress.watcher(stream, as_json=False)
    for event in EVENTS:
        watch(event)
    watch.close()
    assert stream.getvalue().splitlines() == [
        "building tiny for the board",
        "[1/3] train: accuracy 98 % (cached abcdef)",
        "[2/3] prune: starts (ratio 30 % -> 40 %)",
        "[2/3] prune: fc [left] alone",
        "[2/3] prune: accuracy 97 % (3.2 s)",
        "[3/3] quantize: starts (first time)",
        "[3/3] quantize: failed",
    ]


def test_plain_progress_of_a_long_step_comes_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, stream = iter([0.0, 1.0, 20.0, 20.0, 21.0]), io.StringIO()
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    watch = progress.watcher(stream, as_json=False)
    for event in (EVENTS[2], EVENTS[3], EVENTS[3], EVENTS[3]):
        watch(event)
    assert stream.getvalue().splitlines()[1:] == ["[2/3] prune: cutting, 1 of 4, 1 min 15 s left"]


def test_json_progress_is_an_object_a_line() -> None:
    stream = io.StringIO()
    watch = progress.watcher(stream, as_json=True)
    for event in EVENTS:
        watch(event)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == [type(event).__name__ for event in EVENTS]
    assert lines[3]["seconds_left"] == 75.0


def test_a_terminal_keeps_what_is_done_and_brackets_are_text() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    watch = progress.watcher(stream, as_json=False)
    for event in EVENTS:
        watch(event)
    watch.close()
    assert "fc [left] alone" in stream.getvalue()
    assert "accuracy 97 %" in stream.getvalue()


def test_reports_lie_beside_the_build(own_place: Path) -> None:
    write_reports(build(), own_place)
    names = ("report.md", "report.html", "report.sarif", "junit.xml")
    assert all((own_place / name).stat().st_size for name in names)


@EVERY_BUILD
def test_a_saved_build_is_read_back_the_same(name: str, own_place: Path) -> None:
    BUILDS[name].save(own_place / "build.json")
    assert Build.read(own_place / "build.json") == BUILDS[name]
    saved: dict[str, Any] = json.loads((own_place / "build.json").read_text())
    assert saved["schema"] == "edgepack.build/1"
    assert {"recipe", "device", "exit_code", "ledger", "artifacts", "measurements", "verdicts"} <= saved.keys()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": "edgepack.build/9"}', "\0"])
def test_a_file_that_is_no_build_is_a_clear_error(content: str, own_place: Path) -> None:
    (own_place / "build.json").write_text(content)
    with pytest.raises(RecipeError, match=r"is not a build\.json of schema edgepack\.build/1"):
        Build.read(own_place / "build.json")


def test_explain_shows_the_ledger_of_the_last_build(own_place: Path) -> None:
    (own_place / "dist" / "tiny").mkdir(parents=True)
    build().save(own_place / "dist" / "tiny" / "build.json")
    ran = edgepack("explain", "tiny")
    assert ran.code == 0
    assert "kept epoch 5 of 6" in ran.out
    failed = build(error="prune failed: no channels", exit_code=5)
    failed.save(own_place / "dist" / "tiny" / "build.json")
    assert "the build did not finish: prune failed: no channels" in edgepack("explain", "tiny").out


def test_a_build_knows_which_files_ship() -> None:
    found = build(artifacts=(artifact(), artifact("executorch"), artifact(subject="teacher")))
    assert [each.label for each in found.shipped()] == ["onnx", "executorch"]


def test_a_line_of_code_in_a_message_stays_as_it_is() -> None:
    """ ":100:" is the name of a picture too."""
    stream = io.StringIO()
    failed = verdict("size", 9e9).model_copy(update={"reason": "at net.py:100: return x"})
    verdicts.show(build(verdicts=(failed,), exit_code=1), stream, "dist/tiny")
    assert "at net.py:100: return x" in stream.getvalue()


@pytest.mark.parametrize(("fp32", "advised"), [([], True), (["head"], True), (["auto"], False), (None, False)])
def test_int8_that_is_slower_is_told_with_what_may_help(fp32: list[str] | None, advised: bool) -> None:
    timings = (measurement("latency.p50", 3.0), measurement("latency.p50", 2.0, artifact="teacher (onnx)"))
    stages = [{"train": {}}, *([] if fp32 is None else [{"quantize": {"fp32": fp32}}])]
    (doubt,) = doubts(build(measurements=timings, recipe={"name": "tiny", "device": "board", "stages": stages}))
    assert doubt.startswith("compression made it worse: onnx: 1.5x slower")
    assert ("`quantize: {fp32: auto}`" in doubt) == advised


@pytest.mark.parametrize("report", ["html", "markdown", "junit"])
def test_what_is_not_measured_says_so_beside_its_figure(report: str) -> None:
    text = re.sub(r"<[^>]*>", "", rendered(report, LOUD)) if report == "html" else rendered(report, LOUD)
    assert "9.6 ms EMULATED" in text
    assert "EMULATED, not measured on the device: accuracy, latency.p50, latency.p90 of onnx, teacher (onnx)" in text
    assert "ESTIMATED" not in text


def test_sarif_annotations_and_the_console_say_so_too() -> None:
    assert "9.6 ms EMULATED, at most 8 ms" in rendered("sarif", LOUD)
    assert any("9.6 ms EMULATED, at most 8 ms" in line for line in github.annotations(LOUD))
    shown = on_console(LOUD)
    assert "9.6 ms EMULATED" in shown
    assert "EMULATED, not measured on the device" in shown


def test_a_drop_is_worth_as_much_as_the_weaker_of_its_figures() -> None:
    figures = (
        measurement("accuracy", 0.97),
        measurement("accuracy", 0.98, artifact="teacher (onnx)", evidence="estimated"),
    )
    (drop,) = judge([budget("accuracy", "1 %", "max_drop", evidence="estimated")], ["onnx"], figures)
    assert wording.value(drop) == "1 % ESTIMATED"


@pytest.mark.parametrize("report", ["html", "markdown", "junit"])
def test_a_device_that_was_not_reached_is_told_loudly(report: str) -> None:
    assert "THE DEVICE WAS NOT REACHED: no route to the board" in rendered(
        report, build(absent="no route to the board")
    )


@pytest.mark.parametrize("report", ["markdown", "html"])
def test_a_relative_budget_tells_what_it_is_held_against(report: str) -> None:
    facts = {"bound": "max_increase", "relative": 0.02, "baseline": 490e3, "against": "the build of a day"}
    text = rendered(report, build(verdicts=(verdict("size").model_copy(update=facts),)))
    assert "elative to the build of a day: size of onnx 490 kB +2 %" in text


def test_what_was_counted_has_no_interval() -> None:
    text = rendered(
        "html", build(measurements=(measurement("accuracy", 0.9), measurement("latency.p50", 2.0, low=1.9)))
    )
    assert "90 % to 90 %" not in text
    assert "1.9 ms to 2 ms" in text


@pytest.mark.parametrize(
    ("level", "marked", "kind"), [("warn", "fail (warn)", "warning"), ("info", "fail (info)", "note")]
)
def test_what_does_not_decide_is_told_as_such(level: str, marked: str, kind: str) -> None:
    soft = verdict("latency.p50", 9.6, "8 ms").model_copy(update={"level": level})
    of = build(verdicts=(soft,))
    assert marked in rendered("markdown", of)
    (suite,) = JUnitXml.fromstring(rendered("junit", of).encode())
    assert (suite.failures, suite.errors, suite.skipped) == (0, 0, 1)
    assert sarif_of(of)["results"][0]["level"] == kind


def _of_errors(before: float, after: float, **more: Any) -> Build:
    """A build whose task is scored by an error."""
    scores = (measurement("rmse", after, detail={"rows": 50}), measurement("rmse", before, artifact="teacher (onnx)"))
    judged = judge([budget("rmse", "3"), budget("rmse", "0.5", "max_rise")], ["onnx"], scores)
    trained = TrainingRecord(doing="training", kept=1, epochs=tuple(Epoch(epoch=n, score=4.0 - n) for n in range(3)))
    ledger = (
        record("model", metric="rmse", accuracy=9.0),
        record("train", metric="rmse", accuracy=2.25, trainings=(trained,)),
    )
    metrics = (MetricRecord.of("rmse", METRICS["rmse"]), MetricRecord.of("mae", METRICS["mae"]))
    return build(measurements=(measurement(), *scores), verdicts=judged, ledger=ledger, metrics=metrics, **more)


def test_reports_speak_in_the_metric_of_the_task_and_of_its_better_direction() -> None:
    made = _of_errors(2.0, 2.75)
    markdown, page = rendered("markdown", made), rendered("html", made)
    assert "| rmse | onnx | 2.75 | at most 3 | 0.25 (8%) | pass | recipes/tiny.yaml:9 |" in markdown
    assert "| rmse.max_rise | onnx | 0.75 | at most 0.5 | over by 0.25 (50%) | FAIL | recipes/tiny.yaml:9 |" in markdown
    assert "rmse 2 -> 2.75, against the fp32 teacher on onnxruntime" in markdown
    for text in (markdown, page, on_console(made)):
        assert "rmse" in text and "2.25" in text and "accuracy" not in text
    failures = [each for each in JUnitXml.fromstring(rendered("junit", made).encode())]
    assert sum(suite.failures for suite in failures) == 1
    assert "rmse.max_rise" in json.dumps(sarif_of(made))


def test_two_builds_are_compared_and_listed_by_the_metric_of_the_task() -> None:
    for name, error, start in (("old", 2.75, 1.7e9), ("new", 2.5, 1.8e9)):
        made = _of_errors(2.0, error, started_at=start)
        Path("dist", name).mkdir(parents=True)
        made.save(Path("dist", name, "build.json"))
        append(Path("dist/history.jsonl"), made)
    compared = edgepack("compare", "dist/old", "dist/new")
    (row,) = [line for line in compared.out.splitlines() if line.startswith("rmse ")]
    assert row.split() == ["rmse", "onnx", "2.75", "2.5", "-0.25"]  # and not of how many samples
    explained = edgepack("explain", "dist/new")
    assert "rmse" in explained.out and "-6.75" in explained.out and "accuracy" not in explained.out
    trend = edgepack("trend")
    assert [word for word in trend.out.splitlines()[1].split() if word in ("rmse", "accuracy")] == ["rmse"]
    old, new = (line.split() for line in trend.out.splitlines() if " onnx " in line)
    assert "2.75" in old and "2.5" in new and new[-2:] == ["rmse", "-0.25"]
