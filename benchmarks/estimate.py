"""Estimates of the analytic model beside measurements on this computer.

    python benchmarks/estimate.py                       writes benchmarks/estimate.md; nothing else may run meanwhile
    python benchmarks/estimate.py --keep FOLDER         and keeps the exported files there, for the next time
    python benchmarks/estimate.py --keep F --export     exports them alone: that may be done while others work

The figures are fitted to small nets of edgepack's own, as `edgepack devices calibrate host-1t` does it, and then asked
for models that were no part of that: every file below is outside of the fit. Models have random weights and are
exported by edgepack in fp32 and, calibrated on noise, in int8; one inference, one thread.
"""

import json
import statistics
import sys
import warnings
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from edgepack import provenance
from edgepack.analytic import Figures, estimate, mean_error
from edgepack.calibrate import Sample, files, fit, left_out, measured, timed
from edgepack.candidate import Candidate
from edgepack.datasets import Signature, TensorSpec
from edgepack.device import Device, load_device
from edgepack.events import Event, StepProgress
from edgepack.plugins import choose
from edgepack.runners import connected
from edgepack.units import DURATION

_PROCESSES = 3
_PACKAGES = ("torch", "torchvision", "transformers", "executorch", "onnx", "onnxruntime")
_LABELS = tuple("0123456789")
_WITHIN = 0.3


def _picture(size: int, **model: str) -> Callable[[], Candidate]:
    signature = Signature(inputs=(TensorSpec(name="input", shape=(3, size, size)),), labels=_LABELS)
    return lambda: Candidate.start(choose("models", model), signature)


def _text(length: int, **model: Any) -> Callable[[], Candidate]:
    inputs = tuple(TensorSpec(name=each, shape=(length,), dtype="int64") for each in ("input_ids", "attention_mask"))
    special = {"pad": {"token": "[PAD]", "id": 0}}
    about = {"kind": "text", "vocabulary": 30522, "max_length": length, "special_tokens": special}
    signature = Signature(inputs=inputs, labels=_LABELS, preprocessing=about)
    return lambda: Candidate.start(choose("models", {"huggingface": "all-MiniLM-L6-v2", **model}), signature)


_MODELS = {
    "ResNet-18, 64 px": _picture(64, torchvision="resnet18"),
    "ResNet-18, quarter width, 96 px": _picture(96, torchvision="resnet18", width="25 %"),
    "ResNet-34, half width, 64 px": _picture(64, torchvision="resnet34", width="50 %"),
    "VGG-11, quarter width, 64 px": _picture(64, torchvision="vgg11", width="25 %"),
    "SqueezeNet 1.1, 96 px": _picture(96, torchvision="squeezenet1_1"),
    "MobileNetV2, 96 px": _picture(96, torchvision="mobilenet_v2"),
    "MobileNetV2, half width, 64 px": _picture(64, torchvision="mobilenet_v2", width="50 %"),
    "MobileNetV3-small, 96 px": _picture(96, torchvision="mobilenet_v3_small"),
    "MobileNetV3-large, 64 px": _picture(64, torchvision="mobilenet_v3_large"),
    "MNASNet 0.5, 96 px": _picture(96, torchvision="mnasnet0_5"),
    "EfficientNet-B0, 64 px": _picture(64, torchvision="efficientnet_b0"),
    "ShuffleNetV2 x1.0, 96 px": _picture(96, torchvision="shufflenet_v2_x1_0"),
    "MiniLM, 6 layers, 128 tokens": _text(128),
    "MiniLM, 3 layers, 32 tokens": _text(32, layers=3),
}


@dataclass(frozen=True)
class Row:
    """One file: what it takes and what was estimated, in milliseconds."""

    model: str
    runtime: str
    dtype: str
    measured: float
    estimated: float

    @property
    def pair(self) -> tuple[float, float]:
        return self.estimated, self.measured


def _exported(name: str, device: Device, folder: Path) -> dict[tuple[str, str], Path]:
    """The files of a model, or those that an earlier call kept."""
    home = folder / name
    known = home / "files.json"
    if not known.exists():
        print(f"exporting {name}", file=sys.stderr, flush=True)
        made = files(_MODELS[name](), device, home)
        known.write_text(json.dumps([[*key, str(path)] for key, path in made.items()]))
    return {(runtime, dtype): Path(path) for runtime, dtype, path in json.loads(known.read_text())}


def _told(event: Event) -> None:
    if isinstance(event, StepProgress):
        print(f"{event.done + 1} of {event.total}  {event.doing}", file=sys.stderr, flush=True)


