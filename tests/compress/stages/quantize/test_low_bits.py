"""Weights of 4 bits and tables of 4 or 2: what they are rounded to, and what of it the files hold and answer."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pytest
import text_factories as make
import torch
from caching import cached
from forked_workers import run_here
from torch import fx, nn
from torch_factories import candidate as plain
from torch_factories import context, inspected, reloaded, write
from torch_factories import tiny_models as tiny_models

from edgepack.compress.stages import train
from edgepack.compress.stages.quantize import Config, dry_run, run
from edgepack.compress.stages.quantize.capture import capture
from edgepack.compress.stages.quantize.contract import Scheme
from edgepack.compress.stages.quantize.convert import converted
from edgepack.compress.stages.quantize.low_bits import Groups, rounded, table_groups, weight_groups
from edgepack.compress.stages.quantize.observers import prepare
from edgepack.compress.training import evaluation, numerics
from edgepack.config import plugins
from edgepack.config.device import Quantization
from edgepack.core.errors import StageError
from edgepack.core.signature import Signature, TensorSpec
from edgepack.data.tasks import language_modelling
from edgepack.measure import evaluate
from edgepack.models.candidate import Candidate
from edgepack.models.complexity import stored_bytes
from edgepack.models.structure.fx_graph import tensor_of

aten = torch.ops.aten
Weights = Literal["int8", "int4"]
Tables = Literal[8, 4, 2]
FORMATS = ("executorch", "onnx")
GROUP: dict[Tables, int] = {4: 32, 2: 64}  # in files
IN_GROUPS = "dequantize_per_channel_group"


@cached
def made(weights: Weights = "int4", tables: Tables = 8, group: int = 32) -> Candidate:
    """An encoder of one layer, quantized; shared, so not to be changed."""
    settings = Config.model_validate({"mode": "ptq", "weights": weights, "tables": tables, "group": group})
    return run(start(), settings, context(data=make.text()))


@cached
def started() -> Candidate:
    return make.encoder(layers=1, hidden_size=64, intermediate_size=128, vocab_size=300)


def start() -> Candidate:
    return started().copy()


def answers(candidate: Candidate) -> torch.Tensor:
    return evaluation.predict(candidate.module, make.text().validation)[0]


def in_groups(candidate: Candidate, target: Any, place: int) -> list[fx.Node]:
    """Where each of these operators reads its weight or table from."""
    return [node.args[place] for node in candidate.module.graph.nodes if node.target is target]


FORMS = [weight_groups(32), table_groups(4, 32), table_groups(2, 16)]


@pytest.mark.parametrize("groups", FORMS, ids=str)
def test_numbers_are_rounded_to_a_few_steps_of_a_scale_that_the_file_can_store(groups: Groups) -> None:
    values = torch.randn(40, 64, generator=torch.Generator().manual_seed(0))
    integers, scales = rounded(values, groups)
    assert integers.dtype == torch.int8 and scales.shape == (40, 64 // groups.size)
    assert (int(integers.min()), int(integers.max())) == groups.limits
    assert torch.equal(scales.to(groups.scales).float(), scales)
    assert bool((scales > 0).all()) != groups.negative
    again, same = rounded(shown(integers, scales, groups.size), groups)
    torch.testing.assert_close(shown(again, same, groups.size), shown(integers, scales, groups.size))


@pytest.mark.parametrize("groups", FORMS, ids=str)
def test_the_scale_is_better_than_that_of_the_largest_number(groups: Groups) -> None:
    values = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
    plain = values.unflatten(1, (-1, groups.size)).abs().amax(-1, keepdim=True) / groups.limits[1]
    steps = (values.unflatten(1, (-1, groups.size)) / plain).round() * plain
    found = shown(*rounded(values, groups), groups.size)
    assert (found - values).norm() < 0.95 * (steps.flatten(1) - values).norm()


@pytest.mark.parametrize("groups", FORMS, ids=str)
def test_a_group_of_zeros_stays_zero(groups: Groups) -> None:
    integers, scales = rounded(torch.zeros(2, groups.size), groups)
    assert not integers.any() and bool(scales.isfinite().all()) and bool((scales != 0).all())


def shown(integers: torch.Tensor, scales: torch.Tensor, size: int) -> torch.Tensor:
    return (integers.float().unflatten(1, (-1, size)) * scales[..., None]).flatten(1)


def test_linear_layers_compute_with_exactly_the_rounded_weights() -> None:
    result = made()
    float_layers = [layer for layer in start().module.modules() if isinstance(layer, nn.Linear)]
    read = in_groups(result, aten.linear.default, 1)
    assert len(read) == len(float_layers) and all(IN_GROUPS in str(each.target) for each in read)
    for layer, node in zip(float_layers, read, strict=True):
        integers, scales = rounded(layer.weight, weight_groups(32))
        assert torch.equal(tensor_of(result.module, node.args[0]), integers)
        assert torch.equal(tensor_of(result.module, node.args[1]), scales)
    given = in_groups(result, aten.linear.default, 0)
    assert {str(each.target) for each in given} == {"quantized_decomposed.dequantize_per_token.default"}
    assert "weights: int4, a scale for each 32 inputs" in result.notes


def test_a_text_is_answered_alike_in_any_batch() -> None:
    result, inputs = made(), make.text().validation.head(8)
    alone = torch.cat([result.module(*(each[i : i + 1] for each in inputs)) for i in range(8)])
    torch.testing.assert_close(result.module(*inputs), alone)


@pytest.mark.parametrize("tables", [4, 2])
def test_tables_are_rounded_too(tables: Tables) -> None:
    read = in_groups(made("int8", tables), aten.embedding.default, 0)
    assert len(read) == 3 and all(IN_GROUPS in str(each.target) for each in read)
    assert {each.args[3:5] for each in read} == {table_groups(tables, 32).limits}
    assert not any(IN_GROUPS in str(each.target) for each in in_groups(made("int8", tables), aten.linear.default, 1))


def test_layers_and_tables_in_fp32_stay_so() -> None:
    settings = Config(mode="ptq", weights="int4", tables=4, fp32=("*word_embeddings", "*.query"))
    result = run(start(), settings, context(data=make.text()))
    kept = [each for each in in_groups(result, aten.linear.default, 1) if each.op == "get_attr"]
    assert [str(each.target).split(".")[-2] for each in kept] == ["query"]
    assert [each.op for each in in_groups(result, aten.embedding.default, 0)].count("get_attr") == 1


def test_a_model_that_is_no_encoder() -> None:
    result = dry_run(plain("mlp", width=64), Config(weights="int4"), Quantization())
    assert all(IN_GROUPS in str(each.target) for each in in_groups(result, aten.linear.default, 1))


def test_a_saved_model_answers_the_same(tmp_path: Path) -> None:
    assert torch.equal(answers(reloaded(made("int4", 2), tmp_path / "saved")), answers(made("int4", 2)))


def test_the_bytes_in_the_ledger_are_those_of_packed_numbers() -> None:
    bits = {bits: stored_bytes(made("int4", bits).module) for bits in (8, 4, 2)}
    float_bytes, numbers = stored_bytes(start().module), 64 * (300 + make.LENGTH + 2)
    assert float_bytes / 7 < bits[4] < float_bytes / 5
    assert bits[4] - bits[2] == numbers // 4


def to_export(tables: Tables) -> Candidate:
    return made("int4", tables, GROUP[tables])


@cached
def exported(format: str, tables: Tables) -> bytes:
    with TemporaryDirectory() as folder:
        return write(to_export(tables), format, Path(folder) / "model")


@pytest.mark.parametrize(("format", "tables"), [("executorch", 4), ("executorch", 2), ("onnx", 4), ("onnx", 2)])
def test_the_file_answers_as_torch_does(format: str, tables: Tables, tmp_path: Path) -> None:
    exporter = plugins.load("exporters", format)
    file, split = tmp_path / f"model{exporter.SUFFIX}", make.text().validation.first(6)
    file.write_bytes(exported(format, tables))
    found = evaluate.outputs(run_here, file=file, runtime=exporter.RUNTIME, split=split, folder=tmp_path)
    expected = evaluation.predict(to_export(tables).module, split)[0].numpy()
    evaluate.check_same(context().task, found, (expected,), format)
    # ONNX Runtime measures the ranges of activations in groups, closer to the float model.
    limit = 1e-3 if format == "executorch" else 0.04
    assert abs(found[0] - expected).max() < limit * abs(expected).max()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("tables", [4, 2])
def test_the_file_holds_half_a_byte_a_weight_and_says_of_which_layer(
    format: str, tables: Tables, tmp_path: Path
) -> None:
    contents, group = inspected(format, exported(format, tables), to_export(tables), tmp_path), GROUP[tables]
    stored = {(each.layer, each.dtype): each.bytes for each in contents.tensors}
    scale = 2 if format == "executorch" else 4
    for layer, numbers in {"attention.self.key": 64 * 64, "intermediate.dense": 64 * 128}.items():
        name = f"model.bert.encoder.layer.0.{layer}"
        assert stored[name, "int4"] == numbers // 2
        scales = stored[name, "bfloat16" if format == "executorch" else "float32"]
        assert scales >= numbers // group * scale and (scales - numbers // group * scale) in (0, numbers // 64 * 4)
    words = "model.bert.embeddings.word_embeddings"
    assert stored[words, f"int{tables}"] == 300 * 64 * tables // 8
    assert stored[words, "float16"] == 300 * 64 // group * 2
    assert contents.stored_bytes <= len(exported(format, tables))


def test_every_int4_layer_and_table_is_one_fast_operator(tmp_path: Path) -> None:
    executorch = inspected("executorch", exported("executorch", 4), to_export(4), tmp_path)
    assert executorch.delegated["XnnpackBackend"]["FullyConnected"] == 8
    assert executorch.operators["quantized_decomposed::embedding_4bit.dtype_out"] == 3
    assert not any("quantize_per" in name for name in executorch.operators)
    onnx = inspected("onnx", exported("onnx", 4), to_export(4), tmp_path)
    assert onnx.operators["com.microsoft.MatMulNBits"] == 8
    assert "QuantizeLinear" not in onnx.operators and "DequantizeLinear" not in onnx.operators


DECODER = Signature(
    inputs=(TensorSpec(name="input_ids", shape=(12,), dtype="int64"),),
    preprocessing={"kind": "tokens", "vocabulary": 90},
)


@cached
def decoder() -> Candidate:
    """A language model whose table is the weight of its last layer too, in int4, and a table of 4 bits."""
    signature = language_modelling.task(language_modelling.Config(), DECODER).signature
    torch.manual_seed(0)
    model = plugins.choose("models", {"gpt2": {"width": 64, "layers": 1, "heads": 4}})
    return dry_run(Candidate.start(model, signature), Config(weights="int4", tables=4), Quantization())


@pytest.mark.parametrize("format", FORMATS)
def test_a_table_that_is_the_last_layer_too_is_rounded_for_each(format: str, tmp_path: Path) -> None:
    [table, _], layers = in_groups(decoder(), aten.embedding.default, 0), in_groups(decoder(), aten.linear.default, 1)
    scales = [tensor_of(decoder().module, each.args[1]) for each in (table, layers[-1])]
    assert scales[0].shape == scales[1].shape and bool((scales[0] < 0).any()) and bool((scales[1] > 0).all())
    contents = inspected(format, write(decoder(), format, tmp_path / "model"), decoder(), tmp_path)
    stored = [each for each in contents.tensors if each.layer in ("head", "embedding") and each.dtype == "int4"]
    assert sum(each.bytes for each in stored) == 2 * 90 * 64 // 2


@pytest.mark.parametrize("format", FORMATS)
def test_operations_of_the_file_count_packed_weights(format: str, tmp_path: Path) -> None:
    exporter = plugins.load("exporters", format)
    file = tmp_path / f"model{exporter.SUFFIX}"
    file.write_bytes(exported(format, 4))
    found = [each for each in exporter.operations(file, Quantization(), {}) if each.dtype == "int8" and each.macs]
    largest = max(found, key=lambda each: each.weights)
    assert largest.kind == "linear" and 64 * 128 // 2 < largest.weights < 64 * 128


@pytest.mark.parametrize(
    ("settings", "width", "message"),
    [
        (
            {"weights": "int4", "group": 64},
            96,
            r"a group of 64 does not divide .*query' \(96 wide\).*\n.*group to 32",
        ),
        (
            {"weights": "int4"},
            48,
            r"query' \(48 wide\).*and \d more\n.*no group divides that: .*fp32: \['",
        ),
        ({"tables": 4, "group": 64}, 96, r"rows of 'model.bert.embeddings.word_embeddings' \(96 wide\)"),
    ],
)
def test_a_group_that_does_not_divide_a_row_is_refused_before_training(
    settings: dict[str, Any], width: int, message: str
) -> None:
    narrow = make.encoder(layers=1, hidden_size=width, intermediate_size=128)
    with pytest.raises(StageError, match=message):
        dry_run(narrow, Config.model_validate(settings), Quantization())


def test_layers_that_no_group_divides_can_stay_in_fp32() -> None:
    narrow = make.encoder(layers=1, hidden_size=48, intermediate_size=128)
    keep = ("*.query", "*.key", "*.value", "*.attention.output.dense", "*.intermediate.dense", "*.pooler.dense")
    settings = Config(weights="int4", fp32=(*keep, "*.classifier"))
    result = dry_run(narrow, settings, Quantization())
    assert [IN_GROUPS in str(each.target) for each in in_groups(result, aten.linear.default, 1)].count(True) == 1


def test_int4_convolutions_are_refused() -> None:
    with pytest.raises(StageError, match=r"no runtime here has kernels for int4 convolutions.*\n.*weights to int8"):
        dry_run(plain("residual"), Config(weights="int4"), Quantization())


def test_saturating_products_of_int8_do_not_concern_int4() -> None:
    saturates = context(data=make.text(), quantization=Quantization(int8_saturates=True))
    result = run(start(), Config(mode="ptq", weights="int4"), saturates)
    assert torch.equal(answers(result), answers(made()))


def test_a_graph_in_training_answers_as_what_it_is_converted_to() -> None:
    scheme = Scheme(bits=4, table_bits=2, dynamic=True, linear_only=True)
    trained = prepare(capture(start(), ()), scheme, training=True)
    split = make.text().validation.first(8)
    tables = [node.args[0] for node in trained.graph.nodes if node.target is aten.embedding.default]
    assert [each.op for each in tables] == ["get_attr"] * 3
    result = converted(trained)
    tables = [node.args[0] for node in result.graph.nodes if node.target is aten.embedding.default]
    assert all(IN_GROUPS in str(each.target) for each in tables)
    with torch.no_grad():
        torch.testing.assert_close(trained(*split.head(8)), result(*split.head(8)), rtol=1e-3, atol=1e-4)


@cached
def learned() -> Candidate:
    with numerics.deterministic(0, 1):
        settings = train.Config(epochs=6, learning_rate=3e-3, batch_size=32)
        return train.run(make.encoder(layers=1), settings, context(data=make.text(384)))


def test_training_with_rounding_in_the_loop_gains_over_calibration() -> None:
    known = context(data=make.text(384), teacher=learned())
    settings = Config(mode="best", weights="int4", tables=2, epochs=3, learning_rate=2e-3, batch_size=32)
    with numerics.deterministic(0, 1):
        calibrated = run(learned().copy(), settings.model_copy(update={"mode": "ptq"}), known)
        best = run(learned().copy(), settings, known)
    before, after = (evaluation.validate(each.module, known) for each in (calibrated, best))
    assert best.decided == {"mode": "qat"}
    assert after.score >= before.score and after.loss < 0.95 * before.loss
    assert all(IN_GROUPS in str(each.target) for each in in_groups(best, aten.linear.default, 1))
