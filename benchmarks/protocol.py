"""How far the timings of this computer can be trusted.

    python benchmarks/protocol.py            writes benchmarks/protocol.md; five minutes in which nothing else may run
    python benchmarks/protocol.py --busy     although other programs run, which the page then says

`edgepack bench` on one thread: once without a budget, which gives the median; twice with the same two budgets, 5 %
above and 5 % below that; and, of the file that takes longest, once with budgets so close to the median that no number
of processes decides them all. And what the worker's own loop adds to a model of about a millisecond, against a loop
that does nothing but run it.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import idle
from goals import Goal, table

from edgepack.config.plugins import choose
from edgepack.core import provenance
from edgepack.core.signature import Signature, TensorSpec
from edgepack.core.units import DURATION
from edgepack.export.contract import write
from edgepack.measure.runtimes import onnx_runtime
from edgepack.measure.timing.protocol import MOST
from edgepack.measure.worker import modes
from edgepack.models.candidate import Candidate

_PAGE = Path(__file__).with_suffix(".md")
_FORMATS = ("onnx", "executorch")
_TURNS, _RUNS = 10, 300
_APART, _HEADROOM, _SECONDS, _OVERHEAD = 0.03, 0.05, 45.0, 0.02  # the goals
_CLOSE = [0.0025 * step for step in range(-12, 13)]  # limits close enough that any interval contains some of them
_RIGHT = ("pass", "fail")  # expected verdicts for a limit above and one below
_JUDGED = (0, 1, 3)  # exit codes after timing, whatever the verdicts
_HEAD = f"""# How far timings of one computer can be trusted

