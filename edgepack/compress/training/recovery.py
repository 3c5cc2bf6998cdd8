"""Training after something was removed."""

from typing import TYPE_CHECKING

from pydantic import Field

from edgepack.compress.contract import Context, Training

if TYPE_CHECKING:
    from torch import nn


class Recovery(Training):
    """Settings of the training after a cut."""

    epochs: int = Field(default=2, ge=0, le=10_000, description="epochs after every step")


def recover(module: "nn.Module", after: str, settings: Recovery, context: Context) -> None:
    from edgepack.compress.training.batch_norm import refresh_batch_norm
    from edgepack.compress.training.loop import fit
    from edgepack.compress.training.loss import Distillation

    refresh_batch_norm(module, context.data.train)
    lesson = Distillation.of(context.teacher)
    fit(module, context, settings, doing=f"recovering after {after}", distillation=lesson)
