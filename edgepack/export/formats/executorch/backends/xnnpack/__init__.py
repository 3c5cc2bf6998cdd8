"""Processors, through XNNPACK. Every build of the runtime that the worker knows has it: nobody need be asked."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

    from edgepack.export.formats.executorch.contract import Part
    from edgepack.export.operations import Operation

DELEGATE = "XnnpackBackend"
SOURCE = "backends/xnnpack"
LOW_BITS = True
BUILD, LIBRARY = "-DEXECUTORCH_BUILD_XNNPACK=ON", "xnnpack_backend"


def prepared(
    program: "ExportedProgram", inputs: "tuple[torch.Tensor, ...]", shapes: tuple[Any, ...] | None
) -> "ExportedProgram":
    from edgepack.export.formats.executorch.backends.xnnpack.rewrites import delegable

    return delegable(program, inputs, shapes)


def partitioners() -> list[Any]:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    return [XnnpackPartitioner()]


def lowering() -> AbstractContextManager[None]:
    from edgepack.export.formats.executorch.backends.xnnpack.patches import patched

    return patched()


def payload_parts(payload: bytes, named: Mapping[str, bytes]) -> "Iterator[Part]":
    from edgepack.export.formats.executorch.backends.xnnpack import payloads

    return payloads.parts(payload, named)


def payload_operations(payload: bytes) -> "Iterator[Operation]":
    from edgepack.export.formats.executorch.backends.xnnpack import payloads

    return payloads.operations(payload)
