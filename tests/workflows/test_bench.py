"""`edgepack bench`: any exported file timed on a device, here one that answers at once and takes what the test says."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import onnx
import pytest
from factories import device, edgepack
from forked_workers import run_here
from torch_factories import exported
from torch_factories import tiny_models as tiny_models

from edgepack.core.errors import AnswerError, RecipeError
from edgepack.measure import evaluate, processes
from edgepack.measure.contract import Connection
from edgepack.measure.input_shapes import read_shapes
from edgepack.workflows import bench as benches
from edgepack.workflows.bench import bench, pair, read_limits

Takes = Callable[[str], float]  # ms of one inference of this file


class Board:
    """It takes what it is told to, and answers as it is told to."""

    facts = {"cpu": "a processor", "threads": 1, "versions": {"onnxruntime": "1"}}

    def __init__(self, takes: Takes, off: float = 0.0, dtype: str = "float32") -> None:
        self.takes, self.off, self.dtype, self.log = takes, off, dtype, list[str]()

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        name = Path(job["file"]).stem
        self.log.append(f"{job['mode']} {name}")
        if job["mode"] == "describe":
            return {"inputs": [{"name": "x", "shape": [1, 4], "dtype": "float32"}]}
        if job["mode"] == "predict":
            with Path(job["output"]).open("wb") as file:
                numpy.savez(file, (100 * (numpy.load(job["inputs"][0]) + self.off)).astype(self.dtype))
        ns = int(self.takes(name) * 1e6)
        return {"samples_ns": [ns] * 70, "load_ms": 2.0, "first_ms": 3.0, "peak_bytes": 9_000_000}

    def close(self) -> None:
        """Nothing to tidy."""


def at(board: Board, monkeypatch: pytest.MonkeyPatch) -> Board:
    """The device of every profile; this computer answers as it is."""

    @contextmanager
    def connected(where: object) -> Any:
        yield board

    reached: Callable[[object], AbstractContextManager[Connection]] = connected
    monkeypatch.setattr(benches, "connected", reached)
    here = Board(lambda name: 1.0, dtype=board.dtype)
    monkeypatch.setattr(processes.Host, "run", lambda self, job: here.run(job))
    return board


def files(*names: str) -> list[Path]:
    for name in names:
        Path(f"{name}.onnx").write_bytes(name.encode())
    return [Path(f"{name}.onnx") for name in names]


def test_a_file_answers_is_timed_and_then_weighed(monkeypatch: pytest.MonkeyPatch) -> None:
    board = at(Board(lambda name: 2.0), monkeypatch)
    found = bench(files("m")[0], device())
    assert board.log == ["predict m", *["time m"] * 7, *["memory m"] * 3]
    values = {each.metric: each.value for each in found.measurements}
    assert values == {
        "size": 1,
        "latency.p50": 2.0,
        "latency.p90": 2.0,
        "latency.load": 2.0,
        "latency.first": 3.0,
        "memory.peak": 9e6,
    }


@pytest.mark.parametrize(
    ("limit", "outcome", "processes"), [("3 ms", "pass", 7), ("1ms", "fail", 7), ("2 ms", "pass", 7)]
)
def test_a_budget_judges_it(limit: str, outcome: str, processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    board = at(Board(lambda name: 2.0), monkeypatch)
    [verdict] = bench(files("m")[0], device(), budgets=read_limits([f"latency.p50={limit}"])).verdicts
    assert (verdict.outcome, board.log.count("time m"), verdict.place) == (outcome, processes, "--budget")


def test_a_file_that_is_called_teacher_is_doubted_as_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = iter([1.0, 3.0] * 20)
    at(Board(lambda name: next(speeds)), monkeypatch)
    found = bench(files("teacher (onnx)")[0], device())
    assert [each.metric for each in found.measurements if each.doubts] == ["latency.p50"]


def test_a_budget_that_is_not_decided_takes_all_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = iter([1.0, 3.0] * 20)
    board = at(Board(lambda name: next(speeds)), monkeypatch)
    [verdict] = bench(files("m")[0], device(), budgets=read_limits(["latency.p50=2ms"])).verdicts
    assert (verdict.outcome, board.log.count("time m")) == ("inconclusive", 21)


@pytest.mark.parametrize(
    ("off", "message"),
    [(0.5, "outputs on the device differ from this computer"), (numpy.nan, "differ from this computer")],
)
def test_a_wrong_answer_is_told_before_anything_is_timed(
    off: float, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = at(Board(lambda name: 2.0, off), monkeypatch)
    with pytest.raises(AnswerError, match=message) as failure:
        bench(files("m")[0], device())
    assert (failure.value.code, board.log) == (1, ["predict m"])


@pytest.mark.parametrize(("dtype", "off"), [("uint8", 0.01), ("int64", 0.01), ("bool", 0.0)])
def test_answers_of_whole_numbers_and_truth_values_are_compared_as_numbers(
    dtype: str, off: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step of 100 is rounding, in whichever direction."""
    at(Board(lambda name: 2.0, off, dtype), monkeypatch)
    assert bench(files("m")[0], device()).measurements


