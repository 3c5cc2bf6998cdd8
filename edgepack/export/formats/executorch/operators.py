"""List the operators of a .pte: those that ExecuTorch runs itself, and those that it delegates to a backend."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from edgepack.core.errors import DeviceError
from edgepack.export.formats.executorch.contents import PACKED, RUNTIME, TORCH
from edgepack.export.formats.executorch.contract import backend_of
from edgepack.export.operations import Dtype, Kind, Operation, Shape

_BYTES = {"float64": 8, "int64": 8, "float16": 2, "int16": 2, "int8": 1, "uint8": 1, "bool": 1}
_LEFT = {"aten::addmm": 1, "aten::mm": 0, "aten::bmm": 0, "aten::linear": 0}  # index of the left matrix
_LOOKUPS = ("aten::embedding", "quantized_decomposed::embedding_byte", *PACKED, "aten::slice_copy", "aten::select_copy")


@dataclass(frozen=True)
class Tensor:
    dtype: str  # as in numpy
    shape: Shape
    constant: bool

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements // 2 if self.dtype == "int4" else self.elements * _BYTES.get(self.dtype, 4)


def operation(
    name: str, kind: Kind, read: Sequence[Tensor], result: Tensor, *, dtype: Dtype = "fp32", macs: int = 0
) -> Operation:
    tensors = [*read, result]
    return Operation(
        name=name,
        kind=kind,
        dtype=dtype,
        macs=macs,
        elements=result.elements if macs else max(each.elements for each in tensors),
        bytes=sum(each.bytes for each in tensors),
        weights=sum(each.bytes for each in tensors if each.constant),
    )


def operations(path: Path) -> tuple[Operation, ...]:
    """List the operations. Raises DeviceError for a file with a payload whose format is not known."""
    from executorch.exir._serialize._program import deserialize_pte_binary

    program = deserialize_pte_binary(path.read_bytes()).program
    return tuple(each for plan in program.execution_plan for each in _of_plan(program, plan))


def _of_plan(program: Any, plan: Any) -> Iterator[Operation]:
    for call in (each.instr_args for chain in plan.chains for each in chain.instructions):
        if type(call).__name__ == "DelegateCall":
            yield from _delegated(program, plan.delegates[call.delegate_index])
        elif type(call).__name__ == "KernelCall":
            operator = plan.operators[call.op_index].name
            if not operator.startswith(RUNTIME):
                yield _kernel(operator, [each for arg in call.args for each in _tensors(plan.values, arg)])


def _tensors(values: Any, index: int) -> Iterator[Tensor]:
    """Yield the tensor at this index, or those of the list there."""
    value = values[index].val
    if hasattr(value, "sizes"):
        constant = bool(value.data_buffer_idx) and value.allocation_info is None
        yield Tensor(TORCH.get(int(value.scalar_type), "float32"), tuple(value.sizes), constant)
    elif type(value).__name__ in ("TensorList", "OptionalTensorList"):
        for item in value.items:
            yield from _tensors(values, item) if item >= 0 else ()


def _kernel(operator: str, tensors: list[Tensor]) -> Operation:
    """Describe a kernel call. Its result is listed last, twice: as the buffer to fill and as the return value."""
    *inputs, _, result = tensors if len(tensors) > 1 else [*tensors, *tensors]
    read = [result] if operator in _LOOKUPS else inputs
    macs = 0
    if operator == "aten::convolution":
        macs = result.elements * prod(inputs[1].shape[1:])
    elif operator in _LEFT:
        macs = result.elements * inputs[_LEFT[operator]].shape[-1]
    return operation(operator, "portable", read, result, macs=macs)


def _delegated(program: Any, delegate: Any) -> Iterator[Operation]:
    backend = backend_of(delegate.id)
    if backend is None or backend.payload_operations is None:
        message = f"the part delegated to {delegate.id} cannot be read, so its time cannot be estimated"
        raise DeviceError(message, "measure it on the device")
    yield from backend.payload_operations(program.backend_delegate_data[delegate.processed.index].data)
