"""What the recipes reach: each built from an empty store, the exported files against the fp32 teacher's.

    python benchmarks/recipes.py             writes benchmarks/recipes.md; nothing else may run meanwhile
    python benchmarks/recipes.py RECIPE...   takes the figures of these again, and leaves the others as they are
    ... --store DIR                          with what is in this store: another recipe's training, say; measured anew

Every figure is read from build.json: sizes of the files, latency of one inference in fresh processes, accuracy on the
test split through the file's own runtime. Ratios are taken within one build. Peak memory is the largest of any process
of the build.
"""

import os
import subprocess
import sys
import time
from argparse import ArgumentParser
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from edgepack.core import provenance
from edgepack.core.units import DURATION, SHARE, SIZE
from edgepack.records.build import Build

_RECIPES = ("fashion-full", "fashion-pruned", "fashion-mobilenet", "bbc-minilm-full", "bbc-minilm-int8")
_PACKAGES = ("torch", "torch-pruning", "torchao", "executorch", "onnxruntime")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One build: its duration, the peak bytes of its largest process, its results, and whether it ran every step."""

    seconds: float
    peak: int
    build: Build
    whole: bool


def build(recipe: str, folder: Path, store: str | None) -> Run:
    started = time.monotonic()
    command = [sys.executable, "-m", "edgepack", "build", recipe, "--store", store or str(folder / "store")]
    command += ["--remeasure"] if store else []
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--dist", str(folder / "dist")], stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    result = Build.read(folder / "dist" / recipe / "build.json")
    if os.waitstatus_to_exitcode(status) not in (0, 1, 3):  # a failed budget is a result, not an error
        sys.exit(f"{recipe} failed: {result.error}\n{(folder / 'log').read_text()[-2000:]}")
    return Run(seconds=time.monotonic() - started, peak=usage.ru_maxrss * 1024, build=result, whole=store is None)


def _rows(recipe: str, run: Run) -> list[str]:
    rows = []
    for artifact in run.build.shipped():
        teacher = f"teacher ({artifact.label})"
        pairs = {
            metric: (_value(run.build, metric, teacher), _value(run.build, metric, artifact.label))
            for metric in ("size", "latency.p50", "accuracy")
        }
        (big, small), (slow, fast), (good, left) = pairs.values()
        cells = [
            recipe,
            artifact.label,
            f"{SIZE.format(big)} -> {SIZE.format(small)}, **{big / small:.1f}x**",
            f"{DURATION.format(slow)} -> {DURATION.format(fast)}, **{slow / fast:.1f}x**",
            f"{100 * good:.2f} % -> {100 * left:.2f} %, **{100 * (left - good):+.2f}**",
            _agreement(run.build, artifact.label),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _value(build: Build, metric: str, artifact: str) -> float:
    found = build.find(metric, artifact)
    assert found is not None, f"every build measures {metric} of {artifact}"
    return found.value


def _agreement(build: Build, artifact: str) -> str:
    """Return the agreement of a file with the first one; "" for the first itself."""
    found = build.find("parity.runtimes", artifact)
    return SHARE.format(found.value) if found else ""


def _about(recipe: str, run: Run) -> str:
    stages = ", ".join(
        f"{record.stage} {SHARE.format(record.score)}" + (f" in {record.seconds:.0f} s" if run.whole else "")
        for record in run.build.ledger[1:]
    )
    cost = f"{run.seconds / 60:.1f} minutes from an empty store, {SIZE.format(run.peak)} at the peak"
    made = cost if run.whole else "its stages were made before, when other programs ran, and its files measured now"
    where = provenance.summary(*_PACKAGES)
    return f"- {recipe}: {made}, exit code {run.build.exit_code}; on validation: {stages}. Taken on: {where}."


def _page(runs: dict[str, Run], before: list[str]) -> str:
    """Write the page. `before` are the lines of the existing page: those of other recipes stay."""
    rows = {recipe: _rows(recipe, run) for recipe, run in runs.items()}
    about = {recipe: [_about(recipe, run)] for recipe, run in runs.items()}
    for recipe in set(_RECIPES) - set(runs):
        rows[recipe] = [line for line in before if line.startswith(f"| {recipe} |")]
        about[recipe] = [line for line in before if line.startswith(f"- {recipe}:")]
    return "\n".join(
        [
            "# What the recipes reach",
            "",
            "The exported files against the fp32 teacher's on the same runtime and threads, on the whole test split:",
            "10,000 pictures of Fashion-MNIST, or the articles of BBC News that were kept for it. Each recipe has the",
            "computer that its figures were taken on, with the cores of the training; the files run on all cores.",
            "",
            "| recipe | file | size | latency | accuracy | runtimes agree |",
            "|---|---|---|---|---|---|",
            *(line for recipe in _RECIPES for line in rows[recipe]),
            "",
            *(line for recipe in _RECIPES for line in about[recipe]),
            "",
            "Command: `python benchmarks/recipes.py`",
            "",
        ]
    )


def main() -> None:
    page = Path(__file__).with_suffix(".md")
    before = page.read_text().splitlines() if page.exists() else []
    runs = {}
    options = ArgumentParser()
    options.add_argument("recipes", nargs="*", default=_RECIPES)
    options.add_argument("--store")
    given = options.parse_args()
    for recipe in given.recipes:
        with TemporaryDirectory() as folder:
            runs[recipe] = build(recipe, Path(folder), given.store)
        print(_about(recipe, runs[recipe]), file=sys.stderr, flush=True)
        page.write_text(_page(runs, before))  # after each recipe: a killed run keeps its results


if __name__ == "__main__":
    main()
