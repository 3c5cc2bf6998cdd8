"""Which tensors become int8 is for a quantizer to say, which need not be XNNPACK's."""

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from forked_workers import run_here
from stand_ins.coarse_quantizer import coarse_quantizer as coarse_quantizer
from torch import nn
from torch_factories import Kind, accuracy, context, data, learned, logits, reloaded, write
from torch_factories import tiny_models as tiny_models

from edgepack.compress.contract import Context
from edgepack.compress.stages.quantize import Config, Mode, dry_run, run
from edgepack.config import plugins
from edgepack.config.device import Quantization
from edgepack.core.errors import RecipeError
from edgepack.measure import evaluate
from edgepack.models.candidate import Candidate

ROUNDED = "quantized_decomposed.dequantize"


def quantized(kind: Kind, mode: Mode, **changes: Any) -> Candidate:
    settings = Config(mode=mode, epochs=2, batch_size=16)
    return run(learned(kind), settings, context(teacher=learned(kind), **changes))


def read_from_int8(candidate: Candidate) -> dict[str, set[str]]:
    """By the operator of each layer with weights, how its weight is stored."""
    found: dict[str, set[str]] = {}
    for node in candidate.module.graph.nodes:
        if str(node.target) in ("aten.conv2d.default", "aten.linear.default"):
            found.setdefault(str(node.target), set()).add(str(node.args[1].target).removeprefix(f"{ROUNDED}_"))
    return found


@pytest.mark.parametrize("mode", ["ptq", "qat"])
@pytest.mark.parametrize("kind", ["residual", "depthwise"])
def test_the_stage_takes_the_quantizer_of_its_context(kind: Kind, mode: Mode, tmp_path: Path) -> None:
    before = learned(kind)
    coarse = quantized(kind, mode, quantizer="coarse")
    stored = read_from_int8(coarse)
    assert stored["aten.conv2d.default"] == {"per_tensor.default"}
    assert not any(ROUNDED in name for name in stored["aten.linear.default"])
    assert accuracy(coarse.module) >= accuracy(before.module) - 0.05
    convolutions = [layer for layer in before.module.modules() if isinstance(layer, nn.Conv2d)]
    int8 = [each.shape for each in coarse.module.state_dict().values() if each.dtype == torch.int8]
    assert sorted(int8) == sorted(layer.weight.shape for layer in convolutions)
    assert torch.equal(logits(reloaded(coarse, tmp_path / "saved").module), logits(coarse.module))

    write(coarse, "onnx", tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    kinds = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) == 4}
    assert kinds == {onnx.TensorProto.INT8}
    answers = evaluate.outputs(
        run_here, file=tmp_path / "model.onnx", runtime="onnxruntime", split=data().test, folder=tmp_path
    )
    agreed = evaluate.parity(context().task, answers, (logits(coarse.module).numpy(),))
    assert agreed.agreement == 1 and agreed.cosine and agreed.cosine > 0.999


def test_xnnpacks_is_the_one_where_nothing_else_is_asked_for() -> None:
    unasked = quantized("residual", "ptq")
    assert set().union(*read_from_int8(unasked).values()) == {"per_channel.default"}
    assert torch.equal(logits(unasked.module), logits(quantized("residual", "ptq", quantizer="xnnpack").module))
    assert Context.__dataclass_fields__["quantizer"].default == "xnnpack"


def test_its_dry_run_takes_the_quantizer_too() -> None:
    made = dry_run(learned(), Config(), Quantization(), quantizer="coarse")
    assert read_from_int8(made)["aten.conv2d.default"] == {"per_tensor.default"}


def test_an_unknown_quantizer_is_told_with_those_there_are() -> None:
    with pytest.raises(RecipeError, match=r"unknown quantizer 'course': did you mean 'coarse'\?"):
        quantized("mlp", "ptq", quantizer="course")


def test_a_quantizer_that_defines_no_more_than_it_must_has_the_rest_by_default() -> None:
    module = plugins.load("quantizers", "coarse")
    assert module.LIBRARIES == ()
    assert not module.keeps_range(torch.ops.aten.relu.default)
    assert module.finish(nn.Module(), training=True) is None


@pytest.mark.parametrize("format", ["onnx", *({"executorch": {"backend": name}} for name in plugins.names("backends"))])
def test_an_exporter_names_the_quantizer_that_its_files_want(format: object) -> None:
    exporter = plugins.choose("exporters", format)
    assert exporter.module.quantizer(exporter.config) in plugins.names("quantizers")
