"""Training after something was removed."""

from typing import TYPE_CHECKING

from pydantic import Field

from edgepack.stages import Context, Training

if TYPE_CHECKING:
    from torch import nn


class Recovery(Training):
    """Training after a cut."""

    epochs: int = Field(default=2, ge=0, le=10_000, description="passes over the training split after every step")


def recover(module: "nn.Module", after: str, settings: Recovery, context: Context) -> None:
    from edgepack.train import Distillation, fit, refresh_batch_norm

    refresh_batch_norm(module, context.data.train)
    lesson = Distillation.of(context.teacher)
    fit(module, context, settings, doing=f"recovering after {after}", distillation=lesson)
