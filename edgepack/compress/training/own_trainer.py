"""A user's own trainer in place of edgepack's loop: `train: {trainer: "my_package.recover:fit"}`.

    def fit(job, **trainer_args):
        for epoch in range(job.settings.epochs):
            for inputs, targets in job.loader("train"):
                ...
            job.report(epoch=epoch + 1, loss=...)

It trains `job.module` in place. What it leaves is checked and scored; it may not change a shape or type, nor wake a
weight that pruning set to zero. Working trainers, for Lightning and others, stand in examples/.
"""

import inspect
import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, cast
from unittest.mock import patch

import torch
from torch import nn

from edgepack.compress.contract import Context, Training
from edgepack.compress.training.evaluation import EpochResult, Progress, eval_mode, train_mode, validate
from edgepack.compress.training.loss import LabelLoss, digest_of
from edgepack.compress.training.numerics import to_cpu
from edgepack.config.compute import Precision
from edgepack.config.user_code.references import resolve
from edgepack.core.errors import EdgepackError, StageError, listed, reason
from edgepack.core.events import Note
from edgepack.data.splits import Split
from edgepack.models.outputs import tensors
from edgepack.models.structure.fx_graph import follow
from edgepack.models.structure.surgery import keeps_zeros
from edgepack.records.training import Epoch, TrainingRecord

if TYPE_CHECKING:
    from edgepack.data.contract import Task
    from edgepack.data.splits import TrainingData


