"""One line a build that nothing can break, baselines out of it, and the trend that it shows."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from factories import artifact, build, edgepack, measurement, recipe_file, verdict

from edgepack.cli.views.trend import rows
from edgepack.core.errors import DeviceError
from edgepack.judge.baseline import Baseline
from edgepack.judge.history import HistoryEntry, append, read
from edgepack.records.build import Build
from edgepack.records.verdict import Base, NoBase
from edgepack.workflows.baselines import baseline

PAST = Path("dist/history.jsonl")
HERE = {"cpu": "a processor", "threads": 2, "protocol": "edgepack/1", "versions": {"onnxruntime": "1.32.0"}}


def made(at: float, p50: float = 1.0, *, sha256: str = "a" * 64, where: Any = None, **more: Any) -> Build:
    """A build that began so many days after a day."""
    place: dict[str, Any] = {"environment": {**HERE, **(where or {})}, "sha256": sha256}
    timed = measurement("latency.p50", p50, low=p50 * 0.98, high=p50 * 1.02, samples=((1.0, 2.0),), **place)
    known = (measurement(sha256=sha256), timed, measurement("accuracy", 0.98, environment={"data": "digits"}))
    files = (artifact(sha256=sha256), artifact(subject="teacher"))
    return build(started_at=1.7e9 + at * 86400, artifacts=files, measurements=known, **more)


def kept(*builds: Build) -> None:
    for each in builds:
        append(PAST, each)


def last(before: float = 1.8e9, recipe: str = "tiny", device: str = "board") -> Baseline:
    return baseline("last", recipe, device, PAST, before)


def find(held: Baseline, metric: str = "latency.p50", sha256: str = "b" * 64, **where: Any) -> Base | NoBase:
    return held.find(metric, "onnx", sha256, {} if metric == "size" else {**HERE, **where})


def test_a_line_says_what_was_built_where_and_what_came_of_it() -> None:
    kept(made(0))
    ((line,), damaged) = read(PAST)
    assert damaged == 0
    assert (line.recipe, line.device, line.exit_code, line.artifacts) == ("tiny", "board", 0, {"onnx": "a" * 64})
    assert {each.metric for each in line.figures} == {"size", "latency.p50", "accuracy"}
    assert "samples" not in PAST.read_text()
    assert line.where["cpu"] == "a processor"


def test_builds_that_end_at_once_leave_whole_lines() -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: append(PAST, made(i)), range(64)))
    lines, damaged = read(PAST)
    assert (len(lines), damaged) == (64, 0)
    assert len({line.started_at for line in lines}) == 64


@pytest.mark.parametrize("damage", [b'{"schema": "edgepack.hist', b"\xff\xfe\n", b"[]\n\n\n", b"[" * 5000, b"1e300"])
def test_a_damaged_line_is_passed_over(damage: bytes) -> None:
    kept(made(0))
    if damage == b"1e300":
        damage = PAST.read_bytes().replace(b"1700000000.0", damage)
    with PAST.open("ab") as file:
        file.write(damage)
    kept(made(1))
    lines, damaged = read(PAST)
    assert (len(lines), damaged) == (2, 1)


def test_a_line_of_a_newer_schema_is_passed_over() -> None:
    kept(made(0))
    PAST.write_text(PAST.read_text().replace("edgepack.history/1", "edgepack.history/2"))
    assert read(PAST) == ((), 1)


def test_no_history_is_an_empty_one() -> None:
    assert read(Path("nowhere.jsonl")) == ((), 0)


def test_a_history_that_cannot_be_written_is_an_error_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("edgepack.judge.history.os.write", full)
    with pytest.raises(DeviceError):
        kept(made(0))


def test_the_last_build_that_passed_before_this_one() -> None:
    waived = verdict("size", 700e3).model_copy(update={"outcome": "waived"})
    kept(made(0, 1.0), made(1, 2.0), made(2, 3.0, exit_code=1), made(2.5, 3.0, verdicts=(waived,)), made(3, 4.0))
    assert find(last(1.7e9 + 3 * 86400)) == Base(
        value=2.0, low=1.96, high=2.04, told="the build of 2023-11-15 22:13 UTC"
    )


def test_a_try_with_other_settings_is_the_baseline_of_such_tries_alone() -> None:
    kept(made(0, 1.0), made(1, 2.0, overrides=("stages.train.epochs=1",)))
    held = baseline("last", "tiny", "board", PAST, 1.8e9, ("stages.train.epochs=1", "budgets.size=1MB"))
    for each, value in ((last(), 1.0), (held, 2.0)):
        found = find(each)
        assert isinstance(found, Base)
        assert found.value == value


def test_it_is_of_the_same_recipe_and_device() -> None:
    kept(made(0), made(1, recipe={"name": "other"}), made(2, device={"id": "phone", "name": "a phone"}))
    for held in (last(recipe="third"), last(device="desk")):
        found = find(held)
        assert isinstance(found, NoBase)
        assert found.beginning


def test_another_device_or_protocol_begins_a_new_series_and_another_version_does_not() -> None:
    kept(made(0, 1.0), made(1, 5.0, where={"cpu": "another"}))
    assert isinstance(find(last(), cpu="a third"), NoBase)
    assert isinstance(find(last(), protocol="edgepack/2"), NoBase)
    found = find(last(), versions={"onnxruntime": "1.33.0"})
    assert isinstance(found, Base)
    assert found.value == 1.0  # not of the newer build elsewhere
    size = find(last(), "size")
    assert isinstance(size, Base)


def test_the_same_file_in_the_same_place_is_known() -> None:
    kept(made(0))
    same, other = find(last(), sha256="a" * 64), find(last(), sha256="a" * 64, versions={"onnxruntime": "1.33.0"})
    assert isinstance(same, Base) and isinstance(other, Base)
    assert (same.same, other.same) == (True, False)


def _trend(*builds: Build) -> list[tuple[str, ...]]:
    return [row.cells() for row in rows([HistoryEntry.of(each) for each in builds])]


def test_a_file_that_stays_the_same_ships_with_more_beside_it() -> None:
    beside = build(started_at=1.7e9, measurements=(measurement("size.deploy", 600e3),))
    kept(beside)
    held = last().find("size.deploy", "onnx", beside.measurements[0].sha256, {})
    assert held == Base(value=600e3, low=600e3, high=600e3, told="the build of 2023-11-14 22:13 UTC", same=False)


def test_lines_that_cannot_be_read_are_told_with_the_baseline_that_was_found_without_them() -> None:
    kept(made(0))
    with PAST.open("a") as file:
        file.write("{\n")
    found, other = find(last()), find(last(recipe="third"))
    assert isinstance(found, Base) and isinstance(other, NoBase)
    assert found.told == "the build of 2023-11-14 22:13 UTC (unreadable lines in dist/history.jsonl: 1)"
    assert other.beginning and other.reason.endswith("unreadable lines in dist/history.jsonl: 1")


def test_of_a_build_that_is_judged_again_no_beginning_is_believed_without_its_own_line() -> None:
    kept(made(1, recipe={"name": "other"}))
    for before, beginning in ((1.7e9, False), (1.7e9 + 86400, True)):
        name = "other" if beginning else "tiny"
        found = find(baseline("last", name, "board", PAST, before, again=True))
        assert isinstance(found, NoBase)
        assert found.beginning == beginning
        assert beginning or "the build itself is not in the history dist/history.jsonl" in found.reason
    with PAST.open("a") as file:
        file.write("{\n")
    found = find(baseline("last", "other", "board", PAST, 1.7e9 + 86400, again=True))
    assert isinstance(found, NoBase)
    assert not found.beginning and found.reason.startswith("the baseline may be in an unreadable line")


def test_a_trend_marks_steps_beyond_the_intervals() -> None:
    found = _trend(made(0), made(1, 1.03, sha256="b" * 64), made(2, 1.5, sha256="c" * 64, exit_code=1))
    assert [cells[-1] for cells in found] == ["", "", "latency.p50 +45.6 %"]
    assert [cells[-2] for cells in found] == ["0", "0", "1"]


def test_a_trend_marks_where_a_series_breaks() -> None:
    newer = {"versions": {"edgepack": "0.2.0"}, "git": {}}
    found = _trend(
        made(0), made(1, 9.0, where={"cpu": "another"}), made(2, 9.0, where={"cpu": "another"}, provenance=newer)
    )
    assert [cells[-1] for cells in found] == [
        "",
        "new series: cpu a processor -> another",
        "new versions: edgepack 0.1.0 -> 0.2.0",
    ]


def test_builds_that_found_the_same_are_one_row_of_the_last() -> None:
    [cells] = _trend(made(0), made(1), made(2))
    assert (cells[0], cells[-1]) == (_trend(made(2))[-1][0], "the same 3 times")


def test_a_trend_tells_a_try_from_the_recipe() -> None:
    kept(made(0), made(1, overrides=("seed=1",)))
    assert [row.remarks for row in rows(read(PAST)[0])] == [(), ("--set seed=1",)]


@pytest.mark.parametrize(
    ("named", "why"), [("recipes", "recipes is a folder"), ("taken/past.jsonl", "is not a folder")]
)
def test_a_history_that_can_be_no_file_is_told_before_anything_is_built(named: str, why: str) -> None:
    Path("taken").write_text("")
    recipe_file()
    ran = edgepack("build", "tiny", "--device", "host", "--history", named)
    assert ran.code == 2
    assert "the history must be a file, but " in ran.err and why in ran.err
    assert not Path("dist/tiny/build.json").exists() and not Path(".edgepack/store").exists()


def test_the_command_shows_the_history() -> None:
    kept(*(made(day, 1.0 + day, sha256=f"{day:064}") for day in range(5)))
    ran = edgepack("trend", "tiny", "--device", "board", "--last", "2")
    assert (ran.code, ran.err) == (0, "")
    assert "tiny on board" in ran.out and "4 ms" in ran.out and "5 ms" in ran.out and "3 ms" not in ran.out


def test_the_command_tells_of_lines_that_cannot_be_read() -> None:
    kept(made(0))
    with PAST.open("a") as file:
        file.write("{\n")
    ran = edgepack("trend")
    assert ran.code == 0
    assert "unreadable lines in dist/history.jsonl: 1" in ran.err


@pytest.mark.parametrize("arguments", [("nothing",), ("--device", "nowhere"), ("--history", "none.jsonl")])
def test_the_command_says_what_there_is(arguments: tuple[str, ...]) -> None:
    kept(made(0))
    ran = edgepack("trend", *arguments)
    assert ran.code == 2
    assert "no matching build in the history" in ran.err


def test_the_history_is_json_lines_for_other_programs() -> None:
    kept(made(0), made(1))
    parsed = [json.loads(line) for line in PAST.read_text().splitlines()]
    assert [each["schema"] for each in parsed] == ["edgepack.history/1"] * 2
