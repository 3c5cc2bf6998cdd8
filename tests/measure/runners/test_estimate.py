"""Times that are worked out: from the operators of a file, with the figures of a device."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from factories import artifact, at_work, build, device, edgepack, recipe
from torch import nn
from torch_factories import exported, made
from torch_factories import tiny_models as tiny_models

from edgepack.config import plugins
from edgepack.config.analytic import Analytic, Figures
from edgepack.config.device import Device, Quantization, load_device
from edgepack.config.document import ConfigError
from edgepack.core.errors import DeviceError
from edgepack.deliver.reports import markdown
from edgepack.export.contract import operations
from edgepack.export.formats.executorch import operators as pte_operators
from edgepack.export.operations import Operation
from edgepack.measure.contract import connected
from edgepack.measure.timing.estimator import bounds, estimate
from edgepack.measure.timing.estimator_fit import Sample, fit_rates, left_out
from edgepack.workflows.build.measurements import measurements
from edgepack.workflows.build.planning.step import Step, StepId
from edgepack.workflows.build.steps import timing
from edgepack.workflows.build.store import Store
from edgepack.workflows.calibrate import measured, section

RATES = {"stem": 40, "conv": 60, "pointwise": 70, "depthwise": 20, "linear": 30, "elementwise": 5}
FIGURES: dict[str, Any] = {
    "fp32": RATES,
    "int8": {kind: 3 * rate for kind, rate in RATES.items()},
    "portable": 1.5,
    "bandwidth": 50,
    "memory": 10,
    "cache": "1 MiB",
    "per_operation": "2 us",
    "per_run": "20 us",
}
ANALYTIC: dict[str, Any] = {
    "calibrated_from": "a test",
    "error": "20 %",
    "threads": 1,
    "runtimes": {"onnxruntime": FIGURES, "executorch": FIGURES},
}
FORMATS = {"onnx": "onnxruntime", "executorch": "executorch"}


def figures(**changes: Any) -> Figures:
    return Figures.model_validate({**FIGURES, **changes})


def operation(**changes: Any) -> Operation:
    facts: dict[str, Any] = {"name": "Conv", "kind": "conv", "macs": 60_000_000, "elements": 0, "bytes": 0}
    return Operation(**{**facts, **changes})


def board(**changes: Any) -> Device:
    return device(runner="estimate", **{"analytic": ANALYTIC, **changes})


def read(format: str, *case: Any, folder: Path) -> tuple[Operation, ...]:
    """The operators of one of the tiny nets' files."""
    path = folder / f"model{plugins.load('exporters', format).SUFFIX}"
    path.write_bytes(exported(format, *case))
    return operations(FORMATS[format], path, Quantization())


def kinds(found: tuple[Operation, ...]) -> dict[str, int]:
    """Multiply-accumulates by kind and type."""
    sums: dict[str, int] = {}
    for each in found:
        if each.macs:
            sums[f"{each.kind} {each.dtype}"] = sums.get(f"{each.kind} {each.dtype}", 0) + each.macs
    return sums


# --- what a file computes


@pytest.mark.parametrize("format", FORMATS)
def test_multiplications_are_counted_exactly(format: str, tmp_path: Path) -> None:
    """One 3 x 3 convolution from 1 to 16 channels over 8 x 8 pixels, four from 16 to 16, and a layer of 3 classes."""
    found = kinds(read(format, "eager", folder=tmp_path))
    assert found["conv fp32"] == 4 * 64 * 9 * 16 * 16
    assert found["linear fp32"] == 3 * 16
    assert sum(found.values()) == 4 * 64 * 9 * 16 * 16 + 64 * 9 * 16 + 3 * 16


@pytest.mark.parametrize("format", FORMATS)
def test_depthwise_and_pointwise_convolutions_are_told_apart(format: str, tmp_path: Path) -> None:
    found = kinds(read(format, "eager", "depthwise", folder=tmp_path))
    assert (found["depthwise fp32"], found["pointwise fp32"]) == (16 * 9 * 16, 16 * 16 * 16)


