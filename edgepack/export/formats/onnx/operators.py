"""The operators of an .onnx or .ort file, as ONNX Runtime runs them: fused, one for each quantized layer.

The file is run once with the runtime's profiler, which tells each operator with the shapes and types of what it read
and wrote. Only rewrites that suit any processor are made, not those that lay tensors out for the one at hand.
"""

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgepack.export.operations import Kind, Operation, Shape, convolution

_BYTES = {"double": 8, "int64": 8, "uint64": 8, "float16": 2, "bfloat16": 2, "int16": 2, "uint16": 2}
_INT8 = ("int8", "uint8", "int4", "uint4")
_VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Shape", "Constant")  # compute nothing
_LOOKUPS = ("Gather", "GatherElements", "GatherND", "Slice", "Split")  # read no more than they write
_RECURRENT = ("LSTM", "GRU", "DynamicQuantizeLSTM")
_PRODUCTS = ("MatMul", "Gemm")

Tensor = tuple[str, Shape]  # the type, named as by the profiler, and the shape


def operations(path: Path, shapes: Mapping[str, Shape], *, int8_activations: bool) -> tuple[Operation, ...]:
    """List the operations. `int8_activations`: whether the device fuses these, as ONNX Runtime does on ARM."""
    with TemporaryDirectory() as folder:
        events = json.loads(_profile(path, Path(folder), shapes, int8_activations).read_text())
    ran = (event for event in events if event["cat"] == "Node" and event["name"].endswith("_kernel_time"))
    return tuple(_operation(event["name"].removesuffix("_kernel_time"), event["args"]) for event in ran)


def _profile(path: Path, folder: Path, shapes: Mapping[str, Shape], int8_activations: bool) -> Path:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.add_session_config_entry("session.qdqisint8allowed", "1" if int8_activations else "0")
    options.add_session_config_entry("session.disable_prepacking", "1")  # the shapes of packed weights are not reported
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    session.run(None, {value.name: _zeros(value, shapes.get(value.name)) for value in session.get_inputs()})
    return Path(session.end_profiling())


def _zeros(value: Any, shape: Shape | None) -> Any:
    """Return zeros for an input; a dimension that neither the file nor `shape` gives is 1."""
    import numpy

    kind = value.type.removeprefix("tensor(").removesuffix(")")
    known = shape or [size if isinstance(size, int) else 1 for size in value.shape]
    return numpy.zeros(tuple(known), {"float": "float32", "double": "float64"}.get(kind, kind))


def _operation(node: str, facts: dict[str, Any]) -> Operation:
    operator = facts["op_name"]
    inputs, outputs = _tensors(facts["input_type_shape"]), _tensors(facts["output_type_shape"])
    name = f"{operator} {node}" if node else operator
    if operator in _VIEWS:
        return Operation(name=name, kind="elementwise", elements=0, bytes=0)
    read = outputs if operator in _LOOKUPS else inputs
    traffic = sum(_size(each) for each in (*read, *outputs))
    weights = 0 if operator in _LOOKUPS else int(facts.get("parameter_size", 0))
    kind, macs, dtype = _work(operator, inputs, outputs)
    elements = max((prod(shape) for _, shape in (outputs if macs else [*read, *outputs])), default=0)
    return Operation(
        name=name,
        kind=kind,
        dtype="int8" if dtype in _INT8 else "fp32",
        macs=macs,
        elements=elements,
        bytes=traffic,
        weights=min(weights, traffic),
    )


def _work(operator: str, inputs: list[Tensor], outputs: list[Tensor]) -> tuple[Kind, int, str]:
    """Return the operator's kind, its MACs, and the type that decides its speed: that of its weights."""
    if operator in _RECURRENT:
        (steps, samples, _), weights = inputs[0][1], inputs[1:3]
        return "linear", steps * samples * sum(prod(shape) for _, shape in weights), weights[0][0]
    factors = [each for each in inputs if len(each[1]) > 1][:2]
    if len(factors) == 2 and "Conv" in operator:
        kind, macs = _convolution(operator, factors[0], factors[1], outputs[0])
        return kind, macs, factors[1][0]
    if len(factors) == 2 and any(product in operator for product in _PRODUCTS):
        return "linear", _product(operator, factors[0][1], outputs[0][1]), factors[1][0]
    return "elementwise", 0, outputs[0][0] if outputs else ""


def _tensors(recorded: list[dict[str, list[int]]]) -> list[Tensor]:
    return [(dtype, shape) for each in recorded for dtype, shape in each.items()]


def _size(tensor: Tensor) -> int:
    dtype, shape = tensor
    return prod(shape) * (1 if dtype in (*_INT8, "bool") else _BYTES.get(dtype, 4))


def _convolution(operator: str, data: Tensor, weight: Tensor, result: Tensor) -> tuple[Kind, int]:
    """Weights are [outputs, inputs / groups, *kernel]; if it is transposed, [inputs, outputs / groups, *kernel]."""
    second, *kernel = weight[1][1:]
    moved = data if "Transpose" in operator else result
    return convolution(kernel, second, data[1][1] // second), prod(moved[1]) * second * prod(kernel)


def _product(operator: str, left: Shape, result: Shape) -> int:
    """Count a matrix product: each result sums along a row of the left matrix, which Gemm may transpose."""
    return prod(result) * (prod(left) // result[0] if "Gemm" in operator else left[-1])
