"""What training costs besides the model: reading pictures, edgepack's loop, memory.

    python benchmarks/training.py                  writes benchmarks/training.md; nothing else may run meanwhile
    python benchmarks/training.py loading loop     prints these parts only
    ... --pictures N --folder DIR                  fewer pictures than 200,000, made in a folder that is kept

The pictures are JPEG files of 224 x 224 in ten classes, made by this script.
"""

import hashlib
import json
import shutil
import statistics
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Timer
from typing import Any

import idle
import numpy
import torch
from numerics import SIGNATURE, environment
from PIL import Image

from edgepack.compress.contract import Context, Training
from edgepack.compress.training import numerics
from edgepack.compress.training.loop import fit
from edgepack.compress.training.loss import Distillation
from edgepack.compress.training.numerics import taps
from edgepack.compress.training.optimization import optimizer_of, schedule_of
from edgepack.config import plugins
from edgepack.config.device import Quantization
from edgepack.config.plugins import choose
from edgepack.config.recipe_reading import load_recipe
from edgepack.core import provenance
from edgepack.data.datasets import image_folder
from edgepack.data.loading import batches as read_ahead
from edgepack.data.splits import Split, TrainingData
from edgepack.models.candidate import Candidate
from edgepack.workflows.build.store import Store

_SIDE, _CLASSES = 224, 10
_READ = 20_000  # pictures of a pass
_STEPS, _BATCH = 12, 32  # of a training that may wait for data
_EPOCHS = 2
_ROUNDS = 5
_KILLS = 10
_FILES, _IN_CLASS = 1_300_000, 1300
_SEEDS = 3
_RECIPE = """
edgepack: 1
name: pictures
task: image_classification
model: {{python: "net:make"}}
data: {{image_folder: {{folder: "{folder}", size: 224, resize: 224, cache: none}}}}
device: host-1t
stages:
  - train: {{epochs: 1, batch_size: 64}}
export: [onnx]
"""
_NET = """
from torch import nn

def make(classes=10):
    layers = [nn.Conv2d(3, 16, 8, stride=8), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 4, stride=4), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, classes))
"""


def main() -> None:
    parser = ArgumentParser()
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []])
    parser.add_argument("--pictures", type=int, default=200_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--busy", action="store_true")
    asked = parser.parse_args()
    load = idle.checked(asked.busy)
    torch.set_num_threads(provenance.threads())
    with TemporaryDirectory() as temporary:
        asked.folder = asked.folder or Path(temporary)
        lines = {name: PARTS[name](asked) for name in asked.parts or PARTS}
    text = "\n".join(line for part in lines.values() for line in (*part, ""))
    if asked.parts:
        print(text)
        return
    end = f"Command: `python benchmarks/training.py`\n\n{environment()} The machine was {load}.\n"
    Path(__file__).with_suffix(".md").write_text(f"# What training costs besides the model\n\n{text}\n{end}")


def _made(asked: Namespace) -> Path:
    """Return a folder with the pictures; those that are there are kept."""
    folder: Path = asked.folder / f"pictures-{asked.pictures}"
    if not folder.exists():
        print("making the pictures", file=sys.stderr, flush=True)
        unfinished = folder.with_suffix(".new")
        for label in range(_CLASSES):
            (unfinished / f"class{label}").mkdir(parents=True, exist_ok=True)
        files = (unfinished / f"class{n % _CLASSES}/{n}.jpg" for n in range(asked.pictures))
        with ProcessPoolExecutor() as pool:
            list(pool.map(_write, files, chunksize=500))
        unfinished.rename(folder)
    return folder


def _write(file: Path) -> None:
    random = numpy.random.default_rng(int(file.stem))
    coarse = random.integers(0, 256, (14, 14, 3), dtype=numpy.uint8)
    coarse[:, :, 0] = 20 * (int(file.stem) % _CLASSES) + coarse[:, :, 0] // 8  # the class shows in the red
    Image.fromarray(coarse).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC).save(file, quality=85)


def _training_split(asked: Namespace) -> Split:
    """Return training pictures that are decoded each time, of a part of the folder."""
    asked = Namespace(**{**vars(asked), "pictures": min(asked.pictures, 30_000)})
    config = image_folder.Config(folder=str(_made(asked)), size=_SIDE, resize=_SIDE, cache="none")
    return image_folder.load(config).train