def test_a_device_that_answers_more_or_less_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    board = at(Board(lambda name: 2.0), monkeypatch)
    answer = board.run

    def shorter(job: dict[str, Any]) -> dict[str, Any]:
        found = answer(job)
        if job["mode"] == "predict":
            (given,) = evaluate.answers(Path(job["output"]))
            with Path(job["output"]).open("wb") as file:
                numpy.savez(file, given[..., :3])
        return found

    monkeypatch.setattr(board, "run", shorter)
    with pytest.raises(AnswerError, match=r"differ from this computer: 9 values, but 12 here"):
        bench(files("m")[0], device())


def answered(file: str) -> None:
    """Its answers are checked, by the runtime itself."""
    job: dict[str, Any] = {"runtime": "onnxruntime", "file": file, "shapes": {}}
    there: Any = SimpleNamespace(run=run_here)
    [specs] = benches._inputs([job], {})
    benches._check_answers(job, specs, there)


@pytest.mark.parametrize(
    ("shape", "operator", "answer"),
    [
        ((4, 3), "Relu", "float32"),  # four samples at once
        ((), "Relu", "float32"),
        ((1, 3), "IsNaN", "bool"),
        ((2, 3), "NonZero", "int64"),  # as many numbers as are not zero
        ((3,), "Size", "int64"),  # one number, of no axis
    ],
)
def test_inputs_and_outputs_of_any_shape_are_answered(shape: tuple[int, ...], operator: str, answer: str) -> None:
    answered(network(operator, shape, answer))


def test_weights_in_another_file_are_refused_on_every_device() -> None:
    network("Relu", (1, 3), "float32")
    model = onnx.load("net.onnx")
    model.graph.initializer.append(onnx.numpy_helper.from_array(numpy.ones(1000, "float32"), "w"))
    onnx.save(model, "apart.onnx", save_as_external_data=True, location="apart.data", size_threshold=0)
    ran = edgepack("bench", "apart.onnx", "--budget", "size=1kB")
    assert ran.code == 2
    assert "apart.onnx has weights in another file, apart.data" in ran.err and "external_data=False" in ran.err
    onnx.save(onnx.load("apart.onnx"), "whole.onnx")
    benches._check_whole(Path("whole.onnx"))


def test_a_value_that_is_called_as_external_data_calls_it_is_none() -> None:
    model = onnx.load(network("Relu", (1, 3), "float32"))
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("location", onnx.TensorProto.FLOAT, (1, 3)))
    onnx.save(model, "net.onnx")
    Path("broken.onnx").write_bytes(b"\xff" + benches._LOCATION)  # which its runtime will tell
    for file in (Path("net.onnx"), Path("broken.onnx")):
        assert benches._holds(file, benches._LOCATION)
        benches._check_whole(file)


