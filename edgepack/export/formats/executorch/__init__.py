"""ExecuTorch's .pte: batch 1, planned memory, operators delegated to the backend where possible.

What it does not take runs on the portable kernels, which are slow. A file for Core ML or Vulkan is weighed here, ships,
and runs where its runtime has that backend.

Tables of int8 embeddings are read by a kernel of ExecuTorch's own: an app links its quantized kernels for them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from edgepack.config import plugins
from edgepack.config.plugins import Named
from edgepack.core.frozen import Frozen

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from edgepack.config.device import Quantization
    from edgepack.export.formats.executorch.generation import Written
    from edgepack.export.operations import Operation
    from edgepack.models.candidate import Candidate
    from edgepack.records.file_contents import Contents

RUNTIME = "executorch"
SUFFIX = ".pte"
METHOD = "forward"
VERSION = 10
LIBRARIES = ("executorch", "torchao", "coremltools")


class Config(Frozen):
    backend: Annotated[str, Named("backends")] = Field(
        default="xnnpack",
        description="backend: xnnpack, coreml or vulkan; portable: slow kernels that run everywhere",
    )


def uses(config: Config) -> dict[str, str]:
    return {"backends": config.backend}


def _backend(config: Config) -> ModuleType:
    return plugins.load("backends", config.backend)


def unavailable(config: Config) -> str:
    """Only look for files: importing the lowering would import torch."""
    backend, found = _backend(config), find_spec("executorch")
    if found is None:
        return "executorch is not installed: pip install executorch"
    places = [Path(folder, backend.SOURCE) for folder in found.submodule_search_locations or ()]
    if not any(place.exists() for place in places):
        return f"this executorch has no executorch/{backend.SOURCE}: pip install --force-reinstall executorch"
    if backend.PACKAGE and find_spec(backend.PACKAGE) is None:
        return f"it needs the package {backend.PACKAGE}: pip install {backend.PACKAGE}"
    return ""


def needs(config: Config) -> str:
    return str(_backend(config).NEEDS)


def quantizer(config: Config) -> str:
    return str(_backend(config).QUANTIZER)


def check(candidate: "Candidate", config: Config) -> None:
    from edgepack.export.formats.executorch.unrolled import check_steps

    check_steps(candidate)


def low_bits(config: Config) -> bool:
    return bool(_backend(config).LOW_BITS)


def export(candidate: "Candidate", config: Config, path: Path) -> None:
    import executorch.kernels.quantized  # noqa: F401  (what of an int8 model is left to the portable kernels)
    from executorch.exir import to_edge_transform_and_lower
    from executorch.exir.passes.quant_fusion_pass import QuantFusionPass
    from torch import no_grad

    from edgepack.export.formats.executorch.tracing import light_tracing

    backend, given = _backend(config), _written(candidate)
    exported = backend.prepared(given.program, given.inputs, given.shapes)
    with light_tracing(), no_grad():
        with backend.lowering():
            program = to_edge_transform_and_lower(
                exported, partitioner=backend.partitioners(), constant_methods=given.facts
            )
        passes = [QuantFusionPass(_fix_node_meta_val=True)] if _has_int8_tables(exported) else []
        made = program.to_executorch(_settings(passes, in_place=given.facts is not None))
    with path.open("wb") as file:
        made.write_to_file(file)


def _written(candidate: "Candidate") -> "Written":
    from edgepack.export.formats.executorch import generation
    from edgepack.export.formats.executorch.tables import with_packed_tables
    from edgepack.export.formats.executorch.unrolled import unrolled
    from edgepack.models.structure.decoder import is_decoder

    if is_decoder(candidate.module):
        return generation.written(candidate)
    inputs = candidate.example_inputs()
    if candidate.form == "exported":
        candidate = replace(candidate, module=with_packed_tables(candidate.module))
    return generation.Written(unrolled(candidate.program(batch=1), inputs), inputs)


def _settings(passes: list[Any], *, in_place: bool) -> Any:
    """Plan memory for all tensors but the inputs, which are read where the app has them.

    `in_place`, what is kept from call to call is changed where it is, not copied.
    """
    from executorch.exir import ExecutorchBackendConfig
    from executorch.exir.passes import MemoryPlanningPass

    planned = MemoryPlanningPass(alloc_graph_input=False)
    return ExecutorchBackendConfig(passes=passes, memory_planning_pass=planned, run_reinplace_pass=in_place)


def _has_int8_tables(program: "ExportedProgram") -> bool:
    """Return whether there are int8 embedding tables: without their pass, each inference dequantizes a whole table."""
    import torch

    looked_up = torch.ops.aten.embedding.default
    return any(node.target is looked_up and node.args[0].op == "call_function" for node in program.graph.nodes)


def inspect(path: Path, candidate: "Candidate") -> "Contents":
    from edgepack.export.formats.executorch import contents
    from edgepack.export.tensor_layers import named

    return contents.read(path, named(candidate))


def operations(
    path: Path, quantization: "Quantization", shapes: Mapping[str, Sequence[int]]
) -> "tuple[Operation, ...]":
    """List the operations; a .pte contains its shapes."""
    from edgepack.export.formats.executorch import operators

    return operators.operations(path)


def runtime_files(path: Path, config: Config) -> dict[str, bytes]:
    from edgepack.export.formats.executorch import runtime_build

    return runtime_build.files(path, _backend(config))
