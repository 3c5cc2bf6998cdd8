"""ONNX for ONNX Runtime, or its .ort form: batch 1, quantized weights stored as int8."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from edgepack.core.frozen import Frozen

if TYPE_CHECKING:
    from edgepack.config.device import Quantization
    from edgepack.export.operations import Operation
    from edgepack.models.candidate import Candidate
    from edgepack.records.file_contents import Contents

RUNTIME = "onnxruntime"
SUFFIX = ".onnx"
VERSION = 8
LIBRARIES = ("onnx", "onnx-ir", "onnxscript", "onnxruntime", "flatbuffers")


class Config(Frozen):
    opset: int = Field(default=20, ge=18, le=23, description="version of the operator set")
    activations: Literal["auto", "uint8", "int8"] = Field(
        default="auto", description="type of quantized activations; auto: from the device profile"
    )
    format: Literal["onnx", "ort"] = Field(
        default="onnx", description="ort: already optimized, the only format that a minimal runtime build loads"
    )
    target_platform: Literal["arm", "amd64"] | None = Field(
        default=None,
        description="processor for an .ort file and runtime/: amd64, or arm (also 64-bit); default: this computer",
    )


def suffix(config: Config) -> str:
    return f".{config.format}"


def suited(config: Config, quantization: "Quantization") -> Config:
    from edgepack.export.formats.onnx.ort import host

    auto = {"activations": quantization.activations} if config.activations == "auto" else {}
    return config.model_copy(update={"target_platform": config.target_platform or host(), **auto})


def low_bits(config: Config) -> bool:
    return True


def export(candidate: "Candidate", config: Config, path: Path) -> None:
    import torch

    from edgepack.export.formats.onnx import generation, ort
    from edgepack.export.formats.onnx.int8 import TRANSLATIONS
    from edgepack.export.formats.onnx.torchlib import read_once
    from edgepack.export.tensor_layers import name_initializers, named
    from edgepack.export.tracing import operators_listed_once
    from edgepack.models.structure.decoder import is_decoder

    names = named(candidate) if candidate.form == "exported" else None  # eager models have them already
    decodes = is_decoder(candidate.module)
    with operators_listed_once(), read_once():
        program = torch.onnx.export(
            generation.program(candidate) if decodes else _in_operators(candidate).program(batch=1),
            dynamo=True,
            custom_translation_table=TRANSLATIONS,
            verbose=False,
            opset_version=config.opset,
            input_names=None if decodes else [spec.name for spec in candidate.signature.inputs],
            output_names=None if decodes else [spec.name for spec in candidate.signature.outputs],
        )
    assert program is not None, "torch.onnx.export returns a program when it is given no path"
    if decodes:
        generation.name(program.model, candidate)
    _name_apart(program.model)
    for rewrite in _rewrites(config):
        rewrite(program.model)
    if names is not None:
        name_initializers(program.model, names)
    _forget_sources(program.model)
    if decodes:
        generation.describe(program.model, candidate)
    if config.format == "onnx":
        program.save(str(path), external_data=False)
        return
    with TemporaryDirectory() as folder:
        source = Path(folder) / "model.onnx"
        program.save(str(source), external_data=False)
        ort.convert(source, path, config.target_platform)


def _in_operators(candidate: "Candidate") -> "Candidate":
    """Write what torch's exporter cannot say, or says at length, in ONNX's own operators."""
    from torch import nn

    from edgepack.export.formats.onnx import int8, recurrent
    from edgepack.export.recurrent import calls

    if candidate.form == "exported":
        graph = int8.with_onnx_operators(candidate.module)
        return replace(candidate, module=recurrent.with_onnx_operators(graph) if calls(graph) else graph)
    if not any(isinstance(part, nn.RNNBase) for part in candidate.module.modules()):
        return candidate
    graph = candidate.program(batch=1).module(check_guards=False)
    return replace(candidate, module=recurrent.with_onnx_operators(graph), form="exported")


def inspect(path: Path, candidate: "Candidate") -> "Contents":
    from edgepack.export.formats.onnx import contents
    from edgepack.export.tensor_layers import named

    return contents.read(path, named(candidate))


def operations(
    path: Path, quantization: "Quantization", shapes: Mapping[str, Sequence[int]]
) -> "tuple[Operation, ...]":
    from edgepack.export.formats.onnx import operators

    return operators.operations(path, shapes, int8_activations=quantization.activations == "int8")


def runtime_files(path: Path, config: Config) -> dict[str, bytes]:
    from edgepack.export.formats.onnx import generation, ort

    return {**ort.files(path, config.target_platform), **generation.genai_files(path, "$MODEL")}


def _rewrites(config: Config) -> Iterator[Callable[[Any], None]]:
    from edgepack.export.formats.onnx import rewrites

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


def _name_apart(model: Any) -> None:
    """Rename values that bear the name of an input or output, which the exporter does not see: a lookup in a table is
    named "embedding" by torch, as an output may be.
    """
    graph = model.graph
    ends = {*graph.inputs, *graph.outputs}
    inside = [value for node in graph for value in node.outputs if value not in ends]
    taken = {value.name for value in (*ends, *inside, *graph.initializers.values())}
    reserved = {value.name for value in ends}
    for value in inside:
        if value.name in reserved:
            value.name = next(name for i in count() if (name := f"{value.name}_inside_{i}") not in taken)
            taken.add(value.name)


def _forget_sources(model: Any) -> None:
    """Remove what the exporter records of its machine: paths in stack traces would differ from clone to clone."""
    values = [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]
    for part in (model, model.graph, *values, *model.graph):
        part.metadata_props.clear()
        part.doc_string = None