@dataclass
class Loader:
    """Batches (inputs, targets) of a split; each pass over training samples is shuffled anew, by the build's seed.

    Inputs are one tensor if the model takes one, else a tuple of them. `drop_last` leaves out a last batch that is
    smaller than the others.
    """

    split: Split
    size: int
    seed: int | None
    drop_last: bool = False
    passes: int = 0

    def __len__(self) -> int:
        if self.drop_last:
            return len(self.split) // self.size
        return -(-len(self.split) // self.size) if self.seed is None else self.split.count(self.size)

    def __iter__(self) -> Iterator[tuple[Any, torch.Tensor]]:
        seed = None if self.seed is None else self.seed + self.passes
        self.passes += 1
        for batch in islice(self.split.batches(self.size, seed=seed), len(self)):
            yield batch.inputs[0] if len(batch.inputs) == 1 else batch.inputs, batch.targets


class _OfModules:
    """A task that takes outputs as a module gives them: of one output a tensor. All else is the task's own."""

    def __init__(self, task: "Task") -> None:
        self._task = task

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def loss(self, outputs: Any, targets: torch.Tensor) -> torch.Tensor:
        return self._task.loss(tensors(outputs), targets)

    def distill(self, outputs: Any, teacher: Any, temperature: float) -> torch.Tensor:
        return self._task.distill(tensors(outputs), tensors(teacher), temperature)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a trainer gets.

    `module` is to be trained in place; `task.loss` and `task.distill` take outputs as it gives them. In `quantize` it
    is the one with simulated int8. `teacher` is None where there is none. `device` is where the recipe trains, "cpu"
    or "cuda", and `precision` in which numbers; both models are on the CPU at first. `folder` is for checkpoints and
    logs of its own, of this training alone: what a build that was killed left there is still in it, and it is removed
    when the stage has ended.
    """

    module: nn.Module
    data: "TrainingData"
    teacher: nn.Module | None
    task: "Task"
    settings: Training
    seed: int
    device: str
    precision: Precision
    folder: Path
    progress: Progress
    scorer: Callable[[nn.Module], float]
    epochs: list[Epoch] = field(default_factory=list)

    def loader(self, part: Literal["train", "validation"], *, drop_last: bool = False) -> Loader:
        """Return batches of `settings.batch_size` samples. Raises ValueError for another split."""
        if part not in ("train", "validation"):
            raise ValueError(f"a trainer gets the splits train and validation, not {part!r}")
        seed = self.seed * 1_000_003 if part == "train" else None
        return Loader(getattr(self.data, part), self.settings.batch_size, seed, drop_last)

    def score(self, module: nn.Module | None = None) -> float:
        """Return the score on the validation split: of what is trained, in `quantize` as int8, or of a copy of it such
        as an average of its weights.
        """
        scored = self.module if module is None else module
        modes = [(each, each.training) for each in scored.modules()]
        device = next((each.device for each in scored.parameters()), "cpu")
        try:
            return self.scorer(scored.to("cpu"))
        finally:
            scored.to(device)
            for each, training in modes:
                each.training = training

    @cached_property
    def loss(self) -> LabelLoss:
        """Return the loss of outputs and targets that the settings ask for: `label_smoothing`, `class_weights`."""
        return LabelLoss(self.task, self.settings, self.data.train.targets)

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
    before = _shapes(module)
    zeros = {name: layer.weight.detach() == 0 for name, layer in module.named_modules() if keeps_zeros(layer)}
    first, start = validate(snapshot(module), context), digest_of(module)
    with _folder(context) as folder:
        job = Job(
            module=module,
            data=context.data,
            teacher=eval_mode(teacher) if teacher else None,
            task=cast("Task", _OfModules(context.task)),
            settings=settings,
            seed=context.seed,
            device=context.hardware.device,
            precision=context.hardware.precision if settings.precision == "auto" else settings.precision,
            folder=folder,
            progress=Progress(context.emit, doing, settings.epochs),
            scorer=lambda scored: validate(snapshot(scored), context).score,
        )
        _call(job, settings.trainer)
    to_cpu(module)
    if teacher:
        teacher.to("cpu")
    _check(module, before, zeros, settings.trainer)
    if digest_of(module) == start:
        context.emit(Note(text=f"warning: {settings.trainer} changed no weight"))
    train_mode(module, False)
    last = replace(validate(snapshot(module), context), epoch=job.epochs[-1].epoch if job.epochs else settings.epochs)
    reported = {each.epoch: each for each in job.epochs}
    end = reported.pop(last.epoch, Epoch(epoch=last.epoch)).model_copy(update={"score": last.score})
    epochs = (Epoch(epoch=0, score=first.score), *reported.values(), end)
    context.trainings.append(TrainingRecord(doing=doing, kept=last.epoch, epochs=epochs))
    return last


def check_arguments(trainer: str, arguments: Mapping[str, Any]) -> None:
    """Raises StageError if the function does not take these keyword arguments."""
    function = resolve(trainer)
    try:
        inspect.signature(function).bind(None, **arguments)
    except TypeError as error:
        raise StageError(
            f"{trainer} cannot be called with its trainer_args: {error}",
            f"it takes {inspect.signature(function)}, of which the first is the job",
        ) from error
    except ValueError:
        pass  # it has no signature


@contextmanager
def _folder(context: Context) -> Iterator[Path]:
    """Give a trainer a folder of its own; without checkpoints, one that does not last."""
    if folder := context.checkpoints.own_folder():
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    else:
        with TemporaryDirectory(prefix="edgepack-trainer-") as made:
            yield Path(made)


def _call(job: Job, trainer: str) -> None:
    function = resolve(trainer)
    train_mode(job.module, True)
    try:
        with _modes_fixed(job.module), _accelerate_apart():
            function(job, **job.settings.trainer_args)
    except EdgepackError:
        raise
    except (Exception, SystemExit) as error:
        logging.getLogger(__name__).exception("%s failed", trainer)
        raise StageError(f"{trainer} failed: {reason(error)}", "see build.log for the traceback") from error


def _shapes(module: nn.Module) -> dict[str, str]:
    """Return shape and type of each tensor, as text."""
    return {
        name: f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
        for name, tensor in module.state_dict().items()
    }


def _check(module: nn.Module, before: dict[str, str], zeros: dict[str, torch.Tensor], trainer: str) -> None:
    after = _shapes(module)
    if changed := [name for name in {**before, **after} if before.get(name) != after.get(name)]:
        shapes = ", ".join(f"{name} {before.get(name, 'none')} to {after.get(name, 'none')}" for name in changed[:3])
        raise StageError(
            f"{trainer} changed {len(changed)} tensors of the model: {shapes}",
            "train the module's weights in place; its layers, their shapes and their types must stay",
        )
    if awake := [name for name, zero in zeros.items() if bool((module.get_submodule(name).weight[zero] != 0).any())]:
        raise StageError(
            f"{trainer} changed weights that pruning set to zero, in {listed(awake)}",
            "their gradients are zero; if it sets weights in another way, set these to zero again after each step",
        )
    bad = [name for name, tensor in module.state_dict().items() if not bool(tensor.float().isfinite().all())]
    if bad:
        raise StageError(f"{trainer} left NaN or Inf in {listed(bad)}", "use a lower learning rate")


@contextmanager
def _accelerate_apart() -> Iterator[None]:
    """Forget how a trainer set up accelerate, whose one state for a process would bind the next one."""
    try:
        yield
    finally:
        if state := sys.modules.get("accelerate.state"):
            for kind in (state.PartialState, state.AcceleratorState, state.GradientState):
                kind._shared_state.clear()


@contextmanager
def _modes_fixed(module: nn.Module) -> Iterator[None]:
    """Let an exported program pass over `train()` and `eval()`, which libraries call and it refuses, and move it whole
    where they move it.
    """
    move = module._apply

    def moved(*arguments: Any, **more: Any) -> nn.Module:
        move(*arguments, **more)
        follow(module)
        return module

    with ExitStack() as stack:
        if isinstance(module, torch.fx.GraphModule):
            for name in ("train", "eval"):
                stack.enter_context(patch.object(module, name, lambda *arguments: module))
            stack.enter_context(patch.object(module, "_apply", moved))
        yield
