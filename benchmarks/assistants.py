"""Whether a teacher assistant helps a small language model to learn from a large one.

    python benchmarks/assistants.py                  writes benchmarks/assistants.md: hours on two cores
    ... --seeds 1 --ratios 13                        fewer trainings
    ... --keep FOLDER                                trainings are kept there; a run that was killed goes on from them

A GPT-2 learns BBC News from scratch. Students with 6 and 13 times fewer parameters begin with the most important of its
weights, and learn on the same windows of tokens, each in every epoch: from the labels alone, from the teacher in one
step, from an assistant in between that learned first, and from the teacher for as many epochs as cost what the
assistant and its student cost together. Perplexity is that of the torch model on the test split, by epochs that
validation selected.
"""

import json
import statistics
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from numerics import environment

from edgepack.compress.contract import Context
from edgepack.compress.stages import distill, train
from edgepack.compress.stages.distill.students import narrower_student, size_of
from edgepack.compress.training import evaluation, numerics
from edgepack.config.device import Quantization
from edgepack.config.plugins import choose, load
from edgepack.core import provenance
from edgepack.data.contract import Task
from edgepack.data.splits import Data
from edgepack.models.candidate import Candidate

_DATA = {"corpus": {"texts": "bbc-news", "vocabulary": 2048, "window": 64}}
_MODEL = {"gpt2": {"width": 128, "layers": 4, "heads": 16}}  # narrow heads: widths in steps of 8
_RATIOS, _SEEDS = (6.0, 13.0), 3
_EPOCHS = 6  # of the teacher, of an assistant and of a student
_LEARNING = {"batch_size": 32, "learning_rate": 3e-3, "weight_decay": 0.05}
_SOFT = {"temperature": 2.0, "alpha": "90 %"}
_LABELS, _ONE, _STEPS, _LONG = "labels alone", "one step", "over an assistant", "one step, as long as with an assistant"
_ARMS = (_LABELS, _ONE, _STEPS, _LONG)
_T = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}  # two-sided 95 % of Student's t, by the number of values


def main() -> None:
    parser = ArgumentParser()
    parser.add_argument("--seeds", type=int, default=_SEEDS)
    parser.add_argument("--ratios", type=float, nargs="+", default=_RATIOS)
    parser.add_argument("--keep", type=Path)
    asked = parser.parse_args()
    with TemporaryDirectory() as folder:
        lab = Lab(folder=asked.keep or Path(folder))
        lab.folder.mkdir(parents=True, exist_ok=True)
        found = {
            (ratio, arm): [lab.result(ratio, arm, seed) for seed in range(asked.seeds)] for ratio, arm in _all(asked)
        }
        teachers = [lab.result(1.0, "teacher", seed) for seed in range(asked.seeds)]
    Path(__file__).with_suffix(".md").write_text("\n".join(_page(teachers, found, asked)) + "\n")


def _all(asked: Namespace) -> Iterator[tuple[float, str]]:
    return ((ratio, arm) for ratio in asked.ratios for arm in _ARMS)


