"""Changes to the structure of a model, each written down so that a saved candidate can be rebuilt without pickle.

Four things are done to structures: `shrink` removes channels, `split` puts two thin layers in place of one, `drop`
takes a block out, and `apply` repeats on a fresh model what an `Edit` says was done.
"""

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from edgepack.core.frozen import Frozen
from edgepack.models.structure.dependency_groups import Score, survey
from edgepack.models.structure.encoder import square_projection
from edgepack.models.structure.flow import long_dimension


class Edit(Frozen):
    """One entry of the surgery log: what changed in the structure, never the weights.

    resize          the layer now has these attributes              {"out_channels": 40, "in_channels": 24}
    split           the layer became two thin ones of this rank     {"rank": 24}
    split_spatial   ... of a k x 1 and a 1 x l kernel               {"rank": 24}
    resize          ... and for attention, how many heads           {"num_attention_heads": 8, "all_head_size": 256}
    resize          ... of a parameter in no layer, its length      {"gamma": 40}
    project         what passed its input on is a square Linear     {"width": 384}
    drop            the block returns its first input               {}
    zeros           weights that are zero stay zero in training     {}
    """

    op: Literal["resize", "split", "split_spatial", "project", "drop", "zeros"]
    layer: str
    to: dict[str, int] = {}
    was: dict[str, int] = {}


def repeat(module: nn.Module, edits: Iterable[Edit]) -> None:
    """Repeat the log on a fresh model; layers that shared parameters share them again, if shapes still match."""
    tied = [[*owners] for owners in _tied(module)]
    for edit in edits:
        apply(module, edit)
    for (name, key), *others in tied:
        first = getattr(_found(module, name), key, None)
        for other, own in others:
            layer = _found(module, other)
            there = getattr(layer, own, None)
            if isinstance(first, nn.Parameter) and there is not None and there.shape == first.shape:
                setattr(layer, own, first)


def _found(module: nn.Module, name: str) -> nn.Module | None:
    try:
        return module.get_submodule(name)
    except AttributeError:  # it was split into two thin layers
        return None


def _tied(module: nn.Module) -> Iterator[list[tuple[str, str]]]:
    """Yield the parameters that several layers share, as a list of their places."""
    owners: dict[int, list[tuple[str, str]]] = {}
    for name, layer in module.named_modules():
        for key, parameter in layer._parameters.items():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append((name, key))
    return (each for each in owners.values() if len(each) > 1)


def apply(module: nn.Module, edit: Edit) -> None:
    """Apply an edit to `module`; changed layers have fresh weights afterwards."""
    layer = module.get_submodule(edit.layer)
    match edit.op:
        case "resize":
            _resize(module, edit.layer, edit.to)
        case "split":
            replace_layer(module, edit.layer, _as_frozen(layer, split(layer, edit.to["rank"])))
        case "split_spatial":
            replace_layer(module, edit.layer, _as_frozen(layer, split_spatial(layer, edit.to["rank"])))
        case "project":
            replace_layer(module, edit.layer, square_projection(edit.to["width"]))
        case "drop":
            replace_layer(module, edit.layer, PassOn())
        case "zeros":
            layer.keeps_zeros = True


def _as_frozen(layer: nn.Module, pair: nn.Sequential) -> nn.Sequential:
    """Freeze the two thin layers if the original layer is frozen."""
    for thin in pair:
        thin.weight.requires_grad_(layer.weight.requires_grad)
    if getattr(layer, "bias", None) is not None:
        pair[-1].bias.requires_grad_(layer.bias.requires_grad)
    return pair


class PassOn(nn.Module):  # type: ignore[misc]
    """Takes the place of a dropped block: returns its first input, whatever other arguments there are."""

    def forward(self, given: torch.Tensor, *others: Any, **named: Any) -> torch.Tensor:
        return given


def _resize(module: nn.Module, name: str, to: dict[str, int]) -> None:
    """Resize in place: a layer may have several names in a model, and the model's code may keep a reference to it."""
    layer = module.get_submodule(name)
    if not _kind(layer):  # attention, whose layers are resized separately, or parameters of the model's own code
        for attribute, value in to.items():
            row = layer._parameters.get(attribute)
            setattr(layer, attribute, value if row is None else _shortened(row, value))
        return
    _become(layer, resized(layer, to), to)