def loading(asked: Namespace) -> list[str]:
    """How fast pictures are read, and how long a training waits for them."""
    split = _training_split(asked)
    ways = [(workers, prepared) for prepared in (False, True) for workers in (0, 1, 2)]
    rounds = [[_pass(split, *way) for way in ways] for _ in range(_ROUNDS)]
    speeds = [_READ / statistics.median(column) for column in zip(*rounds, strict=True)]
    rows = [
        f"| {name} | {speeds[n]:,.0f} | {speeds[n] / speeds[1]:.2f} "
        f"| {speeds[3 + n]:,.0f} | {speeds[3 + n] / speeds[4]:.2f} |"
        for n, name in enumerate(("the process that trains", "one process", "two processes"))
    ]
    return [
        "## Reading pictures",
        "",
        f"{_READ:,} JPEG pictures of {_SIDE} x {_SIDE} in batches of 64, decoded, cut and mirrored at random, with",
        "`cache: none`; without and with their conversion to the floats that a model takes, which the training process",
        f"does. Pictures per second, median of {_ROUNDS} alternating rounds, and relative to one process that reads.",
        "",
        "| read by | read | | read and converted | |",
        "|---|---|---|---|---|",
        *rows,
        "",
        f"ResNet-18 at {_SIDE} x {_SIDE}, {_STEPS} steps of {_BATCH} pictures, two processes that read: the loop waits",
        f"for data {_waiting(split):.1%} of its time.",
    ]


def _pass(split: Split, workers: int, prepared: bool) -> float:
    """Return the seconds of a pass: of reading alone, or until the training process has the floats."""
    started = time.monotonic()
    if prepared:
        for _ in islice(replace(split, workers=workers).batches(64, seed=1), _READ // 64):
            pass
        return time.monotonic() - started
    assert split.samples is not None
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(1))
    for _ in read_ahead(split.samples, order[:_READ].split(64), 1, workers):
        pass
    return time.monotonic() - started


def _waiting(split: Split) -> float:
    """Return the share of a training's time in which it waits for the next batch, but for the first one."""
    model = Candidate.start(choose("models", {"torchvision": "resnet18"}), _signature(_SIDE)).module.train()
    optimizer = optimizer_of([*model.parameters()], Training(epochs=1))
    waited = worked = 0.0
    mark = time.monotonic()
    for number, batch in enumerate(islice(replace(split, workers=2).batches(_BATCH, seed=1), _STEPS)):
        waited += (time.monotonic() - mark) * (number > 0)
        mark = time.monotonic()
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(model(*batch.inputs), batch.targets).backward()
        optimizer.step()
        worked += (time.monotonic() - mark) * (number > 0)
        mark = time.monotonic()
    return waited / (waited + worked)


def _signature(side: int) -> Any:
    [spec] = SIGNATURE.inputs
    return SIGNATURE.model_copy(update={"inputs": (spec.model_copy(update={"shape": (3, side, side)}),)})


def loop(asked: Namespace) -> list[str]:
    """Epochs of edgepack's loop against a plain one of torch, and of distillation against training."""
    data = _random(2048)
    settings = Training(epochs=_EPOCHS, batch_size=64)
    teacher = _model("resnet18")
    of = _context(data)
    # The teacher's logits are known after the first round, as they are in a build after the first epoch.
    ways: dict[str, Callable[[torch.nn.Module], object]] = {
        "plain": lambda model: _plain(model, data, settings),
        "fit": lambda model: fit(model, of, settings, doing="training"),
        "distill": lambda model: fit(model, of, settings, doing="", distillation=Distillation(teacher=teacher)),
    }
    with numerics.deterministic(0, provenance.threads()):
        orders = [[*ways][turn % len(ways) :] + [*ways][: turn % len(ways)] for turn in range(1 + _ROUNDS)]
        rounds = [{name: _timed(ways[name]) for name in order} for order in orders][1:]  # each is the first at times
    ratios = [statistics.median(each[name] / each["plain"] for each in rounds) for name in ("fit", "distill")]
    against = statistics.median(each["distill"] / each["fit"] for each in rounds)
    return [
        "## The loop",
        "",
        f"{_EPOCHS} epochs of ResNet-18 at 32 x 32 on {len(data.train):,} samples, validated before and after each,",
        "against a plain loop of torch with the same batches, layout, optimizer, schedule, clipping and validations,",
        f"and without the taps that meet padding only (taps.md): median of {_ROUNDS} alternating rounds.",
        "",
        "| | time |",
        "|---|---|",
        f"| plain loop | {statistics.median(each['plain'] for each in rounds):.2f} s |",
        f"| `train` | {ratios[0]:.3f} of it |",
        f"| `distill`, with the teacher's logits known | {ratios[1]:.3f} of it, {against:.3f} of `train` |",
    ]