@pytest.mark.parametrize("format", FORMATS)
def test_a_quantized_layer_is_one_int8_operator(format: str, tmp_path: Path) -> None:
    found = kinds(read(format, "quantized", folder=tmp_path))
    assert {name.split()[1] for name in found} == {"int8"}
    assert found["conv int8"] == 4 * 64 * 9 * 16 * 16


@pytest.mark.parametrize("format", FORMATS)
def test_weights_are_told_from_what_is_computed(format: str, tmp_path: Path) -> None:
    module = made("eager").module
    stored = 4 * sum(p.numel() for name, p in module.named_parameters() if "norm" not in name and "stem.1" not in name)
    weights = sum(each.weights for each in read(format, "eager", folder=tmp_path))
    assert stored <= weights <= stored + 4 * 5 * 16 + 64  # and a bias where batch norm was
    assert all(each.weights <= each.bytes for each in read(format, "eager", folder=tmp_path))


def test_a_file_of_somebody_else_is_read(tmp_path: Path) -> None:
    """With an open batch, a transposed convolution and an operator that nobody knows the work of."""
    path = tmp_path / "theirs.onnx"
    net = nn.Sequential(nn.ConvTranspose2d(4, 8, 2, stride=2), nn.Softplus())
    torch.onnx.export(
        *(net, (torch.zeros(2, 4, 5, 5),), str(path)),
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
        dynamo=True,
        verbose=False,
        input_names=["picture"],
    )
    found = operations("onnxruntime", path, Quantization())
    assert sum(each.macs for each in found) == 25 * 4 * 8 * 4
    assert {each.elements for each in found if each.kind == "elementwise"} == {8 * 100}
    three = operations("onnxruntime", path, Quantization(), {"picture": (3, 4, 5, 5)})
    assert sum(each.macs for each in three) == 3 * sum(each.macs for each in found)


def test_what_a_backend_hides_cannot_be_estimated() -> None:
    class Delegate:
        id = "CoreMLBackend"

    with pytest.raises(DeviceError, match="the part delegated to CoreMLBackend cannot be read"):
        list(pte_operators._delegated(None, Delegate()))


