"""Fit the analytic model of a device to timings of small networks.

Each net is exported in fp32 and int8 for each runtime of the device, timed there, and its operators counted. The
figures are those that miss the timings least, in ratios; the error that is told comes from nets that were left out of
the fit.
"""

from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from edgepack.config import plugins
from edgepack.config.analytic import Analytic
from edgepack.config.device import Device
from edgepack.core.errors import DeviceError
from edgepack.core.events import Emit, StepProgress
from edgepack.measure.contract import Connection, connected
from edgepack.measure.timing.estimator import mean_error
from edgepack.measure.timing.estimator_fit import Sample, fit_rates, left_out
from edgepack.measure.timing.protocol import TimingProtocol

if TYPE_CHECKING:
    from edgepack.models.candidate import Candidate


_QUICK = TimingProtocol(warm_up_seconds=0.2, seconds=0.4, least_runs=10)
_FORMATS = ("onnx", "executorch")


def calibrated(device: Device, emit: Emit = lambda event: None) -> Analytic:
    """Return the figures of a device that can be timed. Raises DeviceError if it cannot."""
    if device.evidence.get("time") != "measured":
        raise DeviceError(
            f"{device.name} cannot be timed, which calibration needs", "calibrate a device that can be timed"
        )
    with connected(device) as connection, TemporaryDirectory() as folder:
        return analytic(device, connection, measured(device, connection, Path(folder), emit))


def analytic(device: Device, connection: Connection, samples: dict[str, list[Sample]]) -> Analytic:
    """Fit figures to each runtime's samples, for a device profile; the error is that of models left out of the fit."""
    errors = [(ms, sample.ms) for each in samples.values() for sample, ms in left_out(each)]
    versions = ", ".join(f"{runtime} {connection.facts['versions'][runtime]}" for runtime in samples)
    nets = len({sample.net for each in samples.values() for sample in each})
    where = connection.facts.get("cpu") or device.name
    figures = {
        "calibrated_from": f"{nets} small networks in fp32 and int8, timed on {where}, {versions}",
        "error": f"{100 * mean_error(errors):.0f} %",
        "threads": int(connection.facts["threads"]),
        "runtimes": {runtime: fit_rates(each) for runtime, each in samples.items()},
    }
    return Analytic.model_validate(figures)


def section(found: Analytic) -> str:
    """Return the section as YAML for a device profile, ending with a line break."""
    from ruamel.yaml import YAML

    yaml, text = YAML(typ="safe", pure=True), StringIO()
    yaml.default_flow_style = None  # the innermost mappings on one line
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 110
    yaml.dump({"analytic": found.model_dump(mode="json", exclude_none=True)}, text)
    return text.getvalue()


def measured(device: Device, connection: Connection, folder: Path, emit: Emit) -> dict[str, list[Sample]]:
    """Time every model once in fp32 and int8, by runtime on the device. Raises DeviceError if the device has none."""
    from edgepack.workflows import calibration_nets

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
    """Time one file on the device: the median of `processes` fresh processes."""
    from edgepack.export.contract import operations

    job = {**_QUICK.job(), **device.controls.job(), "runtime": runtime, "file": str(path)}
    answers = [connection.run(job) for _ in range(processes)]
    ms = median(median(answer["samples_ns"]) * 1e-6 for answer in answers)
    return Sample(net=net, operations=operations(runtime, path, device.quantization), ms=ms)


def _there(device: Device, connection: Connection) -> tuple[str, ...]:
    """Return the formats whose runtime the device has."""
    runtimes = {format: plugins.load("exporters", format).RUNTIME for format in _FORMATS}
    found = tuple(format for format, runtime in runtimes.items() if runtime in connection.facts["versions"])
    if not found:
        message = f"{device.name} has neither {' nor '.join(runtimes.values())}, and calibration needs one of them"
        raise DeviceError(message, "install one there")
    return found


def files(
    candidate: "Candidate", device: Device, folder: Path, formats: Sequence[str] = _FORMATS
) -> dict[tuple[str, str], Path]:
    """Export a model with random weights, by (runtime, type)."""
    found = {}
    for dtype, each in (("fp32", candidate), ("int8", _quantized(candidate, device))):
        for format in formats:
            exporter = plugins.load("exporters", format)
            path = folder / f"{dtype}{exporter.SUFFIX}"
            path.parent.mkdir(parents=True, exist_ok=True)
            exporter.export(each, exporter.suited(exporter.Config(), device.quantization), path)
            found[exporter.RUNTIME, dtype] = path
    return found


def _quantized(candidate: "Candidate", device: Device) -> "Candidate":
    """Quantize a model, calibrated on random input: ranges do not change its speed."""
    from edgepack.compress.contract import Context
    from edgepack.compress.stages import quantize

    context = Context(
        data=_noise(candidate),
        task=plugins.load("tasks", "image_classification").task(None, candidate.signature),
        quantization=device.quantization,
        seed=0,
        teacher=None,
        emit=lambda event: None,
    )
    return quantize.run(candidate.copy(), quantize.Config(mode="ptq", calibration=4), context)


def _noise(candidate: "Candidate") -> Any:
    import torch

    from edgepack.data.splits import Split, TrainingData

    random = torch.Generator().manual_seed(0)
    inputs = tuple(
        torch.rand((4, *each.shape[1:]), generator=random)
        if each.is_floating_point()
        else torch.ones((4, *each.shape[1:]), dtype=each.dtype)
        for each in candidate.example_inputs()
    )
    split = Split(inputs=inputs, targets=torch.zeros(4, dtype=torch.int64))
    return TrainingData(train=split, validation=split)