def _become(layer: nn.Module, fresh: nn.Module, widths: Iterable[str]) -> None:
    """Give a layer the widths and the tensors of another, in place; what it has not stays away."""
    for attribute in widths:
        setattr(layer, attribute, getattr(fresh, attribute))
    for kept, tensors in ((layer._parameters, fresh._parameters), (layer._buffers, fresh._buffers)):
        for key, tensor in tensors.items():
            if (old := kept.get(key)) is not None:
                setattr(layer, key, tensor.requires_grad_(old.requires_grad))


def _shortened(row: nn.Parameter, length: int) -> nn.Parameter:
    """Return the first elements of a parameter along its width."""
    dimension = _along(row)
    return nn.Parameter(row.detach().narrow(dimension, 0, length).clone(), requires_grad=row.requires_grad)


def _along(row: torch.Tensor) -> int:
    """Return the dimension of a parameter's width: the only long one, or the last, as of a place for each token."""
    long = long_dimension(row)
    return row.dim() - 1 if long is None else long


def keeps_zeros(layer: nn.Module) -> bool:
    return getattr(layer, "keeps_zeros", False)


@contextmanager
def zeros_held(module: nn.Module) -> Iterator[None]:
    """Let no gradient reach the weights that pruning set to zero while the block runs: optimizers leave them there."""

    def only(kept: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda gradient: gradient * kept.to(gradient.device)

    weights = [layer.weight for layer in module.modules() if keeps_zeros(layer) and layer.weight.requires_grad]
    hooks = [weight.register_hook(only(weight.detach() != 0)) for weight in weights]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def replace_layer(module: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, layer)


_CONVOLUTION = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_RECURRENT = (nn.LSTM, nn.GRU)
_FEATURES = (*_BATCH_NORMS, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
# What can be resized: the widths of a layer, and its other arguments.
_SIZES: dict[type[nn.Module], tuple[str, ...]] = {
    **dict.fromkeys((*_CONVOLUTIONS, *_TRANSPOSED), ("in_channels", "out_channels", "groups")),
    nn.Linear: ("in_features", "out_features"),
    **dict.fromkeys(_FEATURES, ("num_features",)),
    nn.GroupNorm: ("num_channels",),
    nn.PReLU: ("num_parameters",),
    **dict.fromkeys((nn.LayerNorm, nn.RMSNorm), ("normalized_shape",)),
    nn.Embedding: ("num_embeddings", "embedding_dim"),
    **dict.fromkeys(_RECURRENT, ("input_size", "hidden_size")),
}
# Sizes that the attention modules of transformers store besides the layers in them.
_HEADS = ("num_attention_heads", "all_head_size", "n_heads", "dim", "num_key_value_heads")
_OWN = ("hidden_dim",)  # that the code of a model reads: torchvision's ViT shapes its patches by it
_KEPT: dict[type[nn.Module], tuple[str, ...]] = {
    **dict.fromkeys(_CONVOLUTIONS, _CONVOLUTION),
    **dict.fromkeys(_TRANSPOSED, (*_CONVOLUTION, "output_padding")),
    **dict.fromkeys(_FEATURES, ("eps", "momentum", "affine", "track_running_stats")),
    nn.GroupNorm: ("num_groups", "eps", "affine"),
    **dict.fromkeys((nn.LayerNorm, nn.RMSNorm), ("eps", "elementwise_affine")),
    nn.Embedding: ("padding_idx",),
    **dict.fromkeys(_RECURRENT, ("num_layers", "bias", "batch_first", "dropout", "bidirectional")),
}
_NORMS = (*_FEATURES, nn.GroupNorm)  # these have a bias if they are affine


def _kind(layer: nn.Module) -> type[nn.Module] | None:
    """Return the torch class that a layer is or derives from, if it can be resized."""
    return next((kind for kind in type(layer).__mro__ if kind in _SIZES), None)


def sizes(module: nn.Module) -> dict[str, dict[str, int]]:
    """Return the widths of layers that surgery can resize: {"conv1": {"in_channels": 1, "out_channels": 64, ...}}."""
    widths = ((name, dict(_widths(layer))) for name, layer in module.named_modules())
    return {name: found for name, found in widths if found}


def _widths(layer: nn.Module) -> Iterator[tuple[str, int]]:
    kind, heads = _kind(layer), _counts_heads(layer)
    own = not (kind or heads or type(layer).__module__.startswith("torch.nn."))
    for key, parameter in layer._parameters.items() if own else ():
        if parameter is not None and parameter.dim():
            yield key, parameter.shape[_along(parameter)]
    for attribute in _SIZES[kind] if kind else _HEADS if heads else _OWN if own else ():
        value = getattr(layer, attribute, None)
        if isinstance(value, int | tuple):
            yield attribute, int(value[-1] if isinstance(value, tuple) else value)


def _counts_heads(layer: nn.Module) -> bool:
    return hasattr(layer, "attention_head_size") or (hasattr(layer, "head_dim") and hasattr(layer, _HEADS[0]))


def outputs(module: nn.Module) -> dict[str, int]:
    """Return the number of output channels of each layer that makes its own: {"conv1": 64, ...}."""
    made = ("out_channels", "out_features", "hidden_size")
    given = {name: [widths[key] for key in made if key in widths] for name, widths in sizes(module).items()}
    return {name: channels[0] for name, channels in given.items() if channels and channels[0]}


def resizes(before: dict[str, dict[str, int]], module: nn.Module) -> tuple[Edit, ...]:
    """Return the changes in `module` since `sizes` was taken, as edits."""
    return tuple(
        Edit(op="resize", layer=name, to=now, was=before[name])
        for name, now in sizes(module).items()
        if now != before[name]
    )


def resized(layer: nn.Module, to: dict[str, int]) -> nn.Module:
    """Return a fresh layer like `layer` with other widths; for a subclass of a torch layer, the torch layer."""
    kind = _kind(layer)
    if kind is None:
        raise TypeError(f"surgery cannot resize a {type(layer).__name__}")
    keep = {name: getattr(layer, name) for name in _KEPT.get(kind, ())}
    if hasattr(layer, "bias") and kind not in (*_NORMS, *_RECURRENT):
        keep["bias"] = layer.bias is not None
    return kind(**to, **keep)


def is_plain(layer: nn.Module) -> bool:
    """Return whether a layer computes what torch's own class does; a subclass may have another forward."""
    kind = _kind(layer)
    return all(getattr(type(layer), name, None) is getattr(kind, name, None) for name in ("forward", "_conv_forward"))


def _narrower(layer: nn.Module, **to: int) -> nn.Module:
    """Return a fresh layer with other widths and no bias: of torch's class, or of a subclass with its own forward."""
    fresh = resized(layer, to)
    if hasattr(fresh, "bias"):
        fresh.bias = None
    if is_plain(layer):
        return fresh
    own = copy.deepcopy(layer)
    if hasattr(own, "bias"):
        own.bias = None
    _become(own, fresh, to)
    return own


def split(layer: nn.Module, rank: int) -> nn.Sequential:
    """Return the two thin layers, with `rank` channels between them, for a Linear, a Conv2d without groups, or an
    Embedding: a narrow table, and a Linear that widens its rows. The first does what a subclass does to its input.
    """
    if isinstance(layer, nn.Embedding):
        narrow = _narrower(layer, num_embeddings=layer.num_embeddings, embedding_dim=rank)
        return nn.Sequential(narrow, nn.Linear(rank, layer.embedding_dim, bias=False))
    if isinstance(layer, nn.Linear):
        narrow = _narrower(layer, in_features=layer.in_features, out_features=rank)
        return nn.Sequential(narrow, nn.Linear(rank, layer.out_features, bias=layer.bias is not None))
    if isinstance(layer, nn.Conv2d) and layer.groups == 1:
        narrow = _narrower(layer, in_channels=layer.in_channels, out_channels=rank, groups=1)
        return nn.Sequential(narrow, nn.Conv2d(rank, layer.out_channels, 1, bias=layer.bias is not None))
    raise TypeError(f"surgery cannot split a {type(layer).__name__}")


def split_spatial(layer: nn.Module, rank: int) -> nn.Sequential:
    """Return a column filter and a row filter: k x 1 to `rank` channels, then 1 x l, for a k x l Conv2d.

    Each has the stride, padding and dilation of its own direction. Padding in one direction commutes with the filter in
    the other, in every padding mode, because the first of the two has no bias.
    """
    if not (isinstance(layer, nn.Conv2d) and layer.groups == 1 and is_plain(layer)):
        raise TypeError(f"surgery cannot split a {type(layer).__name__} in space")
    down = nn.Conv2d(layer.in_channels, rank, **_one_way(layer, 0), bias=False)
    across = nn.Conv2d(rank, layer.out_channels, **_one_way(layer, 1), bias=layer.bias is not None)
    return nn.Sequential(down, across)


_PLACES = ("kernel_size", "stride", "padding", "dilation")


def _one_way(layer: nn.Conv2d, direction: int) -> dict[str, Any]:
    """Return the settings of a filter along one direction (0 down, 1 across), taken from a convolution."""
    still = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1}
    taken: dict[str, Any] = {"padding_mode": layer.padding_mode}
    for key in _PLACES:
        value = getattr(layer, key)
        if not isinstance(value, str):  # padding may be "same" or "valid"
            value = (value[0], still[key]) if direction == 0 else (still[key], value[1])
        taken[key] = value
    return taken


def first(group: Any) -> torch.Tensor:
    """Score so that the first channels are kept: for a model narrowed before training."""
    return -torch.arange(len(group[0].idxs), dtype=torch.float32)


def shrink(
    module: nn.Module,
    example: torch.Tensor | Sequence[torch.Tensor],
    *,
    keep: float | Mapping[str, float],
    score: Score,
    multiple: int,
    original: Mapping[str, int] | None = None,
    exclude: Collection[str] = (),
) -> dict[str, int]:
    """Remove the least important channels of every layer, and with them what depends on them, in place.

    An encoder loses whole attention heads, keeping at least one per layer, and neurons of its feed-forward networks.
    `keep` is the share of channels left, relative to the widths in `original` (layer name -> channels; default: the
    current ones); a mapping gives a share for each group by the name of its first layer, and leaves other groups whole.
    Layers that give the model's output keep all their channels, and so do those that match a pattern of `exclude`, with
    all that depends on them. A grouped convolution loses the same number of channels in each of its groups. Returns the
    number of channels that each group's first layer should have, by its name. Raises StageError for a structure that
    cannot be traced.
    Source: G. Fang et al., DepGraph: Towards Any Structural Pruning, CVPR 2023, arXiv 2301.12900; torch-pruning.
    """
    inputs = (example,) if isinstance(example, torch.Tensor) else tuple(example)
    goals: dict[str, int] = {}
    cuts, now = [], outputs(module)
    for group in survey(module, inputs, exclude).groups:
        share = keep.get(group.name, 1.0) if isinstance(keep, Mapping) else keep
        was = group.size * (original or now).get(group.name, now[group.name]) / now[group.name]
        left = group.left(share, multiple, was)
        goals[group.name] = goals.get(group.name, now[group.name]) - group.size + left
        if left < group.size:
            cuts.append((group, group.least(score, left)))
    for group, pieces in cuts:  # all are scored before any is removed
        group.remove(pieces)
    return goals


_GRID = 256  # shares k/256 are exact in binary and in the decimals of a recipe


def widest(left: Callable[[float], float], limit: float) -> float:
    """Return the largest share k/256 of channels that leaves no more than `limit`; one block per layer must meet it.

    >>> widest(lambda keep: 1000 * keep**2, limit=250)
    0.5
    """
    meets, fails = 0, _GRID
    while fails - meets > 1:
        middle = (meets + fails) // 2
        meets, fails = (middle, fails) if left(middle / _GRID) <= limit else (meets, middle)
    return meets / _GRID


def droppable_blocks(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[str]:
    """Return blocks in a sequence whose output has the shape of their input: the model runs without them.

    The heaviest comes first; of two with the same size, the last.
    """
    blocks = dict(_blocks(module))
    same: set[str] = set()

    def watch(name: str) -> Any:
        def note(block: nn.Module, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            if len(given) == 1 and getattr(output, "shape", None) == given[0].shape:
                same.add(name)

        return note

    hooks = [block.register_forward_hook(watch(name)) for name, block in blocks.items()]
    with torch.no_grad():
        module.eval()(*inputs)
    for hook in hooks:
        hook.remove()
    order = [name for name in reversed(blocks) if name in same]
    return sorted(order, key=lambda name: -sum(weight.numel() for weight in blocks[name].parameters()))


def _blocks(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the items of a sequence that are more than a single layer; blocks inside a block are not listed."""
    for leaf, child in module.named_children():
        if isinstance(module, nn.Sequential) and any(child.children()) and not isinstance(child, nn.Sequential):
            yield f"{prefix}{leaf}", child
        else:
            yield from _blocks(child, f"{prefix}{leaf}.")