def test_a_file_that_is_none_is_told(tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(DeviceError, match=r"the operators of .*bad\.onnx cannot be read"):
        operations("onnxruntime", path, Quantization())


# --- what that takes


def test_an_estimate_is_the_sum_of_its_parts() -> None:
    """60 million multiplications at 60 G/s, 5,000 elements at 5 G/s, 50 kB at 50 GB/s and 10 kB of cached weights."""
    found = estimate(figures(), [operation(elements=5_000, bytes=60_000, weights=10_000)])
    assert found.ms == pytest.approx(0.020 + 0.002 + 1.0 + 0.001 + 0.001 + 0.0002)
    [(name, share)] = found.slowest
    assert name == "Conv"
    assert share == pytest.approx(1.0042 / 1.0242)


def test_weights_that_do_not_fit_the_cache_come_from_the_memory() -> None:
    within, beyond = (operation(macs=0, bytes=size, weights=size) for size in (2**20, 2**20 + 1))
    assert estimate(figures(), [within]).ms == pytest.approx(0.022 + 2**20 / 50e6)
    assert estimate(figures(), [beyond]).ms == pytest.approx(0.022 + 2**20 / 10e6, rel=1e-4)


@pytest.mark.parametrize("more", [{"macs": 70_000_000}, {"elements": 1000}, {"bytes": 1000}])
def test_more_work_takes_longer(more: dict[str, int]) -> None:
    assert estimate(figures(), [operation(**more)]).ms > estimate(figures(), [operation()]).ms


def test_int8_has_rates_of_its_own() -> None:
    fp32, int8 = (estimate(figures(), [operation(dtype=dtype)]).ms for dtype in ("fp32", "int8"))
    assert fp32 - 0.022 == pytest.approx(3 * (int8 - 0.022))


def test_kernels_without_figures_count_as_elementwise() -> None:
    slow = operation(kind="portable", macs=0, elements=5_000_000)
    assert estimate(figures(portable=None), [slow]).ms == pytest.approx(1.022)
    assert estimate(figures(), [slow]).ms == pytest.approx(0.022 + 5 / 1.5)


# --- where the figures come from


class Short:
    """A device with some of the runtimes, on which everything takes 1 ms."""

    def __init__(self, *runtimes: str) -> None:
        self.facts: dict[str, Any] = {"versions": dict.fromkeys(runtimes, "1"), "threads": 1}
        self.asked: set[str] = set()

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        self.asked.add(job["runtime"])
        return {"samples_ns": [1_000_000]}

    def close(self) -> None:
        """Nothing to tidy."""


def test_a_device_with_one_runtime_is_calibrated_for_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepack.workflows.calibration_nets.nets", lambda folder: {"tiny": lambda: made("eager")})
    there = Short("onnxruntime")
    found = measured(device(), there, tmp_path, lambda event: None)
    assert there.asked == {*found} == {"onnxruntime"}
    assert [(each.net, each.ms) for each in found["onnxruntime"]] == [("tiny", 1.0)] * 2


def test_a_device_without_any_runtime_is_not_calibrated(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="has neither onnxruntime nor executorch"):
        measured(device(), Short(), tmp_path, lambda event: None)


def _synthetic(known: Figures) -> Iterator[Sample]:
    """Nets of every kind of operator in both types, small and large, that take exactly what the figures say."""
    for dtype in ("fp32", "int8"):
        for kind in RATES:
            for size in (1, 4):
                macs = 0 if kind == "elementwise" else size * 20_000_000
                main = operation(kind=kind, dtype=dtype, macs=macs, elements=size * 300_000, bytes=size * 400_000)
                loads = operation(kind="linear", dtype=dtype, macs=2**19, bytes=size * 2**19, weights=size * 2**19)
                views = [operation(kind="elementwise", dtype=dtype, macs=0)] * (30 * size)
                parts = (main, loads, *views, operation(kind="portable", macs=0, elements=size * 10_000))
                yield Sample(net=f"{kind} {size}", operations=parts, ms=estimate(known, parts).ms)
    yield Sample(net="nothing", operations=(operation(macs=0),), ms=estimate(known, [operation(macs=0)]).ms)


def test_calibration_finds_the_figures_again() -> None:
    """What it finds estimates as the figures would that the timings were made with."""
    samples = list(_synthetic(figures()))
    found = fit_rates(samples)
    for sample in samples:
        assert estimate(found, sample.operations).ms == pytest.approx(sample.ms, rel=0.1)
    for dtype in ("fp32", "int8"):
        for kind in ("conv", "pointwise", "linear"):
            known = getattr(getattr(figures(), dtype), kind)
            assert getattr(getattr(found, dtype), kind) == pytest.approx(known, rel=0.25)


def test_the_error_that_is_told_is_of_nets_that_were_left_out() -> None:
    """A net that is like no other is estimated well only where it was seen."""
    samples = [
        Sample(
            net=f"plain {i}",
            operations=(operation(macs=i * 10**8),),
            ms=estimate(figures(), [operation(macs=i * 10**8)]).ms,
        )
        for i in range(1, 5)
    ]
    odd = Sample(net="odd", operations=(operation(kind="depthwise", macs=10**8),), ms=300.0)
    seen = estimate(fit_rates([*samples, odd]), odd.operations).ms
    (missed,) = (ms for sample, ms in left_out([*samples, odd]) if sample.net == "odd")
    assert abs(seen / 300 - 1) < 0.3 < abs(missed / 300 - 1)


def test_what_is_printed_is_read_back_from_a_profile() -> None:
    analytic = Analytic.model_validate(ANALYTIC)
    Path("devices/again.yaml").write_text(f"edgepack: 1\nname: again\nrunner: estimate\n{section(analytic)}")
    assert load_device("again").analytic == analytic


def test_a_device_that_is_not_timed_cannot_be_calibrated() -> None:
    board()
    ran = edgepack("devices", "calibrate", "board")
    assert (ran.code, ran.out) == (4, "")
    assert "the board cannot be timed" in ran.err


# --- what is told of it


def test_an_estimate_says_what_it_is_worth(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(exported("onnx", "eager"))
    with connected(board()) as connection:
        job = {"mode": "time", "runtime": "onnxruntime", "file": str(path)}
        answer = connection.run(job)
        assert connection.run(job) == answer
    assert (answer["low_ms"], answer["high_ms"]) == bounds(answer["value_ms"], 0.2)
    assert answer["detail"]["error"] == "20 %"
    assert answer["detail"]["calibrated_from"] == "a test"
    assert len(answer["detail"]["slowest"]) == 5
    shares = [each["share"] for each in answer["detail"]["slowest"]]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) < 1


def test_other_figures_are_another_device_to_the_store() -> None:
    others = {**ANALYTIC, "error": "30 %"}
    known = [load_facts(board()), load_facts(board(analytic=others)), load_facts(board())]
    assert known[0] == known[2] != known[1]


def load_facts(where: Device) -> dict[str, Any]:
    with connected(where) as connection:
        return connection.facts


def test_without_figures_nothing_is_timed() -> None:
    assert board().evidence == {"time": "estimated", "predict": "emulated", "delegates": "emulated"}
    bare = device(runner="estimate")
    assert bare.evidence == {"predict": "emulated", "delegates": "emulated"}


def test_a_runtime_without_figures_is_told() -> None:
    one = {**ANALYTIC, "runtimes": {"onnxruntime": FIGURES}}
    with (
        connected(board(analytic=one)) as connection,
        pytest.raises(DeviceError, match="no figures for estimating the time of executorch"),
    ):
        connection.run({"mode": "time", "runtime": "executorch", "file": "m.pte"})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"error": "0 %"}, "no estimate is exact"),
        ({"calibrated_from": ""}, "at least 1 character"),
        ({"threads": 4}, "`analytic` is for 4 threads, but `controls` sets 1"),
    ],
    ids=["certain", "from nowhere", "other threads"],
)
def test_figures_that_make_no_sense_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        board(analytic={**ANALYTIC, **wrong}, controls={"threads": 1})


