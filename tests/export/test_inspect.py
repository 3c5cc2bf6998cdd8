"""What is in the exported files, read from the files themselves, and what a runtime built for them alone needs."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import onnx
import onnxruntime
import pytest
from conftest import PROJECT
from factories import artifact, build, edgepack
from torch_factories import How, candidate, data, exported, inspected, made, reloaded
from torch_factories import tiny_models as tiny_models

from edgepack.config import plugins
from edgepack.export import contract
from edgepack.export.formats.executorch import contents as pte_contents
from edgepack.export.tensor_layers import Names, named
from edgepack.records.file_contents import OTHER, SEVERAL, Contents, Stored

FORMATS = ("executorch", "onnx")
LAYERS = {
    "residual": ["stem.0", "blocks.0.conv1", "blocks.0.conv2", "blocks.1.conv1", "blocks.1.conv2", "head"],
    "depthwise": ["0", "3", "6", "11"],
}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("case", [("eager",), ("quantized",), ("eager", "depthwise")], ids=" ".join)
def test_weights_go_by_the_names_of_their_layers(format: str, case: tuple[Any, ...], tmp_path: Path) -> None:
    """Batch norm is folded in every file, weights lie in another order in ExecuTorch's, and int8 ones had no names."""
    how, kind, start = case[0], case[-1] if len(case) > 1 else "residual", made(*case)
    contents = inspected(format, exported(format, *case), start, tmp_path)
    sizes = {name: tensor.numel() for name, tensor in made("eager", *case[1:]).module.state_dict().items()}
    dtype, width = ("float32", 4) if how == "eager" else ("int8", 1)
    stored = {each.layer: each.bytes for each in contents.tensors if each.dtype == dtype}
    assert {*stored} - {OTHER} == {*LAYERS[kind]}
    for place, layer in enumerate(LAYERS[kind]):
        more = stored[layer] - width * sizes[f"{layer}.weight"]  # biases; the stem may be padded to whole blocks
        assert 0 <= more <= (4 * 16 if place else 4 * 16 * 9)
    assert sum(each.bytes for each in contents.tensors if each.layer == OTHER) < 200


def test_names_outlive_saving(tmp_path: Path) -> None:
    assert named(reloaded(made("quantized"), tmp_path / "saved")).layers == {*LAYERS["residual"]}


def test_what_is_delegated_and_what_is_not_is_told(tmp_path: Path) -> None:
    contents = inspected("executorch", exported("executorch", "quantized"), made("quantized"), tmp_path)
    assert (contents.operators, [*contents.delegated]) == ({}, ["XnnpackBackend"])
    assert contents.arena_bytes is not None
    assert 0 < contents.arena_bytes < 1000
    assert sum(contents.delegated["XnnpackBackend"][name] for name in ("Conv2d", "DepthwiseConv2d")) == 5


def test_types_without_a_name_are_bytes_and_what_moves_no_numbers_is_no_operator() -> None:
    value = SimpleNamespace(data_buffer_idx=1, allocation_info=None, scalar_type=15, sizes=[3])  # bfloat16
    program: Any = SimpleNamespace(constant_buffer=[None, SimpleNamespace(storage=b"abcd")])
    assert [(id, array.tolist()) for id, array in pte_contents._stored(program, value)] == [(1, [97, 98, 99])]
    calls = [SimpleNamespace(instr_args=type("KernelCall", (), {"args": [], "op_index": n})()) for n in (0, 1)]
    operators = [SimpleNamespace(name=name, overload="out") for name in ("executorch_prim::et_view", "aten::add")]
    plan = SimpleNamespace(values=[], chains=[SimpleNamespace(instructions=calls)], operators=operators)
    assert [*pte_contents._kernels(program, plan, {}, Names([]))] == ["aten::add.out"]


def test_operators_of_an_onnx_file_are_counted_and_its_tensors_named(tmp_path: Path) -> None:
    model = onnx.load_from_string(exported("onnx", "quantized"))
    contents = inspected("onnx", exported("onnx", "quantized"), made("quantized"), tmp_path)
    assert sum(contents.operators.values()) == len(model.graph.node)
    assert (contents.delegated, contents.arena_bytes) == ({}, None)
    names = {each.name for each in model.graph.initializer}
    assert {"stem.0.weight", "stem.0.scale", "blocks.1.conv2.weight", "head.weight"} <= names
    assert sum(onnx.numpy_helper.to_array(each).nbytes for each in model.graph.initializer) == contents.stored_bytes


def test_a_layer_is_known_by_numbers_only_where_they_are_its_own() -> None:
    weight = numpy.arange(6, dtype="float32").reshape(2, 3)
    names = Names([("a", weight), ("b", weight + 1), ("a", numpy.zeros(4)), ("b", numpy.zeros(4))])
    assert names.of(weight.T) == "a"
    assert names.of(numpy.zeros(4)) == SEVERAL
    assert names.of(weight * 2) == names.of(weight.astype("float64")) == OTHER
    assert names.of_scaled((weight + 1) * [[2], [-3]]) == OTHER  # float64: of another kind
    assert names.of_scaled(((weight + 1) * [[2], [-3]]).astype("float32")) == "b"
    assert (names.of_name("a.weight"), names.of_name("ab.weight"), names.of_name("val_0")) == ("a", OTHER, OTHER)


