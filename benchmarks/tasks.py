"""What each task reaches: its recipe built, and its files beside those that others make of the same weights.

    python benchmarks/tasks.py                    writes benchmarks/tasks.md; nothing else may run meanwhile
    python benchmarks/tasks.py RECIPE...          takes the figures of these again, and leaves the others as they are
    ... --keep FOLDER                             builds and files are kept there and used again, and timed anew
    ... --make                                    stop before files are timed: this may be done beside other programs
    ... --busy                                    although other programs run: the figures are not those of an idle one

Of each recipe there are three kinds of files: the fp32 teacher's, edgepack's, and what ExecuTorch's and ONNX Runtime's
own post-training flows make, as their documentation has it, of the teacher and of the very weights that edgepack's last
stage, `quantize`, began with. All of them are timed with one thread in fresh processes, one after another, round after
round, there and back, so that drift of the machine hits all alike; a ratio of two files is the median of those within
the rounds. The metric is that of the file itself, run by its own runtime on the whole test split.
"""

import json
import statistics
import subprocess
import sys
import warnings
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import idle
import torch
from goals import Goal, table
from peers import FP32, of_executorch, of_onnx
from rounds import run, timed

from edgepack.config.recipe_reading import load_recipe
from edgepack.core import provenance
from edgepack.core.metrics import METRICS, Metric
from edgepack.core.runtimes import RUNTIMES, runtime_of
from edgepack.core.units import DURATION, SHARE, SIZE
from edgepack.data.contract import Task
from edgepack.data.splits import Split
from edgepack.measure import evaluate
from edgepack.measure.timing.protocol import TimingProtocol
from edgepack.models.candidate import Candidate
from edgepack.records.build import Build
from edgepack.workflows.build.store import Store
from edgepack.workflows.build.workspace import load_data, task_of

_ROUNDS, _CALIBRATION = 3, 256
_PROTOCOL = TimingProtocol(seconds=0.5)
_PACKAGES = ("torch", "torchvision", "timm", "transformers", "torchao", "executorch", "onnx", "onnxruntime")
_TEACHER, _SMALL, _OURS = "teacher", "compressed", "edgepack"
_SMALLER, _FASTER, _PARITY = 4, 1.5, 0.99
_LOST = {"map": 0.02, "miou": 0.02, "recall_at_1": 0.02, "psnr": 1.0}  # psnr in dB; of other shares: 0.01
_ROSE = 0.1  # share of the teacher's error by which another may exceed it
_SAME = 1.02  # times within it are equal: files of the same operators differ by as much


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A recipe that stands for a task. `dynamic`: others are told to quantize activations as they come, as one does for
    transformers.
    """

    file: str
    folder: str = "."  # where a user would be
    dynamic: bool = False

    @property
    def name(self) -> str:
        return Path(self.file).stem


_RECIPES = (
    Recipe(file="recipes/segmentation.yaml"),
    Recipe(file="recipes/detection.yaml"),
    Recipe(file="recipes/multi-label.yaml"),
    Recipe(file="recipes/regression.yaml"),
    Recipe(file="recipes/fashion-embedding.yaml"),
    Recipe(file="recipes/bbc-embedding.yaml", dynamic=True),
    Recipe(file="languages.yaml", folder="examples/audio"),
    Recipe(file="denoising.yaml", folder="examples/denoising"),
)


@dataclass(frozen=True, kw_only=True)
class Made:
    """The files of one recipe by name, with what was found of them: milliseconds per round, and metrics."""

    build: Build
    files: dict[str, Path]
    scores: dict[str, dict[str, float]]
    failed: dict[str, str]
    rounds: dict[str, list[float]] = field(default_factory=dict)

    @property
    def metric(self) -> Metric:
        return METRICS[self.build.metric]

    def time(self, name: str) -> float:
        return statistics.median(self.rounds[name])

    def ratio(self, name: str, other: str) -> float:
        """Return its time as a multiple of the other's."""
        return statistics.median(mine / its for mine, its in zip(self.rounds[name], self.rounds[other], strict=True))

    def score(self, name: str) -> float:
        return self.scores[name][self.build.metric]

    def lost(self, name: str, other: str) -> float:
        """Return how much worse than the other file it is in the first metric."""
        worse = self.score(other) - self.score(name)
        return worse if self.metric.higher else -worse

    def bytes(self, name: str) -> int:
        return self.files[name].stat().st_size


