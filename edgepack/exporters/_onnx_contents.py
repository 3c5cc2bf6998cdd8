"""What is in an .onnx file, or in its .ort form: initializers, and operators by name."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from edgepack.contents import OTHER, Contents, Stored, gathered

if TYPE_CHECKING:
    from edgepack.exporters._names import Array, Names


def read(path: Path, names: "Names") -> Contents:
    """ONNX Runtime plans the memory of activations when it loads a file: there is no arena in it."""
    tensors, operators = _of_ort(path) if path.suffix == ".ort" else _of_onnx(path)
    stored = [
        Stored(layer=_layer(name, array, names), dtype=str(array.dtype), bytes=array.nbytes) for name, array in tensors
    ]
    return Contents(tensors=gathered(stored), operators=dict(sorted(Counter(operators).items())))


def _layer(name: str, array: "Array", names: "Names") -> str:
    found = names.of_name(name)
    return names.of(array) if found == OTHER and array.size > 1 else found


def _of_onnx(path: Path) -> "tuple[list[tuple[str, Array]], list[str]]":
    import onnx

    model = onnx.load(path)
    constants = [*model.graph.initializer, *_constants(model.graph.node)]
    operators = [_named(node.domain, node.op_type) for node in model.graph.node]
    return [(each.name, onnx.numpy_helper.to_array(each)) for each in constants], operators


def _constants(nodes: Any) -> Iterator[Any]:
    return (
        attribute.t for node in nodes if node.op_type == "Constant" for attribute in node.attribute if attribute.t.dims
    )


def _of_ort(path: Path) -> "tuple[list[tuple[str, Array]], list[str]]":
    from onnx.helper import tensor_dtype_to_np_dtype
    from onnxruntime.tools import ort_format_model  # noqa: F401  (it puts what follows on the path)
    from ort_flatbuffers_py.fbs.InferenceSession import InferenceSession

    graph = InferenceSession.GetRootAs(bytearray(path.read_bytes()), 0).Model().Graph()
    tensors = []
    for tensor in map(graph.Initializers, range(graph.InitializersLength())):
        dtype = tensor_dtype_to_np_dtype(tensor.DataType())
        raw = b"" if tensor.RawDataIsNone() else tensor.RawDataAsNumpy().tobytes()
        tensors.append((tensor.Name().decode(), numpy.frombuffer(raw, dtype)))
    nodes = map(graph.Nodes, range(graph.NodesLength()))
    return tensors, [_named(node.Domain().decode(), node.OpType().decode()) for node in nodes]


def _named(domain: str, kind: str) -> str:
    return f"{domain}.{kind}" if domain not in ("", "ai.onnx") else kind
