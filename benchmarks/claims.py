"""The claims that practitioners go by, tried on Fashion-MNIST with the stages of edgepack.

    python benchmarks/claims.py              writes benchmarks/claims.md; nothing else may run meanwhile

Every claim is tried with each seed; all is trained first, and then measured. Accuracy is that of the exported ONNX file
on the test split through ONNX Runtime; latency that of the same file at batch 1 on one thread, the median of fresh
processes, every variant of a claim in turn in each round, so that drift of the machine hits all alike. Whether a claim
holds is computed from the figures.
"""

import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rounds import run
from torch import nn

from edgepack.compress.contract import Context
from edgepack.compress.training import numerics
from edgepack.config import plugins
from edgepack.config.device import Quantization
from edgepack.config.plugins import Choice, choose
from edgepack.core import provenance
from edgepack.core.signature import Signature, TensorSpec
from edgepack.data.splits import Data
from edgepack.measure import evaluate
from edgepack.measure.timing.figures import timings
from edgepack.measure.timing.protocol import TimingProtocol
from edgepack.models.candidate import Candidate, Factory

_SEEDS = (0, 1, 2)
_ROUNDS = 5  # fresh processes per file
_DATA = {"fashion_mnist": {"samples": 6_000}}
_MODEL = {"torchvision": "resnet18", "width": "50 %"}
_EPOCHS = 6
_NOISE = 0.3  # a smaller difference in accuracy, in points, counts as none
Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Made:
    """One variant: its name, its model for each seed, and its measurements."""

    name: str
    candidates: tuple[Candidate, ...]
    trained: bool = True
    accuracy: tuple[float, ...] = ()  # for each seed, in per cent
    latency: float = 0.0  # ms
    bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    claim: str
    made: tuple[Made, ...]
    holds: bool
    because: str


# A claim makes its variants, receives their measurements, and decides.
Trial = Generator[tuple[Made, ...], tuple[Made, ...], Outcome]


@dataclass(frozen=True)
class Lab:
    """The data, and the models made so far: several claims share their first steps."""

    source: Choice
    data: Data
    known: dict[str, Candidate] = field(default_factory=dict)

    @classmethod
    def open(cls) -> "Lab":
        source = choose("datasets", _DATA)
        return cls(source, source.module.load(source.config))

    @property
    def signature(self) -> Signature:
        found: Signature = self.source.module.describe(self.source.config)
        return found

    def fresh(self, seed: int) -> Candidate:
        torch.manual_seed(seed)
        return Candidate.start(choose("models", _MODEL), self.signature)

    def stage(self, candidate: Candidate, name: str, config: Json, seed: int, teacher: Candidate | None) -> Candidate:
        choice = choose("stages", {name: config})
        started = time.monotonic()
        context = Context(
            data=self.data.for_stages(),
            task=plugins.load("tasks", "image_classification").task(None, self.signature),
            quantization=Quantization(sparsity=("unstructured",)),
            seed=seed,
            teacher=teacher,
            emit=lambda event: None,
        )
        torch.manual_seed(seed)
        done: Candidate = choice.module.run(candidate, choice.config, context)
        _say(f"  {name} {config}, seed {seed}: {time.monotonic() - started:.0f} s")
        return done

    def route(self, seed: int, *steps: tuple[str, Json]) -> Candidate:
        """Train this seed's teacher, then run some stages; return a copy that may be changed."""
        key = json.dumps([seed, steps])
        if key not in self.known:
            if steps:
                name, config = steps[-1]
                before, teacher = self.route(seed, *steps[:-1]), self.route(seed)
                self.known[key] = self.stage(before, name, config, seed, teacher)
            else:
                self.known[key] = self.stage(self.fresh(seed), "train", {"epochs": _EPOCHS}, seed, teacher=None)
        return self.known[key].copy()

    def variant(self, name: str, *steps: tuple[str, Json]) -> Made:
        return Made(name=name, candidates=tuple(self.route(seed, *steps) for seed in _SEEDS))

    def measured(self, *made: Made) -> tuple[Made, ...]:
        """Export each variant, time all alternately, and evaluate the trained ones on the test split."""
        with TemporaryDirectory() as folder:
            files = {each.name: list(_exported(each, Path(folder, str(i)))) for i, each in enumerate(made)}
            samples: dict[str, list[float]] = {each.name: [] for each in made}
            for _ in range(_ROUNDS):
                for name, paths in files.items():
                    answer = run({**TimingProtocol().job(), "runtime": "onnxruntime", "file": str(paths[0])})
                    samples[name] += timings([answer])["latency.p50"]
            return tuple(
                replace(
                    each,
                    latency=statistics.median(samples[each.name]),
                    bytes=files[each.name][0].stat().st_size,
                    accuracy=tuple(self._accuracy(path, Path(folder)) for path in files[each.name] if each.trained),
                )
                for each in made
            )

    def _accuracy(self, file: Path, folder: Path) -> float:
        (logits,) = evaluate.outputs(run, file=file, runtime="onnxruntime", split=self.data.test, folder=folder)
        return 100 * float((logits.argmax(axis=1) == self.data.test.targets.numpy()).mean())


