"""The one training loop: used by train, distill, prune's recovery and QAT.

    fit(module, context, settings, doing="recovering", distillation=Distillation.of(context.teacher))

By default AdamW with warm-up and a cosine, gradients clipped. Kept is the last epoch, unless an earlier one was better
on the validation split by more than chance: of many epochs one is always lucky there. On the CPU it gives the same
weights on the same processor type and number of threads.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import nn

from edgepack.compress.contract import Context, Recovery, Training
from edgepack.compress.training import own_trainer
from edgepack.compress.training.batch_norm import lags, refresh_batch_norm
from edgepack.compress.training.evaluation import EpochResult, Progress, train_mode, validate
from edgepack.compress.training.loss import Distillation, Loss, digest_of
from edgepack.compress.training.numerics import Numerics, numerics, on_cpu, taps, to_cpu, to_device
from edgepack.compress.training.optimization import Average, keep_zeros, optimizer_of, schedule_of
from edgepack.compress.training.state import State
from edgepack.compress.training.step import TrainingStep, compiled
from edgepack.config.compute import Hardware
from edgepack.core.errors import StageError
from edgepack.core.events import Note
from edgepack.data.splits import Batch, Parts
from edgepack.models.structure.surgery import zeros_held
from edgepack.records.training import TrainingRecord


@taps.used_only()
def fit(
    module: nn.Module,
    context: Context,
    settings: Training,
    *,
    doing: str,
    distillation: Distillation | None = None,
    snapshot: Callable[[nn.Module], nn.Module] = lambda module: module,
    each_epoch: Callable[[int], None] = lambda epoch: None,
) -> EpochResult:
    """Train `module` in place and leave it with the weights of the kept epoch, which may be 0: those before training.

    `snapshot` makes the model that is scored from the one that is trained, if they differ (QAT); `each_epoch` is called
    before each epoch with its number from 0.
    """
    if settings.epochs:
        check_trainable(module)
    with zeros_held(module):
        if settings.epochs and settings.trainer:
            teacher = distillation.teacher if distillation else None
            return own_trainer.fit(module, context, settings, doing=doing, teacher=teacher, snapshot=snapshot)
        return _loop(module, context, settings, doing, distillation, snapshot, each_epoch)


def _loop(
    module: nn.Module,
    context: Context,
    settings: Training,
    doing: str,
    distillation: Distillation | None,
    snapshot: Callable[[nn.Module], nn.Module],
    each_epoch: Callable[[int], None],
) -> EpochResult:
    hardware, team = context.hardware, context.team
    device = torch.device(hardware.device, team.rank if hardware.gpu else None)
    how, parts = numerics(module, settings.precision, hardware), team.parts(hardware.accumulate)
    per_epoch = context.data.train.count(settings.batch_size, parts)
    steps = settings.epochs * per_epoch
    if settings.epochs:
        check_parts(min(settings.batch_size, len(context.data.train)), hardware)
    team.broadcast(module.state_dict().values())  # several GPUs may have rounded otherwise in a training before
    loss = Loss(module, context, settings, distillation, device, how)
    about = {"doing": doing, "steps": steps, "settings": settings.model_dump(mode="json")}
    checkpoint = context.checkpoints.next(lambda: {**about, "model": digest_of(module)})
    to_device(module, device, how)
    trained = [each for each in (*module.parameters(), *loss.parameters()) if each.requires_grad]
    if not trained:  # all is frozen, and no epoch requested
        loss.close()
        to_cpu(module)
        return validate(snapshot(module), context)
    optimizer = optimizer_of(trained, settings)
    keep_zeros(module, optimizer)
    longest = math.ceil(len(context.data.train) / settings.batch_size)
    schedule = schedule_of(optimizer, settings, settings.epochs * longest)
    scaler = torch.amp.GradScaler(device.type, enabled=how.precision == "fp16")
    average = Average(module, settings.ema) if settings.ema else None
    state = State(module, optimizer, schedule, [*loss.parameters()], checkpoint, context.task, average, scaler)
    step = TrainingStep(
        module=compiled(module, hardware, loss),
        loss=loss,
        optimizer=optimizer,
        scaler=scaler,
        trained=trained,
        clip=settings.clip,
        hardware=hardware,
        team=team,
    )
    state.begin(lambda: validate(snapshot(on_cpu(module)), context))
    if state.step:
        context.emit(
            Note(text=f"{doing}: goes on after step {state.step} of {steps}, where an earlier build was stopped")
        )
    progress = Progress(context.emit, doing, steps, done=state.step)
    while state.step < steps and not state.stale(settings.early_stop):
        epoch = state.step // per_epoch
        each_epoch(epoch)
        _train(module, step, state, context, settings, parts, progress)
        with state.averaged():
            if lags(module, longest):
                refresh_batch_norm(module, context.data.train)
            now = replace(validate(snapshot(on_cpu(module)), context), epoch=epoch + 1)
            _check_finite(now, settings, how)
            state.take(now, len(context.data.validation))
        if checkpoint.due():
            state.save()
    if state.step < steps:
        after = f"{doing}: stopped after epoch {state.epochs[-1].epoch} of {settings.epochs}"
        context.emit(Note(text=f"{after}: none since epoch {state.best.epoch} had a better score"))
    loss.close()
    module.load_state_dict(state.kept)
    to_cpu(module)
    team.same_random_numbers()
    train_mode(module, False)
    context.trainings.append(TrainingRecord(doing=doing, kept=state.fitted.epoch, epochs=tuple(state.epochs)))
    return state.fitted


def _train(
    module: nn.Module,
    step: TrainingStep,
    state: State,
    context: Context,
    settings: Training,
    parts: Parts,
    progress: Progress,
) -> None:
    """Take the steps that are left of an epoch."""
    data, size = context.data.train, settings.batch_size
    per_epoch = data.count(size, parts)
    epoch, done = divmod(state.step, per_epoch)
    train_mode(module, True)
    began = time.monotonic()
    for batch in _whole(data.batches(size, seed=_seed(context.seed, epoch), skip=done, parts=parts), parts):
        samples = min(size, len(data) - state.step % per_epoch * size)
        lost = step.take(batch, samples, _seed(context.seed, state.step), is_first=state.step == 0)
        rate = state.optimizer.param_groups[0]["lr"]
        state.schedule.step()
        state.advance()
        state.losses.add(lost, samples, rate, time.monotonic() - began)
        began = time.monotonic()  # here: to show the loss, a GPU is waited for
        progress.advance(state.now)
        if state.checkpoint.overdue() and state.step % per_epoch > 0:
            state.save()
            began = time.monotonic()


def recover(module: nn.Module, after: str, settings: Recovery, context: Context) -> None:
    """Train a module again after something was removed, with the build's teacher."""
    refresh_batch_norm(module, context.data.train)
    lesson = Distillation.of(context.teacher)
    fit(module, context, settings, doing=f"recovering after {after}", distillation=lesson)


