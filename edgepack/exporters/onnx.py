"""ONNX for ONNX Runtime: batch 1, weights that were quantized stored as int8."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from edgepack.config import Frozen

if TYPE_CHECKING:
    from edgepack.candidate import Candidate
    from edgepack.device import Quantization

RUNTIME = "onnxruntime"
SUFFIX = ".onnx"
VERSION = 4
LIBRARIES = ("onnx", "onnx-ir", "onnxscript")


class Config(Frozen):
    opset: int = Field(default=20, ge=18, le=23, description="version of the operator set")
    activations: Literal["auto", "uint8", "int8"] = Field(
        default="auto", description="how quantized activations are stored; auto: as the profile of the device says"
    )


def suited(config: Config, quantization: "Quantization") -> Config:
    return (
        config if config.activations != "auto" else config.model_copy(update={"activations": quantization.activations})
    )


def export(candidate: "Candidate", config: Config, path: Path) -> None:
    import torch

    from edgepack.exporters._onnx_int8 import TRANSLATIONS, spelled

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
    for rewrite in _rewrites(config):
        rewrite(program.model)
    _forget_sources(program.model)
    program.save(str(path), external_data=False)


def _rewrites(config: Config) -> Iterator[Callable[[Any], None]]:
    from edgepack.exporters import _onnx_rewrites as rewrites

    if config.activations != "int8":
        yield rewrites.unsigned_activations
    yield rewrites.enforced_limits
    yield rewrites.average_pools
    yield rewrites.hard_sigmoids
    yield rewrites.hard_swishes
    yield rewrites.swishes
    yield rewrites.aligned_stems
    yield rewrites.sums_before_norms
    yield rewrites.unused


def _forget_sources(model: Any) -> None:
    """Drop what the exporter notes of the machine it ran on: paths in stack traces would differ from clone to clone."""
    values = [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]
    for part in (model, model.graph, *values, *model.graph):
        part.metadata_props.clear()
        part.doc_string = None
