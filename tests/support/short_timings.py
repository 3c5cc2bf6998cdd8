"""Timings of real files by real processes, but few of them: for what is made of timings, not for what they tell."""

from pathlib import Path

import forked_workers as forked
import pytest

from edgepack.measure import processes
from edgepack.measure.timing import protocol

SHORT = protocol.TimingProtocol(warm_up_seconds=0.0, seconds=0.0, least_runs=64)  # as a 90th percentile needs
PROCESSES = 2
# The same in a process of its own, before it does anything else.
SHORTENED = f"""\
import sys
sys.path.append({str(Path(__file__).parent)!r})
import forked_workers
sys.path.pop()
from edgepack.measure import processes
from edgepack.measure.timing import protocol
processes.Host.run = forked_workers.run
short = protocol.TimingProtocol(**{SHORT.model_dump()})
protocol.TimingProtocol.of = lambda metrics: short
protocol.LOOKS, protocol.MOST, protocol._PASSES = {{{PROCESSES}: 1}}, {PROCESSES}, 1
"""


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes.Host, "run", forked.run)


@pytest.fixture
def short_timings(forked_workers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol.TimingProtocol, "of", lambda metrics: SHORT)
    for name, value in {"LOOKS": {PROCESSES: 1}, "MOST": PROCESSES, "_PASSES": 1}.items():
        monkeypatch.setattr(protocol, name, value)


@pytest.fixture(autouse=True)
def one_process_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start no process ahead of its job: the other core is for the tests beside, and many tests have one job only."""
    monkeypatch.setattr(processes, "_MOST", 1)
