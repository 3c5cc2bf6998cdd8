"""ONNX for ONNX Runtime: batch 1, weights that were quantized stored as int8."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from edgepack.config import Frozen

if TYPE_CHECKING:
    from edgepack.candidate import Candidate

RUNTIME = "onnxruntime"
SUFFIX = ".onnx"
VERSION = 1
LIBRARIES = ("onnx", "onnx-ir", "onnxscript")


class Config(Frozen):
    opset: int = Field(default=20, ge=18, le=23, description="version of the operator set")


def export(candidate: "Candidate", config: Config, path: Path) -> None:
    import torch

    program = torch.onnx.export(
        candidate.program(batch=1),
        dynamo=True,
        verbose=False,
        opset_version=config.opset,
        input_names=[spec.name for spec in candidate.signature.inputs],
        output_names=["logits"],
    )
    assert program is not None, "torch.onnx.export returns a program when it is given no path"
    _forget_sources(program.model)
    program.save(str(path), external_data=False)


def _forget_sources(model: Any) -> None:
    """Drop what the exporter notes of the machine it ran on: paths in stack traces would differ from clone to clone."""
    values = [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]
    for part in (model, model.graph, *values, *model.graph):
        part.metadata_props.clear()
        part.doc_string = None