def test_where_an_absent_device_is_estimated_it_need_not_be_recognised() -> None:
    known = device(match={"model": ["A board*"]}, runtimes={"onnxruntime": "==1.0"}, analytic=ANALYTIC)
    with connected(known.run_by("estimate", {})) as connection:
        assert connection.facts["runner"] == "estimate"


def test_bench_calls_an_estimate_an_estimate(tmp_path: Path) -> None:
    board()
    path = tmp_path / "model.onnx"
    path.write_bytes(exported("onnx", "eager"))
    ran = edgepack("bench", str(path), "--device", "board", "--json")
    assert ran.code == 0
    (found,) = (each for each in json.loads(ran.out)["measurements"] if each["metric"] == "latency.p50")
    assert found["evidence"] == "estimated"
    assert found["low"] < found["value"] < found["high"]


def test_a_build_reports_an_estimate_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the file to the page: nothing on the way takes it for a measurement."""
    path = tmp_path / "model.onnx"
    path.write_bytes(exported("onnx", "eager"))
    where = board()
    work = at_work(recipe(export=["onnx"]), where, Store("store"))
    monkeypatch.setattr(work, "file", lambda id: (artifact(), path))
    step = Step(id=StepId("timing", "model", "onnx"), key="", ingredients={}, choice=work.recipe.exporters[0])
    outcome = timing.do(work, step, tmp_path).stored()
    ingredients = {"where": work.planner._where(work.recipe.exporters[0], "time")}
    entry = SimpleNamespace(ingredients=ingredients, outcome=outcome, made_at=1.7e9)
    found, teacher = measurements(build(), step, entry)  # type: ignore[arg-type]
    assert (found.artifact, teacher.artifact) == ("onnx", "teacher (onnx)")
    assert (found.metric, found.evidence, found.detail["calibrated_from"]) == ("latency.p50", "estimated", "a test")
    page = markdown.render(build(measurements=(found,)))
    assert "**ESTIMATED, not measured on the device: latency.p50 of onnx**" in page


def test_a_file_that_cannot_be_estimated_is_not_timed_and_ends_no_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"nonsense")
    work = at_work(recipe(export=["onnx"]), board(), Store("store"))
    monkeypatch.setattr(work, "file", lambda id: (artifact(), path))
    step = Step(id=StepId("timing", "model", "onnx"), key="", ingredients={}, choice=work.recipe.exporters[0])
    assert "the operators of" in timing.do(work, step, tmp_path).not_timed
