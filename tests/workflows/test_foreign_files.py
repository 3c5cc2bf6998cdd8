"""What `edgepack bench` makes of files that others wrote, and of the shapes that are given for them."""

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import onnx
import onnxruntime
import pytest
from factories import edgepack, measurement
from forked_workers import run_here

from edgepack.cli.views import bench as bench_view
from edgepack.config.device import load_device
from edgepack.core.errors import DeviceError, RecipeError, RefusedError
from edgepack.measure import processes
from edgepack.measure.contract import connected
from edgepack.measure.input_shapes import fixed
from edgepack.measure.runtimes.contract import Spec
from edgepack.measure.worker import job
from edgepack.workflows import bench
from edgepack.workflows.bench import Bench


def answered(file: str) -> None:
    """Its answers are checked, by the runtime itself."""
    job: dict[str, Any] = {"runtime": "onnxruntime", "file": file, "shapes": {}}
    there: Any = SimpleNamespace(run=run_here)
    [specs] = bench._inputs([job], {})
    bench._check_answers(job, specs, there)


def saved(name: str, nodes: Any, given: Any, found: Any, weights: Any = ()) -> str:
    inputs, outputs = ([onnx.helper.make_tensor_value_info(*each) for each in values] for values in (given, found))
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in weights]
    graph = onnx.helper.make_graph(nodes, "net", inputs, outputs, tensors)
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), f"{name}.onnx")
    return f"{name}.onnx"


def typed(name: str, dtype: int, shape: Any = (1, 4)) -> str:
    """A file that turns what it is given into float32."""
    given, found = (
        onnx.helper.make_tensor_value_info(each, kind, shape)
        for each, kind in (("x", dtype), ("y", onnx.TensorProto.FLOAT))
    )
    cast = onnx.helper.make_node("Cast", ["x"], ["y"], to=onnx.TensorProto.FLOAT)
    graph = onnx.helper.make_graph([cast], "net", [given], [found])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9), f"{name}.onnx"
    )
    return f"{name}.onnx"


NOTHING = "m.onnx: a dimension of x is 0 (0,4): it has no elements, so there is nothing to time"
OPEN: list[Spec] = [("x", ("batch", 8), "float32")]


