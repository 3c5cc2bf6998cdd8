"""Exported encoders: their files answer as torch does, hold int8, and run on the kernels that are fast."""

from collections import Counter
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy
import onnx
import onnxruntime
import pytest
import text_factories as make
import torch
from caching import cached
from forked_workers import run_here
from torch_factories import context, inspected, write

from edgepack.compress.stages import quantize
from edgepack.compress.training import evaluation
from edgepack.config import plugins
from edgepack.data.splits import Split
from edgepack.export.formats.onnx.int8 import with_onnx_operators
from edgepack.measure import evaluate
from edgepack.models.candidate import Candidate
from edgepack.models.complexity import parameters

KINDS = ("bert", "distilbert", "roberta")
FORMATS = plugins.names("exporters")
TOKENS = 300  # rows of the table, more than a text has tokens of
How = Literal["eager", "dynamic", "static"]


def layers(kind: str) -> int:
    """Two where layers have to be told apart."""
    return 2 if kind == "bert" else 1


@cached
def made(kind: str, how: How = "dynamic") -> Candidate:
    start = make.encoder(kind, layers=layers(kind), vocab_size=TOKENS)
    if how == "eager":
        return start
    return quantize.run(start, quantize.Config(mode="ptq", activations=how), context(data=make.text(pad=pad(kind))))


def pad(kind: str) -> int:
    return 1 if kind == "roberta" else 0


@cached
def exported(format: str, kind: str, how: How = "dynamic") -> bytes:
    with TemporaryDirectory() as folder:
        return write(made(kind, how), format, Path(folder) / "model")


def some(kind: str) -> Split:
    return make.text(pad=pad(kind)).validation.first(6)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.cosine_similarity(a.flatten(), b.flatten(), 0))


@pytest.mark.parametrize(
    ("format", "kind"), [("executorch", "bert"), *product(("onnx",), KINDS)]
)  # what kinds differ in is how they count positions and tell two texts apart
def test_the_file_answers_in_a_fresh_process_as_torch_does(format: str, kind: str, tmp_path: Path) -> None:
    exporter = plugins.load("exporters", format)
    file = tmp_path / f"model{exporter.SUFFIX}"
    file.write_bytes(exported(format, kind))
    split = some(kind)
    (answers,) = evaluate.outputs(
        run_here,
        file=file,
        runtime=exporter.RUNTIME,
        split=split,
        folder=tmp_path,
    )
    expected = evaluation.predict(made(kind).module, split)[0].numpy()
    cosine = evaluate.parity(context().task, (answers,), (expected,)).cosine
    assert cosine and cosine > 0.999
    assert numpy.abs(answers - expected).max() < 0.05 * numpy.abs(expected).max()


@pytest.mark.parametrize("format", FORMATS)
def test_the_table_and_the_layers_take_a_byte_a_weight(format: str) -> None:
    """However much room a tiny model's file gives to other things."""
    whole, table = parameters(made("bert", "eager").module), TOKENS * 32
    assert len(exported(format, "bert")) < 4 * whole - 2 * table


def test_tables_are_read_by_row_in_executorch() -> None:
    from executorch.exir._serialize._program import deserialize_pte_binary

    [plan] = deserialize_pte_binary(exported("executorch", "bert")).program.execution_plan
    operators = {each.name for each in plan.operators}
    assert "quantized_decomposed::embedding_byte" in operators
    assert not any("dequantize" in name or "linear" in name or "mm" in name for name in operators)