def _exported(made: Made, folder: Path) -> Iterator[Path]:
    exporter = choose("exporters", "onnx")
    folder.mkdir()
    for number, candidate in enumerate(made.candidates):
        path = folder / f"{number}.onnx"
        exporter.module.export(candidate, exporter.config, path)
        yield path


def structured_is_faster(lab: Lab) -> Trial:
    recover = {"epochs": 2}
    made = yield (
        lab.variant("fp32 as trained"),
        lab.variant("half of the channels gone", ("prune", {"ratio": "50 %", "steps": 1, "recover": recover})),
        lab.variant(
            "half of the weights zero",
            ("prune", {"ratio": "50 %", "steps": 1, "pattern": "unstructured", "recover": recover}),
        ),
    )
    whole, structured, zeros = (each.latency for each in made)
    return Outcome(
        claim="Structured pruning of 50 % is really faster, unstructured is not",
        made=made,
        holds=structured < 0.75 * whole and zeros > 0.95 * whole,
        because=f"channels: {whole / structured:.2f}x faster; zeros: {whole / zeros:.2f}x",
    )


def iterative_beats_one_shot(lab: Lab) -> Trial:
    ratio = "75 %"
    made = yield (
        lab.variant("one cut, 6 epochs", ("prune", {"ratio": ratio, "steps": 1, "recover": {"epochs": 6}})),
        lab.variant("three cuts, 2 epochs each", ("prune", {"ratio": ratio, "steps": 3, "recover": {"epochs": 2}})),
    )
    return _better("Iterative pruning beats one shot (75 % of the channels, as many epochs in all)", *made)


def progressive_beats_single(lab: Lab) -> Trial:
    """Compare equal numbers of epochs: three students of four epochs, or one of twelve."""
    small = {"compression": 30, "learning_rate": 2e-3}
    made = yield (
        lab.variant("no assistant, 12 epochs", ("distill", {**small, "progressive": 0, "epochs": 12})),
        lab.variant("two assistants, 4 epochs each", ("distill", {**small, "progressive": 2, "epochs": 4})),
    )
    return _better("Progressive distillation beats a single stage at 30x fewer parameters", *made)


def half_rank_saves_nothing(lab: Lab) -> Trial:
    """Split square layers at half their rank by hand: edgepack's stage would refuse."""
    from edgepack.models.structure.surgery import split

    square = [nn.Linear(512, 512) for _ in range(2)]
    whole = nn.Sequential(nn.Flatten(), nn.Linear(784, 512), *square, nn.Linear(512, 10))
    halved, quartered = copy.deepcopy(whole), copy.deepcopy(whole)
    for net, rank in ((halved, 256), (quartered, 128)):
        for i in (2, 3):
            net[i] = split(net[i], rank)
    signature = Signature(inputs=(TensorSpec(name="input", shape=(1, 28, 28)),), labels=lab.signature.labels)
    factory = Factory(model="torchvision", config={"torchvision": "resnet18"}, signature=signature)
    names = {
        "two square layers of 512": whole,
        "split at rank 256 (50 %)": halved,
        "split at rank 128 (25 %)": quartered,
    }
    variants = [
        Made(name=name, candidates=(Candidate(module=net.eval(), factory=factory),), trained=False)
        for name, net in names.items()
    ]
    made = yield tuple(variants)
    before, half, quarter = made
    return Outcome(
        claim="A rank of 50 % on a square layer saves nothing",
        made=made,
        holds=half.bytes >= 0.99 * before.bytes and half.latency >= 0.95 * before.latency,
        because=f"rank 50 %: {half.bytes / before.bytes:.2f}x size, {half.latency / before.latency:.2f}x time; "
        f"rank 25 %: {quarter.bytes / before.bytes:.2f}x, {quarter.latency / before.latency:.2f}x",
    )


def training_beats_calibration(lab: Lab) -> Trial:
    prune = ("prune", {"ratio": "75 %", "steps": 2, "recover": {"epochs": 2}})
    made = yield (
        lab.variant("fp32, pruned", prune),
        lab.variant("int8, calibrated (PTQ)", prune, ("quantize", {"mode": "ptq"})),
        lab.variant("int8, trained (QAT), 2 epochs", prune, ("quantize", {"mode": "qat", "epochs": 2})),
    )
    return _better("Quantization-aware training beats post-training quantization", made[1], made[2], made[0])


