"""Narrower siblings of a transformer encoder: the same layers, with fewer heads and neurons and a smaller hidden width.

The hidden width stays a multiple of the head size, as in the published families: heads leave whole, and feed-forward
networks, embeddings and the classifier's own layer shrink in proportion. What is left has the teacher's weights.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise, takewhile

import torch
from torch import nn

from edgepack.core.errors import StageError
from edgepack.models.candidate import Candidate
from edgepack.models.complexity import parameters
from edgepack.models.structure.dependency_groups import nearest
from edgepack.models.structure.encoder import Block, TextEmbedder, blocks, end
from edgepack.models.structure.surgery import Edit, repeat, sizes

Weights = dict[str, torch.Tensor]
Along = tuple[str, int]  # the name of a tensor, and one of its dimensions


@dataclass(frozen=True)
class Axis:
    """A width that several tensors share: an index removed from one is removed from all.

    Indices are removed in groups of `unit` (a head is one unit); their number stays a multiple of `multiple`. Tensors
    that are `shared` have so many times fewer: keys and values that several heads of queries share.
    """

    tensors: tuple[Along, ...]
    multiple: int
    unit: int = 1
    shared: tuple[Along, ...] = ()
    times: int = 1

    def width(self, weights: Weights) -> int:
        """Return the width. Raises StageError where the tensors do not agree on it."""
        found = {weights[name].shape[dimension] for name, dimension in self.tensors}
        if len(found) > 1:
            first, last = (self.tensors[at][0].rpartition(".")[0] for at in (0, -1))
            raise StageError(
                f"this encoder cannot be narrowed: its width changes between '{first}' and '{last}'",
                "use scale: depth, or name a student",
            )
        return int(found.pop())

    def kept(self, weights: Weights, share: float) -> torch.Tensor:
        """Return the numbers of the most important units, in order.

        The importance of a place is the sum of its squared weights over all matrices on the axis. Each matrix is
        normalised first; otherwise the embedding table would outweigh all others.
        """
        width = self.width(weights)
        units = nearest(width * share, self.multiple, width) // self.unit
        worth = torch.zeros(width // self.unit)
        for name, dimension in self.tensors:
            if weights[name].dim() == 2:
                squares = weights[name].float().square().sum(1 - dimension).reshape(-1, self.unit).sum(1)
                worth += squares / squares.sum().clamp(min=1e-30)
        return worth.argsort(descending=True, stable=True)[:units].sort().values

    def cut(self, weights: Weights, units: torch.Tensor) -> None:
        """Keep these units of every tensor, in place."""
        for place, unit in (*((each, self.unit) for each in self.tensors), *((s, self._small) for s in self.shared)):
            name, dimension = place
            kept = (units[:, None] * unit + torch.arange(unit)).flatten()
            weights[name] = weights[name].index_select(dimension, kept)

    @property
    def _small(self) -> int:
        return self.unit // self.times


def narrower(teacher: Candidate, size: float, multiple: int) -> Candidate:
    """Return the widest sibling of at most `size` parameters, feed-forward widths being multiples of `multiple`.

    Raises StageError if even one head per layer has too many parameters.
    """

    def of(heads: int) -> int:
        return parameters(narrowed(teacher, heads, multiple).module)

    teacher = _projected(teacher)
    hidden = axes(teacher.module, multiple)[0]
    most = hidden.width(teacher.module.state_dict()) // hidden.multiple
    heads = bisect_right(range(1, most + 1), size, key=of)
    if not heads:
        smallest = of(1)
        raise StageError(
            f"no student of {size:,.0f} parameters: with the width of one head it still has {smallest:,}",
            f"use a compression of at most {parameters(teacher.module) / smallest:.3g}, or name a student",
        )
    sibling = narrowed(teacher, heads, multiple)
    sibling.check_rebuilt()
    return sibling


def narrowed(teacher: Candidate, heads: int, multiple: int) -> Candidate:
    """Return a copy whose hidden width is that of `heads` heads, with the most important of the teacher's weights."""
    teacher = _projected(teacher)
    whole, found = teacher.module.state_dict(), axes(teacher.module, multiple)
    share = heads * found[0].multiple / found[0].width(whole)
    weights = dict(whole)
    for axis in found:
        axis.cut(weights, axis.kept(whole, share))
    width = found[0].width(whole)
    sibling, edits = teacher.copy(), tuple(_edits(teacher.module, weights, (width, found[0].width(weights))))
    repeat(sibling.module, edits)
    sibling.module.load_state_dict(weights)
    return sibling.changed(*edits)


def _projected(teacher: Candidate) -> Candidate:
    """Return a copy in which a projection keeps the size of embeddings, where they are as wide as the model is."""
    module = teacher.module
    if not (isinstance(module, TextEmbedder) and isinstance(module.projection, nn.Identity)):
        return teacher
    width = blocks(module)[-1].width(module)
    return teacher.copy().edited(Edit(op="project", layer="projection", to={"width": width}))


