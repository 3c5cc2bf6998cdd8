"""Read the contents of a .pte: its program, what is delegated to backends, and the constants of both.

The layer of an operator is that of its weight; biases and scales go with it.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from edgepack.export.formats.executorch.contract import backend_of
from edgepack.export.packing import stored_bytes, unpacked
from edgepack.records.file_contents import OPAQUE, OTHER, SEVERAL, UNREAD, Contents, Stored, gathered

if TYPE_CHECKING:
    from edgepack.export.packing import Array
    from edgepack.export.tensor_layers import Names

RUNTIME = "executorch_prim::"  # operators that move no data
PACKED = {f"quantized_decomposed::embedding_{bits}bit": bits for bits in (4, 2)}  # operators with a table of bytes
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


@dataclass
class Constant:
    """One stored tensor, and the layers of the operators that read it."""

    array: "Array"
    layers: set[str] = field(default_factory=set)

    @property
    def stored(self) -> Stored:
        known = self.layers - {OTHER}
        layer = known.pop() if len(known) == 1 else SEVERAL if known else OTHER
        return Stored(layer=layer, dtype=str(self.array.dtype), bytes=stored_bytes(self.array))


Constants = dict[int | str, Constant]  # by the index of the buffer, or by a backend's key


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
            backend, inside = backend_of(delegate.id), delegated[delegate.id]
            if backend and backend.payload_parts:
                for part in backend.payload_parts(payload, named):
                    _note(part.constants, constants, names, part.scaled)
                    inside[part.kind] += 1
            else:
                inside[OPAQUE] += 1
                unread.append(Stored(layer=OTHER, dtype=UNREAD, bytes=len(payload)))
    unread += [Stored(layer=OTHER, dtype=UNREAD, bytes=len(named[key])) for key in sorted({*named} - {*constants})]
    return Contents(
        tensors=gathered([*(each.stored for each in constants.values()), *unread]),
        operators=dict(sorted(operators.items())),
        delegated={backend: dict(sorted(count.items())) for backend, count in sorted(delegated.items())},
        arena_bytes=sum(size for plan in pte.program.execution_plan for size in plan.non_const_buffer_sizes),
    )


def _kernels(program: Any, plan: Any, constants: Constants, names: "Names") -> Iterator[str]:
    """Yield the name of each operator that ExecuTorch itself runs; add the constants that the program stores."""
    for value in plan.values:
        constants.update({id: Constant(array) for id, array in _stored(program, value.val)})
    for call in (each.instr_args for chain in plan.chains for each in chain.instructions):
        if type(call).__name__ == "KernelCall":
            operator = plan.operators[call.op_index]
            read = {id: array for arg in call.args for id, array in _stored(program, plan.values[arg].val)}
            if operator.name in PACKED:
                table = max(read, key=lambda id: read[id].size)
                constants.pop(table, None)
                read[table] = unpacked(read[table], PACKED[operator.name])
            _note(read, constants, names)
            if not operator.name.startswith(RUNTIME):
                yield f"{operator.name}.{operator.overload}" if operator.overload else str(operator.name)


def _stored(program: Any, value: Any) -> "Iterator[tuple[int | str, Array]]":
    index = getattr(value, "data_buffer_idx", 0)
    if index and value.allocation_info is None:
        dtype = numpy.dtype(TORCH.get(int(value.scalar_type), "uint8"))  # other types as bytes, one per number
        size = dtype.itemsize * prod(value.sizes)  # the rest is padding
        yield index, numpy.frombuffer(program.constant_buffer[index].storage[:size], dtype)


def _note(read: "Mapping[Any, Array]", constants: Constants, names: "Names", scaled: "Array | None" = None) -> None:
    """Assign constants that one operator reads to one layer: that of the largest constant with a known layer."""
    found = [names.of(array) for array in sorted(read.values(), key=lambda array: -array.size)]
    if scaled is not None and not {*found} & names.layers:
        found.insert(0, names.of_scaled(scaled))
    layer = next((each for each in found if each in names.layers), next(iter(found), OTHER))
    for id, array in read.items():
        constants.setdefault(id, Constant(array)).layers.add(layer)
