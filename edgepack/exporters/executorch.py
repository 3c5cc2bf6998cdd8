"""ExecuTorch's .pte: batch 1, memory planned, everything that XNNPACK takes delegated to it.

Tables of int8 embeddings are read by a kernel of ExecuTorch's own: an app links its quantized kernels for them.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.config import Frozen

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from edgepack.candidate import Candidate

RUNTIME = "executorch"
SUFFIX = ".pte"
VERSION = 3
LIBRARIES = ("executorch", "torchao")


class Config(Frozen):
    pass


def export(candidate: "Candidate", config: Config, path: Path) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.exir.passes.quant_fusion_pass import QuantFusionPass

    from edgepack.exporters._xnnpack import delegable

    exported = delegable(candidate.program(batch=1), candidate.example_inputs())
    program = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    passes = [QuantFusionPass(_fix_node_meta_val=True)] if _has_int8_tables(exported) else []
    with path.open("wb") as file:
        program.to_executorch(_settings(passes)).write_to_file(file)


def _settings(passes: list[Any]) -> Any:
    """Memory is planned for all but the inputs, which are read where the app has them."""
    from executorch.exir import ExecutorchBackendConfig
    from executorch.exir.passes import MemoryPlanningPass

    return ExecutorchBackendConfig(passes=passes, memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False))


def _has_int8_tables(program: "ExportedProgram") -> bool:
    """Without the pass that knows them, each inference would make the whole table float."""
    import torch

    looked_up = torch.ops.aten.embedding.default
    return any(node.target is looked_up and node.args[0].op == "call_function" for node in program.graph.nodes)
