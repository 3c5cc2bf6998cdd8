"""Fit the analytic model of a device to what it takes for small nets of the blocks that models are made of.

Each net is exported in fp32 and int8 for each runtime, timed on the device, and its operators counted. The figures are
those that miss the timings least, in ratios; the error that is told comes from nets that were left out of the fit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from edgepack import plugins
from edgepack.analytic import Analytic, Figures, Rates, estimate, mean_error
from edgepack.benchmark import TimingProtocol
from edgepack.device import Device
from edgepack.errors import DeviceError
from edgepack.events import Emit, StepProgress
from edgepack.operators import Operation
from edgepack.runners import Connection, connected

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    from edgepack.candidate import Candidate

    Vector = NDArray[numpy.float64]

_QUICK = TimingProtocol(warm_up_seconds=0.2, seconds=0.4, least_runs=10)
_PRIOR = 0.1  # what it costs a figure to be e times what it was taken for, in units of an estimate e times off
_DIGITS = 3  # of a figure
_RATES = tuple(Rates.model_fields)
_NAMES = (*(f"{dtype} {kind}" for dtype in ("fp32", "int8") for kind in _RATES), "portable")
_SIZE = len(_NAMES) + 3  # and the bandwidth, the time of an operator, that of a run


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One file: what it computes and what the device takes for it. Files of one net are left out of a fit together."""

    net: str
    operations: tuple[Operation, ...]
    ms: float


def fit(samples: Sequence[Sample]) -> Figures:
    """The figures with which estimates miss these timings least: least squares of the logarithms of their ratios.

    A figure that no sample tells anything of stays near what all of them together suggest.
    """
    from scipy.optimize import least_squares

    counted = [_Counted.of(sample) for sample in samples]
    start = _start(samples)
    found = least_squares(_misses, start, args=(start, counted), loss="soft_l1", f_scale=0.3)
    return _figures(found.x, _kinds(samples))


def left_out(samples: Sequence[Sample]) -> list[tuple[Sample, float]]:
    """Each sample with what is estimated for it by figures that were fitted without its net, in milliseconds."""
    found = []
    for net in dict.fromkeys(sample.net for sample in samples):
        figures = fit([sample for sample in samples if sample.net != net])
        found += [(each, estimate(figures, each.operations).ms) for each in samples if each.net == net]
    return found


@dataclass(frozen=True)
class _Counted:
    """A sample in arrays of one element an operator; `rates` are places in `_NAMES`, work and traffic in billions."""

    rates: "NDArray[Any]"
    work: "Vector"
    traffic: "Vector"
    log_ms: float

    @classmethod
    def of(cls, sample: Sample) -> "_Counted":
        import numpy

        rates = numpy.array([_NAMES.index(_name(each)) for each in sample.operations])
        work = numpy.array([each.macs * 1e-9 for each in sample.operations])
        traffic = numpy.array([each.bytes * 1e-9 for each in sample.operations])
        return cls(rates, work, traffic, float(numpy.log(sample.ms)))

    def miss(self, figures: "Vector") -> float:
        """The logarithm of estimate / measurement."""
        import numpy

        bandwidth, per_operation, per_run = figures[len(_NAMES) :]
        seconds = numpy.maximum(self.work / figures[self.rates], self.traffic / bandwidth)
        return float(numpy.log(1e3 * seconds.sum() + per_operation * len(self.work) + per_run)) - self.log_ms


def _name(operation: Operation) -> str:
    return "portable" if operation.kind == "portable" else f"{operation.dtype} {operation.kind}"


def _kinds(samples: Sequence[Sample]) -> set[str]:
    return {_name(each) for sample in samples for each in sample.operations}


def _misses(logs: "Vector", start: "Vector", counted: list[_Counted]) -> "Vector":
    import numpy

    figures = numpy.exp(logs)
    misses = numpy.array([each.miss(figures) for each in counted])
    return numpy.concatenate([misses, _PRIOR * (logs - start)])


def _start(samples: Sequence[Sample]) -> "Vector":
    """As if nothing but multiplying took time; elements cost ten times as much, an operator a hundredth of a run."""
    import numpy

    seconds = 1e-3 * sum(sample.ms for sample in samples)
    rate = 1e-9 * sum(each.macs for sample in samples for each in sample.operations) / seconds
    bandwidth = 2e-9 * sum(each.bytes for sample in samples for each in sample.operations) / seconds
    least = min(sample.ms for sample in samples)
    slow = {"elementwise": 0.1, "depthwise": 0.5, "portable": 0.02}
    rates = [rate * slow.get(name.split()[-1], 1.0) for name in _NAMES]
    return numpy.log(numpy.array([*rates, bandwidth, 0.01 * least, 0.1 * least]))


