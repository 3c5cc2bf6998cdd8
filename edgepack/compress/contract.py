"""Define what a stage must and may provide, and what it gets."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import Field

from edgepack.config.device import Quantization
from edgepack.config.plugins import DEFAULT_QUANTIZER
from edgepack.core.events import Emit
from edgepack.core.frozen import Frozen
from edgepack.data.contract import Task

if TYPE_CHECKING:
    from edgepack.config.recipe import Place
    from edgepack.data.splits import TrainingData
    from edgepack.models.candidate import Candidate


Latency = Callable[["Candidate"], float]  # the median of one inference of its exported file on the device, ms
Size = Callable[["Candidate"], float]  # of its largest exported file, bytes

Precision = Literal["fp32", "bf16"]


class StageConfig(Frozen):
    """Base of every stage's settings. A stage overrides the properties that differ from their defaults."""

    @property
    def needs_timing(self) -> bool:
        """Whether what the stage does depends on timings taken on the device."""
        return False

    @property
    def budgets_used(self) -> tuple[str, ...]:
        """Metrics whose budgets what the stage does depends on."""
        return ()

    @property
    def trainings(self) -> "tuple[Training, ...]":
        """The settings of the trainings that the stage does."""
        return ()


class Training(StageConfig):
    """The settings of a training: base of those of a stage that trains, or of one that recovers after its cuts."""

    epochs: int = Field(ge=0, le=10_000, description="epochs")
    learning_rate: float = Field(
        default=1e-3, gt=0, description="peak learning rate of AdamW; warm-up, then cosine decay"
    )
    batch_size: int = Field(default=64, ge=2, description="batch size")
    precision: Precision = Field(
        default="fp32",
        description="bf16: mixed precision, for processors with bf16 instructions; measure whether it is faster",
    )

    @property
    def trainings(self) -> "tuple[Training, ...]":
        return (self,)


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a stage may use besides the candidate. `teacher` is None until a stage has made one.

    `tolerance` is the drop in score that the recipe's budgets allow, `size_budget` the bytes of a file, where they say.
    `quantizer` is the one that the files want which are made of the result.
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
    quantizer: str = DEFAULT_QUANTIZER


class Stage(Protocol):
    """Changes a model: trains it, makes it smaller or faster. Stands in compress/stages/.

    What has no default below must be defined; what has one may be left out. A whole stage:

        "Round weights to multiples of a step: the file compresses better."

        from pydantic import Field

        from edgepack.compress.contract import StageConfig

        TAKES, GIVES = "eager", "eager"
        VERSION = 1


        class Config(StageConfig):
            step: float = Field(default=0.01, gt=0, description="what weights are multiples of")


        def run(candidate, config, context):
            for weight in candidate.module.parameters():
                weight.data = (weight.data / config.step).round() * config.step
            return candidate.changed(notes=(f"multiples of {config.step}",))
    """

    TAKES: str  # the form of the model before: "eager" or "exported"
    GIVES: str  # and after
    VERSION: int  # to bump when the same input would give another output
    Config: type[StageConfig]  # what a recipe may say of it

    LIBRARIES: tuple[str, ...] = ()  # packages besides torch whose version changes the output
    READS: tuple[str, ...] = ()  # facts of the device's `quantization` that it reads
    USES_QUANTIZER: bool = False  # whether it depends on `context.quantizer`: one result then is not for all files
    MAKES_TEACHER: bool = False  # whether later stages and the report compare with what it gives

    @abstractmethod
    def run(self, candidate: "Candidate", config: Any, context: Context) -> "Candidate":
        """Do the work. The candidate is a private copy, which may be changed in place."""

    def incompatibility(self, config: Any, place: "Place") -> str:
        """Say why the stage makes no sense where the recipe puts it, or "". Without torch, for `check` asks too."""
        return ""

    def uses(self, config: Any) -> dict[str, str]:
        """Name the plugins of other kinds that it takes: {kind: name}. Their VERSION and LIBRARIES count as its own."""
        return {}

    # dry_run(candidate, config, quantization) does to an untrained structure what `run` will, so that what cannot work
    # fails before hours are spent. With a config that needs timing it is given `latency` too, as a keyword; where the
    # stage uses a quantizer, its name as `quantizer`. None: the structure stays as it is, and nothing is tried.
    dry_run: "Callable[..., Candidate] | None" = None
