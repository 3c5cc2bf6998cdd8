"""Read the contents of an .onnx or .ort file: initializers, and operators by name."""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from edgepack.export.packing import stored_bytes
from edgepack.records.file_contents import OTHER, Contents, Stored, gathered

if TYPE_CHECKING:
    from edgepack.export.packing import Array
    from edgepack.export.tensor_layers import Names

_PACKED = re.compile(r"_(int[24])(_\d+)?_packed$")  # how the names of such tensors end


@dataclass(frozen=True)
class Operator:
    name: str  # with its domain, unless that is ONNX's own
    reads: tuple[str, ...]

    @classmethod
    def of(cls, domain: str, kind: str, reads: tuple[str, ...]) -> "Operator":
        return cls(f"{domain}.{kind}" if domain not in ("", "ai.onnx") else kind, reads)


Graph = tuple["dict[str, Array]", list[Operator]]  # the stored tensors by name, and the operators that read them


def read(path: Path, names: "Names") -> Contents:
    """Read the contents; no arena, as ONNX Runtime plans activation memory when it loads a file."""
    tensors, operators = _of_ort(path) if path.suffix == ".ort" else _of_onnx(path)
    layers = _layers(tensors, operators, names)
    stored = [
        Stored(layer=layers[name], dtype=_dtype(name, each), bytes=stored_bytes(each)) for name, each in tensors.items()
    ]
    count = Counter(operator.name for operator in operators)
    return Contents(tensors=gathered(stored), operators=dict(sorted(count.items())))


def _layers(tensors: "dict[str, Array]", operators: list[Operator], names: "Names") -> dict[str, str]:
    """Return the layer of each tensor: by its name or numbers, else by those of what the same operator reads."""
    found = {name: _layer(name, array, names) for name, array in tensors.items()}
    beside: defaultdict[str, set[str]] = defaultdict(set)
    for operator in operators:
        known = {found[name] for name in operator.reads if name in found} & names.layers
        for name in operator.reads:
            beside[name] |= known
    lone = {name: next(iter(layers)) for name, layers in beside.items() if len(layers) == 1}
    return {name: lone.get(name, OTHER) if layer == OTHER else layer for name, layer in found.items()}


def _dtype(name: str, array: "Array") -> str:
    """Return the type of the numbers in a tensor: those of 4 and 2 bits are packed into bytes (int8.py)."""
    packed = _PACKED.search(name)
    return packed[1] if packed else str(array.dtype)


def _layer(name: str, array: "Array", names: "Names") -> str:
    found = names.of_name(name)
    return names.of(array) if found == OTHER and array.size > 1 else found


def _of_onnx(path: Path) -> Graph:
    import onnx

    graph = onnx.load(path).graph
    tensors = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    for node in graph.node:
        for each in node.attribute:
            if node.op_type == "Constant" and each.HasField("t"):
                tensors[node.output[0]] = onnx.numpy_helper.to_array(each.t)
    return tensors, [Operator.of(node.domain, node.op_type, tuple(node.input)) for node in graph.node]


def _of_ort(path: Path) -> Graph:
    from onnxruntime.tools import ort_format_model  # noqa: F401  (it puts what follows on the path)
    from ort_flatbuffers_py.fbs.InferenceSession import InferenceSession

    graph = InferenceSession.GetRootAs(bytearray(path.read_bytes()), 0).Model().Graph()
    tensors = map(graph.Initializers, range(graph.InitializersLength()))
    nodes = map(graph.Nodes, range(graph.NodesLength()))
    return {each.Name().decode(): _array(each) for each in tensors}, [_operator(node) for node in nodes]


def _array(tensor: Any) -> "Array":
    from onnx.helper import tensor_dtype_to_np_dtype

    content = b"" if tensor.RawDataIsNone() else tensor.RawDataAsNumpy().tobytes()
    array: Array = numpy.frombuffer(content, tensor_dtype_to_np_dtype(tensor.DataType()))
    return array


def _operator(node: Any) -> Operator:
    reads = tuple(node.Inputs(i).decode() for i in range(node.InputsLength()))
    return Operator.of(node.Domain().decode(), node.OpType().decode(), reads)
