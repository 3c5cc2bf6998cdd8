"""Run exported files as a device would: each job in a fresh process, with one thread."""

import statistics
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from edgepack.config.device import Controls
from edgepack.core.runtimes import runtime_of
from edgepack.measure import processes
from edgepack.measure.timing.protocol import TimingProtocol


def timed(files: dict[str, Path], count: int, protocol: TimingProtocol) -> dict[str, list[float]]:
    """Return milliseconds of one inference by name, one per round: all files are timed in each, there and back."""
    found: dict[str, list[float]] = {name: [] for name in files}
    with closing(processes.Host(Controls(threads=1))) as here:
        for number in range(count):
            print(f"round {number + 1} of {count}", file=sys.stderr, flush=True)
            for name, path in (list if number % 2 else reversed)(files.items()):
                answer = here.run({**protocol.job(), "runtime": runtime_of(path.suffix), "file": str(path)})
                found[name].append(statistics.median(answer["samples_ns"]) * 1e-6)
    return found


def run(job: dict[str, Any]) -> dict[str, Any]:
    with closing(processes.Host(Controls(threads=1))) as here:
        return here.run(job)
