"""Define the settings of distillation in a recipe."""

from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict, Field, PositiveInt, field_validator, model_validator

from edgepack.compress.contract import Training
from edgepack.core.units import SHARE, Share
from edgepack.models.contract import ModelChoice

if TYPE_CHECKING:
    from edgepack.config.plugins import Choice


MOST = 4  # teacher assistants


class Config(Training):
    model_config = ConfigDict(
        json_schema_extra={"anyOf": [{"required": [way]} for way in ("student", "compression", "layers")]},
    )

    student: ModelChoice | None = Field(
        default=None, description="the student model: {torchvision: resnet18, width: 25 %}"
    )
    compression: float | None = Field(
        default=None,
        gt=1,
        le=10_000,
        description="instead of student: derive a student from the model with this many times fewer parameters",
    )
    layers: PositiveInt | tuple[int, ...] | None = Field(
        default=None,
        description="instead of student: the first N layers of an encoder, or a list of layer indices from 0",
    )
    scale: Literal["width", "depth"] = Field(
        default="width",
        description="width: a derived student has fewer channels (encoder: heads); depth: fewer blocks (layers)",
    )
    init: Literal["teacher", "random"] = Field(
        default="teacher", description="initial weights of the student: the teacher's where shapes match, or random"
    )
    progressive: Literal["auto"] | int = Field(
        default="auto",
        description="number of teacher assistants; auto: none up to 4x fewer parameters, one up to 16x, else two",
    )
    epochs: int = Field(default=20, ge=1, le=10_000, description="epochs for each student")
    learning_rate: float = Field(
        default=2e-3, gt=0, description="peak learning rate; higher for a new student than for fine-tuning"
    )
    temperature: float = Field(default=4.0, gt=0, le=100, description="temperature that softens the teacher's outputs")
    alpha: Share = Field(default=0.9, description="weight of the teacher in the loss; the labels get the rest")
    features: float = Field(
        default=0.0, ge=0, le=1000, description="weight of feature matching (attention transfer); 0: none"
    )
    hidden: float = Field(
        default=0.0, ge=0, le=1000, description="weight of matching an encoder's hidden states; 0: none"
    )
    attention: float = Field(
        default=0.0, ge=0, le=1000, description="weight of matching the attention relations of an encoder; 0: none"
    )

    @field_validator("alpha")
    @classmethod
    def _share(cls, alpha: float) -> float:
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is a percentage between 0 % and 100 %, got {SHARE.format(alpha)}")
        return alpha

    @field_validator("progressive")
    @classmethod
    def _few(cls, progressive: str | int) -> str | int:
        if isinstance(progressive, int) and not 0 <= progressive <= MOST:
            raise ValueError(f"progressive is auto or a number of assistants from 0 to {MOST}, got {progressive}")
        return progressive

    @model_validator(mode="after")
    def _one_student(self) -> "Config":
        if [self.student, self.compression, self.layers].count(None) != 2:
            raise ValueError(
                "give one of student ({torchvision: resnet18, width: 25 %}), compression (8) or layers (2)"
            )
        if self.init == "random" and self.student is not None and has_weights(self.student):
            raise ValueError("init: random would discard the student's own weights: remove one of the two")
        return self


def has_weights(student: "Choice") -> bool:
    return any(getattr(student.config, key, None) for key in ("checkpoint", "weights"))