def combined_route(lab: Lab) -> Trial:
    made = yield (
        lab.variant("fp32 as trained"),
        lab.variant("quantized alone", ("quantize", {"epochs": 2})),
        lab.variant(
            "pruned, factorized, quantized",
            ("prune", {"ratio": "50 %", "steps": 2, "recover": {"epochs": 3}}),
            ("factorize", {"energy": "95 %", "recover": {"epochs": 2}}),
            ("quantize", {"epochs": 2}),
        ),
    )
    whole, int8, route = made
    drop = _mean(whole) - _mean(route)
    return Outcome(
        claim="The combined route is smaller and faster than int8 alone, within a point of the teacher",
        made=made,
        holds=route.bytes < int8.bytes and route.latency < int8.latency and drop <= 1.0,
        because=f"{whole.bytes / route.bytes:.1f}x smaller, {whole.latency / route.latency:.1f}x faster, "
        f"{drop:+.1f} points lost; int8 alone {whole.bytes / int8.bytes:.1f}x and {whole.latency / int8.latency:.1f}x",
    )


CLAIMS: tuple[Callable[[Lab], Trial], ...] = (
    structured_is_faster,
    iterative_beats_one_shot,
    progressive_beats_single,
    half_rank_saves_nothing,
    training_beats_calibration,
    combined_route,
)


def _better(claim: str, before: Made, after: Made, *beside: Made) -> Outcome:
    gain = _mean(after) - _mean(before)
    wins = sum(new > old for old, new in zip(before.accuracy, after.accuracy, strict=True))
    words = f"{gain:+.2f} points on average, better with {wins} of {len(_SEEDS)} seeds"
    return Outcome(claim=claim, made=(*beside, before, after), holds=gain > _NOISE, because=words)


def _mean(made: Made) -> float:
    return statistics.fmean(made.accuracy)


def _page(outcomes: list[Outcome], minutes: float) -> str:
    lines = [
        "# The claims that practitioners go by, on Fashion-MNIST",
        "",
        f"ResNet-18 at half of its width, {_DATA['fashion_mnist']['samples']:,} training pictures, "
        f"seeds {', '.join(map(str, _SEEDS))}. Accuracy on",
        "the 10,000 test pictures, of the exported ONNX file through ONNX Runtime, for each seed and on average;",
        f"latency of the same file at batch 1 on one thread, the median of {_ROUNDS} fresh processes. A difference of",
        f"up to {_NOISE} points is called none.",
    ]
    for number, outcome in enumerate(outcomes, start=1):
        lines += ["", f"## {number}. {outcome.claim}", "", *_table(outcome)]
        lines += ["", f"{'Holds' if outcome.holds else 'Does not hold here'}: {outcome.because}."]
    threads = f"EDGEPACK_THREADS={provenance.threads()} "
    lines += ["", f"Command: `{threads}python benchmarks/claims.py` ({minutes:.0f} minutes)"]
    return "\n".join([*lines, "", f"Environment: {provenance.summary(*_PACKAGES)}.", ""])


_PACKAGES = ("torch", "torch-pruning", "torchao", "executorch", "onnxruntime")


def _table(outcome: Outcome) -> list[str]:
    rows = ["| | size | latency | accuracy of each seed | mean |", "|---|---|---|---|---|"]
    for made in outcome.made:
        each = ", ".join(f"{value:.2f}" for value in made.accuracy) or "-"
        mean = f"{_mean(made):.2f} %" if made.accuracy else "-"
        rows.append(f"| {made.name} | {made.bytes / 1e3:,.0f} kB | {made.latency * 1e3:.0f} us | {each} | {mean} |")
    return rows


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    started, outcomes = time.monotonic(), []
    with numerics.deterministic(0, provenance.threads()):
        lab = Lab.open()
        trials = [(claim(lab), claim.__name__) for claim in CLAIMS]
        made = [(trial, name, next(trial)) for trial, name in trials]
        _say("all is trained, now it is measured")
        for trial, name, variants in made:
            outcomes.append(_judged(trial, lab.measured(*variants)))
            _say(f"{name} {'holds' if outcomes[-1].holds else 'does not hold'}: {outcomes[-1].because}")
    page = _page(outcomes, (time.monotonic() - started) / 60)
    Path(__file__).with_suffix(".md").write_text(page)


def _judged(trial: Trial, measured: tuple[Made, ...]) -> Outcome:
    try:
        trial.send(measured)
    except StopIteration as ended:
        outcome: Outcome = ended.value
        return outcome
    raise AssertionError("a claim is judged once")


if __name__ == "__main__":
    main()
