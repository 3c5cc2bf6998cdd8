"""Put a small student in place of the model, taught by the model's own outputs.

The model that comes in is the teacher, so two of these in a row are a teacher assistant.
Source: G. Hinton, O. Vinyals and J. Dean, Distilling the Knowledge in a Neural Network, arXiv 1503.02531, 2015.
"""

from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from edgepack.errors import StageError
from edgepack.models import ModelChoice
from edgepack.stages import Context, Training
from edgepack.units import SHARE, Share

if TYPE_CHECKING:
    from edgepack.candidate import Candidate

TAKES, GIVES = "eager", "eager"
VERSION = 1
LIBRARIES = ("torchvision", "torch-pruning")


class Config(Training):
    student: ModelChoice = Field(description="the model that is left: {torchvision: resnet18, width: 25 %}")
    epochs: int = Field(default=20, ge=1, le=10_000, description="passes over the training split")
    learning_rate: float = Field(
        default=2e-3, gt=0, description="peak rate; a fresh student wants more than fine-tuning"
    )
    temperature: float = Field(default=4.0, gt=0, le=100, description="softens the teacher's outputs")
    alpha: Share = Field(default=0.9, description="weight of the teacher; the labels have the rest")

    @field_validator("alpha")
    @classmethod
    def _share(cls, alpha: float) -> float:
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is a share between 0 % and 100 %, got {SHARE.format(alpha)}")
        return alpha


def run(candidate: "Candidate", config: Config, context: Context) -> "Candidate":
    from edgepack.candidate import Candidate, parameters
    from edgepack.train import Distillation, fit

    student = Candidate.start(config.student, candidate.signature)
    had, has = parameters(candidate.module), parameters(student.module)
    if has >= had:
        raise StageError(
            f"the student has {has:,} parameters, its teacher {had:,}",
            "name a smaller student, or give it a smaller width",
        )
    lesson = Distillation(teacher=candidate.module, temperature=config.temperature, alpha=config.alpha)
    best = fit(student.module, context, config, doing="teaching the student", distillation=lesson)
    return student.changed(notes=(f"kept epoch {best.epoch} of {config.epochs}", f"{had / has:.1f}x fewer parameters"))
