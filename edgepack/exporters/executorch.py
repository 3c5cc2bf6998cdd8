"""ExecuTorch's .pte: batch 1, memory planned, everything that XNNPACK takes delegated to it."""

from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.config import Frozen

if TYPE_CHECKING:
    from edgepack.candidate import Candidate

RUNTIME = "executorch"
SUFFIX = ".pte"
VERSION = 1
LIBRARIES = ("executorch", "torchao")


class Config(Frozen):
    pass


def export(candidate: "Candidate", config: Config, path: Path) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = to_edge_transform_and_lower(candidate.program(batch=1), partitioner=[XnnpackPartitioner()])
    with path.open("wb") as file:
        program.to_executorch().write_to_file(file)