def _rows(device: Device, folder: Path) -> tuple[list[Row], dict[str, list[Sample]], dict[str, list[Sample]]]:
    """Each file, and by runtime the samples that the figures are fitted to, and those of the models."""
    exported = {name: _exported(name, device, folder) for name in _MODELS}
    rows: list[Row] = []
    seen: dict[str, list[Sample]] = {}
    with connected(device) as connection:
        known = measured(device, connection, folder, _told)
        figures = {runtime: fit(samples) for runtime, samples in known.items()}
        for name, found in exported.items():
            print(f"timing {name}", file=sys.stderr, flush=True)
            for (runtime, dtype), path in found.items():
                sample = timed(runtime, path, name, device, connection, _PROCESSES)
                seen.setdefault(runtime, []).append(sample)
                rows.append(_row(sample, runtime, dtype, figures[runtime]))
    return rows, known, seen


def _row(sample: Sample, runtime: str, dtype: str, figures: Figures) -> Row:
    return Row(sample.net, runtime, dtype, sample.ms, estimate(figures, sample.operations).ms)


def _page(rows: Sequence[Row], known: dict[str, list[Sample]], seen: dict[str, list[Sample]]) -> str:
    about = (__doc__ or "").split("\n\n")[2]
    lines = ["# Estimates beside measurements", "", about, "", *_summary(rows, known, seen), ""]
    lines += ["| model | runtime | | measured | estimated | off by |", "|---|---|---|---|---|---|"]
    for row in rows:
        off = row.estimated / row.measured - 1
        times = f"{DURATION.format(row.measured)} | {DURATION.format(row.estimated)}"
        lines.append(f"| {row.model} | {row.runtime} | {row.dtype} | {times} | {off:+.0%} |")
    lines += ["", "Command: `python benchmarks/estimate.py`", "", f"Environment: {provenance.summary(*_PACKAGES)}.", ""]
    return "\n".join(lines)


def _summary(rows: Sequence[Row], known: dict[str, list[Sample]], seen: dict[str, list[Sample]]) -> Iterator[str]:
    models, within = len({row.model for row in rows}), sum(abs(a / b - 1) <= _WITHIN for a, b in map(_pair, rows))
    error = f"{mean_error(map(_pair, rows)):.0%}"
    yield f"**The mean absolute error is {error}** over {len(rows)} files of {models} models; {within} of them are"
    yield f"within {_WITHIN:.0%}. A measurement is the median of {_PROCESSES} fresh processes."
    yield ""
    yield "| runtime | | mean error | worst | order of two models right |"
    yield "|---|---|---|---|---|"
    for runtime, dtype in dict.fromkeys((row.runtime, row.dtype) for row in rows):
        some = [row for row in rows if (row.runtime, row.dtype) == (runtime, dtype)]
        worst = max((a / b - 1 for a, b in map(_pair, some)), key=abs)
        yield f"| {runtime} | {dtype} | {mean_error(map(_pair, some)):.0%} | {worst:+.0%} | {_ordered(some):.0%} |"
    yield ""
    nets = len({each.net for each in known["onnxruntime"]})
    yield f"- Of the {nets} small nets, each left out of the fit in turn: {_left_out(known):.0%}."
    yield f"- Fitted to these models instead, each left out of the fit in turn: {_left_out(seen):.0%}."


def _pair(row: Row) -> tuple[float, float]:
    return row.pair


def _left_out(samples: dict[str, list[Sample]]) -> float:
    return mean_error((ms, sample.ms) for each in samples.values() for sample, ms in left_out(each))


def _ordered(rows: Sequence[Row]) -> float:
    """The share of pairs of models of which the estimates say rightly which is faster."""
    pairs = [(a, b) for i, a in enumerate(rows) for b in rows[:i]]
    return statistics.fmean((a.measured > b.measured) == (a.estimated > b.estimated) for a, b in pairs)


def main() -> None:
    warnings.filterwarnings("ignore")
    options = ArgumentParser()
    options.add_argument("--keep", type=Path)
    options.add_argument("--export", action="store_true")
    given = options.parse_args()
    torch.set_num_threads(provenance.threads())
    device = load_device("host-1t")
    with TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        if given.export:
            for name in _MODELS:
                _exported(name, device, folder)
            return
        rows, known, seen = _rows(device, folder)
        (folder / "rows.json").write_text(json.dumps([asdict(row) for row in rows], indent=1))
    Path(__file__).with_suffix(".md").write_text(_page(rows, known, seen))


if __name__ == "__main__":
    main()
