"""Fit the analytic model of a device to what it takes for small nets of the blocks that models are made of.

Each net is exported in fp32 and int8 for each runtime of the device, timed there, and its operators counted. The
figures are those that miss the timings least, in ratios; the error that is told comes from nets that were left out of
the fit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
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
from edgepack.units import SIZE

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    from edgepack.candidate import Candidate

    Vector = NDArray[numpy.float64]

_QUICK = TimingProtocol(warm_up_seconds=0.2, seconds=0.4, least_runs=10)
_PRIOR = 0.1  # what it costs a figure to be e times what it was taken for, in units of an estimate e times off
_UNLIKE = 0.3  # from here on a miss counts in proportion, not squared: no net decides alone
_DIGITS = 3  # of a figure
_CACHES = tuple(0.25e6 * 2**power for power in range(7))  # bytes: 250 kB to 16 MB
_RATES = tuple(Rates.model_fields)
_NAMES = (*(f"{dtype} {kind}" for dtype in ("fp32", "int8") for kind in _RATES), "portable")
_FORMATS = ("onnx", "executorch")
_SLOW = {"elementwise": 0.1, "depthwise": 0.5, "portable": 0.02}  # against multiplying, as a start


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

    start = _start(samples)
    fits = {}
    for cache in _CACHES:
        counted = _Counted.of(samples, cache)
        fits[cache] = least_squares(counted.misses, start, args=(start,), loss="soft_l1", f_scale=_UNLIKE)
    best = min(fits, key=lambda cache: float(fits[cache].cost))
    seen = {_name(each) for sample in samples for each in sample.operations}
    return _figures(fits[best].x, best, portable="portable" in seen)


def left_out(samples: Sequence[Sample]) -> list[tuple[Sample, float]]:
    """Each sample with what is estimated for it by figures that were fitted without its net, in milliseconds."""
    found = []
    for net in dict.fromkeys(sample.net for sample in samples):
        figures = fit([sample for sample in samples if sample.net != net])
        found += [(each, estimate(figures, each.operations).ms) for each in samples if each.net == net]
    return found


@dataclass(frozen=True, kw_only=True)
class _Counted:
    """Samples as sums that are linear in the inverses of the figures.

    `costs` [samples, figures] has billions of multiply-accumulates, elements and bytes by what they are divided by: the
    rates of `_NAMES`, the bandwidth, the memory's; then how many operators and runs there are, which are multiplied.
    """

    costs: "Vector"
    log_ms: "Vector"

    @classmethod
    def of(cls, samples: Sequence[Sample], cache: float) -> "_Counted":
        import numpy

        costs = numpy.array([_costs(sample, cache) for sample in samples])
        return cls(costs=costs, log_ms=numpy.log([sample.ms for sample in samples]))

    def misses(self, logs: "Vector", start: "Vector") -> "Vector":
        """The logarithms of estimate / measurement, and what the figures cost that are far from where they started."""
        import numpy

        return numpy.concatenate([numpy.log(self.costs @ _parts(logs)) - self.log_ms, _PRIOR * (logs - start)])


def _parts(logs: "Vector") -> "Vector":
    """Milliseconds a billion, then an operator, then a run."""
    import numpy

    figures = numpy.exp(logs)
    return numpy.concatenate([1e3 / figures[:-2], figures[-2:]])


def _costs(sample: Sample, cache: float) -> list[float]:
    found = dict.fromkeys((*_NAMES, "bandwidth", "memory"), 0.0)
    weights = "bandwidth" if sum(each.weights for each in sample.operations) <= cache else "memory"
    for each in sample.operations:
        found[_name(each)] += 1e-9 * each.macs
        found["portable" if each.kind == "portable" else f"{each.dtype} elementwise"] += 1e-9 * each.elements
        found["bandwidth"] += 1e-9 * (each.bytes - each.weights)
        found[weights] += 1e-9 * each.weights
    return [*found.values(), float(len(sample.operations)), 1.0]


def _name(operation: Operation) -> str:
    return "portable" if operation.kind == "portable" else f"{operation.dtype} {operation.kind}"


def _start(samples: Sequence[Sample]) -> "Vector":
    """As if nothing but multiplying took time, and reading half of it."""
    import numpy

    seconds = 1e-3 * sum(sample.ms for sample in samples)
    operations = [each for sample in samples for each in sample.operations]
    rate = 1e-9 * max(1, sum(each.macs for each in operations)) / seconds
    bandwidth = 2e-9 * max(1, sum(each.bytes for each in operations)) / seconds
    least = min(sample.ms for sample in samples)
    rates = [rate * _SLOW.get(name.split()[-1], 1.0) for name in _NAMES]
    return numpy.log([*rates, bandwidth, bandwidth, 0.01 * least, 0.1 * least])


def _figures(logs: "Vector", cache: float, *, portable: bool) -> Figures:
    import numpy

    values = [float(f"{value:.{_DIGITS}g}") for value in numpy.exp(logs)]
    rates = dict(zip(_NAMES, values, strict=False))
    bandwidth, memory, per_operation, per_run = values[len(_NAMES) :]
    by_type = {dtype: {kind: rates[f"{dtype} {kind}"] for kind in _RATES} for dtype in ("fp32", "int8")}
    told = {  # as a profile says it, which is what these are checked as
        **by_type,
        "portable": rates["portable"] if portable else None,
        "bandwidth": bandwidth,
        "memory": memory,
        "cache": SIZE.exact(cache),
        "per_operation": f"{1e3 * per_operation:.6g} us",
        "per_run": f"{1e3 * per_run:.6g} us",
    }
    return Figures.model_validate(told)


def calibrated(device: Device, emit: Emit = lambda event: None) -> Analytic:
    """The figures of a device that can be timed. Raises DeviceError where it cannot."""
    if device.evidence.get("time") != "measured":
        raise DeviceError(f"{device.name} cannot be timed, and figures come from timings", "calibrate one that can")
    with connected(device) as connection, TemporaryDirectory() as folder:
        return analytic(device, connection, measured(device, connection, Path(folder), emit))


def analytic(device: Device, connection: Connection, samples: dict[str, list[Sample]]) -> Analytic:
    """What was measured by runtime, as the section of a device profile; its error is that of nets left out."""
    errors = [(ms, sample.ms) for each in samples.values() for sample, ms in left_out(each)]
    versions = ", ".join(f"{runtime} {connection.facts['versions'][runtime]}" for runtime in samples)
    nets = len({sample.net for each in samples.values() for sample in each})
    where = connection.facts.get("cpu") or device.name
    told = {
        "calibrated_from": f"{nets} small nets in fp32 and int8, timed on {where}, {versions}",
        "error": f"{100 * mean_error(errors):.0f} %",
        "threads": int(connection.facts["threads"]),
        "runtimes": {runtime: fit(each) for runtime, each in samples.items()},
    }
    return Analytic.model_validate(told)


def section(found: Analytic) -> str:
    """As a device profile has it, ending with a line break."""
    from ruamel.yaml import YAML

    yaml, text = YAML(typ="safe", pure=True), StringIO()
    yaml.default_flow_style = None  # the innermost mappings on one line
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 110
    yaml.dump({"analytic": found.model_dump(mode="json", exclude_none=True)}, text)
    return text.getvalue()


def measured(device: Device, connection: Connection, folder: Path, emit: Emit) -> dict[str, list[Sample]]:
    """By runtime that the device has, every net in fp32 and int8, timed once each. Raises DeviceError without any."""
    from edgepack import calibration_nets

    formats = _there(device, connection)
    found: dict[str, list[Sample]] = {}
    nets = calibration_nets.nets(folder)
    for number, (name, make) in enumerate(nets.items()):
        emit(StepProgress(doing=f"{name}: exporting and timing", done=number, total=len(nets)))
        for runtime, path in files(make(), device, folder / name, formats).items():
            sample = timed(runtime[0], path, name, device, connection)
            found.setdefault(runtime[0], []).append(sample)
    return found


def timed(runtime: str, path: Path, net: str, device: Device, connection: Connection, processes: int = 1) -> Sample:
    """One file on the device: the median of so many fresh processes."""
    from edgepack.runners.estimate import operations

    job = {**_QUICK.job(), **device.controls.job(), "runtime": runtime, "file": str(path)}
    answers = [connection.run(job) for _ in range(processes)]
    ms = median(median(answer["samples_ns"]) * 1e-6 for answer in answers)
    return Sample(net=net, operations=operations(runtime, path, device.quantization), ms=ms)


def _there(device: Device, connection: Connection) -> tuple[str, ...]:
    """The formats whose runtime the device has."""
    runtimes = {format: plugins.load("exporters", format).RUNTIME for format in _FORMATS}
    found = tuple(format for format, runtime in runtimes.items() if runtime in connection.facts["versions"])
    if not found:
        message = f"{device.name} has neither {' nor '.join(runtimes.values())}, and figures come from timing either"
        raise DeviceError(message, "install one there")
    return found


def files(
    candidate: "Candidate", device: Device, folder: Path, formats: Sequence[str] = _FORMATS
) -> dict[tuple[str, str], Path]:
    """The files that edgepack makes of a model with random weights, by (runtime, type)."""
    found = {}
    for dtype, each in (("fp32", candidate), ("int8", _quantized(candidate, device))):
        for format in formats:
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