@pytest.mark.parametrize("kind", KINDS)
def test_every_linear_multiplies_integers_in_onnx(kind: str) -> None:
    graph = checked("onnx", kind)
    count = Counter(node.op_type for node in graph.node)
    assert count["MatMulInteger"] == len(
        [m for m in made(kind, "eager").module.modules() if isinstance(m, torch.nn.Linear)]
    )
    assert not {"QuantizeLinear", "DequantizeLinear", "Gemm"} & {*count}
    wide = {
        value.name: value.data_type for value in graph.initializer if min([*value.dims, 9]) > 8 and len(value.dims) == 2
    }
    assert {*wide.values()} == {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
    used = {name for node in graph.node for name in node.input}
    assert {value.name for value in graph.initializer} <= used


def checked(format: str, kind: str, how: How = "dynamic") -> Any:
    model = onnx.load_from_string(exported(format, kind, how))
    onnx.checker.check_model(model, full_check=True)
    return model.graph


@pytest.mark.parametrize("how", ["eager", "dynamic"])
def test_onnxruntime_has_fast_operators_for_all_of_it(
    how: How, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(exported("onnx", "bert", how), options)
    count = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert "SkipLayerNormalization" not in count and count["LayerNormalization"] == 5
    if how == "dynamic":
        assert count["DynamicQuantizeMatMul"] + count["MatMulIntegerToFloat"] == 14
        assert count["Gather"] >= 1 and "DequantizeLinear" not in count
    assert "Error merging shape" not in capfd.readouterr().err


@pytest.mark.parametrize("how", ["eager", "static"])
def test_encoders_of_other_kinds_answer_in_onnxruntime(how: How) -> None:
    session = onnxruntime.InferenceSession(exported("onnx", "bert", how))
    rows = [dict(zip(("input_ids", "attention_mask"), row, strict=True)) for row in split_up("bert")]
    answers = torch.cat([torch.from_numpy(session.run(None, row)[0]) for row in rows])
    expected = evaluation.predict(made("bert", how).module, some("bert"))[0]
    torch.testing.assert_close(answers, expected, rtol=0.05, atol=1e-3)


def split_up(kind: str) -> list[tuple[Any, ...]]:
    return [tuple(tensor[None].numpy() for tensor in row) for row in zip(*some(kind).head(6), strict=True)]


@pytest.mark.parametrize("kind", make.KINDS)
def test_a_model_with_onnx_operators_is_the_same_model(kind: str) -> None:
    start, one = made(kind), some(kind).first(1)  # the range of an activation is that of one text
    before = evaluation.predict(start.module, one)[0]
    again = evaluation.predict(with_onnx_operators(start.module), one)[0]
    assert cosine(again, before) > 0.9999
    assert torch.equal(evaluation.predict(start.module, one)[0], before)  # and the candidate is what it was


def test_activations_that_are_all_zero_are_answered() -> None:
    integers, scale, zero = torch.ops.edgepack.quantize(torch.zeros(2, 3))
    product = torch.ops.edgepack.multiply(integers, torch.ones(3, 4, dtype=torch.int8), zero)
    assert torch.equal(product.float() * scale, torch.zeros(2, 4))


def test_the_rows_of_a_table_keep_their_own_zero_points() -> None:
    """Rounded to whole numbers, as torch's exporter makes them, they would be off by up to one step."""
    graph = checked("onnx", "bert")
    zeros = [onnx.numpy_helper.to_array(v) for v in graph.initializer if tuple(v.dims) == (TOKENS, 1)]
    assert len(zeros) == 2
    assert any((column % 1).any() and column.max() > 100 for column in zeros)


@pytest.mark.parametrize("format", FORMATS)
def test_layers_of_an_encoder_are_known(format: str, tmp_path: Path) -> None:
    """Biases and norms are alike in all layers of one that was not trained."""
    contents = inspected(format, exported(format, "bert"), made("bert"), tmp_path)
    module = made("bert", "eager").module
    weights = {name: m.weight.numel() for name, m in module.named_modules() if isinstance(m, torch.nn.Linear)}
    stored = {each.layer: each.bytes for each in contents.tensors if each.dtype == "int8"}
    assert stored == weights
    assert max(contents.tensors, key=lambda each: each.bytes).layer == "model.bert.embeddings.word_embeddings"


def test_what_of_an_encoder_is_delegated_is_told(tmp_path: Path) -> None:
    contents = inspected("executorch", exported("executorch", "bert"), made("bert"), tmp_path)
    assert contents.operators["quantized_decomposed::embedding_byte.out"] == 3
    assert contents.delegated["XnnpackBackend"]["FullyConnected"] == 14


def test_what_a_build_of_executorch_needs_is_told(tmp_path: Path) -> None:
    exporter, path = plugins.load("exporters", "executorch"), tmp_path / "model.pte"
    path.write_bytes(exported("executorch", "bert"))
    files = exporter.runtime_files(path, exporter.Config())
    operators, text = files["selected_operators.yaml"].decode(), files["BUILDING.md"].decode()
    assert "quantized_decomposed::embedding_byte.out" in operators
    assert str(tmp_path) not in operators
    assert "-DEXECUTORCH_BUILD_KERNELS_QUANTIZED=ON" in text
    (tmp_path / "elsewhere").mkdir()
    assert exporter.runtime_files(path.rename(tmp_path / "elsewhere/model.pte"), exporter.Config()) == files
