"""What is in a .pte: its program, what was handed to XNNPACK, and the constants of both.

XNNPACK's part of the file is a flatbuffer that names its constants by their hash. The layer of an operator is that of
its weight; biases and scales go with it.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy

from edgepack.records.file_contents import OPAQUE, OTHER, SEVERAL, UNREAD, Contents, Stored, gathered

if TYPE_CHECKING:
    from edgepack.export.tensor_layers import Array, Names

XNNPACK = "XnnpackBackend"
RUNTIME = "executorch_prim::"  # what moves no numbers
TORCH = {
    0: "uint8",
    1: "int8",
    2: "int16",
    3: "int32",
    4: "int64",
    5: "float16",
    6: "float32",
    7: "float64",
    11: "bool",
}
XNN = {
    **{"fp32": "float32", "fp16": "float16", "quint8": "uint8", "int32": "int32"},
    **dict.fromkeys(("qint8", "qcint8"), "int8"),
    **dict.fromkeys(("qint32", "qcint32"), "int32"),
}


@dataclass
class Constant:
    """One stored tensor, and the layers of the operators that read it."""

    array: "Array"
    layers: set[str] = field(default_factory=set)

    @property
    def stored(self) -> Stored:
        known = self.layers - {OTHER}
        layer = known.pop() if len(known) == 1 else SEVERAL if known else OTHER
        return Stored(layer=layer, dtype=str(self.array.dtype), bytes=self.array.nbytes)


Constants = dict[int | str, Constant]  # by the number of the buffer, or by XNNPACK's key


def read(path: Path, names: "Names") -> Contents:
    from executorch.exir._serialize._program import deserialize_pte_binary

    pte = deserialize_pte_binary(path.read_bytes())
    entries = pte.named_data.pte_data.items() if pte.named_data else ()
    named = {key: pte.named_data.buffers[entry.buffer_index] for key, entry in entries}
    constants: Constants = {}
    operators: Counter[str] = Counter()
    delegated: defaultdict[str, Counter[str]] = defaultdict(Counter)
    unread: list[Stored] = []
    for plan in pte.program.execution_plan:
        operators.update(_kernels(pte.program, plan, constants, names))
        for delegate in plan.delegates:
            payload = pte.program.backend_delegate_data[delegate.processed.index].data
            if delegate.id == XNNPACK:
                delegated[delegate.id].update(_xnnpack(payload, named, constants, names))
            else:
                delegated[delegate.id][OPAQUE] += 1
                unread.append(Stored(layer=OTHER, dtype=UNREAD, bytes=len(payload)))
    unread += [Stored(layer=OTHER, dtype=UNREAD, bytes=len(named[key])) for key in sorted({*named} - {*constants})]
    return Contents(
        tensors=gathered([*(each.stored for each in constants.values()), *unread]),
        operators=dict(sorted(operators.items())),
        delegated={backend: dict(sorted(count.items())) for backend, count in sorted(delegated.items())},
        arena_bytes=sum(size for plan in pte.program.execution_plan for size in plan.non_const_buffer_sizes),
    )


def _kernels(program: Any, plan: Any, constants: Constants, names: "Names") -> Iterator[str]:
    """The name of each operator that ExecuTorch itself runs; what the program stores is noted."""
    for value in plan.values:
        constants.update({id: Constant(array) for id, array in _stored(program, value.val)})
    for call in (each.instr_args for chain in plan.chains for each in chain.instructions):
        if type(call).__name__ == "KernelCall":
            _note(
                {id: array for arg in call.args for id, array in _stored(program, plan.values[arg].val)},
                constants,
                names,
            )
            operator = plan.operators[call.op_index]
            if not operator.name.startswith(RUNTIME):
                yield f"{operator.name}.{operator.overload}" if operator.overload else str(operator.name)


def _stored(program: Any, value: Any) -> "Iterator[tuple[int | str, Array]]":
    index = getattr(value, "data_buffer_idx", 0)
    if index and value.allocation_info is None:
        dtype = numpy.dtype(TORCH.get(int(value.scalar_type), "uint8"))  # others are told in bytes, as many as numbers
        size = dtype.itemsize * prod(value.sizes)  # what follows is padding
        yield index, numpy.frombuffer(program.constant_buffer[index].storage[:size], dtype)


def _note(read: "dict[int | str, Array]", constants: Constants, names: "Names", scaled: "Array | None" = None) -> None:
    """Constants that one operator reads are of one layer: that of the largest which is known."""
    found = [names.of(array) for array in sorted(read.values(), key=lambda array: -array.size)]
    if scaled is not None and not {*found} & names.layers:
        found.insert(0, names.of_scaled(scaled))
    layer = next((each for each in found if each in names.layers), next(iter(found), OTHER))
    for id, array in read.items():
        constants.setdefault(id, Constant(array)).layers.add(layer)


def _xnnpack(payload: bytes, named: dict[str, bytes], constants: Constants, names: "Names") -> Iterator[str]:
    """The kind of each operator inside ("Conv2d"); its constants are noted."""
    graph, inline = xnnpack_graph(payload)
    values = {xnnpack_tensor(each)["id_out"]: each for each in (value["xvalue_union"] for value in graph["xvalues"])}
    for node in graph["xnodes"]:
        inside, kind = node["xnode_union"], node["xnode_union_type"].removeprefix("XNN")
        inputs = [id for key, id in inside.items() if key.endswith("_id") and key != "output_id" and id in values]
        read = {key: array for id in inputs for key, array in _constants(values[id], graph, inline, named)}
        _note(read, constants, names, _rows(kind, values.get(inside.get("filter_id")), graph, inline, named))
        yield kind


def xnnpack_tensor(value: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = value.get("tensor_value", value)
    return found


def _constants(
    value: dict[str, Any], graph: dict[str, Any], inline: bytes, named: dict[str, bytes]
) -> "Iterator[tuple[int | str, Array]]":
    """A value's own numbers, and the scales of its channels."""
    tensor, scales = xnnpack_tensor(value), value.get("quant_params", {}).get("scale_buffer_idx", 0)
    for index, dtype in ((tensor["constant_buffer_idx"], _dtype(tensor)), (scales, "float32")):
        if index:
            place = graph["constant_data"][index]
            data = named[place["named_key"]] if place["named_key"] else inline[place["offset"] :][: place["size"]]
            yield place["named_key"] or f"{id(inline)}:{index}", numpy.frombuffer(data, dtype)