@dataclass(frozen=True)
class Lab:
    """The data, and the results so far, each in a file of its own."""

    folder: Path

    @cached_property
    def data(self) -> Data:
        source = choose("datasets", _DATA)
        loaded: Data = source.module.load(source.config)
        return loaded

    @cached_property
    def task(self) -> Task:
        source = choose("datasets", _DATA)
        plugin = load("tasks", "language_modelling")
        made: Task = plugin.task(plugin.Config(), source.module.describe(source.config))
        return made

    def result(self, ratio: float, arm: str, seed: int) -> dict[str, Any]:
        """Return the perplexity on the test split, that of each epoch on validation, and the seconds it took."""
        file = self.folder / f"{arm.replace(' ', '-').replace(',', '')}-{ratio:g}-{seed}.json"
        if not file.exists():
            file.write_text(json.dumps(self._trained(ratio, arm, seed)))
        found: dict[str, Any] = json.loads(file.read_text())
        return found

    def teacher(self, seed: int) -> Candidate:
        place = self.folder / f"teacher-{seed}"
        if not place.exists():
            self.result(1.0, "teacher", seed)
        return Candidate.load(place)

    def _trained(self, ratio: float, arm: str, seed: int) -> dict[str, Any]:
        started = time.monotonic()
        context = Context(
            data=self.data.for_stages(),
            task=self.task,
            quantization=Quantization(),
            seed=seed,
            teacher=None,
            emit=lambda event: None,
        )
        with numerics.deterministic(seed, provenance.threads()):
            torch.manual_seed(seed)
            made = self._made(ratio, arm, seed, context)
            perplexity = evaluation.evaluate(made.module, self.data.test, self.task)
        curve = [each.score for each in context.trainings[-1].epochs]
        seconds, parameters = time.monotonic() - started, size_of(made)
        print(f"{arm}, {ratio:g}x, seed {seed}: {perplexity:.1f} in {seconds:.0f} s", file=sys.stderr, flush=True)
        return {"perplexity": perplexity, "curve": curve, "seconds": seconds, "parameters": parameters}

    def _made(self, ratio: float, arm: str, seed: int, context: Context) -> Candidate:
        on_labels = train.Config.model_validate({"epochs": _EPOCHS, **_LEARNING})
        if arm == "teacher":
            made = train.run(Candidate.start(choose("models", _MODEL), self.task.signature), on_labels, context)
            place = self.folder / f"teacher-{seed}"
            place.mkdir()
            made.save(place)
            return made
        teacher = self.teacher(seed)
        if arm == _LABELS:
            student = narrower_student(teacher, size_of(teacher) / ratio, context.quantization)
            return train.run(student, on_labels, context)
        epochs = _as_long(teacher, ratio, context) if arm == _LONG else _EPOCHS
        settings = {"compression": ratio, "progressive": int(arm == _STEPS), "epochs": epochs, **_LEARNING, **_SOFT}
        return distill.run(teacher, distill.Config.model_validate(settings), context)


def _as_long(teacher: Candidate, ratio: float, context: Context) -> int:
    """Return the epochs of one step that cost as much as an assistant and its student: a teacher is run forward, and a
    student forward and back, which takes three times its parameters.
    """
    had = size_of(teacher)
    between, small = (
        size_of(narrower_student(teacher, had / share, context.quantization)) for share in (ratio**0.5, ratio)
    )
    return round(_EPOCHS * (had + 3 * between + between + 3 * small) / (had + 3 * small))


def _page(
    teachers: list[dict[str, Any]], found: dict[tuple[float, str], list[dict[str, Any]]], asked: Namespace
) -> Iterator[str]:
    yield "# A teacher assistant between a language model and its student\n"
    yield __doc__.split("\n\n", 2)[2].strip() + "\n"
    yield f"Teachers have {teachers[0]['parameters']:,} parameters and a perplexity of {_shown(teachers)}: the mean of"
    yield f"{asked.seeds} seeds, and its 95 % interval by Student's t.\n"
    for ratio in asked.ratios:
        yield f"## {ratio:g} times fewer parameters\n"
        yield "| learned from | parameters | perplexity | to labels alone | epochs | s |"
        yield "|---|---|---|---|---|---|"
        for arm in _ARMS:
            each = found[ratio, arm]
            change = _mean(each) / _mean(found[ratio, _LABELS]) - 1
            seconds = statistics.mean(one["seconds"] for one in each)
            yield (
                f"| {arm} | {each[0]['parameters']:,} | {_shown(each)} | {change:+.1%} "
                f"| {len(each[0]['curve']) - 1} | {seconds:.0f} |"
            )
        yield "\nPerplexity on the validation split after each epoch, mean over seeds:\n"
        for arm in _ARMS:
            rows = zip(*(each["curve"] for each in found[ratio, arm]), strict=True)
            yield f"- {arm}: {', '.join(f'{statistics.mean(row):.0f}' for row in rows)}"
        yield ""
    yield f"{environment()}\n"
    yield f"Command: `python {' '.join(['benchmarks/assistants.py', *sys.argv[1:]])}`"


def _mean(each: list[dict[str, Any]]) -> float:
    return float(statistics.mean(one["perplexity"] for one in each))


def _shown(each: list[dict[str, Any]]) -> str:
    values = [one["perplexity"] for one in each]
    if len(values) < 2:
        return f"{values[0]:.1f}"
    half = _T[len(values)] * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.1f} +- {half:.1f}"


if __name__ == "__main__":
    main()