def network(operator: str, shape: tuple[int, ...], answer: str) -> str:
    """The name of a file of one operator."""
    of = onnx.helper.np_dtype_to_tensor_dtype
    given, found = (
        onnx.helper.make_tensor_value_info(name, of(numpy.dtype(dtype)), sizes)
        for name, dtype, sizes in (("x", "float32", shape), ("y", answer, None))
    )
    graph = onnx.helper.make_graph([onnx.helper.make_node(operator, ["x"], ["y"])], "net", [given], [found])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, "net.onnx")
    return "net.onnx"


def test_two_files_are_timed_alternately(monkeypatch: pytest.MonkeyPatch) -> None:
    board = at(Board({"a": 2.0, "b": 3.0}.__getitem__), monkeypatch)
    first, second = files("a", "b")
    found = pair(first, second, device())
    timed = [line.removeprefix("time ") for line in board.log if line.startswith("time")]
    assert "".join(timed) == "ab" + "ba" + "ab" + "ba" + "ab" + "ba" + "ab"
    assert (found.ratio, found.low, found.high) == (1.5, 1.5, 1.5)


def test_two_files_alike_are_timed_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    board = at(Board(lambda name: 2.0), monkeypatch)
    first, second = files("a", "b")
    assert pair(first, second, device()).ratio == 1.0
    assert board.log.count("time a") == board.log.count("time b") == 21


def test_drift_of_the_machine_is_in_no_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    """It grows slower by a tenth from process to process, and b takes half as long again as a."""
    speeds = {"a": 1.0, "b": 1.5}
    log: list[str] = []

    def takes(name: str) -> float:
        log.append(name)
        return float(speeds[name] * 1.1 ** len(log))

    at(Board(takes), monkeypatch)
    first, second = files("a", "b")
    found = pair(first, second, device())
    assert found.low > 1.3 and found.high < 1.7


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["gone.onnx"], 2, "gone.onnx not found"),
        (["m.txt"], 2, "must end in one of .onnx, .ort, .pte"),
        (["a.onnx", "b.onnx", "c.onnx"], 2, "one file, or two"),
        (["a.onnx", "b.onnx", "--budget", "latency.p50=1ms"], 2, "two without a budget"),
        (["a.onnx", "--budget", "latency.p50=1"], 2, "has no unit"),
        (["a.onnx", "--budget", "speed=1ms"], 2, "nothing measures a budget 'speed'"),
        (["a.onnx", "--budget", "memory.arena=1kB"], 2, "bench measures size, latency.p50,"),
        (["a.onnx", "--budget", "accuracy.max_drop=1%"], 2, "not accuracy: put this budget"),
        (["a.onnx", "--shape", "x"], 2, "write it as INPUT=1,3,224,224"),
        (["a.onnx", "--device", "nowhere"], 2, "unknown device 'nowhere'"),
        (["a.onnx"], 2, "onnxruntime failed on a.onnx: it does not load: InvalidProtobuf"),
    ],
)
def test_mistakes_are_told(arguments: list[str], code: int, message: str) -> None:
    Path("m.txt").write_text("a text")
    files("a", "b", "c")
    ran = edgepack("bench", *arguments)
    assert ran.code == code
    assert message in ran.err


def test_shapes_are_read() -> None:
    assert read_shapes(["ids=1,128", "a=b=3"]) == {"ids": (1, 128), "a=b": (3,)}
    with pytest.raises(RecipeError):
        read_shapes(["ids=1,0"])


@pytest.mark.usefixtures("short_timings")
def test_a_real_file_on_this_computer() -> None:
    """Few and short processes, but real ones: from the command line to the table and the verdict."""
    Path("net.onnx").write_bytes(exported("onnx", "quantized"))
    ran = edgepack("bench", "net.onnx", "--device", "host-1t", "--budget", "latency.p50=1us", "--json")
    assert ran.code == 1
    found = json.loads(ran.out)
    assert {each["evidence"] for each in found["measurements"]} == {"measured"}
    shown = edgepack("bench", "net.onnx", "--device", "host-1t", "--budget", "latency.p50=1s")
    assert shown.code == 0
    assert "net.onnx on host-1t, 1 thread, " in shown.out and "latency.p50: pass, at most 1 s" in shown.out
