"""ONNX for ONNX Runtime, or its .ort form: batch 1, weights that were quantized stored as int8."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from edgepack.config import Frozen

if TYPE_CHECKING:
    from edgepack.candidate import Candidate
    from edgepack.contents import Contents

RUNTIME = "onnxruntime"
SUFFIX = ".onnx"
VERSION = 4
LIBRARIES = ("onnx", "onnx-ir", "onnxscript", "onnxruntime")


class Config(Frozen):
    opset: int = Field(default=20, ge=18, le=23, description="version of the operator set")
    activations: Literal["uint8", "int8"] = Field(
        default="uint8", description="how quantized activations are stored; x86 fuses uint8 alone, ARM takes both"
    )
    format: Literal["onnx", "ort"] = Field(
        default="onnx", description="ort: optimized already, what a minimal build of the runtime loads"
    )
    target_platform: Literal["arm", "amd64"] | None = Field(
        default=None,
        description="what an .ort file is optimized for; default: the processor that builds",
    )

    @property
    def suffix(self) -> str:
        return f".{self.format}"


def export(candidate: "Candidate", config: Config, path: Path) -> None:
    import torch

    from edgepack.exporters import _ort
    from edgepack.exporters._names import name_initializers, named
    from edgepack.exporters._onnx_int8 import TRANSLATIONS, spelled

    names = named(candidate)
    if candidate.form == "exported":
        candidate = replace(candidate, module=spelled(candidate.module))
    program = torch.onnx.export(
        candidate.program(batch=1),
        dynamo=True,
        custom_translation_table=TRANSLATIONS,
        verbose=False,
        opset_version=config.opset,
        input_names=[spec.name for spec in candidate.signature.inputs],
        output_names=["logits"],
    )
    assert program is not None, "torch.onnx.export returns a program when it is given no path"
    if config.activations == "uint8":
        _unsigned_activations(program.model)
    _sum_before_norms(program.model)
    if candidate.form == "exported":
        name_initializers(program.model, names)
    _forget_sources(program.model)
    if config.format == "onnx":
        program.save(str(path), external_data=False)
        return
    with TemporaryDirectory() as folder:
        source = Path(folder) / "model.onnx"
        program.save(str(source), external_data=False)
        _ort.convert(source, path, config.target_platform)


def inspect(path: Path, candidate: "Candidate") -> "Contents":
    from edgepack.exporters import _onnx_contents
    from edgepack.exporters._names import named

    return _onnx_contents.read(path, named(candidate))


def runtime_files(path: Path, config: Config) -> dict[str, bytes]:
    from edgepack.exporters import _ort

    return _ort.files(path, config.target_platform)


def _unsigned_activations(model: Any) -> None:
    """Store int8 activations as uint8, 128 higher: the same numbers, in the form whose operators ONNX Runtime fuses.

    Weights stay int8. Source of the limitation: microsoft/onnxruntime issue 12487.
    """
    shifted: dict[str, Any] = {}
    for node in model.graph:
        quantizes = node.op_type == "QuantizeLinear"
        if quantizes or (node.op_type == "DequantizeLinear" and node.inputs[0].const_value is None):
            zero = node.inputs[2]
            if zero.const_value.dtype.name == "INT8" and not zero.const_value.shape.dims:
                node.replace_input_with(2, _shifted(zero, shifted))
                stored = node.outputs[0] if quantizes else node.inputs[0]
                stored.dtype = node.inputs[2].dtype
    model.graph.initializers.update({value.name: value for value in shifted.values()})
    for name in [name for name, value in model.graph.initializers.items() if not value.uses()]:
        del model.graph.initializers[name]


def _sum_before_norms(model: Any) -> None:
    """A residual is added by Sum, not Add, which is the same: ONNX Runtime then leaves it and LayerNormalization be.

    The one operator that it would make of the two takes eight times as long as both (1.32, x86, 128 x 384).
    """
    for node in model.graph:
        added = node.inputs[0].producer() if node.op_type == "LayerNormalization" else None
        if added is not None and added.op_type == "Add" and not any(_bias(value) for value in added.inputs):
            added.op_type = "Sum"


def _bias(value: Any) -> bool:
    return value.const_value is not None and len(value.shape) <= 1


def _shifted(zero: Any, known: dict[str, Any]) -> Any:
    import numpy
    import onnx_ir

    if zero.name not in known:
        number = numpy.array(int(zero.const_value.numpy()) + 128, dtype=numpy.uint8)
        tensor = onnx_ir.tensor(number, name=f"{zero.name}_uint8")
        known[zero.name] = onnx_ir.Value(
            name=tensor.name, const_value=tensor, type=onnx_ir.TensorType(tensor.dtype), shape=onnx_ir.Shape([])
        )
    return known[zero.name]


def _forget_sources(model: Any) -> None:
    """Drop what the exporter notes of the machine it ran on: paths in stack traces would differ from clone to clone."""
    values = [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]
    for part in (model, model.graph, *values, *model.graph):
        part.metadata_props.clear()
        part.doc_string = None
