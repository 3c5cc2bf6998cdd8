"""Whole layers of an encoder go: those at given places, or those that the model does best without.

Source: H. Sajjad et al., On the Effect of Dropping Layers of Pre-trained Transformer Models, arXiv 2004.03844.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from edgepack.compress.contract import Context, Recovery
from edgepack.compress.stages.prune.config import Layers
from edgepack.compress.training.evaluation import EpochResult, validate
from edgepack.compress.training.loop import recover
from edgepack.core.errors import StageError
from edgepack.core.events import StepProgress
from edgepack.models.structure.encoder import blocks
from edgepack.models.structure.surgery import Edit, PassOn, replace_layer

if TYPE_CHECKING:
    from edgepack.models.candidate import Candidate

_SAMPLES = 1024  # samples of the validation split


def check_layers(module: nn.Module, layers: Layers) -> None:
    """Raises StageError unless the encoder has these layers and at least one layer is left."""
    known, layers = len(blocks(module)), _counted(module, layers)
    if isinstance(layers, tuple) and layers[-1] >= known:
        raise StageError(f"there is no layer {layers[-1]} to remove: the layers are 0 to {known - 1}", _MEND)
    number = layers if isinstance(layers, int) else len(layers)
    if number >= known:
        raise StageError(f"{number} layers cannot be removed: the model has {known}, and one must stay", _MEND)


_MEND = "layers is the number of layers to remove, or their indices from 0: remove fewer"


def _counted(module: nn.Module, layers: Layers) -> int | tuple[int, ...]:
    """Return the number of layers for a fraction, at least one; a number or indices as they are."""
    return max(1, round(layers * len(blocks(module)))) if isinstance(layers, float) else layers


def last(candidate: "Candidate", layers: Layers) -> "Candidate":
    """Return a copy without the layers at these places, or without the last N if only the shape matters."""
    names, layers = [block.name for block in blocks(candidate.module)], _counted(candidate.module, layers)
    return _without(candidate.copy(), _at(names, layers) if isinstance(layers, tuple) else names[-layers:])


def shortened(
    candidate: "Candidate", layers: Layers, settings: Recovery, context: Context
) -> tuple["Candidate", list[str]]:
    """Return the candidate without these layers, recovered, and notes on each layer."""
    names, layers = [block.name for block in blocks(candidate.module)], _counted(candidate.module, layers)
    if isinstance(layers, tuple):
        gone = _at(names, layers)
        notes = [f"{name}: dropped, layer {names.index(name)} of {len(names)}" for name in gone]
    else:
        gone, notes = _least(candidate.module, names, layers, context)
    shorter = _without(candidate, gone)
    plural = f"{len(gone)} layers" if len(gone) > 1 else "a layer"
    recover(shorter.module, f"dropping {plural}", settings, context)
    return shorter, notes


def _at(names: Sequence[str], places: tuple[int, ...]) -> list[str]:
    return [names[place] for place in places]


def _without(candidate: "Candidate", names: Sequence[str]) -> "Candidate":
    for name in names:
        candidate = candidate.edited(Edit(op="drop", layer=name))
    return candidate


def _least(module: nn.Module, names: Sequence[str], number: int, context: Context) -> tuple[list[str], list[str]]:
    """Drop the least important layers one by one, each measured without those dropped before; return them and notes."""
    context = replace(context, data=replace(context.data, validation=context.data.validation.first(_SAMPLES)))
    gone: dict[str, nn.Module] = {}
    notes: dict[str, str] = {}
    done, total = 0, sum(len(names) - i for i in range(number))
    for turn in range(1, number + 1):
        whole, cost = validate(module, context), {}
        for name in [name for name in reversed(names) if name not in gone]:  # on a tie the later one goes
            context.emit(StepProgress(doing="measuring the importance of each layer", done=done, total=total))
            done += 1
            kept = _passed_over(module, name)
            now = validate(module, context)
            replace_layer(module, name, kept)
            cost[name], notes[name] = now.loss - whole.loss, _worth(now, whole, context)
        least = min(cost, key=lambda name: cost[name])
        gone[least] = _passed_over(module, least)
        notes[least] += f": dropped, {turn} of {number}"
    for name, layer in gone.items():
        replace_layer(module, name, layer)
    return list(gone), [f"{name}: {notes[name]}" for name in names]


def _passed_over(module: nn.Module, name: str) -> nn.Module:
    """Replace a layer by one that passes its input on, and return the layer."""
    layer = module.get_submodule(name)
    replace_layer(module, name, PassOn())
    return layer


def _worth(without: EpochResult, whole: EpochResult, context: Context) -> str:
    change = context.task.change(whole.score, without.score)
    return f"without it {change} and {without.loss - whole.loss:+z.4f} of loss on validation"
