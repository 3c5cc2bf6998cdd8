"""ExecuTorch's .pte: batch 1, memory planned, everything that XNNPACK takes delegated to it.

Tables of int8 embeddings are read by a kernel of ExecuTorch's own: an app links its quantized kernels for them.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.config import Frozen

if TYPE_CHECKING:
    from edgepack.candidate import Candidate

RUNTIME = "executorch"
SUFFIX = ".pte"
VERSION = 2
LIBRARIES = ("executorch", "torchao")


class Config(Frozen):
    pass


def export(candidate: "Candidate", config: Config, path: Path) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower
    from executorch.exir.passes.quant_fusion_pass import QuantFusionPass

    program = to_edge_transform_and_lower(candidate.program(batch=1), partitioner=[XnnpackPartitioner()])
    # What XNNPACK leaves of int8 are embeddings: without the pass each inference would make the whole table float.
    passes = [QuantFusionPass(_fix_node_meta_val=True)]
    with path.open("wb") as file:
        program.to_executorch(ExecutorchBackendConfig(passes=passes)).write_to_file(file)