@pytest.mark.parametrize(
    ("specs", "shapes", "message"),
    [
        (OPEN, {}, "m.onnx: the shape of x is dynamic (batch,8): give --shape x=1,8"),
        (
            [("in put", (None, 4), "int64")],
            {},
            "m.onnx: the shape of in put is dynamic (?,4): give --shape 'in put=1,4'",
        ),
        ([("x", (-1, 4), "int64")], {}, "m.onnx: the shape of x is dynamic (-1,4): give --shape x=1,4"),
        ([("x", (0, 4), "int64")], {}, NOTHING),
        ([("x", (0, 4), "int64")], {"x": (1, 4)}, NOTHING),
        (OPEN, {"x": (1, 9)}, "m.onnx: --shape x=1,9 does not fit: the file has x=batch,8"),
        (OPEN, {"x": (8,)}, "m.onnx: --shape x=8 does not fit: the file has x=batch,8"),
        ([("x", (), "float32")], {"x": (8,)}, "m.onnx: --shape x=8 does not fit: the file has x=one number"),
        (OPEN, {"y": (1,), "x": (1, 8)}, "--shape y: there is no such input: m.onnx has x=batch,8"),
        ([], {"y": (1,)}, "--shape y: there is no such input: m.onnx has no inputs"),
    ],
)
def test_what_is_wrong_in_shapes(
    specs: list[Spec], shapes: dict[str, tuple[int, ...]], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgepack.measure.input_shapes._unranked", lambda file, name: False)
    with pytest.raises(RecipeError) as failure:
        fixed([Path("m.onnx")], [specs], shapes)
    assert message in str(failure.value).splitlines()


def test_all_that_is_wrong_in_the_shapes_of_two_files_is_told_at_once() -> None:
    """A shape may be meant for one of them."""
    other: list[Spec] = [("z", (1, "n"), "float32")]
    files = [Path("a.onnx"), Path("b.onnx")]
    with pytest.raises(RecipeError) as failure:
        fixed(files, [OPEN, other], {"x": (2, 8), "y": (1,)})
    assert str(failure.value).splitlines() == [
        "--shape y: there is no such input: a.onnx has x=batch,8; b.onnx has z=1,n",
        "b.onnx: the shape of z is dynamic (1,n): give --shape z=1,1",
    ]
    assert fixed(files, [OPEN, other], {"x": (2, 8), "z": (1, 3)})[1] == [("z", (1, 3), "float32")]


@pytest.mark.parametrize("shape", [(10**11, 8), (100_000, 100_000, 8)])
def test_inputs_that_no_memory_holds_are_the_devices_fault(shape: tuple[int, ...]) -> None:
    with pytest.raises(DeviceError, match=r"m.onnx: inputs of x=\d+,[\d,]+ are 3\d+ GB, more than the free memory"):
        fixed([Path("m.onnx")], [OPEN], {"x": shape})


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("open.onnx", "open.onnx: the shape of x is dynamic (batch,8): give --shape x=1,8\n"),
        ("unranked.onnx", "the shape of x is dynamic (of any number of axes): give --shape x=1,8\n"),
        ("cut.onnx", "failed on cut.onnx: it does not load: InvalidProtobuf"),
        ("cut.ort", "failed on cut.ort: it does not load: Fail"),
        ("cut.pte", "failed on cut.pte: it does not load: RuntimeError: Failed to load program, error: 0x:"),
        ("other.pte", "other.pte is not a .pte: it does not start like an ExecuTorch file"),
        ("pointer.onnx", "pointer.onnx is a pointer of git-lfs, not the file: fetch it with `git lfs pull`\n"),
        ("none.onnx", "failed on none.onnx: it has no outputs"),
        ("bf16.onnx", "its input x is a tensor(bfloat16), which cannot be fed: only tensors of float16"),
        ("text.onnx", "its input x is a tensor(string), which cannot be fed"),
        ("empty.pte", "empty.pte is empty\n"),
        ("folder.onnx", "folder.onnx is a folder\n"),
    ],
)
def test_files_that_cannot_be_timed_are_the_users_mistake(file: str, message: str) -> None:
    typed("open", onnx.TensorProto.FLOAT, ["batch", 8])
    typed("unranked", onnx.TensorProto.FLOAT, None)
    typed("bf16", onnx.TensorProto.BFLOAT16)
    typed("text", onnx.TensorProto.STRING, (4,))
    for suffix in ("onnx", "ort", "pte"):
        Path(f"cut.{suffix}").write_bytes(Path("open.onnx").read_bytes()[:60])
        Path(f"empty.{suffix}").touch()
    Path("cut.pte").write_bytes(b"\x3c\0\0\0ET12eh00" + bytes(40))
    Path("other.pte").write_bytes(Path("open.onnx").read_bytes())
    Path("pointer.onnx").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    saved("none", [onnx.helper.make_node("Relu", ["x"], ["y"])], [("x", onnx.TensorProto.FLOAT, [1, 4])], [])
    Path("folder.onnx").mkdir()
    ran = edgepack("bench", file, "--device", "host-1t")
    assert (ran.code, ran.out) == (2, "") and message in ran.err, ran.err


def test_a_file_that_fails_as_it_runs_is_told_in_the_whole_sentence() -> None:
    """That of ONNX Runtime has several lines."""
    shape = onnx.numpy_helper.from_array(numpy.array([2, 4]), "s")
    given, found = (onnx.helper.make_tensor_value_info(name, 1, [1, 5] if name == "x" else None) for name in "xy")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Reshape", ["x", "s"], ["y"])], "net", [given], [found], [shape]
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), "net.onnx")
    with pytest.raises(RecipeError, match=r"net.onnx: it does not run: .*Reshape node.*\{1,5\}.*\{2,4\}"):
        answered("net.onnx")


@pytest.mark.parametrize("dtype", [onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.UINT32])
def test_types_that_numpy_has_are_fed(dtype: int) -> None:
    answered(typed("net", dtype))


