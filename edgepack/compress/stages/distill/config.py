"""What a recipe may say of distillation."""

from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict, Field, PositiveInt, field_validator, model_validator

from edgepack.compress.contract import Training
from edgepack.core.units import SHARE, Share
from edgepack.models.contract import ModelChoice

if TYPE_CHECKING:
    from edgepack.config.plugins import Choice


class Config(Training):
    model_config = ConfigDict(
        json_schema_extra={"anyOf": [{"required": [way]} for way in ("student", "compression", "layers")]},
    )

    student: ModelChoice | None = Field(
        default=None, description="the model that is left: {torchvision: resnet18, width: 25 %}"
    )
    compression: float | None = Field(
        default=None,
        gt=1,
        le=10_000,
        description="in place of a student: derive one from the model with this many times fewer parameters",
    )
    layers: PositiveInt | tuple[int, ...] | None = Field(
        default=None,
        description="in place of a student: the first so many layers of an encoder, or those at these places from 0",
    )
    scale: Literal["width", "depth"] = Field(
        default="width",
        description="what a derived student has less of: channels, or blocks; of an encoder: heads, or layers",
    )
    init: Literal["teacher", "random"] = Field(
        default="teacher", description="what the student starts from: the teacher's weights where shapes allow, or none"
    )
    progressive: Literal["auto"] | int = Field(
        default="auto", description="teacher assistants on the way; auto: none up to 4x, one up to 16x, else two"
    )
    epochs: int = Field(default=20, ge=1, le=10_000, description="passes over the training split, of each student")
    learning_rate: float = Field(
        default=2e-3, gt=0, description="peak rate; a fresh student wants more than fine-tuning"
    )
    temperature: float = Field(default=4.0, gt=0, le=100, description="softens the teacher's outputs")
    alpha: Share = Field(default=0.9, description="weight of the teacher; the labels have the rest")
    features: float = Field(
        default=0.0, ge=0, le=1000, description="weight of feature matching (attention transfer); 0: none"
    )
    hidden: float = Field(
        default=0.0, ge=0, le=1000, description="weight of matching an encoder's hidden states; 0: none"
    )
    attention: float = Field(
        default=0.0, ge=0, le=1000, description="weight of matching how an encoder relates its tokens; 0: none"
    )

    @field_validator("alpha")
    @classmethod
    def _share(cls, alpha: float) -> float:
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is a share between 0 % and 100 %, got {SHARE.format(alpha)}")
        return alpha

    @field_validator("progressive")
    @classmethod
    def _few(cls, progressive: str | int) -> str | int:
        if isinstance(progressive, int) and not 0 <= progressive <= 4:
            raise ValueError(f"progressive is auto or a number of assistants from 0 to 4, got {progressive}")
        return progressive

    @model_validator(mode="after")
    def _one_student(self) -> "Config":
        if [self.student, self.compression, self.layers].count(None) != 2:
            raise ValueError(
                "give one of: a student, as {torchvision: resnet18, width: 25 %}, a compression, as 8, or layers, as 2"
            )
        if self.init == "random" and self.student is not None and has_weights(self.student):
            raise ValueError("init: random would throw the student's own weights away: leave one of them out")
        return self


def has_weights(student: "Choice") -> bool:
    return any(getattr(student.config, key, None) for key in ("checkpoint", "weights"))
