"""Read what a file delegates to XNNPACK: a flatbuffer that names its constants by their hash."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy

from edgepack.export.formats.executorch.contract import Part
from edgepack.export.formats.executorch.operators import Tensor, operation
from edgepack.export.operations import Dtype, Kind, Operation, convolution
from edgepack.export.packing import BFLOAT16, unpacked

if TYPE_CHECKING:
    from edgepack.export.packing import Array

_DTYPES = {
    **{"fp32": "float32", "fp16": "float16", "quint8": "uint8", "int32": "int32"},
    **dict.fromkeys(("qint8", "qcint8"), "int8"),
    **dict.fromkeys(("qint32", "qcint32"), "int32"),
}

_IN_GROUPS = "qbint4"


def parts(payload: bytes, named: Mapping[str, bytes]) -> Iterator[Part]:
    graph, inline = _graph(payload)
    values = {_id(value): value for value in (each["xvalue_union"] for each in graph["xvalues"])}
    for node in graph["xnodes"]:
        inside, kind = node["xnode_union"], node["xnode_union_type"].removeprefix("XNN")
        inputs = [id for key, id in inside.items() if key.endswith("_id") and key != "output_id" and id in values]
        read = {key: array for id in inputs for key, array in _constants(values[id], graph, inline, named)}
        filter = _filter(kind, values.get(inside.get("filter_id")), graph, inline, named)
        yield Part(kind=kind, constants=read, scaled=filter)


def operations(payload: bytes) -> Iterator[Operation]:
    graph, _ = _graph(payload)
    values = {_id(value): value for value in (each["xvalue_union"] for each in graph["xvalues"])}
    for number, node in enumerate(graph["xnodes"]):
        operator = node["xnode_union_type"].removeprefix("XNN")
        yield replace(_node(operator, node["xnode_union"], values), name=f"{operator} {number}")


def _tensor(value: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = value.get("tensor_value", value)
    return found


def _constants(
    value: dict[str, Any], graph: dict[str, Any], inline: bytes, named: Mapping[str, bytes]
) -> "Iterator[tuple[str, Array]]":
    """Yield the numbers of a value, and the scales of its channels."""
    tensor, scales = _tensor(value), value.get("quant_params", {}).get("scale_buffer_idx", 0)
    in_groups = _kind(tensor) == _IN_GROUPS
    for index, dtype in (
        (tensor["constant_buffer_idx"], _dtype(tensor)),
        (scales, BFLOAT16 if in_groups else "float32"),
    ):
        if index:
            place = graph["constant_data"][index]
            data = named[place["named_key"]] if place["named_key"] else inline[place["offset"] :][: place["size"]]
            array = numpy.frombuffer(data, dtype)
            weight = in_groups and index != scales
            yield place["named_key"] or f"{id(inline)}:{index}", unpacked(array, 4) if weight else array


def _dtype(tensor: dict[str, Any]) -> str:
    return _DTYPES.get(_kind(tensor), "uint8")  # other types are packed, and given as bytes


def _kind(tensor: dict[str, Any]) -> str:
    return str(tensor["datatype"]).removeprefix("xnn_datatype_")


def _filter(
    kind: str, filter: dict[str, Any] | None, graph: dict[str, Any], inline: bytes, named: Mapping[str, bytes]
) -> "Array | None":
    """Return the float weight of a convolution, [outputs, inputs, height, width] as in torch."""
    if filter is None or "Conv2d" not in kind or _dtype(_tensor(filter)) != "float32":
        return None
    array = next(array for _, array in _constants(filter, graph, inline, named))
    order = (3, 0, 1, 2) if kind == "DepthwiseConv2d" else (0, 3, 1, 2)
    return array.reshape(_tensor(filter)["dims"]).transpose(order)


def _graph(payload: bytes) -> tuple[dict[str, Any], bytes]:
    """Return XNNPACK's graph, as in its schema, and the constants that follow it."""
    from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader, _get_schema_bytes
    from executorch.exir._serialize._flatbuffer import _flatc_decompile

    header = XNNHeader.from_bytes(payload[: XNNHeader.EXPECTED_LENGTH])
    with TemporaryDirectory() as folder:
        schema, binary = Path(folder) / "schema.fbs", Path(folder) / "graph.bin"
        schema.write_bytes(_get_schema_bytes())
        binary.write_bytes(payload[header.flatbuffer_offset :][: header.flatbuffer_size])
        _flatc_decompile(folder, str(schema), str(binary), ["--raw-binary"])
        text = binary.with_suffix(".json").read_text()
    infinite = re.sub(r": (-?)inf\b", r": \1Infinity", text)  # the two disagree on how JSON spells infinity
    return json.loads(infinite), payload[header.constant_data_offset :]


def _id(value: dict[str, Any]) -> int:
    return int(_tensor(value)["id_out"])


def _node(operator: str, inside: dict[str, Any], values: dict[int, dict[str, Any]]) -> Operation:
    ids = [id for key, id in inside.items() if key.endswith("_id") and key != "output_id" and id in values]
    inputs, result = [_known(values[id]) for id in ids], _known(values[inside["output_id"]])
    kind, macs, weight_type = _work(operator, inside, inputs, result)
    dtype: Dtype = "int8" if weight_type in ("int8", "uint8", "int4") else "fp32"
    return operation(operator, kind, inputs, result, dtype=dtype, macs=macs)


def _work(operator: str, inside: dict[str, Any], inputs: list[Tensor], result: Tensor) -> tuple[Kind, int, str]:
    """Return the operator's kind, its MACs and its weight type. Image tensors are [1, height, width, channels]."""
    if "Conv2d" in operator or "ConvTranspose" in operator:
        kernel, each = (inside["kernel_height"], inside["kernel_width"]), inside["group_input_channels"]
        spread = inputs[0].elements * inside["group_output_channels"]
        macs = prod(kernel) * (spread if "Transpose" in operator else result.elements * each)
        return convolution(kernel, each, inside["groups"]), macs, inputs[1].dtype
    if operator in ("FullyConnected", "BatchMatrixMultiply"):
        return "linear", result.elements * inputs[0].shape[-1], inputs[1].dtype
    return "elementwise", 0, result.dtype


def _known(value: dict[str, Any]) -> Tensor:
    tensor = _tensor(value)
    dtype = _DTYPES.get(_kind(tensor), "int4" if _kind(tensor) == _IN_GROUPS else "int8")
    return Tensor(dtype, tuple(tensor.get("dims") or ()), bool(tensor["constant_buffer_idx"]))
