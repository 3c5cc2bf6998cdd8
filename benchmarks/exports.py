"""Exported files beside those that others make of the same weights: size, latency, accuracy.

    python benchmarks/exports.py                  writes benchmarks/exports.md; nothing else may run meanwhile
    python benchmarks/exports.py MODEL...         takes the figures of these again, and leaves the others as they are
    ... --keep FOLDER                             trained models, and what files answer, are kept there and used again
    ... --train                                   stop after training

Three nets on Fashion-MNIST in three channels of 64 x 64, trained for this, and MiniLM-L6 fine-tuned on BBC News at 128
tokens. Everyone quantizes the same fp32 weights with the same 512 training samples: onnxruntime's quantize_static (QDQ,
per channel, pre-processed; uint8 and int8 activations) or quantize_dynamic, NNCF in an environment of its own, where it
installs, ExecuTorch's post-training flow as its documentation has it, and edgepack. Files are timed with one thread in
fresh processes, one after another, round after round, there and back, so that drift of the machine hits all alike; a
ratio of two files is the median of those within the rounds. Accuracy is the
file's own, through its runtime, on the whole test split; divergence, in nats, is how far its probabilities are from
those of the fp32 file on the same runtime (Kullback and Leibler, the mean of the split): of quantization it tells more,
for of samples that fall to the other side of a boundary about as many are won as lost.
"""

import statistics
import sys
import warnings
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy
import torch
from peers import FP32, NNCF, of_executorch, of_nncf, of_onnx
from rounds import run, timed

from edgepack.compress.contract import Context
from edgepack.compress.stages import quantize, train
from edgepack.config.device import Quantization
from edgepack.config.plugins import choose, load
from edgepack.core import provenance
from edgepack.core.files import file_digest
from edgepack.core.runtimes import RUNTIMES, runtime_of
from edgepack.core.signature import Signature
from edgepack.core.units import DURATION, SIZE
from edgepack.data.contract import Task
from edgepack.data.splits import Data, Split
from edgepack.measure import evaluate
from edgepack.measure.timing.protocol import TimingProtocol
from edgepack.models.candidate import Candidate

_ROUNDS, _CALIBRATION = 21, 512
_PACKAGES = ("torch", "torchvision", "transformers", "torchao", "executorch", "onnx", "onnxruntime")
_OURS = "edgepack, int8"


@dataclass(frozen=True)
class Contender:
    """A model that every tool exports: its training data and how it is trained."""

    name: str
    task: str
    model: dict[str, str]
    training: train.Config

    @property
    def text(self) -> bool:
        return self.task == "text_classification"


@dataclass(frozen=True)
class Made:
    """The files of one model by name, and their results: bytes of tensors in ours, milliseconds per round, logits, and
    which samples are correct.
    """

    contender: Contender
    files: dict[str, Path]
    stored: dict[str, int]
    rounds: dict[str, list[float]]
    answers: dict[str, Any]
    right: dict[str, Any]

    def of_ours(self) -> list[str]:
        return [f"{_OURS}: {runtime}" for runtime in RUNTIMES]

    def time(self, name: str) -> float:
        return statistics.median(self.rounds[name])

    def ratio(self, name: str, other: str) -> float:
        """Return its time as a multiple of the other's."""
        return statistics.median(mine / its for mine, its in zip(self.rounds[name], self.rounds[other], strict=True))


_PICTURES = train.Config(epochs=3, batch_size=128, learning_rate=2e-3)
_CONTENDERS = (
    Contender("ResNet-18", "image_classification", {"torchvision": "resnet18"}, _PICTURES),
    Contender("MobileNetV2", "image_classification", {"torchvision": "mobilenet_v2"}, _PICTURES),
    Contender("MobileNetV3-small", "image_classification", {"torchvision": "mobilenet_v3_small"}, _PICTURES),
    Contender(
        "MiniLM-L6",
        "text_classification",
        {"huggingface": "all-MiniLM-L6-v2"},
        train.Config(epochs=2, batch_size=32, learning_rate=1e-4),
    ),
)


def _data(text: bool) -> tuple[Signature, Data]:
    """Return the data; images have three channels here, as most models expect."""
    config = (
        {"tokenizer": "all-MiniLM-L6-v2", "max_length": 128, "windows": 4} if text else {"size": 64, "samples": 20_000}
    )
    source = choose("datasets", {"bbc_news" if text else "fashion_mnist": config})
    signature, data = source.module.describe(source.config), source.module.load(source.config)
    if text:
        return signature, data
    [spec] = signature.inputs
    picture = spec.model_copy(update={"shape": (3, *spec.shape[1:])})
    train, validation, test = (_colored(split) for split in (data.train, data.validation, data.test))
    return signature.model_copy(update={"inputs": (picture,)}), Data(train=train, validation=validation, test=test)