def _built(recipe: Recipe, folder: Path) -> Build:
    """Build the recipe; an unchanged one that is kept is read."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "edgepack", "build", recipe.file]
    command += ["--store", str(folder / "store"), "--dist", str(folder / "dist")]
    with (folder / f"{recipe.name}.log").open("wb") as log:
        done = subprocess.run(command, stdout=log, stderr=log)
    build = Build.read(folder / "dist" / recipe.name / "build.json")
    if done.returncode not in (0, 1, 3):  # a failed budget is a result, not an error
        sys.exit(f"{recipe.file} failed: {build.error}")
    return build


def _weights(build: Build, store: Store) -> dict[str, Candidate]:
    """Return the teacher and the model that the stage `quantize` began with."""
    stages = [record.stage for record in build.ledger]
    teacher = stages.index("train") if "train" in stages else 0
    chosen = {_TEACHER: teacher, _SMALL: stages.index("quantize") - 1}
    return {name: _candidate(store, build.ledger[place].key) for name, place in chosen.items()}


def _candidate(store: Store, key: str) -> Candidate:
    entry = store.get("candidate", key)
    assert entry is not None, "a build keeps the models of its stages"
    return Candidate.load(entry.path)


def _of_others(recipe: Recipe, weights: dict[str, Candidate], calibration: Split, folder: Path) -> Iterator[Any]:
    """Yield the name of each file that others make, and the file, or what their tool failed with."""
    for whose, candidate in weights.items():
        for make in (of_executorch, of_onnx):
            place = folder / whose
            place.mkdir(parents=True, exist_ok=True)
            print(f"{recipe.name}: {make.__name__} of the {whose}", file=sys.stderr, flush=True)
            try:
                made = make(candidate.copy(), place, calibration, text=recipe.dynamic)
            except Exception as error:
                first = (str(error).strip().splitlines() or [""])[0]
                yield f"{whose}, {make.__name__}", f"{type(error).__name__}: {first[:200]}"
                continue
            yield from ((f"{whose}, {name}", path) for name, path in made.items())


def _of_ours(build: Build, store: Store) -> dict[str, Path]:
    """Return edgepack's files: of the teacher in fp32, and those it ships."""
    kept = {entry.outcome["sha256"]: entry for entry in store.entries() if entry.kind == "artifact"}
    found = {}
    for artifact in build.artifacts:
        entry = kept[artifact.sha256]
        whose = _OURS if artifact in build.shipped() else f"{_OURS}'s of the {_TEACHER}, fp32"
        found[f"{whose}: {artifact.runtime}"] = entry.path / artifact.file
    return found


def _scored(task: Task, files: dict[str, Path], test: Split) -> dict[str, dict[str, float]]:
    found = {}
    for name, path in files.items():
        with TemporaryDirectory() as folder:
            given = evaluate.outputs(run, file=path, runtime=runtime_of(path.suffix), split=test, folder=Path(folder))
            found[name] = evaluate.scores(task, given, test)
    return found


def _made(recipe: Recipe, keep: Path) -> Made:
    """Return the files and their metrics, but no times; those of an unchanged build are kept."""
    store, folder = Store(keep / "store"), keep / "files" / recipe.name
    build, known = _built(recipe, keep), folder / "made.json"
    facts = json.loads(known.read_bytes()) if known.exists() else {}
    if facts.get("of") != build.bundle_sha256:
        facts = {"of": build.bundle_sha256, **_compared(recipe, build, store, folder)}
        known.write_text(json.dumps(facts))
    files = {name: Path(path) for name, path in facts["files"].items()}
    return Made(build=build, files=files, scores=facts["scores"], failed=facts["failed"])


