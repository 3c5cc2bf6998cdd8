"""Group what can only be removed together: channels of several layers, attention heads, feed-forward neurons.

for group in survey(module, inputs).groups:
    group.remove([0, 3])     # the first and the fourth, in place, with all that depends on them

Of most models the channels are followed from layer to layer (see channels.py). Of an encoder it is known which rows and
columns belong to a head or a neuron, so they are named here: a trace would cut across heads.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from edgepack.models.structure.channels import Channels, Inputs, Strand, channels
from edgepack.models.structure.encoder import Block, blocks, end
from edgepack.models.structure.flow import is_depthwise, makes_channels, recurrent, takes_channels
from edgepack.models.structure.layer_names import matches

# A torch-pruning group -> one number per channel, the least important lowest.
Score = Callable[[Any], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Pieces of a model, each of which can be removed with all that depends on it.

    For heads of 8 channels: name "...attention.self.query", width 8, loses_outputs query, key and value; `members` also
    has the same channels as inputs of the layer after the heads.
    """

    name: str  # the name of its first layer
    members: Any  # as in torch-pruning: layers, with the channels of each
    loses_outputs: tuple[str, ...]
    remove: Callable[[Collection[int]], None]  # takes the original numbers of pieces
    pieces: torch.Tensor  # [pieces, channels]: channels of each piece, as positions in the first member
    width: int = 1  # channels of the first layer in a piece
    is_heads: bool = False  # heads need not leave a multiple of a device's block

    @property
    def size(self) -> int:
        """Return its number of channels in the first layer."""
        return len(self.pieces) * self.width

    def worth(self, score: Score) -> torch.Tensor:
        """Return the importance of each piece."""
        return score(self.members)[self.pieces].sum(1)

    def left(self, share: float, multiple: int, was: float) -> int:
        """Return how many channels to keep for a share of the original number, in whole pieces and device blocks."""
        block = self.width if self.is_heads else math.lcm(multiple, self.width)
        return nearest(was * share, block, most=self.size) if share < 1 else self.size

    def least(self, score: Score, left: int) -> list[int]:
        """Return the least important pieces: those to remove so that this many channels are left."""
        order: list[int] = self.worth(score).argsort(stable=True).tolist()
        return order[: (self.size - left) // self.width]


def nearest(channels: float, multiple: int, most: int) -> int:
    """Round channels to the nearest multiple, at least one block, never more than there are.

    >>> nearest(27, 8, 64), nearest(2, 8, 64), nearest(3, 8, 6)
    (24, 8, 6)
    """
    return min(most, max(multiple, round(channels / multiple) * multiple))


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The groups that can be removed, and why other layers keep all their channels."""

    groups: tuple[Group, ...]
    whole: dict[str, str]


EXCLUDED = "it is excluded"  # a reason


def survey(module: nn.Module, inputs: Inputs, exclude: Collection[str] = ()) -> Survey:
    """Return every group except those that give the model's output or touch an excluded layer.

    Raises StageError for a structure that cannot be traced.
    """
    if blocks(module):
        every, whole = [*_of_encoder(module)], {}
    else:
        found = channels(module, inputs)
        every, whole = [*_traced(found)], dict(found.whole)
    kept = [group for group in every if any(matches(name, exclude) for name in group.loses_outputs)]
    whole |= {name: EXCLUDED for group in kept for name in group.loses_outputs}
    able = tuple(group for group in every if group not in kept)
    in_part = {name for group in able for name in group.loses_outputs}  # some of their channels may still have to stay
    return Survey(groups=able, whole={name: why for name, why in whole.items() if name not in in_part})


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a group of an encoder consists of, as named in a recipe and in a report."""

    block: str
    setting: Literal["heads", "ffn"]
    noun: str
    unit: int = 1


def parts(module: nn.Module) -> dict[str, Part]:
    """Return the groups of an encoder, by name; nothing for another kind of model."""
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
    shared = block.sharing(module)  # all heads of queries go that share one of keys and values
    group = _between(
        module, (block.query, block.key, block.value), block.output, {block.key: shared, block.value: shared}, size
    )

    def remove(heads: Collection[int]) -> None:
        group.remove([head * size * shared + channel for head in sorted(heads) for channel in range(size * shared)])
        _tell(attention, group.size - len(heads) * size * shared, size, shared)

    return replace(
        group, remove=remove, pieces=group.pieces.reshape(-1, size * shared), width=size * shared, is_heads=True
    )


def _neurons(module: nn.Module, block: Block) -> Group:
    return _between(module, (block.ffn_in, block.gate) if block.gate else (block.ffn_in,), block.ffn_out)


def _tell(attention: Any, width: int, size: int, shared: int) -> None:
    """Update the head counts of the attention module, under the names of BERT or of DistilBERT."""
    heads = width // size
    names = {"num_attention_heads": heads, "n_heads": heads, "all_head_size": width, "dim": width}
    for name, value in {**names, "num_key_value_heads": heads // shared}.items():
        if hasattr(attention, name):
            setattr(attention, name, value)


def _between(
    module: nn.Module, makers: Collection[str], taker: str, shared: Mapping[str, int] = {}, size: int = 1
) -> Group:
    """Group the outputs of some linear layers with the inputs of the next one, as a group of torch-pruning, so that its
    importances can score it. A maker that is `shared` has so many times fewer heads of `size` channels.
    """
    from torch_pruning import prune_linear_in_channels, prune_linear_out_channels
    from torch_pruning.dependency import Group as Members

    members, names = Members(), tuple(_maker(module, name) for name in makers)
    last: Any = module.get_submodule(end(module, taker, 0))
    every = list(range(last.in_features))
    times = [shared.get(name, 1) for name in makers]
    for name, each in zip(names, times, strict=True):
        _join(members, module.get_submodule(name), prune_linear_out_channels, _heads_of(every, each, size), every)
    _join(members, last, prune_linear_in_channels, every, every)

    def remove(channels: Collection[int]) -> None:
        for (dependency, _), each in zip(members.items, (*times, 1), strict=True):
            dependency(sorted({*_heads_of(channels, each, size)}))

    return Group(
        name=names[0], members=members, loses_outputs=names, pieces=torch.arange(len(every))[:, None], remove=remove
    )


def _heads_of(channels: Iterable[int], shared: int, size: int) -> list[int]:
    """Return the channel of keys that goes with each channel of queries.

    >>> _heads_of(range(8), shared=2, size=2)
    [0, 1, 0, 1, 2, 3, 2, 3]
    """
    return [channel // (size * shared) * size + channel % size for channel in channels]


def _join(members: Any, layer: Any, cut: Any, channels: list[int], of_first: list[int]) -> None:
    """Add a layer to a group. `of_first` are the matching channels of the first member."""
    from torch_pruning.dependency import Dependency, Node

    node = Node(layer, None)
    members.add_dep(Dependency(cut, cut, node, node), channels)
    members[-1].root_idxs = of_first


def _maker(module: nn.Module, name: str) -> str:
    """Return the layer with the outputs of this one: itself, or the last of the thin layers that replaced it."""
    return end(module, name, -1)


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
    """Return for each piece the positions of its channels among all first-layer channels of the strand."""
    places = torch.tensor([piece[strand.root] for piece in strand.pieces])
    return places.flatten().argsort().argsort().reshape(places.shape)


def _members(found: Channels, strand: Strand) -> Any:
    """Return the strand as a group of torch-pruning, the first layer first."""
    from torch_pruning.dependency import Group as Members

    members, positions = Members(), _positions(strand).tolist()
    for slot in sorted(strand.pieces[0], key=lambda slot: slot != strand.root):
        layer = found.layers[slot]
        if cut := _cutter(found, slot):
            if isinstance(layer, nn.RNNBase):
                layer = recurrent.as_linear(layer, found.slots[slot].tensor)
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
    """Return torch-pruning's function for removing channels of a slot; None for a tensor that no importance uses."""
    import torch_pruning as tp

    layer, place = found.layers[slot], found.slots[slot]
    if isinstance(layer, nn.RNNBase):
        makes, takes = makes_channels(layer, place), takes_channels(layer, place)
        return tp.prune_linear_out_channels if makes else tp.prune_linear_in_channels if takes else None
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
