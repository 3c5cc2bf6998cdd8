"""What is rewritten for ONNX Runtime's sake answers as before, operator by operator, and is fused."""

from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy
import onnx
import onnx_ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepack.export.formats.onnx import rewrites

Rewrite = Callable[[Any], None]
EXACT = (rewrites.enforced_limits, rewrites.hard_sigmoids, rewrites.hard_swishes, rewrites.unused)
EVERY = (
    rewrites.unsigned_activations,
    rewrites.enforced_limits,
    rewrites.average_pools,
    rewrites.hard_sigmoids,
    rewrites.hard_swishes,
    rewrites.swishes,
    rewrites.aligned_stems,
    rewrites.unused,
)
SIZE = 12


class Sketch:
    """A quantized graph, written down layer by layer as torch's exporter writes it."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.random = numpy.random.default_rng(0)

    def add(self, operator: str, *inputs: str, **settings: Any) -> str:
        name = f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=f"node_{name}", **settings))
        return name

    def constant(self, name: str, value: Any) -> str:
        self.constants[name] = numpy_helper.from_array(numpy.asarray(value), name)
        return name

    def rounded(self, value: str, scale: float, zero: int = 0) -> str:
        """Quantized to int8 and back."""
        names = [self.constant(f"s{len(self.nodes)}", numpy.float32(scale))]
        names.append(self.constant(f"z{len(self.nodes)}", numpy.int8(zero)))
        return self.add("DequantizeLinear", self.add("QuantizeLinear", value, *names), *names)

    def conv(self, value: str, shape: tuple[int, ...], *, most: int = 127, **settings: Any) -> str:
        label = f"w{len(self.nodes)}"
        stored = self.constant(label, self.random.integers(-most, most + 1, shape).astype(numpy.int8))
        scale = self.constant(f"{label}_scale", (self.random.random(shape[0]) / 500).astype(numpy.float32))
        zero = self.constant(f"{label}_zero", numpy.zeros(shape[0], numpy.int8))
        bias = self.constant(f"{label}_bias", self.random.normal(size=shape[0]).astype(numpy.float32))
        return self.add("Conv", value, self.add("DequantizeLinear", stored, scale, zero, axis=0), bias, **settings)

    def model(self, result: str, shape: tuple[int, ...], opset: int = 20) -> bytes:
        graph = helper.make_graph(
            [*self.nodes, helper.make_node("Identity", [result], ["logits"])],
            "graph",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
            list(self.constants.values()),
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
        content: bytes = onnx.shape_inference.infer_shapes(model).SerializeToString()
        return content


@cache
def everything() -> bytes:
    """A stem, a squeeze and excitation, a HardSwish, a SiLU, limits that rounding enforces and one that it does not."""
    net = Sketch()
    value = net.rounded("input", 2 / 255)
    value = net.conv(value, (8, 3, 7, 7), pads=[3, 3, 3, 3], strides=[2, 2])
    value = net.rounded(net.add("Relu", value), 0.02, -128)
    value = net.rounded(net.conv(value, (8, 8, 3, 3), pads=[1, 1, 1, 1], auto_pad="NOTSET"), 3 / 50, 5)
    value = net.rounded(net.add("HardSwish", value), 0.04, -100)
    axes = net.constant("axes", numpy.array([-1, -2]))
    pooled = net.rounded(net.add("ReduceMean", value, axes, keepdims=1), 0.03, -90)
    gate = net.rounded(net.conv(pooled, (8, 8, 1, 1)), 0.0703, 3)
    gate = net.rounded(net.add("HardSigmoid", gate, alpha=1 / 6), 1 / 255, -128)
    value = net.rounded(net.add("Mul", value, gate), 0.03, -90)
    low, high = net.constant("low", numpy.float32(-1)), net.constant("high", numpy.float32(6))
    value = net.rounded(net.add("Clip", net.conv(value, (8, 8, 1, 1)), low, high), 6.9 / 255, -92)  # from -0.97 to 5.93
    kept = net.rounded(net.add("Relu", net.conv(value, (8, 8, 1, 1))), 0.03, -120)  # from -0.24: the Relu is needed
    kept = net.rounded(net.add("Mul", kept, net.add("Sigmoid", kept)), 0.03, -118)
    return net.model(net.add("ReduceMean", kept, axes, keepdims=1), (1, 3, SIZE, SIZE))


def rewritten(content: bytes, *chosen: Rewrite) -> bytes:
    model = onnx_ir.serde.deserialize_model(onnx.load_from_string(content))
    for rewrite in chosen:
        rewrite(model)
    proto = onnx_ir.serde.serialize_model(model)
    onnx.checker.check_model(proto, full_check=True)
    result: bytes = proto.SerializeToString()
    return result


def session(content: bytes, *, fused: bool = False) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not fused:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def answers(content: bytes, *, fused: bool = False, rows: int = 8) -> Any:
    loaded, random = session(content, fused=fused), numpy.random.default_rng(1)
    inputs = [random.normal(size=loaded.get_inputs()[0].shape).astype(numpy.float32) for _ in range(rows)]
    return numpy.concatenate([loaded.run(None, {"input": each})[0].ravel() for each in inputs])


def operators(content: bytes) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load_from_string(content).graph.node)


def test_uint8_is_the_same_numbers() -> None:
    assert (answers(rewritten(everything(), rewrites.unsigned_activations)) == answers(everything())).all()


@pytest.mark.parametrize("rewrite", EXACT, ids=lambda rewrite: rewrite.__name__)
@pytest.mark.parametrize("before", [(), (rewrites.unsigned_activations,)], ids=["int8", "uint8"])
def test_unfused_answers_are_equal_bit_for_bit(rewrite: Rewrite, before: tuple[Rewrite, ...]) -> None:
    start = rewritten(everything(), *before)
    after = rewritten(start, rewrite)
    assert after != start
    assert (answers(after) == answers(start)).all()


@pytest.mark.parametrize("opset", [18, 23])
def test_every_operator_set_is_rewritten_alike(opset: int) -> None:
    model = onnx.load_from_string(everything())
    model.opset_import[0].version = opset
    after = rewritten(model.SerializeToString(), *EVERY)
    assert operators(after) == operators(rewritten(everything(), *EVERY))
    exact = rewritten(model.SerializeToString(), rewrites.unsigned_activations, *EXACT)
    assert (answers(exact) == answers(everything())).all()


@pytest.mark.parametrize("scale", [0.05, 0.037, 6 / 255, 6 / 256, 0.0123, 0.2])
@pytest.mark.parametrize("zero", [0, -20, -3, 77])
def test_a_hard_sigmoid_as_a_sum_is_the_same_for_every_number(scale: float, zero: int) -> None:
    net = Sketch()
    start = net.model(
        net.rounded(net.add("HardSigmoid", net.rounded("input", scale, zero), alpha=1 / 6), 1 / 255, -128), (1, 256)
    )
    inputs = {"input": ((numpy.arange(-128, 128) - zero) * numpy.float32(scale)).astype(numpy.float32)[None]}
    for before in ((), (rewrites.unsigned_activations,)):
        files = (rewritten(start, *before), rewritten(start, *before, rewrites.hard_sigmoids))
        results = [session(each).run(None, inputs)[0] for each in files]
        assert (results[0] == results[1]).all()


def test_most_hard_sigmoids_become_sums() -> None:
    count = 0
    for scale in numpy.linspace(0.01, 0.1, 20):
        net = Sketch()
        value = net.add("HardSigmoid", net.rounded("input", float(scale), 5), alpha=1 / 6)
        start = net.model(net.rounded(value, 1 / 255, -128), (1, 8))
        count += operators(rewritten(start, rewrites.hard_sigmoids))["Add"]
    assert count > 15


def test_names_of_the_model_itself_are_left_alone() -> None:
    net = Sketch()
    three = net.constant("edgepack.three", numpy.float32(5))
    value = net.add("HardSigmoid", net.rounded(net.add("Mul", "input", three), 0.0503, 3), alpha=1 / 6)
    start = net.model(net.rounded(value, 1 / 255, -128), (1, 64))
    after = rewritten(start, rewrites.hard_sigmoids)
    assert operators(after)["HardSigmoid"] == 0
    assert (answers(after) == answers(start)).all()


def test_one_weight_may_serve_stems_of_two_kinds() -> None:
    net = Sketch()
    picture = net.rounded("input", 0.02, 7)
    first = net.conv(picture, (4, 3, 7, 7), pads=[3, 3, 3, 3], strides=[2, 2])
    weights = net.nodes[-2].output[0]
    second = net.add("Conv", picture, weights, pads=[3, 3, 2, 2], strides=[2, 2])
    third = net.add("Conv", picture, weights, pads=[3, 3, 3, 3], strides=[1, 1])
    pooled = [net.add("ReduceMax", each, keepdims=0) for each in (first, second, third)]
    start = net.model(net.rounded(net.add("Sum", *pooled), 0.05), (1, 3, SIZE, SIZE))
    assert (answers(rewritten(start, rewrites.aligned_stems)) == answers(start)).all()


def test_a_mean_that_drops_its_dimensions_is_pooled_too() -> None:
    net = Sketch()
    value = net.rounded("input", 0.02, -128)
    axes = net.constant("axes", numpy.array([2, 3]))
    start = net.model(net.rounded(net.add("ReduceMean", value, axes, keepdims=0), 0.01, -100), (1, 8, 5, 5))
    after = rewritten(start, rewrites.average_pools, rewrites.unused)
    assert operators(after)["GlobalAveragePool"] == 1
    assert (answers(after) == answers(start)).all()


def test_a_residual_before_a_norm_is_a_sum_and_a_bias_is_not(tmp_path: Any) -> None:
    net = Sketch()
    scale, bias = (net.constant(name, numpy.full(8, value, numpy.float32)) for name, value in (("g", 1), ("b", 0.5)))
    first = net.add("LayerNormalization", net.add("Add", "input", net.add("Sin", "input")), scale, axis=-1)
    start = net.model(net.add("LayerNormalization", net.add("Add", first, bias), scale, axis=-1), (1, 4, 8))
    after = rewritten(start, rewrites.sums_before_norms)
    assert (operators(after)["Sum"], operators(after)["Add"]) == (1, 1)
    assert (answers(after) == answers(start)).all()


def test_limits_that_rounding_does_not_enforce_stay() -> None:
    count = operators(rewritten(everything(), rewrites.enforced_limits))
    assert (count["Relu"], count["Clip"]) == (1, 0)


def test_a_hard_sigmoid_that_is_not_torchs_stays() -> None:
    net = Sketch()
    value = net.add("HardSigmoid", net.rounded("input", 0.05, 3), alpha=0.2)
    start = net.model(net.rounded(value, 1 / 255, -128), (1, 64))
    assert operators(rewritten(start, rewrites.hard_sigmoids)) == operators(start)


@pytest.mark.parametrize(("steps", "zero"), [(50, 5), (41, -87), (7, 0), (120, 0), (100, 80)])
@pytest.mark.parametrize("step", [0.0173, 0.0411])
def test_a_hard_swish_in_integers_is_the_same_for_every_number(steps: int, zero: int, step: float) -> None:
    net = Sketch()
    value = net.add("HardSwish", net.rounded("input", 3 / steps, zero))
    start = net.model(net.rounded(value, step, -100), (1, 256))
    inputs = {"input": ((numpy.arange(-128, 128) - zero) * numpy.float32(3 / steps)).astype(numpy.float32)[None]}
    for before in ((), (rewrites.unsigned_activations,)):
        files = (rewritten(start, *before), rewritten(start, *before, rewrites.hard_swishes))
        results = [session(each).run(None, inputs)[0] for each in files]
        assert (results[0] == results[1]).all()
        assert operators(files[1])["Clip"] == 1


@pytest.mark.parametrize(("scale", "zero"), [(0.0611, 5), (0.06, -100)])
def test_a_hard_swish_that_cannot_represent_three_stays(scale: float, zero: int) -> None:
    net = Sketch()
    start = net.model(net.rounded(net.add("HardSwish", net.rounded("input", scale, zero)), 0.02, -100), (1, 8))
    assert operators(rewritten(start, rewrites.hard_swishes)) == operators(start)


@pytest.mark.parametrize("scale", [0.02, 0.05, 0.2])
def test_a_swish_in_integers_is_off_by_a_step_at_most(scale: float) -> None:
    """For each of the 256 numbers that it may be asked for."""
    net = Sketch()
    value = net.rounded("input", scale, -20)
    step = max(148 * scale, 1.0) / 250
    start = net.model(net.rounded(net.add("Mul", value, net.add("Sigmoid", value)), step, -110), (1, 256))
    inputs = {"input": ((numpy.arange(256) - 108) * numpy.float32(scale)).astype(numpy.float32)[None]}
    results = [session(each).run(None, inputs)[0] for each in (start, rewritten(start, rewrites.swishes))]
    assert numpy.abs(results[0] - results[1]).max() <= 1.01 * step


@pytest.mark.parametrize(("side", "moved"), [(2, False), (3, False), (4, True), (7, False), (8, True)])
@pytest.mark.parametrize("fused", [False, True], ids=["unfused", "fused"])
def test_a_pooled_mean_is_off_by_a_step_at_most(side: int, moved: bool, fused: bool) -> None:
    """In the scale of what it is the mean of, as the quantizer has it: sixteenths lie half way between two steps."""
    scale, random = 0.02, numpy.random.default_rng(2)
    net = Sketch()
    axes = net.constant("axes", numpy.array([2, 3]))
    mean = net.add("ReduceMean", net.rounded("input", scale, -100), axes, keepdims=1)
    start = rewritten(net.model(net.rounded(mean, scale, -100), (1, 64, side, side)), rewrites.unsigned_activations)
    sessions = [session(start), session(rewritten(start, rewrites.average_pools, rewrites.unused), fused=fused)]
    off = []
    for _ in range(20):
        steps = random.integers(-28, 228, (1, 64, side, side))
        before, after = (each.run(None, {"input": (steps * scale).astype(numpy.float32)})[0] for each in sessions)
        off.append(numpy.abs(after - before) / scale)
    assert numpy.max(off) < 1.01
    if side % 2 or not fused:
        assert bool(numpy.max(off) > 0.5) is moved
    assert numpy.mean(numpy.array(off) > 0.5) < (0.06 if side == 2 else 0.02)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kernel", [3, 7])
@pytest.mark.parametrize(("stride", "size"), [(1, 12), (2, 12), (2, 13)])
@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 1, 1, 1], [2, 3, 1, 0]])
def test_stems_of_every_shape_are_aligned_exactly(
    channels: int, kernel: int, stride: int, size: int, pads: list[int]
) -> None:
    net = Sketch()
    value = net.conv(
        net.rounded("input", 0.02, 7),
        (4, channels, kernel, kernel),
        most=63,  # no processor's products of eight bits saturate
        pads=pads,
        strides=[stride, stride],
        auto_pad="NOTSET",
    )
    start = net.model(net.rounded(value, 0.05), (1, channels, size, size))
    start = rewritten(start, rewrites.unsigned_activations)
    after = rewritten(start, rewrites.aligned_stems)
    [weights] = [value for value in onnx.load_from_string(after).graph.initializer if value.name.endswith(".aligned")]
    assert weights.dims[1] % 4 == 0
    assert (answers(after, rows=2, fused=True) == answers(start, rows=2, fused=True)).all()  # sums of integers
    assert numpy.abs(answers(after, rows=2) - answers(start, rows=2)).max() < 0.051  # sums in float have an order


def test_what_is_left_is_one_integer_operator_a_layer(tmp_path: Any) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "fused.onnx"), 4
    onnxruntime.InferenceSession(rewritten(everything(), *EVERY), options, providers=["CPUExecutionProvider"])
    count = Counter(node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node)
    assert count["QLinearConv"] == 4
    assert count["QLinearMul"] == 3
    assert not {"HardSwish", "HardSigmoid", "Sigmoid"} & {*count}


def test_an_exact_file_stays_close_when_it_is_fused() -> None:
    exact = (rewrites.unsigned_activations, *EXACT)
    assert numpy.abs(answers(rewritten(everything(), *exact), fused=True) - answers(everything())).max() < 0.02
