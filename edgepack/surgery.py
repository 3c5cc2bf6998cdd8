"""Changes to the structure of a model, each written down so that a saved candidate can be rebuilt without pickle.

Three things are done to structures: `shrink` removes channels, `split` puts two thin layers in place of one, and
`apply` repeats on a fresh model what an `Edit` says was done.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import nn

from edgepack.config import Frozen
from edgepack.errors import StageError


class Edit(Frozen):
    """One entry of the surgery log: what changed in the structure, never the weights.

    resize   the layer now has these attributes            {"out_channels": 40, "in_channels": 24}
    split    the layer became two thin ones of this rank   {"rank": 24}
    """

    op: Literal["resize", "split"]
    layer: str
    to: dict[str, int]
    was: dict[str, int] = {}


def apply(module: nn.Module, edit: Edit) -> None:
    """Do to `module` what the log says; its weights are fresh afterwards."""
    layer = module.get_submodule(edit.layer)
    replace_layer(module, edit.layer, resized(layer, edit.to) if edit.op == "resize" else split(layer, edit.to["rank"]))


def replace_layer(module: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, layer)


_SIZES = {
    nn.Conv2d: ("in_channels", "out_channels", "groups"),
    nn.Linear: ("in_features", "out_features"),
    nn.BatchNorm2d: ("num_features",),
}


def sizes(module: nn.Module) -> dict[str, dict[str, int]]:
    """The widths of every layer that surgery can resize: {"conv1": {"in_channels": 1, "out_channels": 64, ...}}."""
    return {name: dict(_widths(layer)) for name, layer in module.named_modules() if type(layer) in _SIZES}


def _widths(layer: nn.Module) -> Iterator[tuple[str, int]]:
    for attribute in _SIZES[type(layer)]:
        yield attribute, int(getattr(layer, attribute))


def resizes(before: dict[str, dict[str, int]], module: nn.Module) -> tuple[Edit, ...]:
    """What changed in `module` since `sizes` was taken of it, as edits."""
    return tuple(
        Edit(op="resize", layer=name, to=now, was=before[name])
        for name, now in sizes(module).items()
        if now != before[name]
    )


def resized(layer: nn.Module, to: dict[str, int]) -> nn.Module:
    """A fresh layer like `layer` with other widths."""
    if isinstance(layer, nn.Conv2d):
        keep = {key: getattr(layer, key) for key in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}
        return nn.Conv2d(**to, **keep, bias=layer.bias is not None)
    if isinstance(layer, nn.Linear):
        return nn.Linear(**to, bias=layer.bias is not None)
    if isinstance(layer, nn.BatchNorm2d):
        return nn.BatchNorm2d(**to, eps=layer.eps, momentum=layer.momentum, affine=layer.affine)
    raise TypeError(f"surgery cannot resize a {type(layer).__name__}")


def split(layer: nn.Module, rank: int) -> nn.Sequential:
    """The two thin layers, of `rank` channels between them, that stand for a Linear or a Conv2d without groups."""
    if isinstance(layer, nn.Linear):
        wide = nn.Linear(layer.in_features, rank, bias=False)
        return nn.Sequential(wide, nn.Linear(rank, layer.out_features, bias=layer.bias is not None))
    if isinstance(layer, nn.Conv2d) and layer.groups == 1:
        keep = {key: getattr(layer, key) for key in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}
        spatial = nn.Conv2d(layer.in_channels, rank, **keep, bias=False)
        return nn.Sequential(spatial, nn.Conv2d(rank, layer.out_channels, 1, bias=layer.bias is not None))
    raise TypeError(f"surgery cannot split a {type(layer).__name__}")


# A torch-pruning group -> one number a channel, the least important lowest; None where it cannot tell.
Score = Callable[[Any], torch.Tensor | None]


def first(group: Any) -> torch.Tensor:
    """Keeps the first channels: for a model that is narrowed before it has learned anything."""
    return -torch.arange(len(group[0].idxs), dtype=torch.float32)


def nearest(channels: float, multiple: int, most: int) -> int:
    """Channels rounded to the nearest multiple, at least one block, never more than there are.

    >>> nearest(27, 8, 64), nearest(2, 8, 64), nearest(3, 8, 6)
    (24, 8, 6)
    """
    return min(most, max(multiple, round(channels / multiple) * multiple))


def shrink(
    module: nn.Module,
    example: torch.Tensor,
    *,
    keep: float,
    score: Score,
    multiple: int,
    original: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Remove the least important channels of every layer, and with them what depends on them, in place.

    `keep` is the share of channels left, of the widths in `original` (layer name -> channels; default: as they are
    now). Layers that give the model's output keep all of theirs. Gives the channels that each group's first layer was
    to be left with, by its name.
    Source: G. Fang et al., DepGraph: Towards Any Structural Pruning, CVPR 2023, arXiv 2301.12900; torch-pruning.
    """
    import torch_pruning as tp

    graph = tp.DependencyGraph().build_dependency(module, example_inputs=example)
    names = {layer: name for name, layer in module.named_modules()}
    outputs = _output_layers(graph, module)
    goals = {}
    for group in graph.get_all_groups(ignored_layers=outputs, root_module_types=[nn.Conv2d, nn.Linear]):
        root, remove = group[0].dep.target.module, group[0].dep.handler
        channels = len(group[0].idxs)
        was = (original or {}).get(names[root], channels)
        left = goals[names[root]] = nearest(was * keep, multiple, most=channels)
        if left < channels:
            worth = score(group)
            if worth is None:
                raise StageError(
                    f"the importance says nothing of '{names[root]}': bn_scale needs a batch norm after every layer",
                    "use importance: taylor or l2",
                )
            least = worth.argsort(stable=True)[: channels - left].tolist()
            graph.get_pruning_group(root, remove, sorted(least)).prune()
    return goals


def _output_layers(graph: Any, module: nn.Module) -> Collection[nn.Module]:
    """Layers whose channels no other layer takes in."""
    return [
        layer
        for layer in module.modules()
        if type(layer) in (nn.Conv2d, nn.Linear) and layer in graph.module2node and not _reaches_other(graph, layer)
    ]


def _reaches_other(graph: Any, layer: nn.Module) -> bool:
    from torch_pruning import prune_conv_in_channels, prune_linear_in_channels

    group = graph.get_pruning_group(layer, graph.get_pruner_of_module(layer).prune_out_channels, [0])
    return any(item.dep.handler in (prune_conv_in_channels, prune_linear_in_channels) for item in group)
