"""Estimates of the analytic model beside measurements on this computer.

    python benchmarks/estimate.py                       writes benchmarks/estimate.md; nothing else may run meanwhile
    python benchmarks/estimate.py --keep FOLDER         and keeps the exported files there, for the next time
    python benchmarks/estimate.py --keep F --export     exports them alone: that may be done while others work
    python benchmarks/estimate.py --busy                although other programs run, which the page then says

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
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import idle
import torch
from goals import Goal, table

from edgepack.config.analytic import Analytic, Figures
from edgepack.config.device import Device, load_device
from edgepack.config.plugins import choose
from edgepack.core import provenance
from edgepack.core.events import Event, StepProgress
from edgepack.core.signature import Signature, TensorSpec
from edgepack.core.units import DURATION
from edgepack.measure.contract import connected
from edgepack.measure.timing.estimator import estimate, mean_error
from edgepack.measure.timing.estimator_fit import Sample, left_out
from edgepack.models.candidate import Candidate
from edgepack.workflows.calibrate import analytic, files, measured, section, timed

_PROCESSES = 3
_PACKAGES = ("torch", "torchvision", "transformers", "executorch", "onnx", "onnxruntime")
_LABELS = tuple("0123456789")
_WITHIN, _MODELS_WANTED = 0.3, 12  # the goal


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
    """One file: measured and estimated milliseconds."""

    model: str
    runtime: str
    dtype: str
    measured: float
    estimated: float

    @property
    def pair(self) -> tuple[float, float]:
        return self.estimated, self.measured

    @property
    def off(self) -> float:
        return self.estimated / self.measured - 1


def _exported(name: str, device: Device, folder: Path) -> dict[tuple[str, str], Path]:
    """Return the files of a model, exported now or kept from an earlier call."""
    home = folder / name
    known = home / "files.json"
    if not known.exists():
        print(f"exporting {name}", file=sys.stderr, flush=True)
        made = files(_MODELS[name](), device, home)
        known.write_text(json.dumps([[*key, str(path)] for key, path in made.items()]))
    return {(runtime, dtype): Path(path) for runtime, dtype, path in json.loads(known.read_text())}


def _export(folder: Path) -> None:
    """Export every model, as many at once as there are cores: nothing is timed yet."""
    with ProcessPoolExecutor(provenance.threads(), mp_context=get_context("spawn")) as pool:
        list(pool.map(_exported_apart, _MODELS, repeat(folder)))


def _exported_apart(name: str, folder: Path) -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    _exported(name, load_device("host-1t"), folder)


def _print_progress(event: Event) -> None:
    if isinstance(event, StepProgress):
        print(f"{event.done + 1} of {event.total}  {event.doing}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Found:
    """`figures` were fitted to the small nets only; `models` are the samples of the models, by runtime."""

    rows: list[Row]
    figures: Analytic
    models: dict[str, list[Sample]]


def _found(device: Device, folder: Path) -> Found:
    exported = {name: _exported(name, device, folder) for name in _MODELS}
    rows: list[Row] = []
    models: dict[str, list[Sample]] = {}
    with connected(device) as connection:
        figures = analytic(device, connection, measured(device, connection, folder, _print_progress))
        for name, made in exported.items():
            print(f"timing {name}", file=sys.stderr, flush=True)
            for (runtime, dtype), path in made.items():
                sample = timed(runtime, path, name, device, connection, _PROCESSES)
                models.setdefault(runtime, []).append(sample)
                rows.append(_row(sample, runtime, dtype, figures.runtimes[runtime]))
    return Found(rows, figures, models)


def _row(sample: Sample, runtime: str, dtype: str, figures: Figures) -> Row:
    return Row(sample.net, runtime, dtype, sample.ms, estimate(figures, sample.operations).ms)


def _page(found: Found, load: str) -> str:
    about = (__doc__ or "").split("\n\n")[2]
    lines = ["# Estimates beside measurements", "", about, "", *_summary(found), ""]
    lines += ["| model | runtime | | measured | estimated | off by |", "|---|---|---|---|---|---|"]
    for row in found.rows:
        times = f"{DURATION.format(row.measured)} | {DURATION.format(row.estimated)}"
        lines.append(f"| {row.model} | {row.runtime} | {row.dtype} | {times} | {row.off:+.0%} |")
    lines += [
        "",
        "The figures that these estimates were made with:",
        "",
        "```yaml",
        section(found.figures).rstrip(),
        "```",
    ]
    lines += [
        "",
        "Command: `python benchmarks/estimate.py`",
        "",
        f"Environment: {provenance.summary(*_PACKAGES)}; {load}.",
        "",
    ]
    return "\n".join(lines)


def _goals(found: Found) -> Iterator[Goal]:
    error, models = mean_error(row.pair for row in found.rows), len({row.model for row in found.rows})
    yield Goal(
        text=f"a mean absolute error under {_WITHIN:.0%}, over at least {_MODELS_WANTED} models",
        figure=f"{error:.0%} over {len(found.rows)} files of {models} models",
        met=error < _WITHIN and models >= _MODELS_WANTED,
    )


def _summary(found: Found) -> Iterator[str]:
    rows = found.rows
    far = max(rows, key=lambda row: abs(row.off))
    within = sum(abs(row.off) <= _WITHIN for row in rows)
    yield from table(_goals(found))
    yield ""
    yield f"{within} of the {len(rows)} files are within {_WITHIN:.0%}; the furthest off is {far.model} ({far.runtime},"
    yield f"{far.dtype}), by {far.off:+.0%}. A measurement is the median of {_PROCESSES} fresh processes."
    yield ""
    yield "| runtime | | mean error | worst | pairs of models in the right order |"
    yield "|---|---|---|---|---|"
    for runtime, dtype in dict.fromkeys((row.runtime, row.dtype) for row in rows):
        some = [row for row in rows if (row.runtime, row.dtype) == (runtime, dtype)]
        worst = max((row.off for row in some), key=abs)
        error = mean_error(row.pair for row in some)
        yield f"| {runtime} | {dtype} | {error:.0%} | {worst:+.0%} | {_ordered(some):.0%} |"
    yield ""
    yield f"- The small nets themselves, each left out of the fit in turn: {found.figures.error:.0%}."
    yield f"- EpochResult to these models instead, each left out of the fit in turn: {_left_out(found.models):.0%}."


def _left_out(samples: dict[str, list[Sample]]) -> float:
    return mean_error((ms, sample.ms) for each in samples.values() for sample, ms in left_out(each))


def _ordered(rows: Sequence[Row]) -> float:
    """Return the share of model pairs for which the estimates say correctly which is faster."""
    pairs = [(a, b) for i, a in enumerate(rows) for b in rows[:i]]
    return statistics.fmean((a.measured > b.measured) == (a.estimated > b.estimated) for a, b in pairs)


def main() -> None:
    warnings.filterwarnings("ignore")
    options = ArgumentParser()
    options.add_argument("--keep", type=Path)
    options.add_argument("--export", action="store_true")
    options.add_argument("--busy", action="store_true", help="take the figures although other programs run")
    given = options.parse_args()
    load = "" if given.export else idle.checked(given.busy)
    torch.set_num_threads(provenance.threads())
    device = load_device("host-1t")
    with TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        _export(folder)
        if given.export:
            return
        Path(__file__).with_suffix(".md").write_text(_page(_found(device, folder), load))


if __name__ == "__main__":
    main()
