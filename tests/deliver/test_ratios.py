"""How much faster a file is: told with an interval where both were timed in turns, and not where they were not."""

import pytest
from factories import build, measurement

from edgepack.deliver import wording
from edgepack.deliver.reports import html, markdown
from edgepack.records.build import Build


def timed(teacher: list[float], ours: list[float], *, apart: float = 0.0) -> Build:
    """A build whose files took so many milliseconds, process by process, the teacher's `apart` seconds before."""
    facts = [("teacher (onnx)", teacher, 1.7e9 - apart), ("onnx", ours, 1.7e9)]
    figures = [
        measurement("latency.p50", sorted(each)[len(each) // 2], label, taken_at=at, detail={"each": each})
        for label, each, at in facts
    ]
    return build(measurements=(measurement(), *figures))


def test_a_ratio_is_the_median_of_alternating_pairs_with_its_interval() -> None:
    drifting = timed([2.0, 4.0, 4.0, 8.0, 2.0, 2.0, 6.0], [1.0, 2.0, 2.1, 4.0, 0.9, 1.0, 3.0])
    (line,) = wording.gains(drifting)
    assert "2x faster (1.9x to 2.22x; 4 ms -> 2 ms)" in line
    assert "2x faster (1.9x to 2.22x; " in markdown.render(drifting)
    assert "95 % interval 1.9x to 2.22x" in html.render(drifting)


def test_what_got_slower_is_told_as_such() -> None:
    (line,) = wording.gains(timed([1.0] * 7, [2.0, 2.0, 2.0, 2.0, 2.0, 2.5, 1.6]))
    assert "2x slower (1.6x to 2.5x; 1 ms -> 2 ms)" in line


@pytest.mark.parametrize(("ours", "warned"), [([1.1] * 6 + [1.01], True), ([1.1] * 6 + [0.99], False)])
def test_what_may_be_chance_is_no_warning(ours: list[float], warned: bool) -> None:
    """Slower in each of seven pairs is slower with 95 % confidence, in six of them it is not."""
    found = [each for each in wording.doubts(timed([1.0] * 7, ours)) if each.startswith("compression made it worse")]
    assert bool(found) == warned


@pytest.mark.parametrize(("ours", "apart"), [([1.0] * 7, 60.0), ([1.0] * 14, 0.0)], ids=["apart", "unlike"])
def test_figures_that_were_not_taken_alternately_have_no_interval(ours: list[float], apart: float) -> None:
    (line,) = wording.gains(timed([2.0] * 7, ours, apart=apart))
    assert "2x faster (2 ms -> 1 ms)" in line
