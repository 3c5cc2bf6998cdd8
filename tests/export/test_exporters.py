import sys
from contextlib import nullcontext
from pathlib import Path

import onnx
import pytest
import torch
from conftest import PROJECT
from forked_workers import run_here
from torch_factories import How, context, data, exported, logits, made, reloaded, write
from torch_factories import tiny_models as tiny_models

from edgepack.config import plugins
from edgepack.export import tracing
from edgepack.export.formats.onnx import torchlib
from edgepack.measure import evaluate

FORMATS = plugins.names("exporters")
HOWS: tuple[How, ...] = ("eager", "quantized")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("how", HOWS)
def test_the_file_answers_in_a_fresh_process_as_torch_does(format: str, how: How, tmp_path: Path) -> None:
    exporter = plugins.load("exporters", format)
    file = tmp_path / f"model{exporter.SUFFIX}"
    file.write_bytes(exported(format, how))
    answers = evaluate.outputs(
        run_here,
        file=file,
        runtime=exporter.RUNTIME,
        split=data().test,
        folder=tmp_path,
    )
    agreed = evaluate.parity(context().task, answers, (logits(made(how).module).numpy(),))
    assert agreed.agreement == 1
    assert agreed.cosine and agreed.cosine > 0.999
    assert agreed.largest_difference is not None and agreed.largest_difference < (1e-4 if how == "eager" else 0.5)
    assert not list(tmp_path.glob("input-*"))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("how", HOWS)
def test_one_candidate_gives_the_same_bytes_wherever_it_is_exported(
    format: str, how: How, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "another folder"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    again = reloaded(made(how), elsewhere / "saved")
    before = logits(again.module)
    assert write(again, format, elsewhere / "other name") == exported(format, how)
    assert torch.equal(logits(again.module), before)  # and the candidate is what it was


@pytest.mark.parametrize("how", HOWS)
def test_what_is_kept_from_one_onnx_export_to_the_next_changes_no_byte(
    how: How, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchlib, "read_once", nullcontext)
    monkeypatch.setattr(tracing, "operators_listed_once", nullcontext)
    assert write(made(how), "onnx", tmp_path / "model.onnx") == exported("onnx", how)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("how", HOWS)
def test_nothing_in_the_file_tells_of_the_machine(format: str, how: How) -> None:
    content = exported(format, how)
    for secret in (str(PROJECT), sys.prefix, sys.base_prefix, str(Path.home()), "site-packages", "torch_factories"):
        assert secret.encode() not in content, secret


@pytest.mark.parametrize("format", FORMATS)
def test_int8_files_are_smaller(format: str) -> None:
    """By what the weights lose, less the scales that they gain."""
    weights = sum(tensor.numel() for tensor in made("eager").module.parameters())
    assert len(exported(format, "quantized")) < len(exported(format, "eager")) - 2 * weights


def test_quantized_weights_are_int8_in_onnx() -> None:
    model = onnx.load_from_string(exported("onnx", "quantized"))
    onnx.checker.check_model(model, full_check=True)
    wide = [tensor for tensor in model.graph.initializer if len(tensor.dims) > 1]
    layers = [tensor for tensor in made("eager").module.parameters() if tensor.dim() > 1]
    aligned = [(16, 4, 3, 3) if tuple(each.shape) == (16, 1, 3, 3) else tuple(each.shape) for each in layers]
    assert {tensor.data_type for tensor in wide} == {onnx.TensorProto.INT8}
    assert sorted(tuple(tensor.dims) for tensor in wide) == sorted(aligned)  # the stem reads its channels by fours


def test_an_onnx_file_says_what_goes_in_and_comes_out() -> None:
    model = onnx.load_from_string(exported("onnx"))
    [entry], [answer] = model.graph.input, model.graph.output
    assert (entry.name, [size.dim_value for size in entry.type.tensor_type.shape.dim]) == ("input", [1, 1, 8, 8])
    assert (answer.name, [size.dim_value for size in answer.type.tensor_type.shape.dim]) == ("logits", [1, 3])
    assert [opset.version for opset in model.opset_import if not opset.domain] == [20]


@pytest.mark.parametrize("opset", [18, 21])
def test_an_older_or_newer_operator_set_can_be_asked_for(opset: int, tmp_path: Path) -> None:
    exporter = plugins.load("exporters", "onnx")
    exporter.export(made("eager", "mlp"), exporter.Config(opset=opset), tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    assert [each.version for each in model.opset_import if not each.domain] == [opset]


@pytest.mark.parametrize("how", HOWS)
def test_xnnpack_takes_everything(how: How) -> None:
    """An operator that is not delegated runs on slow reference kernels."""
    from executorch.exir._serialize._program import deserialize_pte_binary

    [plan] = deserialize_pte_binary(exported("executorch", how)).program.execution_plan
    assert ([delegate.id for delegate in plan.delegates], plan.operators) == (["XnnpackBackend"], [])


@pytest.mark.parametrize("format", FORMATS)
def test_a_bare_sequence_of_layers_can_be_exported(format: str) -> None:
    """Its layers are named by numbers, which not every tool expects."""
    assert exported(format, "eager", "depthwise")


def test_activations_as_uint8_are_the_same_numbers_and_fuse(tmp_path: Path) -> None:
    """Unfused both files answer bit for bit alike; ONNX Runtime makes one operator of every convolution of the one."""
    import onnxruntime

    exporter = plugins.load("exporters", "onnx")
    answers, fused = [], {}
    for kind in ("int8", "uint8"):
        path = tmp_path / f"{kind}.onnx"
        exporter.export(made("quantized"), exporter.Config(activations=kind), path)
        onnx.checker.check_model(str(path), full_check=True)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(tmp_path / f"{kind}-fused.onnx")
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        fused[kind] = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
        plain = onnxruntime.SessionOptions()
        plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(path, plain, providers=["CPUExecutionProvider"])
        answers.append([session.run(None, {"input": row[None].numpy()})[0].tolist() for row in data().test.head(16)[0]])
    assert answers[0] == answers[1]
    assert fused["uint8"].count("QLinearConv") == 5
    assert "Conv" not in fused["uint8"]
