"""Compute the importance of channels, heads and neurons, and the cost of pruning each group alone."""

import copy
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgepack.compress.contract import Context
from edgepack.compress.training.batch_norm import refresh_batch_norm
from edgepack.compress.training.evaluation import evaluate
from edgepack.config import plugins
from edgepack.core.events import StepProgress
from edgepack.data.splits import Batch
from edgepack.models.outputs import rows, tensors
from edgepack.models.structure.dependency_groups import Score, survey
from edgepack.models.structure.surgery import shrink

if TYPE_CHECKING:
    from edgepack.compress.stages.prune.config import Config

_TAYLOR_BATCHES = 8
_TRIALS = (0.25, 0.5)  # ratios of the sensitivity report
_TRIAL_SAMPLES = 1024  # samples of the validation split


def score(module: nn.Module, importance: str, context: Context) -> Score:
    def loss(batch: Batch) -> Tensor:
        return context.task.loss(tensors(module(*batch.inputs)), batch.targets)

    batches = islice(context.data.train.batches(64, seed=context.seed), _TAYLOR_BATCHES)
    return _score(module, importance, map(loss, batches))


def dry_run_score(module: nn.Module, importance: str, inputs: tuple[Tensor, ...]) -> Score:
    """Return the score for a dry run, which has no data: the size of the outputs replaces the loss."""
    return _score(module, importance, (rows(module(*each)).square().mean() for each in (inputs,)))


def _score(module: nn.Module, importance: str, losses: Iterator[Tensor]) -> Score:
    plugin = plugins.load("importances", importance)
    if plugin.NEEDS_GRADIENTS:
        _accumulate_gradients(module, losses)
    found: Score = plugin.score()
    return found


def _accumulate_gradients(module: nn.Module, losses: Iterator[Tensor]) -> None:
    """Compute fresh gradients of the real loss: old ones would rank the channels of an earlier model.

    Frozen layers get gradients too, as these count for the importance of their channels. A layer that the loss does not
    depend on, because nothing reads it or because it runs under `torch.no_grad`, has importance 0.
    """
    module.zero_grad(set_to_none=True)
    learned = [each for each in module.parameters() if each.is_floating_point()]
    frozen = [each for each in learned if not each.requires_grad]
    for each in frozen:
        each.requires_grad_(True)
    for loss in losses:
        if loss.requires_grad:
            loss.backward()
    for each in frozen:
        each.requires_grad_(False)
    for each in learned:
        each.grad = torch.zeros_like(each) if each.grad is None else each.grad


def sensitivities(module: nn.Module, config: "Config", context: Context) -> list[str]:
    """Measure what cutting each group alone costs, with no recovery but that of batch norm statistics."""
    example = context.data.train.head(2)
    names = list(dict.fromkeys(group.name for group in survey(module.eval(), example, config.exclude).groups))
    whole = _trial(copy.deepcopy(module), {}, config, context)
    notes = []
    for i, name in enumerate(names):
        context.emit(StepProgress(doing="measuring the sensitivity of each layer", done=i, total=len(names)))
        scores = [_trial(copy.deepcopy(module), {name: 1 - share}, config, context) for share in _TRIALS]
        pairs = zip(scores, _TRIALS, strict=True)
        words = ", ".join(f"{context.task.change(whole, score)} at {share:.0%}" for score, share in pairs)
        notes.append(f"sensitivity of {name}: {words}")
    return notes


def _trial(module: nn.Module, keep: dict[str, float], config: "Config", context: Context) -> float:
    shrink(
        module.eval(),
        context.data.train.head(2),
        keep=keep,
        score=score(module, config.importance, context),
        multiple=context.quantization.channel_multiple,
        exclude=config.exclude,
    )
    refresh_batch_norm(module, context.data.train, samples=512)
    some = context.data.validation.first(_TRIAL_SAMPLES)
    return evaluate(module, some, context.task)
