"""How a file is timed, tested with simulated processes: no clock, no model."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from factories import answers

from edgepack.core.errors import DeviceError
from edgepack.core.order_statistics import interval, percentile
from edgepack.judge.gate import compare
from edgepack.measure.timing.figures import doubts, slowed_down, timings
from edgepack.measure.timing.protocol import TimingProtocol, enough, time_alternately, time_pair

Process = Callable[[random.Random], float]  # a process and what it takes for one inference, in ms


def _steady(chance: random.Random) -> float:
    return chance.gauss(1.0, 0.01)


def _with_outliers(share: float) -> Process:
    """This share of the processes lands beside something busy and is three times slower."""
    return lambda chance: _steady(chance) * (3 if chance.random() < share else 1)


def _two_speeds(chance: random.Random) -> float:
    """The processor has two clock rates, and a process gets one of them."""
    return _steady(chance) * chance.choice((1.0, 1.2))


def time_file(
    run: Any, job: dict[str, Any], before: list[Any], decided: Any, progress: Any = lambda done, total: None
) -> list[dict[str, Any]]:
    [taken] = time_alternately(run, [job], [before], lambda taken: bool(decided(taken[0])), progress)
    return taken


def _timed(process: Process, limit: float, seed: int = 0) -> tuple[str, int]:
    """The verdict on "latency.p50 at most `limit` ms", and how many processes it took."""
    chance = random.Random(seed)

    def judged(taken: list[dict[str, Any]]) -> str:
        return compare("max", limit, *interval(timings(taken)["latency.p50"])[1:])

    def run(job: dict[str, Any]) -> dict[str, Any]:
        return answers(1, process(chance))[0]

    taken = time_file(run, {}, [], lambda so_far: judged(so_far) != "inconclusive")
    return judged(taken), len(taken)


@pytest.mark.parametrize("process", [_steady, _with_outliers(0.1), _two_speeds])
@pytest.mark.parametrize(("limit", "outcome"), [(5.0, "pass"), (0.5, "fail")])
def test_a_clear_case_takes_one_round(process: Process, limit: float, outcome: str) -> None:
    assert _timed(process, limit) == (outcome, 7)


def test_a_figure_at_its_limit_takes_all_rounds_and_stays_undecided() -> None:
    assert _timed(_steady, 1.0) == ("inconclusive", 21)


def test_one_slow_process_costs_a_round_and_no_verdict() -> None:
    slow = iter([1.0, 1.0, 3.0, *[1.0] * 20])
    assert _timed(lambda chance: next(slow), 1.5) == ("pass", 14)


@pytest.mark.parametrize(("limit", "right", "wrong"), [(1.05, "pass", "fail"), (1 / 1.05, "fail", "pass")])
@pytest.mark.parametrize(("busy", "least"), [(0.0, 1000), (0.05, 990), (0.1, 980)])
def test_a_file_five_percent_from_its_limit_is_judged_right(
    limit: float, right: str, wrong: str, busy: float, least: int
) -> None:
    """99 times of 100 where one process in twenty is an outlier; with one in ten some stay undecided, none is wrong."""
    found = [_timed(_with_outliers(busy), limit, seed)[0] for seed in range(1000)]
    assert found.count(wrong) == 0
    assert found.count(right) >= least


@pytest.mark.parametrize("process", [_steady, _two_speeds])
def test_a_file_whose_median_is_the_limit_is_rarely_judged(process: Process) -> None:
    """The three looks together err at most 2.8 % of the time a side."""
    chance = random.Random(1)
    draws = sorted(process(chance) for _ in range(20_001))
    found = [_timed(process, draws[10_000], seed)[0] for seed in range(1000)]
    assert found.count("pass") <= 40
    assert found.count("fail") <= 40


@pytest.mark.parametrize("count", [7, 14, 21])
def test_the_interval_holds_the_median_at_least_95_times_of_100(count: int) -> None:
    chance = random.Random(2)
    held = 0
    for _ in range(2000):
        _, low, high = interval([chance.lognormvariate(0, 1) for _ in range(count)])
        held += low <= 1.0 <= high
    assert held / 2000 > 0.95


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (range(1, 8), (4, 1, 7)),
        (range(1, 15), (7.5, 3, 12)),
        (range(1, 22), (11, 6, 16)),
        ([5.0], (5.0, 5.0, 5.0)),
        ([2.0, 1.0, 3.0], (2.0, 1.0, 3.0)),
    ],
)
def test_the_interval_is_made_of_order_statistics(values: Any, expected: tuple[float, float, float]) -> None:
    assert interval([*values]) == expected


def test_more_processes_narrow_the_interval() -> None:
    chance = random.Random(3)
    values = [_two_speeds(chance) + chance.random() for _ in range(21)]
    widths = [high - low for _, low, high in (interval(values[:count]) for count in (7, 14, 21))]
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 10), (0.1, 10), (0.5, 50), (0.9, 90), (0.91, 100), (1.0, 100)])
def test_percentiles_are_samples(share: float, expected: float) -> None:
    assert percentile([70, 100, 10, 30, 90, 20, 50, 40, 60, 80], share) == expected


def test_processes_come_in_rounds() -> None:
    always, never = (lambda: True), (lambda: False)
    assert [count for count in range(25) if enough(answers(count), always)] == [7, 14, 21, 22, 23, 24]
    assert [count for count in range(25) if enough(answers(count), never)] == [21, 22, 23, 24]


def test_timing_goes_on_from_what_was_taken_before() -> None:
    before, reported = answers(7), []

    def run(job: dict[str, Any]) -> dict[str, Any]:
        return answers(1, 2.0)[0]

    taken = time_file(run, {}, before, lambda so_far: len(so_far) == 14, lambda *progress: reported.append(progress))
    assert taken[:7] == before
    assert len(taken) == 14
    assert len(before) == 7
    assert reported == [(done, 14) for done in range(7, 14)]


def test_every_process_is_given_the_same_job() -> None:
    jobs: list[dict[str, Any]] = []

    def run(job: dict[str, Any]) -> dict[str, Any]:
        jobs.append(job)
        return answers(1)[0]

    job = {**TimingProtocol().job(), "file": "x.onnx"}
    time_file(run, job, [], lambda taken: True)
    assert jobs == [job] * 7
    assert jobs[0]["mode"] == "time"


def test_an_interruption_between_processes_reaches_the_caller() -> None:
    def run(job: dict[str, Any]) -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        time_file(run, {}, [], lambda taken: True)


def _answer(samples_ms: Sequence[float], **more: Any) -> dict[str, Any]:
    return {"samples_ns": [int(ms * 1e6) for ms in samples_ms], "load_ms": 20.0, "first_ms": 11.0, **more}


def test_timings_are_one_figure_a_process_in_milliseconds() -> None:
    answer = _answer(range(1, 101))
    assert timings([answer, answer]) == {
        "latency.p50": [50.5, 50.5],
        "latency.p90": [pytest.approx(90.0)] * 2,
        "latency.load": [20.0, 20.0],
        "latency.first": [11.0, 11.0],
    }


@pytest.mark.parametrize(
    ("runs", "known"), [(63, {"p50"}), (64, {"p50", "p90"}), (661, {"p50", "p90"}), (662, {"p50", "p90", "p99"})]
)
def test_a_percentile_of_too_few_runs_is_not_measured(runs: int, known: set[str]) -> None:
    found = timings([_answer([1.0] * 700), _answer([1.0] * runs)])
    assert set(found) == {"latency.load", "latency.first", *(f"latency.{each}" for each in known)}


@pytest.mark.parametrize(
    ("budgets", "runs"), [((), 30), (("latency.p90", "size"), 64), (("latency.p99", "latency.p90"), 662)]
)
def test_a_budget_on_a_percentile_asks_for_the_runs_that_it_needs(budgets: tuple[str, ...], runs: int) -> None:
    assert TimingProtocol.of(budgets).least_runs == runs


@pytest.mark.parametrize(
    ("values", "doubted"),
    [
        ([1.0] * 7, False),
        ([1.0, 1.02, 0.98], False),
        ([1.0, 1.0, 2.0], True),
        ([5.0], False),
        ([0.0, 0.0], False),
    ],
)
def test_processes_that_differ_much_are_doubted_with_advice(values: list[float], doubted: bool) -> None:
    found = doubts([_answer([value]) for value in values])
    assert bool(found) is doubted
    assert all("processes differ by" in doubt and "`controls: {threads: 1}`" in doubt for doubt in found)


def test_one_thread_is_not_advised_to_who_has_one() -> None:
    [doubt] = doubts([_answer([1.0]), _answer([2.0])], threads=1)
    assert doubt.endswith("close other programs")


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ([0.02] * 7, ""),
        ([0.9, 0.9, 0.9, 0, 0, 0, 0], ""),
        ([0.3] * 7, "other programs used 30% of the time of the cores used for timing: close them"),
    ],
)
def test_what_other_programs_took_of_its_cores_is_a_doubt(shares: list[float], message: str) -> None:
    """The processes agree all the same, when all of them were slowed down alike."""
    assert doubts([_answer([1.0], cpu_contention=share) for share in shares]) == ((message,) if message else ())


def test_who_should_be_cool_and_tells_no_temperature_is_doubted() -> None:
    [doubt] = doubts([_answer([1.0], blind=True)] * 7)
    assert "reports no temperature" in doubt
    assert not doubts([_answer([1.0], blind=False)] * 7)


WARM: dict[str, Any] = {"before": {"celsius": 50.0}, "after": {"celsius": 61.0}}
COUNTED: dict[str, Any] = {"before": {"throttle_count": 3}, "after": {"throttle_count": 4}}
REPORTED: dict[str, Any] = {"before": {"throttled": 0}, "after": {"throttled": 4}}
COOL: dict[str, Any] = {"before": {"celsius": 50.0, "throttle_count": 9}, "after": {"throttle_count": 9}}


@pytest.mark.parametrize(
    ("state", "message"),
    [(WARM, "rose by 11 degrees"), (COUNTED, "the processor throttled"), (REPORTED, "reports"), (COOL, ""), ({}, "")],
)
def test_a_device_that_slowed_down_is_told(state: dict[str, Any], message: str) -> None:
    found = slowed_down(_answer([1.0], **state))
    assert message in found and bool(message) is bool(found)


def _states(*states: dict[str, Any]) -> list[dict[str, Any]]:
    ready = iter(states)
    return time_file(lambda job: _answer([1.0], **next(ready)), {}, [], lambda taken: True)


def test_one_slowed_process_of_seven_is_a_doubt_and_two_are_a_device_error() -> None:
    taken = _states(WARM, *[COOL] * 6)
    assert [doubt for doubt in doubts(taken) if "in 1 of 7 processes its temperature rose" in doubt]
    with pytest.raises(DeviceError, match="slowed down in 2 of 7 processes: the processor throttled") as failure:
        _states(WARM, COUNTED, *[COOL] * 5)
    assert failure.value.code == 4


def test_files_are_timed_there_and_back_until_the_first_is_decided() -> None:
    log: list[str] = []

    def run(job: dict[str, Any]) -> dict[str, Any]:
        log.append(job["file"])
        return _answer([1.0])

    before = (answers(7), answers(7))
    jobs = [{"file": "a"}, {"file": "b"}]
    taken = time_alternately(run, jobs, before, lambda taken: len(taken[0]) == 14, lambda done, total: None)
    assert [len(each) for each in taken] == [14, 14] and [len(each) for each in before] == [7, 7]
    assert log == [*"baab"] * 3 + [*"ba"]


@pytest.mark.parametrize("slow", ["a", "b"])
def test_two_files_are_not_compared_on_a_device_that_slows_down(slow: str) -> None:
    def run(job: dict[str, Any]) -> dict[str, Any]:
        return _answer([1.0], **(REPORTED if job["file"] == slow else COOL))

    with pytest.raises(DeviceError, match="slowed down in 7 of 7 processes: it reports throttling") as failure:
        time_pair(run, [{"file": "a"}, {"file": "b"}], lambda done, total: None)
    assert failure.value.code == 4
