"""A user's own trainer in place of edgepack's loop: `train: {trainer: "my_package.recover:fit"}`.

    def fit(job, **trainer_args):
        for epoch in range(job.settings.epochs):
            for inputs, targets in job.loader("train"):
                ...
            job.report(epoch=epoch + 1, loss=...)

It trains `job.module` in place. What it leaves is checked and scored; it may not change a shape, nor wake a weight that
pruning set to zero.
"""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal
from unittest.mock import patch

import torch
from torch import nn

from edgepack.compress.contract import Context, Training
from edgepack.compress.training.evaluation import EpochResult, Progress, eval_mode, train_mode, validate
from edgepack.config.user_code.references import resolve
from edgepack.core.errors import EdgepackError, StageError, listed, reason
from edgepack.data.splits import Split
from edgepack.models.structure.surgery import keeps_zeros
from edgepack.records.training import Epoch, TrainingRecord

if TYPE_CHECKING:
    from pathlib import Path

    from edgepack.data.contract import Task
    from edgepack.data.splits import TrainingData


@dataclass
class Loader:
    """Batches (inputs, targets) of a split; each pass over training samples is shuffled anew, by the build's seed.

    Inputs are one tensor if the model takes one, else a tuple of them.
    """

    split: Split
    size: int
    seed: int | None
    passes: int = 0

    def __len__(self) -> int:
        return -(-len(self.split) // self.size) if self.seed is None else self.split.count(self.size)

    def __iter__(self) -> Iterator[tuple[Any, torch.Tensor]]:
        seed = None if self.seed is None else self.seed + self.passes
        self.passes += 1
        for batch in self.split.batches(self.size, seed=seed):
            yield batch.inputs[0] if len(batch.inputs) == 1 else batch.inputs, batch.targets


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a trainer gets.

    `module` is to be trained in place; in `quantize` it is the one with simulated int8. `teacher` is None where there
    is none. `folder` is for checkpoints of its own, of this training alone: it may not exist yet, and is removed when
    the stage has ended; None outside a build.
    """

    module: nn.Module
    data: "TrainingData"
    teacher: nn.Module | None
    task: "Task"
    settings: Training
    seed: int
    folder: "Path | None"
    progress: Progress
    epochs: list[Epoch] = field(default_factory=list)

    def loader(self, part: Literal["train", "validation"]) -> Loader:
        """Return batches of `settings.batch_size` samples."""
        training = part == "train"
        return Loader(getattr(self.data, part), self.settings.batch_size, self.seed * 1_000_003 if training else None)

    def report(
        self, *, epoch: int, loss: float | None = None, score: float | None = None, learning_rate: float | None = None
    ) -> None:
        """Tell that an epoch has ended, counted from 1: shown while it runs, and drawn in report.html."""
        told = {"loss": loss, "score": score, "learning_rate": learning_rate}
        figures = {name: float(value) for name, value in told.items() if value is not None and math.isfinite(value)}
        self.epochs.append(Epoch(epoch=epoch, **figures))
        self.progress.done = min(epoch, self.progress.total) - 1
        self.progress.advance(lambda: dict(figures))


def fit(
    module: nn.Module,
    context: Context,
    settings: Training,
    *,
    doing: str,
    teacher: nn.Module | None,
    snapshot: Callable[[nn.Module], nn.Module],
) -> EpochResult:
    """Let the user's function train the module, and return the result of the last epoch that it reported.

    `snapshot` makes the model that is scored. Raises StageError for what the function broke.
    """
    assert settings.trainer is not None
    before = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    zeros = {name: layer.weight.detach() == 0 for name, layer in module.named_modules() if keeps_zeros(layer)}
    job = Job(
        module=module,
        data=context.data,
        teacher=eval_mode(teacher) if teacher else None,
        task=context.task,
        settings=settings,
        seed=context.seed,
        folder=context.checkpoints.own_folder(),
        progress=Progress(context.emit, doing, settings.epochs),
    )
    first = validate(snapshot(module), context)
    function = resolve(settings.trainer)
    train_mode(module, True)
    try:
        with _modes_fixed(module):
            function(job, **settings.trainer_args)
    except EdgepackError:
        raise
    except (Exception, SystemExit) as error:
        logging.getLogger(__name__).exception("%s failed", settings.trainer)
        raise StageError(f"{settings.trainer} failed: {reason(error)}", "see build.log for the traceback") from error
    module.to("cpu")
    _check(module, before, zeros, settings.trainer)
    train_mode(module, False)
    last = replace(validate(snapshot(module), context), epoch=job.epochs[-1].epoch if job.epochs else settings.epochs)
    reported = {each.epoch: each for each in job.epochs}
    end = reported.pop(last.epoch, Epoch(epoch=last.epoch)).model_copy(update={"score": last.score})
    epochs = (Epoch(epoch=0, score=first.score), *reported.values(), end)
    context.trainings.append(TrainingRecord(doing=doing, kept=last.epoch, epochs=epochs))
    return last


def _check(module: nn.Module, before: dict[str, tuple[int, ...]], zeros: dict[str, torch.Tensor], trainer: str) -> None:
    after = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    if changed := [name for name in {**before, **after} if before.get(name) != after.get(name)]:
        shapes = ", ".join(f"{name} {before.get(name, 'none')} to {after.get(name, 'none')}" for name in changed[:3])
        raise StageError(
            f"{trainer} changed {len(changed)} tensors of the model: {shapes}",
            "train the module's weights in place; its layers and their shapes must stay",
        )
    if awake := [name for name, zero in zeros.items() if bool((module.get_submodule(name).weight[zero] != 0).any())]:
        raise StageError(
            f"{trainer} changed weights that pruning set to zero, in {listed(awake)}",
            "multiply the gradients of these layers by weight != 0, or set these weights to zero after each step",
        )
    bad = [name for name, tensor in module.state_dict().items() if not bool(tensor.float().isfinite().all())]
    if bad:
        raise StageError(f"{trainer} left NaN or Inf in {listed(bad)}", "use a lower learning rate")


@contextmanager
def _modes_fixed(module: nn.Module) -> Iterator[None]:
    """Let an exported program pass over `train()` and `eval()`, which libraries call and it refuses."""
    with ExitStack() as stack:
        if isinstance(module, torch.fx.GraphModule):
            for name in ("train", "eval"):
                stack.enter_context(patch.object(module, name, lambda *arguments: module))
        yield