def _compared(recipe: Recipe, build: Build, store: Store, folder: Path) -> dict[str, Any]:
    """Return where the files are, their metrics, and what the tools of others failed with, as JSON."""
    known = load_recipe(recipe.file)
    task, data = task_of(known), load_data(known, store)
    files, failed = _of_ours(build, store), {}
    for name, made in _of_others(recipe, _weights(build, store), data.train.first(_CALIBRATION), folder):
        if isinstance(made, Path):
            files[name] = made
        else:
            failed[name] = made
    print(f"{recipe.name}: running {len(files)} files on the test split", file=sys.stderr, flush=True)
    paths = {name: str(path) for name, path in files.items()}
    return {"files": paths, "scores": _scored(task, files, data.test), "failed": failed}


def _section(recipe: Recipe, made: Made, load_at_start: str) -> list[str]:
    metric = made.build.metric
    lines = [f"## {recipe.name}", "", f"{_stages(made.build)}", ""]
    for runtime in RUNTIMES:
        lines += [f"| {runtime} | size | latency | to the teacher | {metric} | worse by |", "|---|---|---|---|---|---|"]
        lines += [_row(name, made) for name in sorted(made.files, key=made.bytes, reverse=True) if _of(name, runtime)]
        lines.append("")
    lines += [f"- {name} failed: {why}" for name, why in made.failed.items()]
    lines += [""] if made.failed else []
    lines += table(_goals(made))
    where = provenance.summary(*_PACKAGES)
    return [*lines, "", f"Taken on: {where}; {load_at_start}.", ""]


def _stages(build: Build) -> str:
    """Return the recipe's task and stages in words."""
    stages = " -> ".join(
        f"{record.stage} ({record.parameters:,} parameters, {METRICS[record.metric].quantity.format(record.score)})"
        for record in build.ledger[1:] or build.ledger
    )
    task = next(iter(build.recipe["task"])) if isinstance(build.recipe["task"], dict) else build.recipe["task"]
    return f"Task `{task}`, with {build.metric} on validation: {stages}."


def _row(name: str, made: Made) -> str:
    teacher = _teacher(made, _runtime(name))
    cells = [
        name.rpartition(": ")[0],
        f"{SIZE.format(made.bytes(name))}, {made.bytes(teacher) / made.bytes(name):.1f}x",
        DURATION.format(made.time(name)),
        f"{made.ratio(teacher, name):.2f}x faster",
        _shown(made.metric, made.score(name)),
        _points(made, name, teacher),
    ]
    return f"| {' | '.join(cells)} |"


def _points(made: Made, name: str, other: str) -> str:
    lost = made.lost(name, other)
    return f"{100 * lost:+.2f} points" if made.metric.quantity is SHARE else f"{lost:+.4f}"


def _shown(metric: Metric, value: float) -> str:
    return metric.quantity.format(value)


def _teacher(made: Made, runtime: str) -> str:
    return f"{_OURS}'s of the {_TEACHER}, fp32: {runtime}"


def _goals(made: Made) -> Iterator[Goal]:
    for runtime in RUNTIMES:
        ours, teacher = f"{_OURS}: {runtime}", _teacher(made, runtime)
        smaller, faster = made.bytes(teacher) / made.bytes(ours), made.ratio(teacher, ours)
        yield Goal(text=f"{runtime}: at least {_SMALLER}x smaller", figure=f"{smaller:.1f}x", met=smaller >= _SMALLER)
        yield Goal(text=f"{runtime}: at least {_FASTER}x faster", figure=f"{faster:.2f}x", met=faster >= _FASTER)
        most = _most_lost(made, teacher)
        lost = made.lost(ours, teacher)
        words = f"{100 * most:g} points" if made.metric.quantity is SHARE else f"{most:.3g}"
        text = f"{runtime}: {made.build.metric} at most {words} worse"
        yield Goal(text=text, figure=_points(made, ours, teacher), met=lost <= most)
        [label] = [artifact.label for artifact in made.build.shipped() if artifact.runtime == runtime]
        found = made.build.find("parity", label)
        assert found is not None, "every build measures parity"
        agreed = SHARE.format(found.value)
        yield Goal(text=f"{runtime}: agrees with torch on {_PARITY:.0%}", figure=agreed, met=found.value >= _PARITY)
        yield _beside_others(made, runtime)


