"""Define what a stage must and may provide, and what it gets."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from pydantic import AfterValidator, Field

from edgepack.compress import timm_optimizers
from edgepack.compress.training.checkpoints import Checkpoints
from edgepack.compress.training.team import Team
from edgepack.config.compute import AskedPrecision, Hardware
from edgepack.config.device import Quantization
from edgepack.config.document import unknown
from edgepack.config.plugins import DEFAULT_QUANTIZER
from edgepack.config.user_code.references import Arguments, Reference
from edgepack.core.events import Emit
from edgepack.core.frozen import Frozen
from edgepack.core.units import Share
from edgepack.data.contract import Task
from edgepack.records.training import TrainingRecord

if TYPE_CHECKING:
    from edgepack.config.recipe import Place
    from edgepack.data.splits import TrainingData
    from edgepack.models.candidate import Candidate


Latency = Callable[["Candidate"], float]  # median latency of one inference of its exported file on the device, in ms
Size = Callable[["Candidate"], float]  # bytes of its largest exported file


class StageConfig(Frozen):
    """Base class of a stage's settings. A stage overrides the properties that differ from the defaults."""

    @property
    def needs_timing(self) -> bool:
        """Return whether the stage's work depends on timings taken on the device."""
        return False

    @property
    def budgets_used(self) -> tuple[str, ...]:
        """Return the metrics whose budgets the stage's work depends on."""
        return ()

    @property
    def trainings(self) -> "tuple[Training, ...]":
        """Return the settings of the trainings that the stage runs."""
        return ()


_OPTIMIZERS = ("adamw", "sgd")


def _known(optimizer: str) -> str:
    if optimizer in _OPTIMIZERS:
        return optimizer
    of_timm = optimizer.startswith(timm_optimizers.PREFIX)
    if of_timm and (why := timm_optimizers.incompatibility(optimizer)):
        raise ValueError(f"{optimizer} cannot be used: {why}")
    if not of_timm or not timm_optimizers.known(optimizer):
        raise ValueError(unknown("optimizer", optimizer, (*_OPTIMIZERS, *timm_optimizers.names())))
    return optimizer


Optimizer = Annotated[
    str,
    AfterValidator(_known),
    Field(
        description="adamw, sgd with Nesterov momentum 0.9, or timm/NAME for one of timm's, for example timm/lamb",
        json_schema_extra={"anyOf": [{"enum": [*_OPTIMIZERS]}, {"pattern": f"^{timm_optimizers.PREFIX}"}]},
    ),
]


class Training(StageConfig):
    """Settings of a training: base class for a stage that trains, or that trains to recover after a cut."""

    epochs: int = Field(ge=0, le=10_000, description="epochs")
    learning_rate: float = Field(default=1e-3, gt=0, description="peak learning rate")
    batch_size: int = Field(default=64, ge=2, description="batch size")
    optimizer: Optimizer = "adamw"
    weight_decay: float = Field(default=0.01, ge=0, description="weight decay")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="how the learning rate falls from its peak: to zero, or not at all"
    )
    warm_up: Share = Field(default=0.05, description="share of all steps in which the learning rate rises to its peak")
    clip: float | None = Field(default=1.0, gt=0, description="largest norm of the gradient; null: any")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="share of each label spread over all labels")
    class_weights: Literal["balanced"] | None = Field(
        default=None,
        description="balanced: a sample counts the more, the rarer its class; each class weighs N / (classes * count)",
    )
    mixup: float = Field(default=0.0, ge=0, description="alpha of mixup, which adds samples up; 0: none")
    cutmix: float = Field(default=0.0, ge=0, description="alpha of cutmix, which pastes parts of pictures; 0: none")
    ema: float | None = Field(
        default=None, gt=0, lt=1, description="decay of a running average of the weights, which is then what is kept"
    )
    early_stop: int | None = Field(
        default=None, ge=1, description="end after so many epochs without a better score on the validation split"
    )
    trainer: Reference | None = Field(
        default=None, description='your own function that trains instead: "module:function", see README'
    )
    trainer_args: Arguments = Field(default={}, description="keyword arguments of the trainer")
    precision: AskedPrecision = Field(
        default="auto",
        description="fp32, or mixed with bf16 or fp16; auto: as `compute` says, which is fp32 on a CPU. For bf16 a "
        "processor needs its instructions; measure whether it is faster",
    )

    @property
    def trainings(self) -> "tuple[Training, ...]":
        return (self,)

    @property
    def libraries(self) -> tuple[str, ...]:
        """Return the packages besides torch whose version changes what the training gives."""
        return ("timm",) if self.optimizer.startswith(timm_optimizers.PREFIX) else ()


class Recovery(Training):
    """Settings of the training after a cut."""

    epochs: int = Field(default=2, ge=0, le=10_000, description="epochs after every step")


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a stage may use besides the candidate. `teacher` is None until a stage has made one.

    `tolerance` is the drop in score that the recipe's budgets allow, `size_budget` the largest file in bytes; each is
    None without such a budget. `quantizer` is the one that the files made of the result need. `checkpoints` are those
    of the stage's trainings, and `trainings` their records, which training adds. Trainings run on `hardware`, together
    with the other processes of the `team`.
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
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    trainings: list[TrainingRecord] = field(default_factory=list)
    hardware: Hardware = field(default_factory=Hardware)
    team: Team = field(default_factory=Team)


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

    TAKES: str  # the form of the model it takes: "eager" or "exported"
    GIVES: str  # the form of the model it returns
    VERSION: int  # to bump when the same input would give another output
    Config: type[StageConfig]  # its settings in a recipe

    LIBRARIES: tuple[str, ...] = ()  # packages besides torch whose version changes the output
    READS: tuple[str, ...] = ()  # facts of the device's `quantization` that it reads
    USES_QUANTIZER: bool = False  # whether it depends on `context.quantizer`: then one result does not serve all files
    MAKES_TEACHER: bool = False  # whether its result is the teacher that later stages and the report compare with

    @abstractmethod
    def run(self, candidate: "Candidate", config: Any, context: Context) -> "Candidate":
        """Do the work. The candidate is a private copy, which may be changed in place."""

    def incompatibility(self, config: Any, place: "Place") -> str:
        """Say why the stage makes no sense at this place in the recipe, or "". Without torch: `check` calls it too."""
        return ""

    def remarks(self, config: Any) -> tuple[str, ...]:
        """Return remarks on the settings for people, shown by `check`. Without torch."""
        return ()

    def uses(self, config: Any) -> dict[str, str]:
        """Name the plugins of other kinds that it uses: {kind: name}. Their VERSION and LIBRARIES count as its own."""
        return {}

    # dry_run(candidate, config, quantization) does to an untrained structure what `run` will do, so that what cannot
    # work fails before hours are spent. With a config that needs timing it also gets `latency` as a keyword; if the
    # stage uses a quantizer, its name as `quantizer`. None: the structure does not change, and nothing is tried.
    dry_run: "Callable[..., Candidate] | None" = None
