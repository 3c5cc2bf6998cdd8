"""A stage is a module with

    TAKES, GIVES                      the form of the model before and after: "eager" or "exported"
    VERSION                           bumped when the same input would give another output
    Config                            what a recipe may say of it (frozen pydantic, from StageConfig)
    run(candidate, config, context)   the work; may change its private copy of the candidate in place

and, where they differ from these defaults,

    LIBRARIES = ()                    packages besides torch whose version changes the output
    READS = ()                        facts of the device's `quantization` that it reads
    MAKES_TEACHER = False             whether what it gives is what later stages and the report compare with
    misfit(config, place)             why this makes no sense where the recipe puts it, or ""; no torch, so that
                                      `check` can say it
    rehearse(candidate, config, quantization[, latency]) -> Candidate
                                      do to an untrained structure what `run` will: called before any training, so that
                                      what cannot work fails before hours are spent; `latency` for a config that
                                      `measures`
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import BaseModel, Field

from edgepack.config.device import Quantization
from edgepack.core.events import Emit
from edgepack.core.frozen import Frozen
from edgepack.data.contract import Task

if TYPE_CHECKING:
    from edgepack.data.splits import TrainingData
    from edgepack.models.candidate import Candidate


Latency = Callable[["Candidate"], float]  # the median of one inference of its exported file on the device, ms
Size = Callable[["Candidate"], float]  # of its largest exported file, bytes

Precision = Literal["fp32", "bf16"]


class StageConfig(Frozen):
    """Base of every stage's settings."""

    @property
    def measures(self) -> bool:
        """Whether what it does depends on timings taken on the device."""
        return False

    @property
    def heeds(self) -> tuple[str, ...]:
        """Metrics whose budgets what it does depends on."""
        return ()


class Training(StageConfig):
    """The settings of every stage that trains."""

    epochs: int = Field(ge=0, le=10_000, description="passes over the training split")
    learning_rate: float = Field(default=1e-3, gt=0, description="peak rate of AdamW, warmed up and then cosine")
    batch_size: int = Field(default=64, ge=2, description="samples a step")
    precision: Precision = Field(
        default="fp32", description="bf16: mixed precision, on processors that multiply bf16; measure what it gains"
    )


def trainings(config: BaseModel) -> Iterator[Training]:
    """The settings of the trainings that a stage does: its own, or those after its cuts."""
    for each in (config, getattr(config, "recover", None)):
        if isinstance(each, Training):
            yield each


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a stage may use besides the candidate. `teacher` is None until a stage has made one.

    `tolerance` is the drop in score that the recipe's budgets allow, `size_budget` the bytes of a file, where they say.
    """

    data: "TrainingData"
    task: Task
    quantization: Quantization
    seed: int
    teacher: "Candidate | None"
    emit: Emit
    latency: Latency | None = None
    size: Size | None = None
    tolerance: float | None = None
    size_budget: float | None = None


class Stage(Protocol):
    TAKES: str
    GIVES: str
    VERSION: int
    Config: type[StageConfig]

    def run(self, candidate: "Candidate", config: Any, context: Context) -> "Candidate": ...
