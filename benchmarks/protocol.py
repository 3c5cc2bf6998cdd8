"""How far the timings of this computer can be trusted.

    python benchmarks/protocol.py       writes benchmarks/protocol.md; nothing else may run meanwhile

`edgepack bench` twice on the same files, on one thread: the two medians, the verdict, and how long it takes; and what
the worker's own loop adds to a model of about a millisecond, against a loop that does nothing but run it.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgepack import provenance, worker
from edgepack.candidate import Candidate
from edgepack.datasets import Signature, TensorSpec
from edgepack.exporters import write
from edgepack.plugins import choose
from edgepack.units import DURATION

_PAGE = Path(__file__).with_suffix(".md")
_TURNS, _RUNS = 10, 300
_HEAD = """# How far timings of one computer can be trusted

MobileNetV2 in fp32 on pictures of 96 x 96, with the weights it is born with, timed on one thread
(`devices/host-1t.yaml`), by `edgepack bench` twice.

| file | first median | second median | apart | verdict on a limit 5 % above | one `bench` takes |
|---|---|---|---|---|---|
"""


def main() -> None:
    with TemporaryDirectory() as folder:
        files = [_exported(name, Path(folder)) for name in ("onnx", "executorch")]
        rows = [_twice(file) for file in files]
        overhead = _overhead(files[0])
    turns = f"{_RUNS} runs, the median of {2 * _TURNS} turns of both"
    told = f"\nThe worker's loop takes {overhead:+.2%} of the time of a bare one of {turns}, on the `.onnx`."
    summary = provenance.summary("onnxruntime", "executorch")
    footer = f"\n\nCommand: `python benchmarks/protocol.py`\n\nEnvironment: {summary}.\n"
    _PAGE.write_text(_HEAD + "\n".join(rows) + "\n" + told + footer)


def _exported(format: str, folder: Path) -> Path:
    spec = TensorSpec(name="image", shape=(3, 96, 96), dtype="float32")
    signature = Signature(inputs=(spec,), labels=tuple(map(str, range(10))), preprocessing={})
    exporter = choose("exporters", format)
    path = folder / f"net{exporter.module.SUFFIX}"
    write(Candidate.start(choose("models", {"torchvision": "mobilenet_v2"}), signature), exporter, path)
    return path


def _twice(file: Path) -> str:
    first, seconds = _bench(file)
    one = _median(first)
    second, _ = _bench(file, f"latency.p50={DURATION.exact(round(one * 1.05, 6))}")
    other, verdict = _median(second), second["verdicts"][0]["outcome"]
    cells = (file.suffix, DURATION.format(one), DURATION.format(other), f"{abs(other / one - 1):.1%}", verdict)
    return f"| {' | '.join(cells)} | {seconds:.0f} s |"


def _bench(file: Path, budget: str = "") -> tuple[dict[str, Any], float]:
    """What it found, and the seconds it took."""
    command = [sys.executable, "-m", "edgepack", "bench", str(file), "--device", "host-1t", "--json"]
    started = time.monotonic()
    ran = subprocess.run([*command, *(("--budget", budget) if budget else ())], capture_output=True, text=True)
    return json.loads(ran.stdout), time.monotonic() - started


def _median(found: dict[str, Any]) -> float:
    return next(float(each["value"]) for each in found["measurements"] if each["metric"] == "latency.p50")


def _overhead(file: Path) -> float:
    """Share of its time that the worker's loop adds: whole loops against whole loops, in turns."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    runtime = worker.OnnxRuntime(1)
    runtime.load(str(file))
    bound = runtime.bind(worker.noise(runtime.specs))

    def bare() -> None:
        for _ in range(_RUNS):
            runtime.run(bound)

    def ours() -> None:
        worker._repeat(runtime, bound, seconds=0.0, least=_RUNS, most=_RUNS, most_seconds=60.0)

    shares = [_seconds(ours) / _seconds(bare) for _ in range(_TURNS + 1)]
    shares += [1 / (_seconds(bare) / _seconds(ours)) for _ in range(_TURNS)]  # the other one first
    os.sched_setaffinity(0, cores)
    return statistics.median(shares[1:]) - 1


def _seconds(do: Callable[[], None]) -> float:
    started = time.perf_counter()
    do()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