def _colored(split: Split) -> Split:
    grey = split.prepare
    assert grey is not None, "Fashion-MNIST is held as bytes"
    return replace(split, prepare=lambda inputs: (grey(inputs)[0].expand(-1, 3, -1, -1).contiguous(),))


def _trained(contender: Contender, folder: Path, signature: Signature, context: Context) -> Candidate:
    saved = folder / "trained"
    if not saved.exists():
        start = Candidate.start(choose("models", contender.model), signature)
        print(f"training {contender.name}", file=sys.stderr, flush=True)
        made = train.run(start, contender.training, context)
        saved.mkdir(parents=True)
        made.save(saved)
    return Candidate.load(saved)


def _files(
    contender: Contender, teacher: Candidate, folder: Path, context: Context
) -> tuple[dict[str, Path], dict[str, int]]:
    """Return the files by tool, a colon and the runtime; and for ours, how many bytes of tensors they contain."""
    calibration = context.data.train.first(_CALIBRATION)
    made = {
        **of_executorch(teacher, folder, calibration, text=contender.text),
        **of_onnx(teacher, folder, calibration, text=contender.text),
    }
    made |= of_nncf(teacher, made[f"{FP32}: onnxruntime"], folder, calibration, text=contender.text)
    small = quantize.run(teacher.copy(), quantize.Config(mode="ptq", calibration=_CALIBRATION), context)
    ours = {"edgepack, fp32": teacher, _OURS: small} if contender.text else {_OURS: small}
    stored = {}
    for name, candidate in ours.items():
        for format in ("onnx", "executorch"):
            exporter = load("exporters", format)
            label = f"{name}: {exporter.RUNTIME}"
            made[label] = path = folder / f"{name}{exporter.SUFFIX}"
            exporter.export(candidate, exporter.Config(), path)
            stored[label] = exporter.inspect(path, candidate).stored_bytes
    return made, stored


def _answers(files: dict[str, Path], test: Split, folder: Path) -> dict[str, Any]:
    """Return the logits of the whole split by name."""
    found = {}
    for name, path in files.items():
        known = folder / f"answers-{file_digest(path)[:16]}.npy"
        if not known.exists():
            runtime = runtime_of(path.suffix)
            (logits,) = evaluate.outputs(run, file=path, runtime=runtime, split=test, folder=folder)
            numpy.save(known, logits)
        found[name] = numpy.load(known)
    return found


def _section(made: Made) -> list[str]:
    lines = [f"## {made.contender.name}", ""]
    lines += ["| file | size | latency | to fp32 | accuracy | divergence |", "|---|---|---|---|---|---|"]
    lines += [_row(name, made) for name in made.files]
    lines += ["", "| goal | found | |", "|---|---|---|"]
    lines += [f"| {goal} | {found} | {outcome} |" for goal, found, outcome in _goals(made)]
    return [*lines, "", f"Taken on: {provenance.summary(*_PACKAGES)}; {NNCF[0]}.", ""]


def _row(name: str, made: Made) -> str:
    ratio = made.ratio(f"{FP32}: {_runtime(name)}", name)
    size, shown = SIZE.format(made.files[name].stat().st_size), DURATION.format(made.time(name))
    accuracy, apart = made.right[name].mean(), _divergences(made, name).mean()
    return f"| {name} | {size} | {shown} | {ratio:.2f}x faster | {accuracy:.2%} | {apart:.3g} |"


def _divergences(made: Made, name: str) -> Any:
    fp32, its = (_log_shares(made.answers[each]) for each in (f"{FP32}: {_runtime(name)}", name))
    return (numpy.exp(fp32) * (fp32 - its)).sum(1)


def _log_shares(logits: Any) -> Any:
    from scipy.special import log_softmax

    return log_softmax(logits.astype("float64"), axis=1)


def _goals(made: Made) -> Iterator[tuple[str, str, str]]:
    """Yield each goal, the figure, and whether it is met."""
    for runtime, slowest in (("onnxruntime", 1.02), ("executorch", 1.0)):
        yield from _beside_peers(made, runtime, slowest)
    if made.contender.name == "ResNet-18":
        ratio = made.ratio(f"{FP32}: onnxruntime", f"{_OURS}: onnxruntime")
        yield "onnxruntime: int8 at least 4x faster than fp32 (AVX-512 VNNI)", f"{ratio:.2f}x", _verdict(ratio >= 4)
    for name in made.of_ours():
        size, stored = made.files[name].stat().st_size, made.stored[name]
        beyond = f"{SIZE.format(size - stored)} beyond {SIZE.format(stored)}"
        outcome = _verdict(size <= 1.02 * stored + 60e3)
        yield f"{_runtime(name)}: file at most 1.02x its tensors and 60 kB", beyond, outcome
    agreed = evaluate.parity(_task(made.contender), *((made.answers[name],) for name in made.of_ours()))
    found = f"{agreed.agreement:.2%}, cosine {agreed.cosine:.5f}, {agreed.largest_difference:.3g} apart"
    yield "both files agree on at least 99.5 % of test samples", found, _verdict(agreed.agreement >= 0.995)


