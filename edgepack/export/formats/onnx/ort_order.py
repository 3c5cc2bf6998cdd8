"""An .ort file made the same in every run.

ONNX Runtime writes one part of it, the types that operators may have, in the order of a hash table that differs from
run to run. That part lies before all others and nothing points into it, so it can be written anew, sorted.
"""

from collections.abc import Callable
from typing import Any

_ALIGNED = 16  # alignment of tensors in the file, in bytes


def settled(content: bytes) -> bytes:
    """Return the same session with its kernel types in alphabetical order."""
    from flatbuffers import Builder
    from onnxruntime.tools import ort_format_model  # noqa: F401  (it puts what follows on the path)
    from ort_flatbuffers_py.fbs import InferenceSession as module

    session = module.InferenceSession.GetRootAs(content, 0)
    model, types = session.Model(), session.KernelTypeStrResolver()
    start = _start(model._tab)
    builder = Builder(len(content) + 4096)
    _place(builder, content[start:])
    version = builder.CreateString(session.OrtVersion().decode())
    written = _types(builder, types)
    module.InferenceSessionStart(builder)
    module.InferenceSessionAddOrtVersion(builder, version)
    module.InferenceSessionAddModel(builder, len(content) - model._tab.Pos)  # offsets count from the end
    module.InferenceSessionAddKernelTypeStrResolver(builder, written)
    builder.Finish(module.InferenceSessionEnd(builder), file_identifier=b"ORTM")
    return bytes(builder.Output())


def _start(model: Any) -> int:
    """Find where the model begins: its table is written after all its contents, and so lies before them."""
    from flatbuffers.number_types import SOffsetTFlags

    layout = int(model.Pos) - int(model.Get(SOffsetTFlags, model.Pos))  # which may lie before the table, or be shared
    return min(int(model.Pos), layout)


def _place(builder: Any, content: bytes) -> None:
    """Write the content to the end of the new file, where it was before."""
    builder.Prep(_ALIGNED, 0)
    while len(builder.Bytes) < len(content) + _ALIGNED:
        builder.growByteBuffer()
    builder.head = len(builder.Bytes) - len(content)
    builder.Bytes[builder.head :] = content


def _types(builder: Any, types: Any) -> int:
    from ort_flatbuffers_py.fbs import KernelTypeStrResolver as module

    known = [types.OpKernelTypeStrArgs(i) for i in range(types.OpKernelTypeStrArgsLength())]
    written = [_operator(builder, each) for each in sorted(known, key=lambda each: each.OpId())]
    entries = _vector(builder, written, module.KernelTypeStrResolverStartOpKernelTypeStrArgsVector)
    module.KernelTypeStrResolverStart(builder)
    module.KernelTypeStrResolverAddOpKernelTypeStrArgs(builder, entries)
    return int(module.KernelTypeStrResolverEnd(builder))


def _operator(builder: Any, operator: Any) -> int:
    from ort_flatbuffers_py.fbs import OpIdKernelTypeStrArgsEntry as module

    known = [operator.KernelTypeStrArgs(i) for i in range(operator.KernelTypeStrArgsLength())]
    written = [_type(builder, each) for each in sorted(known, key=lambda each: each.KernelTypeStr())]
    entries = _vector(builder, written, module.OpIdKernelTypeStrArgsEntryStartKernelTypeStrArgsVector)
    name = builder.CreateString(operator.OpId().decode())
    module.OpIdKernelTypeStrArgsEntryStart(builder)
    module.OpIdKernelTypeStrArgsEntryAddOpId(builder, name)
    module.OpIdKernelTypeStrArgsEntryAddKernelTypeStrArgs(builder, entries)
    return int(module.OpIdKernelTypeStrArgsEntryEnd(builder))


def _type(builder: Any, kind: Any) -> int:
    from ort_flatbuffers_py.fbs import KernelTypeStrArgsEntry as module

    written = [_argument(builder, kind.Args(i)) for i in range(kind.ArgsLength())]
    entries = _vector(builder, written, module.KernelTypeStrArgsEntryStartArgsVector)
    name = builder.CreateString(kind.KernelTypeStr().decode())
    module.KernelTypeStrArgsEntryStart(builder)
    module.KernelTypeStrArgsEntryAddKernelTypeStr(builder, name)
    module.KernelTypeStrArgsEntryAddArgs(builder, entries)
    return int(module.KernelTypeStrArgsEntryEnd(builder))


def _argument(builder: Any, argument: Any) -> int:
    from ort_flatbuffers_py.fbs import ArgTypeAndIndex as module

    module.ArgTypeAndIndexStart(builder)
    module.ArgTypeAndIndexAddArgType(builder, argument.ArgType())
    module.ArgTypeAndIndexAddIndex(builder, argument.Index())
    return int(module.ArgTypeAndIndexEnd(builder))


def _vector(builder: Any, tables: list[int], begin: Callable[[Any, int], int]) -> int:
    begin(builder, len(tables))
    for table in reversed(tables):
        builder.PrependUOffsetTRelative(table)
    return int(builder.EndVector())