def _dtype(tensor: dict[str, Any]) -> str:
    return XNN.get(str(tensor["datatype"]).removeprefix("xnn_datatype_"), "uint8")  # others are packed, told in bytes


def _rows(
    kind: str, filter: dict[str, Any] | None, graph: dict[str, Any], inline: bytes, named: dict[str, bytes]
) -> "Array | None":
    """The float weight of a convolution, [outputs, inputs, height, width] as torch has it."""
    if filter is None or "Conv2d" not in kind or _dtype(xnnpack_tensor(filter)) != "float32":
        return None
    array = next(array for _, array in _constants(filter, graph, inline, named))
    order = (3, 0, 1, 2) if kind == "DepthwiseConv2d" else (0, 3, 1, 2)
    return array.reshape(xnnpack_tensor(filter)["dims"]).transpose(order)


def xnnpack_graph(payload: bytes) -> tuple[dict[str, Any], bytes]:
    """XNNPACK's graph as its schema has it, and the constants that follow it."""
    from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader, _get_schema_bytes
    from executorch.exir._serialize._flatbuffer import _flatc_decompile

    header = XNNHeader.from_bytes(payload[: XNNHeader.EXPECTED_LENGTH])
    with TemporaryDirectory() as folder:
        schema, binary = Path(folder) / "schema.fbs", Path(folder) / "graph.bin"
        schema.write_bytes(_get_schema_bytes())
        binary.write_bytes(payload[header.flatbuffer_offset :][: header.flatbuffer_size])
        _flatc_decompile(folder, str(schema), str(binary), ["--raw-binary"])
        text = binary.with_suffix(".json").read_text()
    infinite = re.sub(r": (-?)inf\b", r": \1Infinity", text)  # JSON has no word for it that both agree on
    return json.loads(infinite), payload[header.constant_data_offset :]
