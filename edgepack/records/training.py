"""The course of a training, epoch by epoch."""

from pydantic import Field

from edgepack.core.frozen import Frozen


class Epoch(Frozen):
    """One epoch of a training; epoch 0 is the model before it, of which only the validation split is known.

    `loss` is the mean over training batches, `learning_rate` the one of the last batch; `samples_per_second` counts the
    time of training alone. A loss that is not finite is None.
    """

    epoch: int = Field(ge=0)
    score: float | None = None  # of the task, on the validation split; None where a user's trainer tells none
    validation_loss: float | None = None
    loss: float | None = None
    learning_rate: float | None = None
    samples_per_second: float | None = None


class TrainingRecord(Frozen):
    """One training of a stage, and the epoch whose weights were kept."""

    doing: str
    kept: int
    epochs: tuple[Epoch, ...]