def _model(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return Candidate.start(choose("models", {"torchvision": name}), _signature(32)).module


def _timed(do: Callable[[torch.nn.Module], object]) -> float:
    model = _model("resnet18")
    started = time.monotonic()
    do(model)
    return time.monotonic() - started


def _random(count: int) -> TrainingData:
    random = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        return Split(inputs=(torch.rand(count, 3, 32, 32, generator=random),), targets=torch.arange(count) % _CLASSES)

    return TrainingData(train=split(count), validation=split(256))


def _context(data: TrainingData) -> Context:
    task = plugins.load("tasks", "image_classification").task(None, _signature(32))
    return Context(data=data, task=task, quantization=Quantization(), seed=0, teacher=None, emit=lambda event: None)


@taps.used_only()
def _plain(model: torch.nn.Module, data: TrainingData, settings: Training) -> None:
    loss = torch.nn.functional.cross_entropy
    model.to(memory_format=torch.channels_last)
    steps = settings.epochs * data.train.count(settings.batch_size)
    optimizer = optimizer_of([*model.parameters()], settings)
    schedule = schedule_of(optimizer, settings, steps)
    _validated(model, data.validation)
    for epoch in range(settings.epochs):
        model.train()
        for batch in data.train.batches(settings.batch_size, seed=epoch):
            optimizer.zero_grad(set_to_none=True)
            loss(model(batch.inputs[0].to(memory_format=torch.channels_last)), batch.targets).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        _validated(model, data.validation)


def _validated(model: torch.nn.Module, split: Split) -> None:
    model.eval()
    with torch.no_grad():
        for batch in split.batches(256):
            model(*batch.inputs)


def memory(asked: Namespace) -> list[str]:
    """The largest process of a build from more pictures than the memory should hold."""
    pictures = _made(asked)
    with TemporaryDirectory() as place:
        Path(place, "net.py").write_text(_NET)
        Path(place, "pictures.yaml").write_text(_RECIPE.format(folder=pictures))
        devices = Path(place, "devices")
        devices.mkdir()
        (devices / "host-1t.yaml").write_bytes(Path("devices/host-1t.yaml").read_bytes())
        seconds, peak = _measured(["-m", "edgepack", "build", "pictures.yaml"], place)
        kept = sum(entry.bytes for entry in Store(Path(place, ".edgepack/store")).entries() if entry.kind == "data")
    held = asked.pictures * 3 * _SIDE * _SIDE
    return [
        "## Memory",
        "",
        f"`edgepack build` of a small net from {asked.pictures:,} pictures with `cache: none`, one epoch, one file:",
        f"{seconds / 60:.0f} minutes, and the largest process had {peak / 1e9:.2f} GB at its peak. The pixels alone",
        f"would take {held / 1e9:.0f} GB; what was kept of them takes {kept / 1e6:.0f} MB.",
    ]


def folders(asked: Namespace) -> list[str]:
    """How long `plan` takes with a million files that it has seen."""
    files = _many(asked)
    with TemporaryDirectory() as place:
        Path(place, "many.yaml").write_text(
            "{edgepack: 1, task: image_classification, model: {torchvision: resnet18}, device: host, export: [onnx],"
            f" stages: [{{train: {{epochs: 1}}}}], data: {{image_folder: {{folder: {files}, size: 32}}}}}}"
        )
        first, *again = [_measured(["-m", "edgepack", "plan", "many.yaml"], place)[0] for _ in range(1 + _ROUNDS)]
    return [
        "## Many files",
        "",
        f"`edgepack plan` of a recipe on {_FILES:,} empty files in {_FILES // _IN_CLASS:,} classes: {first:.0f} s the",
        f"first time, when each is read, and {statistics.median(again):.1f} s afterwards (median of {_ROUNDS}).",
        "Each file is asked whether it has changed.",
    ]


def _many(asked: Namespace) -> Path:
    folder: Path = (asked.folder / f"files-{_FILES}").absolute()
    for label in range(0 if folder.exists() else _FILES // _IN_CLASS):
        inside = folder / f"class{label:04d}"
        inside.mkdir(parents=True)
        for number in range(_IN_CLASS):
            (inside / f"{label:04d}_{number:06d}.jpg").touch()
    return folder


def processes(asked: Namespace) -> list[str]:
    """Training in two processes against one, on the same batches."""
    rows = []
    with TemporaryDirectory() as place:
        for count in (1, 2):
            found = [_together(Path(place), count, seed) for seed in range(_SEEDS)]
            scores = ", ".join(f"{accuracy:.2%}" for accuracy, _ in found)
            mean = statistics.mean(accuracy for accuracy, _ in found)
            rows.append(
                f"| {count} | {scores} | {mean:.2%} | {statistics.median(seconds for _, seconds in found):.0f} s |"
            )
    return [
        "## Several processes",
        "",
        "ResNet-18 at a quarter of its width on Fashion-MNIST, two epochs of batches of 128, trained by one process",
        "with all cores and by two (gloo) that share them: accuracy of the exported file on the 10,000 test samples",
        f"for {_SEEDS} seeds, and the time of the stage.",
        "",
        "| processes | accuracy | mean | time |",
        "|---|---|---|---|",
        *rows,
    ]


def _together(place: Path, count: int, seed: int) -> tuple[float, float]:
    """Return the accuracy of a build with so many processes, and the seconds of its training."""
    text = (
        f"{{edgepack: 1, name: run{count}-{seed}, task: image_classification, data: {{fashion_mnist: {{}}}},"
        f" model: {{torchvision: resnet18, width: 25 %}}, stages: [{{train: {{epochs: 2, batch_size: 128}}}}],"
        f" export: [onnx], device: host, seed: {seed}, compute: {{processes: {count}}}}}"
    )
    (place / "run.yaml").write_text(text)
    (place / "devices").mkdir(exist_ok=True)
    shutil.copy("devices/host.yaml", place / "devices")
    _measured(["-m", "edgepack", "build", "run.yaml"], str(place))
    built = json.loads((place / "dist" / f"run{count}-{seed}" / "build.json").read_text())
    [accuracy] = [
        each["value"] for each in built["measurements"] if each["metric"] == "accuracy" and each["artifact"] == "onnx"
    ]
    return accuracy, built["ledger"][1]["seconds"]


def kills(asked: Namespace) -> list[str]:
    """A build of the quickstart that is killed at random moments, against one that is not."""
    random = numpy.random.default_rng(0)
    with TemporaryDirectory() as whole, TemporaryDirectory() as killed:
        started = time.monotonic()
        sha, _ = _built(Path(whole), None)
        seconds = time.monotonic() - started
        lost, last = [], None
        for moment in [*random.uniform(0.03, 0.2, _KILLS) * seconds, None]:
            again, reached = _built(Path(killed), moment, last)
            lost += [reached.lost] if reached.lost is not None else []
            last = reached
    return [
        "## A build that is killed",
        "",
        f"The quickstart, killed by SIGKILL {_KILLS} times, each time after 3 to 20 % of the {seconds:.0f} s that a",
        f"build takes, and then left alone. {len(lost)} kills were within a training: the next build did",
        f"{statistics.mean(lost):.2f} epochs of it again on average, and {max(lost):.2f} at most.",
        f"The bundle {'was the same, to the byte' if again == sha else '**was another one**'}.",
    ]


@dataclass(frozen=True)
class _Reached:
    """Where a build was when it ended: stage, training, and steps done of it; and the epochs that it did again."""

    stage: str = ""
    doing: str = ""
    done: int = 0
    lost: float | None = None


def _built(folder: Path, moment: float | None, before: "_Reached | None" = None) -> tuple[str, _Reached]:
    """Build in a folder, until it ends or for so many seconds; `before` is where the build before it was killed."""
    for name in ("recipes", "devices"):
        if not (folder / name).exists():
            shutil.copytree(name, folder / name)
    command = [sys.executable, "-m", "edgepack", "build", "quickstart", "--json"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    if moment is not None:
        Timer(moment, process.kill).start()
    reached = _Reached()
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line) if line.endswith("\n") else {}
        if event.get("event") != "StepProgress" or event["learning_rate"] is None:
            continue
        lost = reached.lost
        if lost is None and before and (before.stage, before.doing) == (event["name"], event["doing"]):
            lost = max(0, before.done - event["done"] + 1) / (event["total"] / _epochs(event["name"]))
        reached = _Reached(event["name"], event["doing"], event["done"], lost)
    process.wait()
    zips = [*folder.glob("dist/quickstart/*.zip")]
    return (hashlib.sha256(zips[0].read_bytes()).hexdigest() if zips else ""), reached


def _epochs(stage: str) -> int:
    for each in load_recipe("quickstart").stages:
        if each.name == stage:
            return int(next(iter(each.config.trainings)).epochs)
    return 1


def _measured(arguments: list[str], folder: str) -> tuple[float, int]:
    """Run a command, and return its seconds and the peak memory of its largest process in bytes."""
    import resource

    started = time.monotonic()
    ran = subprocess.run([sys.executable, *arguments], cwd=folder, stdout=sys.stderr, check=False)
    if ran.returncode not in (0, 3):
        sys.exit(f"the build ended with {ran.returncode}")
    return time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


PARTS: dict[str, Callable[[Namespace], list[str]]] = {
    "loading": loading,
    "loop": loop,
    "memory": memory,
    "folders": folders,
    "processes": processes,
    "kills": kills,
}

if __name__ == "__main__":
    main()