def axes(module: nn.Module, multiple: int) -> tuple[Axis, ...]:
    """Return every width of an encoder that can become smaller, the hidden width first."""
    rows, places = blocks(module), list(_places(module))
    within = {name: any(name.startswith(f"{block.name}.") for block in rows) for name in places}
    before = list(takewhile(lambda name: not within[name], places))
    after = [name for name in places[len(before) :] if not within[name]]
    norms = [
        name
        for name in places
        if name not in before and isinstance(module.get_submodule(name), (nn.LayerNorm, nn.RMSNorm))
    ]
    head = [name for name in after if name not in norms]
    first, chained = (head, []) if _side_by_side(module, head) else (head[:1], head)
    projects = [name for name in before if isinstance(_first(module, name)[1], nn.Linear)]  # ELECTRA's, to the width
    tables = [name for name in before if name not in projects]
    writers = [*(projects or tables), *norms, *(name for block in rows for name in (block.output, block.ffn_out))]
    readers = [*chain.from_iterable(_readers(block) for block in rows), *first]
    hidden = _axis(module, writers, readers, multiple=rows[0].head_size(module))
    return (
        replace(hidden, tensors=(*hidden.tensors[:-1], *_of_no_layer(module, places), hidden.tensors[-1])),
        *chain.from_iterable(_of_block(module, block, multiple) for block in rows),
        *([_axis(module, tables, projects, multiple=multiple)] if projects else []),
        *(_axis(module, [one], [other], multiple=multiple) for one, other in pairwise(chained)),
    )


def _side_by_side(module: nn.Module, head: Sequence[str]) -> bool:
    """Return whether all layers of the head give classes, as the two of DeiT, rather than one following the other."""
    return len({_last(module, name)[1].out_features for name in head}) == 1


def _of_no_layer(module: nn.Module, places: Iterable[str]) -> Iterator[Along]:
    """Yield the parameters of a vision transformer that lie in no layer: its positions, class token and scales."""
    layers = tuple(f"{name}." for name in places)
    for name, parameter in module.named_parameters():
        if not name.startswith(layers):
            yield name, parameter.dim() - 1


def _of_block(module: nn.Module, block: Block, multiple: int) -> Iterator[Axis]:
    size, times = block.head_size(module), block.sharing(module)
    pairs = (block.key, block.value)
    heads = _axis(module, [block.query, *(pairs if times == 1 else ())], [block.output], multiple=size, unit=size)
    shared = tuple(chain.from_iterable(_written(*_last(module, name)) for name in pairs if times > 1))
    yield replace(heads, multiple=size * times, unit=size * times, shared=shared, times=times)
    yield _axis(module, [block.ffn_in, *([block.gate] if block.gate else [])], [block.ffn_out], multiple=multiple)


def _readers(block: Block) -> tuple[str, ...]:
    """Return the layers that read the hidden width."""
    return tuple(name for name in (block.query, block.key, block.value, block.ffn_in, block.gate) if name)


def _axis(module: nn.Module, writers: Iterable[str], readers: Iterable[str], *, multiple: int, unit: int = 1) -> Axis:
    written = chain.from_iterable(_written(*_last(module, name)) for name in writers)
    read = ((f"{_first(module, name)[0]}.weight", 1) for name in readers)
    return Axis((*written, *read), multiple, unit)


def _written(name: str, layer: nn.Module) -> Iterator[Along]:
    """Yield the parameters of a layer that have its outputs as a dimension."""
    yield f"{name}.weight", 1 if isinstance(layer, nn.Embedding) else 0
    if getattr(layer, "bias", None) is not None:
        yield f"{name}.bias", 0


_LAYERS = (nn.Linear, nn.Embedding, nn.LayerNorm, nn.RMSNorm, nn.Conv2d)


def _places(module: nn.Module) -> Iterator[str]:
    """Yield the layers that have a width, in order; a pair of thin layers that replaces one counts as one."""
    pairs = [name for name, layer in module.named_modules() if _is_pair(layer)]
    for name, layer in module.named_modules():
        if name in pairs or (isinstance(layer, _LAYERS) and name.rpartition(".")[0] not in pairs):
            yield name


def _is_pair(layer: nn.Module) -> bool:
    return type(layer) is nn.Sequential and len(layer) == 2 and all(isinstance(each, _LAYERS) for each in layer)


def _first(module: nn.Module, name: str) -> tuple[str, nn.Module]:
    return (found := end(module, name, 0)), module.get_submodule(found)


def _last(module: nn.Module, name: str) -> tuple[str, nn.Module]:
    return (found := end(module, name, -1)), module.get_submodule(found)


def _edits(module: nn.Module, weights: Weights, hidden: tuple[int, int]) -> Iterator[Edit]:
    """Yield the surgery edits for layers that get these weights, and for what has their widths as numbers: attention
    modules, and a model's own code. `hidden` is the hidden width before and after.
    """
    attention = {block.attention: block for block in blocks(module)}
    for name, was in sizes(module).items():
        if name in attention:
            to = _heads(module, attention[name], weights, was)
        elif f"{name}.weight" in weights:
            to = _of_layer(weights[f"{name}.weight"].shape, was)
        else:
            own = {key: weights.get(f"{name}.{key}".lstrip(".")) for key in was}
            number = dict([hidden])
            to = {key: number.get(was[key], was[key]) if row is None else row.shape[-1] for key, row in own.items()}
        if to != was:
            yield Edit(op="resize", layer=name, to=to, was=was)


def _of_layer(shape: torch.Size, was: dict[str, int]) -> dict[str, int]:
    if "out_channels" in was:
        return was | {"out_channels": shape[0]}
    return dict(zip(was, reversed(shape) if "in_features" in was else shape, strict=True))


def _heads(module: nn.Module, block: Block, weights: Weights, was: dict[str, int]) -> dict[str, int]:
    """Return an attention module's sizes: n_heads and dim in DistilBERT, else num_attention_heads and all_head_size."""
    width = len(weights[f"{_last(module, block.query)[0]}.weight"])
    heads = width // block.head_size(module)
    pairs = {"num_key_value_heads": heads // block.sharing(module)}
    return {key: pairs.get(key, heads) if "heads" in key else width for key in was}
