"""LSTM layers become int8, with the same integers in the graph and in both files; GRU layers stay as they are."""

from pathlib import Path

import onnx
import pytest
import torch
from executorch.runtime import Runtime
from onnxruntime import InferenceSession
from recurrent_factories import LABELS, net, series, signature
from torch import Tensor
from torch_factories import BITS, context, reloaded

from edgepack.compress.stages import quantize
from edgepack.compress.stages.quantize.capture import capture, layers_with_weights
from edgepack.compress.stages.quantize.contract import Scheme
from edgepack.compress.stages.quantize.convert import converted
from edgepack.compress.stages.quantize.observers import prepare
from edgepack.config import plugins
from edgepack.config.device import Quantization
from edgepack.data.splits import Split, TrainingData
from edgepack.export.contract import operations, write
from edgepack.models.candidate import Candidate

HERE = Quantization(int8_saturates=BITS == 7)
INT8 = torch.ops.quantized_decomposed.dequantize_per_channel.default


def int8(candidate: Candidate, **settings: object) -> Candidate:
    return quantize.dry_run(candidate, quantize.Config.model_validate(settings), HERE)


def outputs(candidate: Candidate, inputs: tuple[Tensor, ...], path: Path) -> Tensor:
    """What a file gives for each sample."""
    rows = [tuple(each[at : at + 1].contiguous() for each in inputs) for at in range(len(inputs[0]))]
    if path.suffix == ".executorch":
        method = Runtime.get().load_program(path).load_method("forward")
        return torch.cat([method.execute([*row])[0].clone() for row in rows])
    session, names = InferenceSession(path), [spec.name for spec in candidate.signature.inputs]
    given = ({name: each.numpy() for name, each in zip(names, row, strict=True)} for row in rows)
    return torch.cat([torch.from_numpy(session.run(None, each)[0]) for each in given])


@pytest.mark.parametrize("format", ["onnx", "executorch"])
def test_files_of_an_int8_lstm_agree_with_torch(format: str, tmp_path: Path) -> None:
    made = int8(net(series(), bidirectional=True, hidden=32))
    path = tmp_path / f"net.{format}"
    write(made, plugins.choose("exporters", format), path)
    inputs = (torch.randn(8, 7, 5, generator=torch.Generator().manual_seed(0)),)
    with torch.no_grad():
        expected = made.module(*inputs)
    found = outputs(made, inputs, path)
    assert (found - expected).abs().max() <= 0.02 * expected.abs().max()
    contents = plugins.load("exporters", format).inspect(path, made)
    stored = {(each.layer, each.dtype): each.bytes for each in contents.tensors}
    weights = 2 * 4 * 32 * (5 + 32)
    assert stored["layers.0", "int8"] - weights in (0, 2 * 4 * 32)  # zero points too
    assert stored["layers.0", "float32"] < weights


def test_the_integers_in_the_file_are_those_of_the_graph(tmp_path: Path) -> None:
    made, path = int8(net(series(), hidden=4)), tmp_path / "net.onnx"
    write(made, plugins.choose("exporters", "onnx"), path)
    graph = onnx.load(path).graph
    assert [node.op_type for node in graph.node if "LSTM" in node.op_type] == ["DynamicQuantizeLSTM"]
    stored = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    [node] = [each for each in made.module.graph.nodes if each.target is torch.ops.aten.lstm.input]
    weight = getattr(made.module, node.args[2][0].args[0].target)
    enters, forgets, new, leaves = weight.chunk(4)
    assert torch.equal(torch.from_numpy(stored["layers.0.weight_ih"][0]).T, torch.cat([enters, leaves, forgets, new]))


def test_layers_can_be_left_in_fp32_by_name(tmp_path: Path) -> None:
    start = net(series(), layers=2)
    assert layers_with_weights(start) == ("layers.0", "layers.1", "head")
    made, path = int8(start, fp32=("layers.0",)), tmp_path / "net.onnx"
    write(made, plugins.choose("exporters", "onnx"), path)
    operators = [node.op_type for node in onnx.load(path).graph.node]
    assert [name for name in operators if "LSTM" in name] == ["LSTM", "DynamicQuantizeLSTM"]


def test_a_gru_stays_in_fp32_and_it_is_told_why(tmp_path: Path) -> None:
    inputs, targets = torch.randn(32, 7, 5), torch.arange(32) % len(LABELS)
    split = Split(inputs=(inputs,), targets=targets)
    about = context(data=TrainingData(train=split, validation=split))
    made = quantize.run(net(series(), "gru"), quantize.Config(mode="ptq", calibration=32), about)
    assert "kept in fp32: layers.0 (a GRU): ONNX Runtime has no int8 operator for it" in made.notes
    path = tmp_path / "net.onnx"
    write(made, plugins.choose("exporters", "onnx"), path)
    assert "GRU" in [node.op_type for node in onnx.load(path).graph.node]


def test_training_rounds_the_weights_and_reaches_them() -> None:
    start = net(signature("texts"), hidden=8, bidirectional=True)
    graph = capture(start, ())
    prepared = prepare(graph, Scheme(), training=True)
    inputs = start.noise()
    prepared(*inputs)
    prepared(*inputs).square().sum().backward()
    trained = dict(prepared.named_parameters())
    gradient = trained["layers.0.ahead.weight_hh_l0"].grad
    assert gradient is not None and bool(gradient.any())
    assert _trains(prepared) == {True} and _trains(converted(prepared)) == {False}


def _trains(graph: torch.fx.GraphModule) -> set[bool]:
    return {node.args[6] for node in graph.graph.nodes if node.target is torch.ops.aten.lstm.input}


def test_it_is_the_same_when_saved_and_its_work_is_counted(tmp_path: Path) -> None:
    made = int8(net(series(7, 5)))
    inputs = made.noise()
    again = reloaded(made, tmp_path / "saved")
    assert torch.equal(again.module(*inputs), made.module(*inputs))
    path = tmp_path / "net.onnx"
    write(again, plugins.choose("exporters", "onnx"), path)
    [layer] = [each for each in operations("onnxruntime", path, Quantization()) if "LSTM" in each.name]
    assert (layer.kind, layer.dtype, layer.macs) == ("linear", "int8", 7 * 4 * 16 * (5 + 16))
