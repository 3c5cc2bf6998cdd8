"""The operators of a .pte: those that ExecuTorch itself computes, and those inside of what it hands to XNNPACK."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from edgepack.core.errors import DeviceError
from edgepack.export.formats.executorch.contents import RUNTIME, TORCH, XNN, XNNPACK, xnnpack_graph, xnnpack_tensor
from edgepack.export.operations import Dtype, Kind, Operation, Shape, convolution

_BYTES = {"float64": 8, "int64": 8, "float16": 2, "int16": 2, "int8": 1, "uint8": 1, "bool": 1}
_LEFT = {"aten::addmm": 1, "aten::mm": 0, "aten::bmm": 0, "aten::linear": 0}  # where the left matrix stands
_LOOKUPS = ("aten::embedding", "quantized_decomposed::embedding_byte", "aten::slice_copy", "aten::select_copy")


@dataclass(frozen=True)
class Tensor:
    dtype: str  # as numpy has it
    shape: Shape
    constant: bool

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * _BYTES.get(self.dtype, 4)


def _operation(
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
    """Raises DeviceError for a file with a part that a backend keeps in a form of its own."""
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
    """The tensor at this place, or those of the list that is there."""
    value = values[index].val
    if hasattr(value, "sizes"):
        constant = bool(value.data_buffer_idx) and value.allocation_info is None
        yield Tensor(TORCH.get(int(value.scalar_type), "float32"), tuple(value.sizes), constant)
    elif type(value).__name__ in ("TensorList", "OptionalTensorList"):
        for item in value.items:
            yield from _tensors(values, item) if item >= 0 else ()


def _kernel(operator: str, tensors: list[Tensor]) -> Operation:
    """The result stands last, twice: as what the kernel is to fill, and as what it gives."""
    *inputs, _, result = tensors if len(tensors) > 1 else [*tensors, *tensors]
    read = [result] if operator in _LOOKUPS else inputs
    macs = 0
    if operator == "aten::convolution":
        macs = result.elements * prod(inputs[1].shape[1:])
    elif operator in _LEFT:
        macs = result.elements * inputs[_LEFT[operator]].shape[-1]
    return _operation(operator, "portable", read, result, macs=macs)


def _delegated(program: Any, delegate: Any) -> Iterator[Operation]:
    if delegate.id != XNNPACK:
        message = f"what the file hands to {delegate.id} is in a form of its own, so its time cannot be estimated"
        raise DeviceError(message, "run it on the device")
    graph, _ = xnnpack_graph(program.backend_delegate_data[delegate.processed.index].data)
    values = {_id(value): value for value in (each["xvalue_union"] for each in graph["xvalues"])}
    for number, node in enumerate(graph["xnodes"]):
        operator = node["xnode_union_type"].removeprefix("XNN")
        yield replace(_node(operator, node["xnode_union"], values), name=f"{operator} {number}")


def _id(value: dict[str, Any]) -> int:
    return int(xnnpack_tensor(value)["id_out"])


def _node(operator: str, inside: dict[str, Any], values: dict[int, dict[str, Any]]) -> Operation:
    ids = [id for key, id in inside.items() if key.endswith("_id") and key != "output_id" and id in values]
    inputs, result = [_known(values[id]) for id in ids], _known(values[inside["output_id"]])
    kind, macs, told = _work(operator, inside, inputs, result)
    dtype: Dtype = "int8" if told in ("int8", "uint8") else "fp32"
    return _operation(operator, kind, inputs, result, dtype=dtype, macs=macs)


def _work(operator: str, inside: dict[str, Any], inputs: list[Tensor], result: Tensor) -> tuple[Kind, int, str]:
    """Its kind, its work and the type of its weights. Pictures are [1, height, width, channels]."""
    if "Conv2d" in operator or "ConvTranspose" in operator:
        kernel, each = (inside["kernel_height"], inside["kernel_width"]), inside["group_input_channels"]
        spread = inputs[0].elements * inside["group_output_channels"]
        macs = prod(kernel) * (spread if "Transpose" in operator else result.elements * each)
        return convolution(kernel, each, inside["groups"]), macs, inputs[1].dtype
    if operator in ("FullyConnected", "BatchMatrixMultiply"):
        return "linear", result.elements * inputs[0].shape[-1], inputs[1].dtype
    return "elementwise", 0, result.dtype


def _known(value: dict[str, Any]) -> Tensor:
    tensor = xnnpack_tensor(value)
    dtype = XNN.get(str(tensor["datatype"]).removeprefix("xnn_datatype_"), "int8")
    return Tensor(dtype, tuple(tensor.get("dims") or ()), bool(tensor["constant_buffer_idx"]))