def _beside_peers(made: Made, runtime: str, slowest: float) -> Iterator[tuple[str, str, str]]:
    """Compare time with the fastest file of any other tool, and accuracy with that file's, sample by sample."""
    ours = f"{_OURS}: {runtime}"
    peers = [name for name in made.files if _runtime(name) == runtime and not name.startswith("edgepack")]
    best = min(peers, key=made.time)
    ratio = made.ratio(ours, best)
    goal = f"{runtime}: at most {slowest:g}x the time of {best.rpartition(': ')[0]}"
    yield goal, f"{ratio:.2f}x", _verdict(ratio <= slowest)
    lost = 100 * (made.right[best].astype(float) - made.right[ours])
    found = f"{-lost.mean():+.2f} points, 95 % within {_noise(lost):.2f} of it"
    yield f"{runtime}: as accurate as that file", found, _verdict(lost.mean() <= 0, lost.mean() <= _noise(lost))
    if not best.startswith(FP32):
        mine, its = (_divergences(made, name) for name in (ours, best))
        more = mine - its
        found = f"{mine.mean():.3g} and {its.mean():.3g}, 95 % within {_noise(more):.1g} of it"
        outcome = _verdict(more.mean() <= 0, more.mean() <= _noise(more))
        yield f"{runtime}: diverges no more from fp32 than that file", found, outcome


def _noise(differences: Any) -> float:
    """Return the half-width of a 95 % confidence interval of the mean."""
    return float(1.96 * differences.std() / len(differences) ** 0.5)


def _verdict(met: bool, nearly: bool = False) -> str:
    return "met" if met else "missed by less than its noise" if nearly else "**missed**"


def _runtime(name: str) -> str:
    return name.rpartition(": ")[2]


def _page(sections: list[list[str]]) -> str:
    about = (__doc__ or "").split("\n\n")[2]
    return "\n".join(
        [
            "# Exported files beside those that others make of the same weights",
            "",
            about,
            "",
            f"One inference, the median of {_ROUNDS} fresh processes; ratios are those within the rounds, to fp32",
            "with the file that torch.onnx or ExecuTorch's lowering writes as it is, for the same runtime. NNCF is",
            "missing where it failed. Of MiniLM edgepack's files compute the last layer for the token that is read.",
            "",
            *(line for section in sections for line in section),
            "Command: `python benchmarks/exports.py`; files are timed with one thread.",
            "",
        ]
    )


def _task(contender: Contender) -> Task:
    made: Task = load("tasks", contender.task).task(None, _data(contender.text)[0])
    return made


def _compared(contender: Contender, folder: Path, only_train: bool) -> list[str]:
    signature, data = _data(contender.text)
    context = Context(
        data=data.for_stages(),
        task=_task(contender),
        quantization=Quantization(),
        seed=0,
        teacher=None,
        emit=lambda event: None,
    )
    torch.manual_seed(0)
    teacher = _trained(contender, folder, signature, context)
    if only_train:
        return []
    print(f"exporting {contender.name}", file=sys.stderr, flush=True)
    files, stored = _files(contender, teacher, folder, context)
    answers = _answers(files, data.test, folder)
    right = {name: each.argmax(axis=1) == data.test.targets.numpy() for name, each in answers.items()}
    return _section(Made(contender, files, stored, timed(files, _ROUNDS, TimingProtocol()), answers, right))


def _before(page: Path) -> dict[str, list[str]]:
    """Return the sections of the existing page, by model."""
    parts = page.read_text().split("## ")[1:] if page.exists() else []
    return {part.splitlines()[0]: f"## {part}".partition("Command: ")[0].splitlines() for part in parts}


def main() -> None:
    warnings.filterwarnings("ignore")
    names = [each.name for each in _CONTENDERS]
    options = ArgumentParser()
    options.add_argument("models", nargs="*", default=names, metavar="MODEL", help=", ".join(names))
    options.add_argument("--keep", type=Path)
    options.add_argument("--train", action="store_true")
    given = options.parse_args()
    torch.set_num_threads(provenance.threads())
    page = Path(__file__).with_suffix(".md")
    sections = _before(page)
    with TemporaryDirectory() as temporary:
        for each in (each for each in _CONTENDERS if each.name in given.models):
            sections[each.name] = _compared(each, (given.keep or Path(temporary)) / each.name, given.train)
            if not given.train:  # after each model: a killed run keeps its results
                page.write_text(_page([sections[name] for name in names if name in sections]))


if __name__ == "__main__":
    main()
