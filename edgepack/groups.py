"""What of a model can only go together: channels that flow through layers, attention heads, feed-forward neurons.

for group in groups(module, example):
    group.prune([0, 3])     # the first and the fourth, in place, with all that depends on them

Of a convolutional model torch-pruning follows the channels from layer to layer. Of an encoder it is known which rows
and columns belong to a head or a neuron, so they are named here: a trace would cut across heads.
"""

import math
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from edgepack.encoder import Block, blocks
from edgepack.errors import StageError
from edgepack.patterns import matches

# A torch-pruning group -> one number a channel, the least important lowest.
Score = Callable[[Any], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Pieces of a model, each of which can go with all that depends on it.

    A head of 8 channels: name "...attention.self.query", unit 8, loses_outputs query, key and value, and `members` has
    the same channels as inputs of the layer after the heads.
    """

    name: str  # of its first layer
    members: Any  # as torch-pruning has it: layers, with the channels of each
    loses_outputs: tuple[str, ...]
    remove: Callable[[list[int]], None]  # channels of the first layer, and what belongs to them
    unit: int = 1  # channels of a piece, side by side
    branches: int = 1  # equal parts that the pieces come in, each of which must lose as many

    @property
    def size(self) -> int:
        return len(self.members[0].idxs) // self.unit

    def worth(self, score: Score) -> torch.Tensor:
        """One number a piece."""
        return score(self.members).reshape(-1, self.unit).sum(1)

    def prune(self, pieces: Collection[int]) -> None:
        self.remove([piece * self.unit + channel for piece in sorted(pieces) for channel in range(self.unit)])


def groups(module: nn.Module, example: torch.Tensor, spare: Collection[str] = ()) -> Iterator[Group]:
    """Every group but those that give the model's output or touch a layer to spare.

    Raises StageError for a structure that cannot be followed.
    """
    found = _of_encoder(module) if blocks(module) else _traced(module, example)
    return (group for group in found if not any(matches(name, spare) for name in group.loses_outputs))


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

    def remove(channels: list[int]) -> None:
        group.remove(channels)
        _tell(attention, len(group.members[0].idxs) - len(channels), size)

    return replace(group, remove=remove, unit=size)


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
    for name in names:
        _join(members, module.get_submodule(name), prune_linear_out_channels, last.in_features)
    _join(members, last, prune_linear_in_channels, last.in_features)

    def remove(channels: list[int]) -> None:
        for dependency, _ in members.items:
            dependency(channels)

    return Group(name=names[0], members=members, loses_outputs=names, remove=remove)


def _join(members: Any, layer: Any, cut: Any, width: int) -> None:
    from torch_pruning.dependency import Dependency, Node

    node, channels = Node(layer, None), list(range(width))
    members.add_dep(Dependency(cut, cut, node, node), channels)
    members[-1].root_idxs = channels


def _maker(module: nn.Module, name: str) -> str:
    """The layer that gives what this one gives: itself, or the last of the thin ones that it was split into."""
    return end(module, name, -1)


def end(module: nn.Module, name: str, place: int) -> str:
    """The layer itself, or the first (0) or last (-1) of the thin ones that it was split into."""
    layer = module.get_submodule(name)
    while isinstance(layer, nn.Sequential):
        name, layer = f"{name}.{range(len(layer))[place]}", layer[place]
    return name


def _traced(module: nn.Module, example: torch.Tensor) -> Iterator[Group]:
    graph, names = _graph(module, example), {layer: name for name, layer in module.named_modules()}
    outputs = _output_layers(graph, module)
    for members in graph.get_all_groups(ignored_layers=outputs, root_module_types=list(_ROOTS)):
        yield Group(
            name=names[members[0].dep.target.module],
            members=members,
            loses_outputs=tuple(names[layer] for layer in _losing(graph, members) if layer in names),
            remove=_remover(graph, members[0].dep),
            branches=_branches(members),
        )


def _graph(module: nn.Module, example: torch.Tensor) -> Any:
    import torch_pruning as tp

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of parameters outside of layers: Candidate.check_rebuilt refuses them
            return tp.DependencyGraph().build_dependency(module, example_inputs=example)
    except Exception as error:  # it fails in many ways on what it cannot follow: shuffles, unbound tensors
        raise StageError(
            f"torch-pruning cannot follow how channels flow through this model ({type(error).__name__}: {error})",
            "prune and width work on models of convolutions, linear layers, sums and concatenations",
        ) from error


def _losing(graph: Any, members: Any) -> Iterator[Any]:
    """The layers that lose outputs when this group loses channels."""
    for item in members:
        if graph.is_out_channel_pruning_fn(item.dep.handler):
            yield item.dep.target.module


def _remover(graph: Any, root: Any) -> Callable[[list[int]], None]:
    return lambda channels: graph.get_pruning_group(root.target.module, root.handler, channels).prune()


_ROOTS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def _branches(members: Any) -> int:
    """How many equal parts the channels of a group come in, each of which must lose as many."""
    counts = [1]
    for item in members:
        layer = item.dep.target.module
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and not _depthwise(layer):
            counts.append(layer.groups)
        if isinstance(layer, nn.GroupNorm):
            counts.append(layer.num_groups)
    return math.lcm(*counts)


def _depthwise(layer: nn.Module) -> bool:
    return bool(layer.groups == layer.in_channels == layer.out_channels)


def _output_layers(graph: Any, module: nn.Module) -> Collection[nn.Module]:
    """Layers whose channels no other layer takes in."""
    return [
        layer
        for layer in module.modules()
        if isinstance(layer, _ROOTS) and layer in graph.module2node and not _reaches_other(graph, layer)
    ]


def _reaches_other(graph: Any, layer: nn.Module) -> bool:
    """Whether a layer that mixes channels comes after this one; a depthwise convolution only passes them on."""
    todo, seen = list(graph.module2node[layer].outputs), set()
    while todo:
        node = todo.pop()
        if isinstance(node.module, _ROOTS) and (isinstance(node.module, nn.Linear) or not _depthwise(node.module)):
            return True
        todo += [after for after in node.outputs if after not in seen]
        seen.update(node.outputs)
    return False