MobileNetV2 in fp32 on pictures of 96 x 96, with the weights it is born with, timed on one thread
(`devices/host-1t.yaml`) by `edgepack bench`: once without a budget, and twice with the same two budgets,
{_HEADROOM:.0%} above the first median and {_HEADROOM:.0%} below it.
"""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The result of one `edgepack bench`: median in milliseconds, one verdict per budget, and its duration."""

    median: float
    processes: int
    outcomes: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One file: one run without a budget, then two with the same budgets."""

    file: str
    free: Bench
    first: Bench
    second: Bench

    @property
    def apart(self) -> float:
        return abs(self.second.median / self.first.median - 1)


def main() -> None:
    options = ArgumentParser()
    options.add_argument("--busy", action="store_true", help="take the figures although other programs run")
    load = idle.checked(options.parse_args().busy)
    with TemporaryDirectory() as folder:
        files = {format: _exported(format, Path(folder)) for format in _FORMATS}
        rows = {format: _row(file) for format, file in files.items()}
        slowest = max(rows, key=lambda format: rows[format].free.seconds)
        longest = _bench(files[slowest], [rows[slowest].free.median * (1 + step) for step in _CLOSE])
        overhead = _overhead(files["onnx"])
    _PAGE.write_text(page([*rows.values()], rows[slowest].file, longest, overhead, load))


def _exported(format: str, folder: Path) -> Path:
    spec = TensorSpec(name="image", shape=(3, 96, 96), dtype="float32")
    signature = Signature(inputs=(spec,), labels=tuple(map(str, range(10))), preprocessing={})
    exporter = choose("exporters", format)
    path = folder / f"net{exporter.module.SUFFIX}"
    write(Candidate.start(choose("models", {"torchvision": "mobilenet_v2"}), signature), exporter, path)
    return path


def _row(file: Path) -> Row:
    free = _bench(file, [])
    limits = [free.median * (1 + share) for share in (_HEADROOM, -_HEADROOM)]
    return Row(file=file.suffix, free=free, first=_bench(file, limits), second=_bench(file, limits))


def _bench(file: Path, limits: Sequence[float]) -> Bench:
    """Time a file against limits of its median, in milliseconds."""
    budgets = [f"--budget=latency.p50={DURATION.exact(round(limit, 6))}" for limit in limits]
    command = [sys.executable, "-m", "edgepack", "bench", str(file), "--device", "host-1t", "--json", *budgets]
    started = time.monotonic()
    ran = subprocess.run(command, capture_output=True, text=True)
    seconds = time.monotonic() - started
    if ran.returncode not in _JUDGED:
        sys.exit(f"edgepack bench {file.name} ended with {ran.returncode}:\n{ran.stderr}")
    found: dict[str, Any] = json.loads(ran.stdout)
    median = next(each for each in found["measurements"] if each["metric"] == "latency.p50")
    bench = Bench(
        median=float(median["value"]),
        processes=median["detail"]["processes"],
        outcomes=tuple(verdict["outcome"] for verdict in found["verdicts"]),
        seconds=seconds,
    )
    print(f"{file.name}: {DURATION.format(bench.median)} in {seconds:.0f} s", file=sys.stderr, flush=True)
    return bench


def page(rows: Sequence[Row], slowest: str, longest: Bench, overhead: float, load: str) -> str:
    """Write the page. `longest` is the result for the file `slowest`, with budgets that stay undecided."""
    return "\n".join(
        [
            _HEAD,
            *table(_goals(rows, slowest, longest, overhead)),
            "",
            "| file | median without a budget | first median | second median | apart | verdicts, above and below "
            "| processes | seconds |",
            "|---|---|---|---|---|---|---|---|",
            *map(_line, rows),
            "",
            f"The budgets of the longest `bench` lie from {_CLOSE[0]:+.0%} to {_CLOSE[-1]:+.0%} around the median, "
            f"{_CLOSE[1] - _CLOSE[0]:.2%} apart: no more than {MOST} processes are taken, whatever they decide.",
            f"The worker's loop and a bare one are compared on the `.onnx`, {_RUNS} runs a turn, "
            f"the median of {2 * _TURNS} turns of both.",
            "",
            "Command: `python benchmarks/protocol.py`",
            "",
            f"Environment: {provenance.summary('onnxruntime', 'executorch')}; {load}.",
            "",
        ]
    )


def _goals(rows: Sequence[Row], slowest: str, longest: Bench, overhead: float) -> list[Goal]:
    apart, seconds = max(row.apart for row in rows), max(_usual(row) for row in rows)
    benches = [bench for row in rows for bench in (row.first, row.second)]
    same = sum(row.first.outcomes == row.second.outcomes for row in rows)
    right = sum(bench.outcomes == _RIGHT for bench in benches)
    above, below = (sum(bench.outcomes[i] == _RIGHT[i] for bench in benches) for i in (0, 1))
    budget = f"with a budget that takes {longest.processes} processes"
    return [
        Goal(text=f"the same `bench` twice: medians within {_APART:.0%}", figure=f"{apart:.1%}", met=apart <= _APART),
        Goal(text="... and the same verdicts", figure=f"{same} of {len(rows)} files", met=same == len(rows)),
        Goal(
            text=f"a limit {_HEADROOM:.0%} above passes, one {_HEADROOM:.0%} below fails",
            figure=f"{above} and {below} of {len(benches)}",
            met=right == len(benches),
        ),
        Goal(
            text=f"one `bench` takes less than {_SECONDS:.0f} s: without a budget, and with those",
            figure=f"{seconds:.0f} s at most",
            met=seconds < _SECONDS,
        ),
        Goal(
            text=f"... {budget}, of the `{slowest}`",
            figure=f"{longest.seconds:.0f} s",
            met=longest.seconds < _SECONDS,
        ),
        Goal(
            text=f"the worker's loop adds less than {_OVERHEAD:.0%} to a bare one",
            figure=f"{overhead:+.2%}",
            met=overhead < _OVERHEAD,
        ),
    ]


def _usual(row: Row) -> float:
    return max(bench.seconds for bench in (row.free, row.first, row.second))


def _line(row: Row) -> str:
    benches = (row.free, row.first, row.second)
    medians = [DURATION.format(bench.median) for bench in benches]
    verdicts = " / ".join(", ".join(bench.outcomes) for bench in benches[1:])
    processes, seconds = (" / ".join(each) for each in zip(*map(_cost, benches), strict=True))
    return f"| {' | '.join((row.file, *medians, f'{row.apart:.1%}', verdicts, processes, seconds))} |"


def _cost(bench: Bench) -> tuple[str, str]:
    return str(bench.processes), f"{bench.seconds:.0f}"


def _overhead(file: Path) -> float:
    """Return the share of time that the worker's loop adds: whole loops of both kinds, alternately."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    runtime = onnx_runtime.Runtime()
    runtime.start(1)
    runtime.load(str(file))
    bound = runtime.bind(modes.noise(runtime.specs))

    def bare() -> None:
        for _ in range(_RUNS):
            runtime.run(bound)

    def ours() -> None:
        modes.repeat(runtime, bound, seconds=0.0, least=_RUNS, most=_RUNS, most_seconds=60.0)

    shares = [_seconds(ours) / _seconds(bare) for _ in range(_TURNS + 1)]
    shares += [1 / (_seconds(bare) / _seconds(ours)) for _ in range(_TURNS)]  # in the opposite order
    os.sched_setaffinity(0, cores)
    return statistics.median(shares[1:]) - 1


def _seconds(do: Callable[[], None]) -> float:
    started = time.perf_counter()
    do()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
