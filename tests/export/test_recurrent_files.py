"""Recurrent layers in files: one operator a layer in ONNX, step by step in ExecuTorch, the same answers in both."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from executorch.runtime import Runtime
from onnxruntime import InferenceSession
from recurrent_factories import net, one, series, signature
from torch import Tensor, nn

from edgepack.config import plugins
from edgepack.core.errors import StageError
from edgepack.export.contract import write
from edgepack.models.candidate import Candidate

GATES = {"lstm": 4, "gru": 3}


def written(candidate: Candidate, format: str, folder: Path) -> Path:
    path = folder / f"net.{format}"
    write(candidate, plugins.choose("exporters", format), path)
    return path


def answer(path: Path, candidate: Candidate) -> Tensor:
    given = one(candidate)
    if path.suffix == ".executorch":
        found: Tensor = Runtime.get().load_program(path).load_method("forward").execute(list(given))[0]
        return found
    names = [spec.name for spec in candidate.signature.inputs]
    [outputs] = InferenceSession(path).run(None, {n: each.numpy() for n, each in zip(names, given, strict=True)})
    return torch.from_numpy(outputs)


def expected(candidate: Candidate) -> Tensor:
    with torch.no_grad():
        outputs: Tensor = candidate.module.eval()(*one(candidate))
    return outputs


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("what", ["sounds", "texts", "series"])
def test_onnx_has_one_operator_a_layer(what: str, kind: str, tmp_path: Path) -> None:
    candidate = net(signature(what), kind, layers=2, bidirectional=what != "series")
    path = written(candidate, "onnx", tmp_path)
    graph = onnx.load(path).graph
    operators = Counter(node.op_type for node in graph.node)
    assert operators[kind.upper()] == (4 if what == "texts" else 2)  # a text is turned between its directions
    computed = {output for node in graph.node for output in node.output}
    layers = [node for node in graph.node if node.op_type == kind.upper()]
    assert not [name for node in layers for name in node.input[1:] if name in computed]
    torch.testing.assert_close(answer(path, candidate), expected(candidate), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", GATES)
def test_executorch_has_every_step(kind: str, tmp_path: Path) -> None:
    candidate = net(series(), kind, layers=1, bidirectional=True)
    path = written(candidate, "executorch", tmp_path)
    torch.testing.assert_close(answer(path, candidate), expected(candidate), atol=1e-6, rtol=1e-4)


def test_bytes_are_told_by_layer(tmp_path: Path) -> None:
    candidate = net(series(3, 5), hidden=8, layers=1, bidirectional=True)
    directions, weights = 2, 4 * 8 * (5 + 8)
    for format, biases in (("onnx", 2), ("executorch", 1)):
        contents = plugins.load("exporters", format).inspect(written(candidate, format, tmp_path), candidate)
        stored = {tensor.layer: tensor.bytes for tensor in contents.tensors if tensor.dtype == "float32"}
        assert stored["layers.0"] == 4 * directions * (weights + biases * 4 * 8)


class Own(nn.Module):  # type: ignore[misc]
    """A model of a user: two layers and directions in one operator, no biases, steps first, and the last states."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn = kind(5, 4, 2, bidirectional=True, bias=False)
        self.head = nn.Linear(16, 3)

    def forward(self, series: Tensor) -> Tensor:
        outputs, state = self.rnn(series.transpose(0, 1))
        hidden, cell = state if isinstance(state, tuple) else (state, state)
        logits: Tensor = self.head(torch.cat([outputs[-1], hidden[1], cell[2]], dim=1))
        return logits


@pytest.mark.parametrize("format", ["onnx", "executorch"])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_own_models_may_use_several_layers_and_the_last_states(
    kind: type[nn.RNNBase], format: str, tmp_path: Path
) -> None:
    candidate = replace(net(series(3)), module=Own(kind))
    path = written(candidate, format, tmp_path)
    torch.testing.assert_close(answer(path, candidate), expected(candidate), atol=1e-6, rtol=1e-4)


class Remembers(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.state = nn.GRU(5, 3, batch_first=True), nn.Parameter(torch.rand(1, 1, 3))

    def forward(self, series: Tensor) -> Tensor:
        outputs: Tensor = self.rnn(series, self.state.expand(-1, len(series), -1).contiguous())[0][:, -1]
        return outputs


def test_a_layer_that_begins_with_a_state_is_written_in_onnx_alone(tmp_path: Path) -> None:
    candidate = replace(net(series(3)), module=Remembers())
    path = written(candidate, "onnx", tmp_path)
    torch.testing.assert_close(answer(path, candidate), expected(candidate), atol=1e-6, rtol=1e-4)
    with pytest.raises(StageError, match=r"ExecuTorch has no recurrent operator, and the layer at 'rnn'") as failure:
        written(candidate, "executorch", tmp_path)
    assert "without a state of its own" in failure.value.hint


def test_too_many_steps_for_executorch_are_told_before_training() -> None:
    candidate = net(series(200), layers=2)
    exporter = plugins.choose("exporters", "executorch")
    with pytest.raises(StageError, match=r"400 steps in all layers .* at 'layers.0'") as failure:
        exporter.module.check(candidate, exporter.config)
    assert "a longer hop" in failure.value.hint
    exporter.module.check(net(series(7)), exporter.config)