def test_layers_of_a_bare_sequence_lose_the_name_that_edgepack_gave_it() -> None:
    assert named(candidate("depthwise")).layers >= {"0", "3", "6", "11"}
    assert named(made("quantized", "depthwise")).layers == {"0", "3", "6", "11"}
    assert named(made("quantized", "depthwise")).of_name("model.6.weight_bias") == "6"


def ort(how: How, folder: Path, **config: Any) -> tuple[Path, Contents]:
    choice = plugins.choose("exporters", {"onnx": {"format": "ort", **config}})
    path = folder / f"model{contract.suffix(choice)}"
    choice.module.export(made(how), choice.config, path)
    return path, choice.module.inspect(path, made(how))


@pytest.mark.parametrize("how", ["eager", "quantized"])
def test_an_ort_file_answers_as_the_onnx_file_and_is_the_same_every_time(how: How, tmp_path: Path) -> None:
    path, contents = ort(how, tmp_path)
    assert path.suffix == ".ort"
    assert contents.stored_bytes < path.stat().st_size <= 1.02 * contents.stored_bytes + 60_000
    first = path.read_bytes()
    ort(how, tmp_path)
    assert path.read_bytes() == first
    assert not [place for place in (PROJECT, tmp_path) if str(place).encode() in first]
    sessions = [onnxruntime.InferenceSession(file) for file in (exported("onnx", how), path)]
    for row in data().test.head(8)[0]:
        one, other = (session.run(None, {"input": row[None].numpy()})[0] for session in sessions)
        numpy.testing.assert_allclose(one, other, atol=1e-5)
    if how == "quantized":
        assert contents.operators["com.microsoft.QLinearConv"] == 5
        assert {each.layer for each in contents.tensors if each.dtype == "int32"} == {*LAYERS["residual"]}


def test_an_ort_file_is_for_one_kind_of_processor(tmp_path: Path) -> None:
    _, contents = ort("eager", tmp_path, target_platform="arm")
    assert not any("nchwc" in name for name in contents.operators)  # those are for x86 alone
    assert contents.operators["com.microsoft.FusedConv"] == 5


@pytest.mark.parametrize("format", ["onnx", "ort"])
def test_what_a_build_of_onnxruntime_needs_is_told(format: str, tmp_path: Path) -> None:
    exporter = plugins.load("exporters", "onnx")
    config, path = exporter.Config(format=format), tmp_path / f"model.{format}"
    if format == "ort":
        ort("quantized", tmp_path)
    else:
        path.write_bytes(exported("onnx", "quantized"))
    files = exporter.runtime_files(path, config)
    operators, text = files["required_operators_and_types.config"].decode(), files["BUILDING.md"].decode()
    assert "QLinearConv" in operators
    assert str(tmp_path) not in operators
    assert ("ai.onnx;11;Conv" in operators) is (format == "onnx")  # which is optimized when it is loaded
    assert ("--skip_tests --minimal_build" in text) is (format == "ort")
    assert exporter.runtime_files(path, config) == files


def test_the_size_of_files_is_explained() -> None:
    tensors = [Stored(layer=f"layer{i}", dtype="int8", bytes=10_000 + i) for i in range(20)]
    contents = Contents(
        tensors=(*tensors, Stored(layer=OTHER, dtype="float32", bytes=400)),
        operators={"aten::add.out": 2},
        delegated={"XnnpackBackend": {"Conv2d": 20}},
        arena_bytes=5000,
    )
    dist = Path("dist/tiny")
    dist.mkdir(parents=True)
    build(artifacts=(artifact(bytes=250_000, contents=contents),)).save(dist / "build.json")
    shown = edgepack("explain", "--size", "tiny").out
    assert [line.split()[0] for line in shown.splitlines()[3:6]] == ["layer19", "layer18", "layer17"]
    for text in (
        "(6 more)          50,410         20.2%",
        "tensors: 201 kB (int8 200 kB, float32 400 B)",
        "other than tensors: 49.4 kB, 19.8% of the file",
        "delegated to XnnpackBackend: 20 operators (20 Conv2d)",
        "not delegated: 2 operators (2 aten::add.out)",
        "arena: 5 kB planned",
    ):
        assert text in shown, shown


def test_a_build_of_before_is_still_read() -> None:
    saved = json.loads(build().model_dump_json(by_alias=True))
    for each in saved["artifacts"]:
        del each["contents"]
    Path("dist/tiny").mkdir(parents=True)
    Path("dist/tiny/build.json").write_text(json.dumps(saved))
    ran = edgepack("explain", "--size", "tiny")
    assert (ran.code, "contents not available" in ran.out) == (0, True)


def test_a_pte_names_its_constants_in_32_letters() -> None:
    """XNNPACK's own names have 64, and each is in the file twice."""
    from executorch.exir._serialize._program import deserialize_pte_binary

    content = exported("executorch", "quantized")
    names = [name.removeprefix("scale_") for name in deserialize_pte_binary(content).named_data.pte_data]
    assert names and {len(name) for name in names} == {32}