def _figures(logs: "Vector", seen: set[str]) -> Figures:
    import numpy

    values = [float(f"{value:.{_DIGITS}g}") for value in numpy.exp(logs)]
    rates = dict(zip(_NAMES, values, strict=False))
    bandwidth, per_operation, per_run = values[len(_NAMES) :]
    fp32, int8 = (Rates(**{kind: rates[f"{dtype} {kind}"] for kind in _RATES}) for dtype in ("fp32", "int8"))
    # Durations are given as text, which is what they are checked in.
    return Figures(
        fp32=fp32,
        int8=int8,
        portable=rates["portable"] if "portable" in seen else None,
        bandwidth=bandwidth,
        per_operation=f"{1e3 * per_operation:.6g} us",
        per_run=f"{1e3 * per_run:.6g} us",
    )


def calibrated(device: Device, emit: Emit = lambda event: None) -> Analytic:
    """The figures of a device that can be timed. Raises DeviceError where it cannot, or slows down."""
    if device.evidence.get("time") != "measured":
        raise DeviceError(f"{device.name} cannot be timed, and figures come from timings", "calibrate one that can")
    with connected(device) as connection, TemporaryDirectory() as folder:
        samples = measured(device, connection, Path(folder), emit)
        threads = int(connection.facts["threads"])
        cpu = connection.facts.get("cpu") or device.name
    errors = [(ms, sample.ms) for each in samples.values() for sample, ms in left_out(each)]
    versions = ", ".join(f"{runtime} {connection.facts['versions'][runtime]}" for runtime in samples)
    nets = len({sample.net for each in samples.values() for sample in each})
    return Analytic(
        calibrated_from=f"{nets} small nets in fp32 and int8, timed on {cpu}, {versions}",
        error=f"{100 * mean_error(errors):.0f} %",
        threads=threads,
        runtimes={runtime: fit(each) for runtime, each in samples.items()},
    )


def measured(device: Device, connection: Connection, folder: Path, emit: Emit) -> dict[str, list[Sample]]:
    """By runtime, every net in fp32 and int8, timed once each."""
    from edgepack import calibration_nets

    found: dict[str, list[Sample]] = {}
    nets = calibration_nets.nets(folder)
    for number, (name, make) in enumerate(nets.items()):
        emit(StepProgress(doing=f"{name}: exporting and timing", done=number, total=len(nets)))
        for runtime, path in files(make(), device, folder / name).items():
            sample = timed(runtime[0], path, name, device, connection)
            found.setdefault(runtime[0], []).append(sample)
    return found


def timed(runtime: str, path: Path, net: str, device: Device, connection: Connection, processes: int = 1) -> Sample:
    """One file on the device: the median of so many fresh processes."""
    from edgepack.runners.estimate import operations

    job = {**_QUICK.job(), "runtime": runtime, "file": str(path)}
    answers = [connection.run(job) for _ in range(processes)]
    ms = median(median(answer["samples_ns"]) * 1e-6 for answer in answers)
    return Sample(net=net, operations=operations(runtime, path, device.quantization), ms=ms)


def files(candidate: "Candidate", device: Device, folder: Path) -> dict[tuple[str, str], Path]:
    """The files that edgepack makes of a model with random weights, by (runtime, type)."""
    found = {}
    for dtype, each in (("fp32", candidate), ("int8", _quantized(candidate, device))):
        for format in ("onnx", "executorch"):
            exporter = plugins.load("exporters", format)
            path = folder / f"{dtype}{exporter.SUFFIX}"
            path.parent.mkdir(parents=True, exist_ok=True)
            exporter.export(each, _suited(exporter, device), path)
            found[exporter.RUNTIME, dtype] = path
    return found


def _suited(exporter: Any, device: Device) -> Any:
    config = exporter.Config()
    return exporter.suited(config, device.quantization) if hasattr(exporter, "suited") else config


def _quantized(candidate: "Candidate", device: Device) -> "Candidate":
    """Calibrated on noise: ranges do not change how fast a model is."""
    from edgepack.stages import Context, quantize

    context = Context(
        data=_noise(candidate),
        task=plugins.load("tasks", "image_classification"),
        quantization=device.quantization,
        seed=0,
        teacher=None,
        emit=lambda event: None,
    )
    return quantize.run(candidate.copy(), quantize.Config(mode="ptq", calibration=4), context)


def _noise(candidate: "Candidate") -> Any:
    import torch

    from edgepack.datasets import Split, TrainingData

    random = torch.Generator().manual_seed(0)
    inputs = tuple(
        torch.rand((4, *each.shape[1:]), generator=random)
        if each.is_floating_point()
        else torch.ones((4, *each.shape[1:]), dtype=each.dtype)
        for each in candidate.example_inputs()
    )
    split = Split(inputs=inputs, targets=torch.zeros(4, dtype=torch.int64))
    return TrainingData(train=split, validation=split)
