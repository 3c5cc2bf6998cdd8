"""Split a wide layer into two thin ones, where few singular values carry what it does to real activations.

A k x k convolution becomes one to `rank` channels and a 1 x 1 back; a Linear becomes two. The weight is whitened by the
activations that calibration sees, so that a singular value is the error its loss would cause at the layer's output.
Source: X. Wang et al., SVD-LLM: Truncation-aware Singular Value Decomposition, ICLR 2025, arXiv 2403.07378; for
convolutions, X. Zhang et al., Accelerating Very Deep Convolutional Networks, TPAMI 2016, arXiv 1505.06798.
"""

import math
from fnmatch import fnmatch
from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from edgepack.errors import StageError
from edgepack.stages import Context, StageConfig, Training
from edgepack.units import SHARE, Share

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgepack.candidate import Candidate
    from edgepack.datasets import Split

TAKES, GIVES = "eager", "eager"
VERSION = 1
READS = ("channel_multiple",)

_PAYS = 0.6  # share of the break-even rank up to which two small layers are not slower than one
_CALIBRATION = 256  # training samples


class Recovery(Training):
    """Training after the splits."""

    epochs: int = Field(default=3, ge=0, le=10_000, description="passes over the training split")


class Config(StageConfig):
    energy: Share = Field(default=0.95, description="share of each layer's output energy that the split must keep")
    layers: tuple[str, ...] = Field(default=("*",), description="names or patterns of the layers to look at")
    recover: Recovery = Field(default=Recovery(), description="training after the splits")

    @field_validator("energy")
    @classmethod
    def _share(cls, energy: float) -> float:
        if not 0 < energy < 1:
            raise ValueError(f"energy is a share, above 0 % and below 100 %, got {SHARE.format(energy)}")
        return energy


def run(candidate: "Candidate", config: Config, context: Context) -> "Candidate":
    from edgepack.surgery import Edit
    from edgepack.train import Distillation, fit

    module = candidate.module.eval()
    layers = _chosen(module, config.layers)
    edits, notes = [], []
    for name, gram in _grams(module, layers, context.data.train).items():
        rank, note = _decide(layers[name], gram, config.energy, context.quantization.channel_multiple)
        notes.append(f"{name}: {note}")
        if rank:
            _split(module, name, gram, rank)
            edits.append(Edit(op="split", layer=name, to={"rank": rank}))
    if edits:
        lesson = Distillation.of(context.teacher)
        fit(module, context, config.recover, doing="recovering after the splits", distillation=lesson)
    return candidate.changed(*edits, notes=tuple(notes))


def break_even(layer: "nn.Module") -> float:
    """The rank at which the two thin layers have as many weights as the one: mn / (m + n)."""
    rows, columns = (int(size) for size in _matrix(layer).shape)
    return rows * columns / (rows + columns)


def _chosen(module: "nn.Module", patterns: tuple[str, ...]) -> "dict[str, nn.Module]":
    from torch import nn

    able = {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
    }
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in able):
            raise StageError(f"no layer matches '{pattern}'", f"layers that can be split: {', '.join(able)}")
    return {name: layer for name, layer in able.items() if any(fnmatch(name, pattern) for pattern in patterns)}


def _matrix(layer: "nn.Module") -> "Tensor":
    """The weight as [outputs, inputs]."""
    weight: Tensor = layer.weight.detach()
    return weight.reshape(weight.shape[0], -1)


def _grams(module: "nn.Module", layers: "dict[str, nn.Module]", data: "Split") -> "dict[str, Tensor]":
    """For each layer that runs, the [inputs, inputs] second moment of what goes into it, over calibration samples."""
    import torch
    from torch import nn
    from torch.nn import functional

    sums: dict[str, Tensor] = {}

    def add(name: str, layer: nn.Module, inputs: "Tensor") -> None:
        if isinstance(layer, nn.Conv2d):
            mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
            padded = functional.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)
            columns = functional.unfold(padded, layer.kernel_size, layer.dilation, 0, layer.stride)
            rows = columns.transpose(1, 2).reshape(-1, columns.shape[1])
        else:
            rows = inputs.reshape(-1, inputs.shape[-1])
        sums[name] = sums.get(name, torch.zeros(())) + rows.T.double() @ rows.double()

    hooks = [
        layer.register_forward_pre_hook(lambda layer, inputs, name=name: add(name, layer, inputs[0]))
        for name, layer in layers.items()
    ]
    with torch.no_grad():
        for batch in data.first(_CALIBRATION).batches(32):
            module(*batch.inputs)
    for hook in hooks:
        hook.remove()
    return {name: sums[name] for name in layers if name in sums}


def _whitened(layer: "nn.Module", gram: "Tensor") -> "tuple[Tensor, Tensor]":
    """The weight times a root of the activations' second moment, and that root.

    The root is Cholesky's, as in SVD-LLM. Activations of real layers span few directions, so the diagonal is lifted by
    as little as makes the factorization exist.
    """
    import torch

    identity = torch.eye(len(gram), dtype=gram.dtype)
    lift = gram.diagonal().mean().clamp(min=1e-12)
    for power in range(-9, 1):
        root, failed = torch.linalg.cholesky_ex(gram + identity * lift * 10.0**power)
        if not failed:
            break
    return _matrix(layer).double() @ root, root


def _decide(layer: "nn.Module", gram: "Tensor", energy: float, multiple: int) -> tuple[int, str]:
    """The rank to split at, or 0, and why."""
    import torch

    singular = torch.linalg.svdvals(_whitened(layer, gram)[0])
    kept = singular.square().cumsum(0) / singular.square().sum()
    wanted = int((kept < energy).sum()) + 1
    most, limit = len(singular), break_even(layer)
    rank = min(most, math.ceil(wanted / multiple) * multiple)  # rounded up: rounding must not cost energy
    if rank > _PAYS * limit:
        needs = f"{SHARE.exact(energy)} of its energy needs rank {rank}"
        return 0, f"left whole: {needs}, a split pays up to {int(_PAYS * limit)}"
    share = SHARE.format(float(kept[rank - 1]), digits=5)
    return rank, f"split at rank {rank} of {most}, keeping {share} of its energy"


def _split(module: "nn.Module", name: str, gram: "Tensor", rank: int) -> None:
    import torch

    from edgepack.surgery import replace_layer, split

    layer = module.get_submodule(name)
    weight, whitening = _whitened(layer, gram)
    left, singular, right = torch.linalg.svd(weight, full_matrices=False)
    # right @ inverse(whitening), solved rather than inverted
    right = torch.linalg.solve_triangular(whitening, right[:rank], upper=False, left=False)
    root = singular[:rank].sqrt()
    pair = split(layer, rank)
    with torch.no_grad():
        pair[0].weight.copy_((root[:, None] * right).reshape(pair[0].weight.shape))
        pair[1].weight.copy_((left[:, :rank] * root).reshape(pair[1].weight.shape))
        if pair[1].bias is not None:
            pair[1].bias.copy_(layer.bias)
    replace_layer(module, name, pair)