def _whole(pieces: Iterator[Batch], parts: Parts) -> Iterator[tuple[Batch, ...]]:
    """Yield the parts of a batch together."""
    return zip(*(pieces,) * len(parts.mine), strict=True)


def check_parts(size: int, hardware: Hardware) -> None:
    """Raises StageError for a batch that the processes cannot share."""
    if size < 2 * hardware.parts:
        raise StageError(
            f"a batch of {size} cannot be cut into {hardware.parts} parts of two samples or more",
            f"use a batch_size of {2 * hardware.parts} or more, or fewer compute.processes and compute.accumulate",
        )


def _check_finite(now: EpochResult, settings: Training, how: Numerics) -> None:
    if not math.isfinite(now.loss):
        raise StageError(
            f"training diverged in epoch {now.epoch}: the loss on the validation split is {now.loss}",
            f"use {'precision: fp32, or ' * (how.mixed is not None)}a learning_rate below {settings.learning_rate:g}",
        )


def check_trainable(module: nn.Module) -> None:
    """Raises StageError where all parameters are frozen."""
    every = [*module.parameters()]
    if every and not any(each.requires_grad for each in every):
        raise StageError(
            f"there is nothing to train: all {len(every)} parameters are frozen (requires_grad is False)",
            "unfreeze some in the function that makes the model: parameter.requires_grad_(True)",
        )
    if not every:
        raise StageError("there is nothing to train: the model has no parameters", "remove the stages that train")


def _seed(seed: int, number: int) -> int:
    return seed * 1_000_003 + number