def _most_lost(made: Made, teacher: str) -> float:
    usual = 0.01 if made.metric.quantity is SHARE else _ROSE * made.score(teacher)
    return _LOST.get(made.build.metric, usual)


def _beside_others(made: Made, runtime: str) -> Goal:
    """Compare with the fastest file of a post-training flow, of the teacher or of the same weights, that is as good."""
    ours = f"{_OURS}: {runtime}"
    others = [name for name in made.files if _of(name, runtime) and not name.startswith(_OURS) and FP32 not in name]
    as_good = [name for name in others if made.lost(ours, name) >= 0]
    text = f"{runtime}: no file of a post-training flow is faster and as good"
    if not as_good:
        return Goal(text=text, figure="none is as good", met=True)
    best = min(as_good, key=made.time)
    ratio = made.ratio(ours, best)
    return Goal(text=text, figure=f"{ratio:.2f}x the time of: {best.rpartition(': ')[0]}", met=ratio <= _SAME)


def _of(name: str, runtime: str) -> bool:
    return _runtime(name) == runtime


def _runtime(name: str) -> str:
    return name.rpartition(": ")[2]


def _page(sections: list[list[str]]) -> str:
    about = (__doc__ or "").split("\n\n")[2].strip()
    return "\n".join(
        [
            "# What each task reaches, beside what others make of the same weights",
            "",
            about,
            "",
            f"One inference, the median of {_ROUNDS} fresh processes of {_PROTOCOL.seconds:g} s. `{FP32}` is the",
            "file that torch.onnx or ExecuTorch's lowering writes; the post-training flows saw",
            f"{_CALIBRATION} training samples. No package has labelled boxes or masks: scenes are composed of real",
            "pictures, see each recipe. Builds may have run beside other programs; files were timed alone.",
            "",
            *(line for section in sections for line in section),
            "Command: `python benchmarks/tasks.py`; files are timed with one thread.",
            "",
        ]
    )


def _before(page: Path) -> dict[str, list[str]]:
    """Return the sections of the existing page, by recipe."""
    parts = page.read_text().split("## ")[1:] if page.exists() else []
    return {part.splitlines()[0]: f"## {part}".partition("Command: ")[0].splitlines() for part in parts}


def main() -> None:
    warnings.filterwarnings("ignore")
    options = ArgumentParser()
    options.add_argument("recipes", nargs="*", metavar="RECIPE", help=", ".join(each.name for each in _RECIPES))
    options.add_argument("--keep", type=Path)
    options.add_argument("--make", action="store_true")
    options.add_argument("--busy", action="store_true")
    given = options.parse_args()
    torch.set_num_threads(provenance.threads())
    page = Path(__file__).with_suffix(".md").absolute()
    sections = _before(page)
    for recipe in (each for each in _RECIPES if not given.recipes or each.name in given.recipes):
        with TemporaryDirectory() as temporary, chdir(recipe.folder):
            made = _made(recipe, (given.keep or Path(temporary)).absolute())
            if given.make:
                continue
            load_at_start = idle.checked(given.busy)
            sections[recipe.name] = _section(
                recipe, replace(made, rounds=timed(made.files, _ROUNDS, _PROTOCOL)), load_at_start
            )
        page.write_text(_page([sections[each.name] for each in _RECIPES if each.name in sections]))


if __name__ == "__main__":
    main()
