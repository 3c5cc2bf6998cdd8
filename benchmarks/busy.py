"""How much longer a build takes beside a process that keeps one core busy.

    python benchmarks/busy.py [--rounds 5] [--epochs 4]      writes benchmarks/busy.md; nothing else may run meanwhile

A build that trains and exports a small ResNet-18 from nothing, on every core: alone, beside a busy process, and
beside one of low priority, in turn, round after round; each with threads that sleep while they wait, as edgepack has
them, and with threads that spin, as OpenMP has them by itself. The table gives the median over rounds of each time
divided by that of the same build alone in the same round.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import idle

from edgepack.core import provenance

_LIMIT = 2.5  # times the idle time, with threads that sleep
_BESIDE: dict[str, tuple[str, ...]] = {
    "nothing": (),
    "a busy process": (sys.executable, "-c", "while True: pass"),
    "a busy process of low priority": ("nice", "-n", "19", sys.executable, "-c", "while True: pass"),
}
_THREADS = {"sleep": {}, "spin": {"OMP_WAIT_POLICY": "ACTIVE"}}
_RECIPE = """\
edgepack: 1
task: image_classification
model: {{torchvision: resnet18, width: 50 %}}
data: {{digits: {{size: 32}}}}
device: untimed
stages: [train: {{epochs: {epochs}}}]
export: [onnx]
budgets: {{size: 100 MB}}
"""
_DEVICE = """\
edgepack: 1
name: this computer, untimed
runner: estimate
"""
_PAGE = Path(__file__).with_suffix(".md")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--epochs", type=int, default=4)
    arguments.add_argument("--busy", action="store_true", help="take the figures beside other programs all the same")
    arguments.add_argument("--page", type=Path, default=_PAGE)
    asked = arguments.parse_args()
    at_start = idle.checked(asked.busy)
    taken: dict[tuple[str, str], list[float]] = {(how, what): [] for how in _THREADS for what in _BESIDE}
    _seconds(asked.epochs, "sleep", "nothing")  # warm-up: files that are compiled and read for the first time
    for _ in range(asked.rounds):
        for (how, what), seconds in taken.items():
            seconds.append(_seconds(asked.epochs, how, what))
            print(f"threads that {how}, beside {what}: {seconds[-1]:.1f} s", file=sys.stderr, flush=True)
    asked.page.write_text(_page(taken, asked.rounds, asked.epochs, at_start))


def _seconds(epochs: int, how: str, what: str) -> float:
    """Return the duration of one build from nothing."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "EDGEPACK_"))}
    with TemporaryDirectory() as folder, _beside(_BESIDE[what]):
        for name, text in (("recipes/small.yaml", _RECIPE.format(epochs=epochs)), ("devices/untimed.yaml", _DEVICE)):
            Path(folder, name).parent.mkdir()
            Path(folder, name).write_text(text)
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "edgepack", "build", "small", "--json"],
            cwd=folder,
            env={**environment, **_THREADS[how]},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        return time.perf_counter() - started


@contextmanager
def _beside(command: tuple[str, ...]) -> Iterator[None]:
    if not command:
        yield
        return
    with subprocess.Popen(command) as process:
        try:
            yield
        finally:
            process.kill()


def _page(taken: dict[tuple[str, str], list[float]], rounds: int, epochs: int, at_start: str) -> str:
    summary = provenance.summary("torch", "onnxruntime")
    return "\n".join(
        [
            "# A build beside a busy core",
            "",
            f"ResNet-18 at half width trained for {epochs} epochs on the digits at 32 px, and exported to ONNX: a",
            f"whole build, a fresh process each time. Medians of {rounds} rounds; a ratio is to the same build alone",
            "in the same round.",
            "",
            "| threads that wait | beside | a build | ratio | limit | |",
            "|---|---|---|---|---|---|",
            *(_row(how, what, taken) for how, what in taken),
            "",
            f"Command: `python benchmarks/busy.py --rounds {rounds} --epochs {epochs}`",
            "",
            f"Environment: {summary}; {at_start}.",
            "",
        ]
    )


def _row(how: str, what: str, taken: dict[tuple[str, str], list[float]]) -> str:
    pairs = zip(taken[how, what], taken[how, "nothing"], strict=True)
    ratio = statistics.median(mine / alone for mine, alone in pairs)
    held = how == "sleep" and what != "nothing"
    verdict = f"{_LIMIT:g} | {'met' if ratio <= _LIMIT else 'not met'}" if held else " | "
    return f"| {how} | {what} | {statistics.median(taken[how, what]):.1f} s | {ratio:.2f} | {verdict} |"


if __name__ == "__main__":
    main()
