"""Vision transformers in int8: their Linear layers, with activations measured in each inference; and their files."""

from pathlib import Path

import pytest
import torch
import vision_factories as make
from caching import cached
from forked_workers import run_here
from torch import nn
from torch_factories import BITS, context, data, logits, write
from vision_factories import tiny_vits as tiny_vits

from edgepack.compress.stages import prune, quantize, train
from edgepack.compress.training import evaluation, numerics
from edgepack.config import plugins
from edgepack.measure import evaluate
from edgepack.models.candidate import Candidate

aten = torch.ops.aten


@pytest.mark.parametrize("kind", make.KINDS)
def test_every_linear_is_int8_and_what_makes_tokens_is_float(kind: str) -> None:
    start = make.vit(kind)
    before, count = logits(start.module), sum(isinstance(part, nn.Linear) for part in start.module.modules())
    result = quantize.run(start, quantize.Config(mode="ptq"), context())
    nodes = result.module.graph.nodes
    linears = [node for node in nodes if node.target is aten.linear.default]
    assert len(linears) == count
    assert all("dequantize" in str(feed.target) for node in linears for feed in node.args[:2])
    others = [node for node in nodes if node.target in (aten.conv2d.default, aten.softmax.int, aten.layer_norm.default)]
    assert others and not any("dequantize" in str(feed.target) for node in others for feed in node.all_input_nodes)
    off = float((logits(result.module) - before).norm() / before.norm())
    assert off < (0.05 if BITS == 8 else 0.1)


@cached
def small() -> Candidate:
    """Trained, pruned and in int8."""
    settings = train.Config(epochs=6, learning_rate=3e-3, batch_size=16)
    pruning = {"heads": "50 %", "ffn": "50 %", "steps": 1, "recover": {"epochs": 2, "learning_rate": 3e-3}}
    with numerics.deterministic(0, 1):
        taught = train.run(make.vit(), settings, context())
        thin = prune.run(taught, prune.Config.model_validate(pruning), context(teacher=taught.copy()))
        return quantize.run(thin, quantize.Config(epochs=1, batch_size=16), context(teacher=taught))


@pytest.mark.parametrize("format", ["executorch", "onnx"])
def test_files_of_a_pruned_and_quantized_one_answer_as_torch(format: str, tmp_path: Path) -> None:
    made, exporter, split = small(), plugins.load("exporters", format), data().test
    file = tmp_path / f"model{exporter.SUFFIX}"
    file.write_bytes(write(made, format, tmp_path / "written"))
    answers = evaluate.outputs(run_here, file=file, runtime=exporter.RUNTIME, split=split, folder=tmp_path)
    expected = tuple(each.numpy() for each in evaluation.predict(made.module, split))
    found = evaluate.parity(context().task, answers, expected)
    assert found.agreement >= 0.97 and found.cosine and found.cosine > 0.999
