"""Train the model on the labels; the result is the teacher that later stages are compared with."""

from typing import TYPE_CHECKING

from pydantic import Field

from edgepack.compress.contract import Context, Training

if TYPE_CHECKING:
    from edgepack.config.device import Quantization
    from edgepack.models.candidate import Candidate

TAKES, GIVES = "eager", "eager"
VERSION = 4
MAKES_TEACHER = True


class Config(Training):
    epochs: int = Field(default=8, ge=1, le=10_000, description="epochs")


def dry_run(candidate: "Candidate", config: Config, quantization: "Quantization") -> "Candidate":
    """Raises StageError where there is nothing to train."""
    from edgepack.compress.training.loop import check_trainable

    check_trainable(candidate.module)
    return candidate


def run(candidate: "Candidate", config: Config, context: Context) -> "Candidate":
    from edgepack.compress.training.loop import fit

    best = fit(candidate.module, context, config, doing="training on the labels")
    return candidate.changed(notes=(f"kept epoch {best.epoch} of {config.epochs}",))
