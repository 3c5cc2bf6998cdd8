"""Group what can only be removed together: channels of several layers, attention heads, feed-forward neurons.

for group in survey(module, inputs).groups:
    group.remove([0, 3])     # the first and the fourth, in place, with all that depends on them

Of most models the channels are followed from layer to layer (see channels.py). Of an encoder it is known which rows and
columns belong to a head or a neuron, so they are named here: a trace would cut across heads.
"""

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from edgepack.models.structure.channels import Channels, Inputs, Strand, channels
from edgepack.models.structure.encoder import Block, blocks
from edgepack.models.structure.flow import is_depthwise, makes_channels, takes_channels
from edgepack.models.structure.layer_names import matches

# A torch-pruning group -> one number a channel, the least important lowest.
Score = Callable[[Any], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Pieces of a model, each of which can go with all that depends on it.

    A head of 8 channels: name "...attention.self.query", width 8, loses_outputs query, key and value, and `members` has
    the same channels as inputs of the layer after the heads.
    """

    name: str  # of its first layer
    members: Any  # as torch-pruning has it: layers, with the channels of each
    loses_outputs: tuple[str, ...]
    remove: Callable[[Collection[int]], None]  # pieces, by their numbers before any went
    pieces: torch.Tensor  # [pieces, channels]: the channels of each, among those of the first member
    width: int = 1  # channels of the first layer in a piece
    is_heads: bool = False  # these need not leave a multiple of a device's block

    @property
    def size(self) -> int:
        """In channels of the first layer."""
        return len(self.pieces) * self.width

    def worth(self, score: Score) -> torch.Tensor:
        """One number a piece."""
        return score(self.members)[self.pieces].sum(1)

    def left(self, share: float, multiple: int, was: float) -> int:
        """How many channels stay for this share of those that were, in whole pieces and blocks of the device."""
        block = self.width if self.is_heads else math.lcm(multiple, self.width)
        return nearest(was * share, block, most=self.size) if share < 1 else self.size

    def least(self, score: Score, left: int) -> list[int]:
        """The pieces that go for so many channels to stay: those that are worth least."""
        order: list[int] = self.worth(score).argsort(stable=True).tolist()
        return order[: (self.size - left) // self.width]


def nearest(channels: float, multiple: int, most: int) -> int:
    """Channels rounded to the nearest multiple, at least one block, never more than there are.

    >>> nearest(27, 8, 64), nearest(2, 8, 64), nearest(3, 8, 6)
    (24, 8, 6)
    """
    return min(most, max(multiple, round(channels / multiple) * multiple))


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What of a model can go, and why layers that give channels of their own keep all of them."""

    groups: tuple[Group, ...]
    whole: dict[str, str]


EXCLUDED = "it is excluded"  # a reason


def survey(module: nn.Module, inputs: Inputs, exclude: Collection[str] = ()) -> Survey:
    """Every group but those that give the model's output or touch an excluded layer.

    Raises StageError for a structure that cannot be followed.
    """
    if blocks(module):
        every, whole = [*_of_encoder(module)], {}
    else:
        found = channels(module, inputs)
        every, whole = [*_traced(found)], dict(found.whole)
    kept = [group for group in every if any(matches(name, exclude) for name in group.loses_outputs)]
    whole |= {name: EXCLUDED for group in kept for name in group.loses_outputs}
    able = tuple(group for group in every if group not in kept)
    in_part = {name for group in able for name in group.loses_outputs}  # other channels of theirs may have to stay
    return Survey(groups=able, whole={name: why for name, why in whole.items() if name not in in_part})


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a group of an encoder's is made of, as a recipe and as a report call it."""

    block: str
    setting: Literal["heads", "ffn"]
    noun: str
    unit: int = 1


def parts(module: nn.Module) -> dict[str, Part]:
    """The groups of an encoder, by their names; nothing for another kind of model."""
    named = {}
    for block in blocks(module):
        heads = Part(block=block.name, setting="heads", noun="heads", unit=block.head_size(module))
        named[_maker(module, block.query)] = heads
        named[_maker(module, block.ffn_in)] = Part(block=block.name, setting="ffn", noun="feed-forward neurons")
    return named


def _of_encoder(module: nn.Module) -> Iterator[Group]:
    for block in blocks(module):
        yield _heads(module, block)
        yield _neurons(module, block)


def _heads(module: nn.Module, block: Block) -> Group:
    size, attention = block.head_size(module), module.get_submodule(block.attention)
    group = _between(module, (block.query, block.key, block.value), block.output)

    def remove(heads: Collection[int]) -> None:
        group.remove([head * size + channel for head in sorted(heads) for channel in range(size)])
        _tell(attention, group.size - len(heads) * size, size)

    return replace(group, remove=remove, pieces=group.pieces.reshape(-1, size), width=size, is_heads=True)


def _neurons(module: nn.Module, block: Block) -> Group:
    return _between(module, (block.ffn_in,), block.ffn_out)


def _tell(attention: Any, width: int, size: int) -> None:
    """The attention module counts its heads too, in BERT's words or in DistilBERT's."""
    names = {"num_attention_heads": width // size, "n_heads": width // size, "all_head_size": width, "dim": width}
    for name, value in names.items():
        if hasattr(attention, name):
            setattr(attention, name, value)


def _between(module: nn.Module, makers: Collection[str], taker: str) -> Group:
    """The outputs of some linear layers and the inputs of the one that takes them; a group of torch-pruning's own, so
    that its importances can be asked.
    """
    from torch_pruning import prune_linear_in_channels, prune_linear_out_channels
    from torch_pruning.dependency import Group as Members

    members, names = Members(), tuple(_maker(module, name) for name in makers)
    last: Any = module.get_submodule(end(module, taker, 0))
    every = list(range(last.in_features))
    for name in names:
        _join(members, module.get_submodule(name), prune_linear_out_channels, every, every)
    _join(members, last, prune_linear_in_channels, every, every)

    def remove(channels: Collection[int]) -> None:
        for dependency, _ in members.items:
            dependency(sorted(channels))

    return Group(
        name=names[0], members=members, loses_outputs=names, pieces=torch.arange(len(every))[:, None], remove=remove
    )


def _join(members: Any, layer: Any, cut: Any, channels: list[int], of_first: list[int]) -> None:
    """`of_first` are the channels of the first member that these belong to."""
    from torch_pruning.dependency import Dependency, Node

    node = Node(layer, None)
    members.add_dep(Dependency(cut, cut, node, node), channels)
    members[-1].root_idxs = of_first


def _maker(module: nn.Module, name: str) -> str:
    """The layer that gives what this one gives: itself, or the last of the thin ones that it was split into."""
    return end(module, name, -1)


def end(module: nn.Module, name: str, place: int) -> str:
    """The layer itself, or the first (0) or last (-1) of the thin ones that it was split into."""
    layer = module.get_submodule(name)
    while isinstance(layer, nn.Sequential):
        name, layer = f"{name}.{range(len(layer))[place]}", layer[place]
    return name


def _traced(found: Channels) -> Iterator[Group]:
    for strand in found.strands:
        yield Group(
            name=found.slots[strand.root].layer,
            members=_members(found, strand),
            loses_outputs=found.makers(strand),
            pieces=_positions(strand),
            width=strand.width,
            remove=_remover(found, strand),
        )


def _remover(found: Channels, strand: Strand) -> Callable[[Collection[int]], None]:
    return lambda pieces: found.cut([strand.pieces[piece] for piece in pieces])


def _positions(strand: Strand) -> torch.Tensor:
    """Of each piece, where the channels of the first layer stand among all of the strand's."""
    places = torch.tensor([piece[strand.root] for piece in strand.pieces])
    return places.flatten().argsort().argsort().reshape(places.shape)


def _members(found: Channels, strand: Strand) -> Any:
    """The strand as a group of torch-pruning's, the first layer first."""
    from torch_pruning.dependency import Group as Members

    members, positions = Members(), _positions(strand).tolist()
    for slot in sorted(strand.pieces[0], key=lambda slot: slot != strand.root):
        layer = found.layers[slot]
        if cut := _cutter(found, slot):
            times = layer.groups if isinstance(layer, _ConvNd) and takes_channels(layer, found.slots[slot]) else 1
            times = 1 if getattr(layer, "transposed", False) else times
            step = found.slots[slot].size
            pairs = sorted(
                (place + step * turn, positions[number][at % len(positions[number])])
                for number, piece in enumerate(strand.pieces)
                for at, place in enumerate(piece[slot])
                for turn in range(times)
            )
            _join(members, layer, cut, [place for place, _ in pairs], [position for _, position in pairs])
    return members


def _cutter(found: Channels, slot: int) -> Any:
    """What torch-pruning calls losing the channels of a slot; None of what no importance is measured by."""
    import torch_pruning as tp

    layer, place = found.layers[slot], found.slots[slot]
    if place.tensor != "weight" or is_depthwise(layer):
        return None
    convolution = isinstance(layer, _ConvNd)
    if makes_channels(layer, place):
        return tp.prune_conv_out_channels if convolution else tp.prune_linear_out_channels
    if takes_channels(layer, place):
        return tp.prune_conv_in_channels if convolution else tp.prune_linear_in_channels
    if isinstance(layer, _BatchNorm):
        return tp.prune_batchnorm_out_channels
    return tp.prune_layernorm_out_channels if isinstance(layer, nn.LayerNorm) else None