@pytest.mark.parametrize(("rows", "expected"), [(1, 0), (2, None)])
def test_whole_numbers_are_such_that_a_table_has_a_row_for_them(rows: int, expected: int | None) -> None:
    gather = onnx.helper.make_node("Gather", ["table", "x"], ["y"])
    table = numpy.arange(rows * 4, dtype="float32").reshape(rows, 4)
    ids, found = ("x", onnx.TensorProto.INT64, [1, 3]), ("y", onnx.TensorProto.FLOAT, [1, 3, 4])
    file = saved("ids", [gather], [ids], [found], [("table", table)])
    job: dict[str, Any] = {"runtime": "onnxruntime", "file": file, "shapes": {}}
    there: Any = SimpleNamespace(run=run_here)
    bench._check_answers(job, [("x", (1, 3), "int64")], there)
    assert job.get("whole") == expected
    timed = {"warm_up_seconds": 0, "seconds": 0, "least_runs": 3, "most_runs": 3, "most_seconds": 9, "mode": "time"}
    assert len(run_here({**job, **timed})["samples_ns"]) == 3


def test_a_file_that_takes_no_whole_numbers_is_told_with_the_first_reason() -> None:
    gather = onnx.helper.make_node("Gather", ["x", "i"], ["y"])
    given = [("x", onnx.TensorProto.INT64, [1, 3])]
    file = saved("far", [gather], given, [("y", onnx.TensorProto.INT64, [3])], [("i", numpy.array(7))])
    with pytest.raises(RecipeError, match="idx=7 must be within the inclusive range"):
        answered(file)


@pytest.mark.parametrize("ending", ["ONNX", "Onnx", "ORT"])
def test_endings_are_taken_in_any_case(ending: str) -> None:
    file = Path(typed("net", onnx.TensorProto.FLOAT, [1, 4]))
    if ending == "ORT":
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = "net.ort"
        options.add_session_config_entry("session.save_model_format", "ORT")
        onnxruntime.InferenceSession(str(file), options)
        file = Path("net.ort")
    file.rename(f"NET.{ending}")
    device = load_device("host-1t")
    with connected(device) as connection:
        job = bench._job(Path(f"NET.{ending}"), device, connection, ())
        [specs] = bench._inputs([job], {})
        assert specs == [("x", (1, 4), "float32")]
        bench._check_answers(job, specs, connection)


def test_a_file_without_inputs_answers() -> None:
    weights = onnx.numpy_helper.from_array(numpy.arange(8, dtype="float32"), "w")
    found = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [8])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["w"], ["y"])], "net", [], [found], [weights])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), "net.onnx")
    answered("net.onnx")


def test_the_largest_inputs_of_a_pte_may_be_made_smaller() -> None:
    specs: list[list[Spec]] = [[("input 0", (16, 8), "float32")]]
    file = Path("m.pte")
    assert fixed([file], specs, {"input 0": (2, 8)}) == [[("input 0", (2, 8), "float32")]]
    for shape in ((17, 8), (2, 8, 1)):
        with pytest.raises(RecipeError, match="does not fit: the file has input 0=16,8"):
            fixed([file], specs, {"input 0": shape})


def test_a_runtime_without_memory_is_the_devices_fault() -> None:
    done = subprocess.CompletedProcess("", job.NO_MEMORY, "", "std::bad_alloc\n")
    with pytest.raises(DeviceError, match=r"x failed on f, out of memory: std::bad_alloc") as failure:
        processes.answer(done, {"runtime": "x", "file": "f"})
    assert not isinstance(failure.value, RefusedError) and "more memory" in failure.value.hint
    with pytest.raises(MemoryError, match="Failed to allocate memory"), job._refusing("it does not run"):
        raise RuntimeError("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 99")


@pytest.mark.parametrize("code", [-11, 128 + 11])
def test_a_crash_on_a_file_is_named_by_its_signal(code: int) -> None:
    done = subprocess.CompletedProcess("", code, "", "loading\n")
    with pytest.raises(RefusedError, match=r"x failed on f: loading \(it died of SIGSEGV\)"):
        processes.answer(done, {"runtime": "x", "file": "f"})


def test_what_a_file_was_fed_with_is_shown() -> None:
    figure = measurement("latency.p50", 2.0, environment={"versions": {}})
    found = Bench(file="m.onnx", device="host", inputs={"x": (1, 4), "ids": (1, 128)}, measurements=(figure,))
    with Path("shown").open("w") as stream:
        bench_view.show(found, stream)
    assert "random inputs: x=1,4  ids=1,128\n" in Path("shown").read_text()
