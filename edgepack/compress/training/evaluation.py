"""A torch model on a split: its outputs and its score."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from edgepack.compress.contract import Context
from edgepack.core.events import Emit, StepProgress
from edgepack.core.frozen import Json
from edgepack.data.contract import Task
from edgepack.data.splits import Split
from edgepack.models.structure.fx_graph import device_of, measures_ranges


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """The result of an epoch: its number, its score on the validation split, and its loss there."""

    epoch: int
    score: float
    loss: float


def evaluate(module: nn.Module, split: Split, task: Task) -> float:
    """Return the task's score of a torch module on a split."""
    return task.score(predict(module, split).numpy(), split.targets.numpy())


def predict(module: nn.Module, split: Split, progress: Callable[[], None] = lambda: None) -> torch.Tensor:
    """Return the logits, [n, classes], in order and on the CPU, wherever the module is; `progress` is called after
    every batch.
    """
    train_mode(module, False)
    device = device_of(module)
    logits = []
    with torch.no_grad():
        for batch in split.batches(1 if measures_ranges(module) else split.at_once):
            logits.append(module(*(each.to(device) for each in batch.inputs)).float().cpu())
            progress()
    return torch.cat(logits)


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
    split = context.data.validation
    logits = context.team.gather(predict(module, context.team.rows(split)))
    loss = context.task.loss(logits, split.targets)
    return EpochResult(epoch=0, score=context.task.score(logits.numpy(), split.targets.numpy()), loss=float(loss))


def train_mode(module: nn.Module, training: bool) -> None:
    """Set train or eval mode, unless the module is an exported program: its mode was fixed at export."""
    if not isinstance(module, torch.fx.GraphModule):
        module.train(training)


def eval_mode(module: nn.Module) -> nn.Module:
    train_mode(module, False)
    return module
