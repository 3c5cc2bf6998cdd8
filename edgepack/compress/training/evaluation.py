"""A torch model on a split: its outputs and its score."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from edgepack.compress.contract import Context
from edgepack.core.errors import StageError
from edgepack.core.events import Emit, StepProgress
from edgepack.core.frozen import Json
from edgepack.data.contract import Meter, Task
from edgepack.data.splits import Batch, Split
from edgepack.models.outputs import scorable, tensors
from edgepack.models.structure.fx_graph import device_of, measures_ranges

Outputs = tuple[torch.Tensor, ...]

_BLOCK = 256_000_000  # bytes


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """The result of an epoch: its number, its score on the validation split, and its loss there."""

    epoch: int
    score: float
    loss: float


def evaluate(module: nn.Module, split: Split, task: Task) -> float:
    """Return the score of a torch module on a split, in the task's first metric."""
    meter = task.meter()
    for outputs, batch in predicted(module, split):
        meter.update(scorable(task, outputs, batch.inputs), batch.targets)
    return task.scores(meter)[task.metric]


def predict(module: nn.Module, split: Split, progress: Callable[[], None] = lambda: None) -> Outputs:
    """Return all outputs, each [n, ...], in order and on the CPU; `progress` is called after every batch."""
    found = [outputs for outputs, _ in predicted(module, split, progress)]
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def predicted(
    module: nn.Module, split: Split, progress: Callable[[], None] = lambda: None
) -> Iterator[tuple[Outputs, Batch]]:
    """Yield the outputs of a batch after the other, on the CPU wherever the module is."""
    train_mode(module, False)
    device = device_of(module)
    for batch in split.batches(1 if measures_ranges(module) else split.at_once):
        with torch.no_grad():
            found = tensors(module(*(each.to(device) for each in batch.inputs)))
        yield tuple(each.float().cpu() for each in found), batch
        progress()


class Progress:
    """Reports the progress of training, at most a few times a second."""

    def __init__(self, emit: Emit, doing: str, total: int, done: int = 0) -> None:
        self.emit, self.doing, self.total = emit, doing, total
        self.begun = self.done = done
        self.started, self.reported = time.monotonic(), 0.0

    def advance(self, told: Callable[[], Json] = dict) -> None:
        """Note one more; `told` gives more fields of the event, and is called only if there is one."""
        self.done += 1
        now = time.monotonic()
        if now - self.reported < 0.2 and self.done < self.total:
            return
        self.reported = now
        left = (now - self.started) / (self.done - self.begun) * (self.total - self.done)
        self.emit(StepProgress(doing=self.doing, done=self.done, total=self.total, seconds_left=left, **told()))


def validate(module: nn.Module, context: Context) -> EpochResult:
    """Return score and loss on the validation split, as epoch 0. Each process of the team runs a part of it."""
    split, task, team = context.data.validation, context.task, context.team
    meter, lost, seen = task.meter(), 0.0, 0
    most = _BLOCK if team.size == 1 else math.inf
    for each in _blocks(predicted(module, team.rows(split)), most, task):
        outputs, inputs = (tuple(map(team.gather, tensors)) for tensors in each[:2])
        targets = team.gather(each[2])
        meter.update(scorable(task, outputs, inputs), targets)
        lost, seen = lost + float(task.loss(outputs, targets)) * len(targets), seen + len(targets)
    return EpochResult(epoch=0, score=_score(task, meter, lost / seen), loss=lost / seen)


def _score(task: Task, meter: Meter, loss: float) -> float:
    """Return the score, or the worst there is where the loss is not finite: then it says what is wrong."""
    try:
        return task.scores(meter)[task.metric]
    except StageError:
        if math.isfinite(loss):
            raise
        return -task.better(math.inf)


Block = tuple[Outputs, Outputs, torch.Tensor]  # outputs, inputs, targets


def _blocks(batches: Iterable[tuple[Outputs, Batch]], most: float, task: Task) -> Iterator[Block]:
    """Put batches together, up to about so many bytes of outputs: those of masks may not fit into the memory, and
    processes of a team, which have different numbers of samples, must exchange equally often. Inputs, which may not fit
    either, are kept where the task condenses outputs.
    """
    kept: list[Block] = []
    size = 0
    for outputs, batch in batches:
        kept.append((outputs, batch.inputs if task.condenses else (), batch.targets))
        size += sum(each.nbytes for each in outputs)
        if size >= most:
            yield _together(kept)
            kept, size = [], 0
    if kept:
        yield _together(kept)


def _together(batches: list[Block]) -> Block:
    outputs, inputs = (
        tuple(torch.cat(parts) for parts in zip(*tensors, strict=True))
        for tensors in (*zip(*(each[:2] for each in batches), strict=True),)
    )
    return outputs, inputs, torch.cat([each[2] for each in batches])


def train_mode(module: nn.Module, training: bool) -> None:
    """Set train or eval mode, unless the module is an exported program: its mode was fixed at export."""
    if not isinstance(module, torch.fx.GraphModule):
        module.train(training)


def eval_mode(module: nn.Module) -> nn.Module:
    train_mode(module, False)
    return module
