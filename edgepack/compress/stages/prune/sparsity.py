"""Zeros between the weights, for hardware that skips them: any of them, or two of every four."""

from typing import TYPE_CHECKING

import torch
from torch import nn

from edgepack.compress.contract import Context
from edgepack.compress.training.loop import recover
from edgepack.core.units import SHARE
from edgepack.models.structure.layer_names import matches
from edgepack.models.structure.surgery import Edit, apply, outputs

if TYPE_CHECKING:
    from edgepack.compress.stages.prune.config import Config
    from edgepack.models.candidate import Candidate


def sparsified(candidate: "Candidate", config: "Config", context: Context) -> "Candidate":
    """Set the smallest weights to zero, in steps. Later training keeps the zeros (see training/loop.py), QAT not."""
    module, ratio = candidate.module, config.ratio or 0.5
    steps = config.steps if config.pattern == "unstructured" else 1  # 2:4 cannot start with fewer zeros
    edits = [Edit(op="zeros", layer=name) for name in _thinned(module, config)]
    for edit in edits:
        apply(module, edit)
    for step in range(1, steps + 1):
        _zero(module, [edit.layer for edit in edits], config.pattern, 1 - (1 - ratio) ** (step / steps))
        recover(module, f"cut {step} of {steps}", config.recover, context)
    return candidate.changed(*edits, notes=tuple(_zero_notes(module)))


def _thinned(module: nn.Module, config: "Config") -> list[str]:
    chosen = [name for name in _weights(module) if not matches(name, config.exclude)]
    if config.pattern == "unstructured":
        return chosen
    return [name for name in chosen if module.get_submodule(name).weight.shape[1] % 4 == 0]


def _zero(module: nn.Module, layers: list[str], pattern: str, share: float) -> None:
    """Zero the smallest weights over all these layers, or two of every four inputs in each."""
    weights = [module.get_submodule(name).weight for name in layers]
    with torch.no_grad():
        if pattern == "unstructured":
            sizes = torch.cat([weight.abs().flatten() for weight in weights])
            least = sizes.kthvalue(max(1, round(share * len(sizes)))).values
            for weight in weights:
                weight.mul_(weight.abs() > least)
            return
        for weight in weights:
            fours = weight.abs().transpose(1, -1).unflatten(-1, (-1, 4))
            kept = fours.argsort(dim=-1, stable=True).argsort(dim=-1) >= 2
            weight.mul_(kept.flatten(-2).transpose(1, -1))


def _zero_notes(module: nn.Module) -> list[str]:
    return [
        f"{name}: {SHARE.format(float((w == 0).float().mean()))} of its weights are 0"
        for name, w in _weights(module).items()
    ]


def _weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weight of each layer that has one: a recurrent layer has several, which stay dense."""
    layers = {name: module.get_submodule(name) for name in outputs(module)}
    return {name: layer.weight for name, layer in layers.items() if hasattr(layer, "weight")}
