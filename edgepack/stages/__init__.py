"""A stage is a module with

    TAKES, GIVES                      the form of the model before and after: "eager" or "exported"
    VERSION                           bumped when the same input would give another output
    Config                            what a recipe may say of it (frozen pydantic, from StageConfig)
    run(candidate, config, context)   the work; may change its private copy of the candidate in place

and, where they differ from these defaults,

    LIBRARIES = ()                    packages besides torch whose version changes the output
    READS = ()                        facts of the device's `quantization` that it reads
    MAKES_TEACHER = False             whether what it gives is what later stages and the report compare with
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import Field

from edgepack.config import Frozen
from edgepack.device import Quantization
from edgepack.events import Emit
from edgepack.tasks import Task

if TYPE_CHECKING:
    from edgepack.candidate import Candidate
    from edgepack.datasets import TrainingData


class StageConfig(Frozen):
    """Base of every stage's settings."""


class Training(StageConfig):
    """The settings of every stage that trains."""

    epochs: int = Field(ge=0, le=10_000, description="passes over the training split")
    learning_rate: float = Field(default=1e-3, gt=0, description="peak rate of AdamW, warmed up and then cosine")
    batch_size: int = Field(default=64, ge=2, description="samples a step")


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a stage may use besides the candidate. `teacher` is None until a stage has made one."""

    data: "TrainingData"
    task: Task
    quantization: Quantization
    seed: int
    teacher: "Candidate | None"
    emit: Emit


class Stage(Protocol):
    TAKES: str
    GIVES: str
    VERSION: int
    Config: type[StageConfig]

    def run(self, candidate: "Candidate", config: Any, context: Context) -> "Candidate": ...
