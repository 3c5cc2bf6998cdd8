"""Find the channels of a model that can be removed, what is removed with them, and why others cannot.

A model is run once to see where its channels flow (see flow.py). What is found so is tried on a copy with random
weights before it is believed: without some of its channels a model must answer as it does where nothing reads them.
Source of the idea: G. Fang et al., DepGraph: Towards Any Structural Pruning, CVPR 2023, arXiv 2301.12900.
"""

import copy
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

from edgepack.core.errors import StageError, listed
from edgepack.core.process.random_numbers import own_random
from edgepack.models import source_lines
from edgepack.models.checks.changes import CHANGED, OVERFLOWS, Unmixed, difference, lively, separated
from edgepack.models.structure.flow import OUTPUT, Flow, Slot, is_depthwise, makes_channels, recurrent, takes_channels
from edgepack.models.structure.flow.rules import rule_of

_BLAMED = 2  # operators listed in a reason, at most
Places = dict[int, list[int]]  # slot number -> places in that slot
Inputs = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Strand:
    """A set of similar pieces: each piece is one or several channels of the same layers."""

    root: int  # the slot of its first layer
    pieces: tuple[Places, ...]
    width: int  # channels of the first layer in a piece
    suspects: tuple[str, ...] = ()  # possible reasons if it turns out that it cannot be removed


class Channels:
    """The strands that can be removed, and why other layers keep all their channels."""

    def __init__(self, module: nn.Module, slots: Sequence[Slot]) -> None:
        self.module, self.slots = module, tuple(slots)
        self.strands: list[Strand] = []
        self.whole: dict[str, str] = {}
        self.layers = [module.get_submodule(slot.layer) for slot in slots]
        self.read: set[int] = set()  # slots of input channels that are read when the model runs
        self.left = [[*range(slot.size)] for slot in slots]  # the remaining places of each slot
        # Computed now: a layer with fewer channels may look like a depthwise convolution.
        self.ratios = {name: _ratio(layer) for name, layer in module.named_modules()}
        owners: dict[int, list[tuple[str, str]]] = defaultdict(list)
        for name, layer in module.named_modules():
            for key, tensor in (*layer._parameters.items(), *layer._buffers.items()):
                owners[id(tensor)].append((name, key))
        # The layers that have the tensor of each slot: a weight may be shared.
        self.owners = [owners[id(self._tensor(at))] if slot.tensor else [] for at, slot in enumerate(slots)]

    def makers(self, strand: Strand) -> tuple[str, ...]:
        """Return the layers that lose outputs with the strand, also those that share their weights."""
        return tuple(dict.fromkeys(n for at in strand.pieces[0] if self._gives(at) for n, _ in self.owners[at]))

    def _gives(self, slot: int) -> bool:
        layer = self.layers[slot]
        return makes_channels(layer, self.slots[slot]) or (self.slots[slot].tensor == "weight" and is_depthwise(layer))

    def _tensor(self, slot: int) -> Tensor:
        layer, name = self.layers[slot], self.slots[slot].tensor
        found: Tensor = layer._parameters[name] if name in layer._parameters else layer._buffers[name]
        return found

    def cut(self, pieces: Collection[Places]) -> None:
        """Remove these pieces from the module, in place; places are numbered as before any removal."""
        gone = _by_slot(pieces)
        names = {name for slot in gone for name, _ in (*self.owners[slot], (self.slots[slot].layer, ""))}
        for slot, places in gone.items():
            here = self.left[slot]
            kept = torch.tensor([at for at, place in enumerate(here) if place not in places])
            self.left[slot] = [place for place in here if place not in places]
            if self.slots[slot].tensor:
                self._narrow(slot, kept)
            else:
                _tell(self.layers[slot], len(kept))
        for name in names:
            _measure(self.module.get_submodule(name), self.ratios[name])

    def _narrow(self, slot: int, kept: Tensor) -> None:
        """Remove channels from a tensor, in all layers that share it."""
        old = self._tensor(slot)
        new = old.detach().index_select(self.slots[slot].dimension, kept)
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(new, requires_grad=old.requires_grad)
        for name, key in self.owners[slot]:
            setattr(self.module.get_submodule(name), key, new)

    def mute(self, pieces: Collection[Places]) -> None:
        """Zero the weights that read these pieces."""
        with torch.no_grad():
            for slot, places in _by_slot(pieces).items():
                if slot in self.read or takes_channels(self.layers[slot], self.slots[slot]):
                    self._tensor(slot).index_fill_(self.slots[slot].dimension, torch.tensor([*places]), 0.0)


def _by_slot(pieces: Collection[Places]) -> dict[int, set[int]]:
    found: dict[int, set[int]] = defaultdict(set)
    for piece in pieces:
        for slot, places in piece.items():
            found[slot].update(places)
    return found


def _ratio(layer: nn.Module) -> int:
    """Return the outputs per channel of a depthwise convolution; 0 for all other layers."""
    return layer.out_channels // layer.in_channels if is_depthwise(layer) else 0


def _measure(layer: Any, ratio: int) -> None:
    """Set the width attributes of a layer from its weights."""
    if isinstance(layer, _ConvNd):
        first, second = layer.weight.shape[:2]
        if ratio:
            layer.in_channels = layer.groups = first if layer.transposed else first // ratio
            layer.out_channels = layer.in_channels * ratio
        elif layer.transposed:
            layer.in_channels, layer.out_channels = first, second * layer.groups
        else:
            layer.in_channels, layer.out_channels = second * layer.groups, first
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, nn.Embedding):
        layer.embedding_dim = layer.weight.shape[1]
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = len(layer.weight)
    elif isinstance(layer, nn.RNNBase):
        recurrent.measure(layer)


def _tell(norm: Any, width: int) -> None:
    if isinstance(norm, _NormBase):
        norm.num_features = width
    elif isinstance(norm, nn.GroupNorm):
        norm.num_channels = width
    else:
        norm.normalized_shape = (width,)


def channels(module: nn.Module, inputs: Inputs) -> Channels:
    """Find the channels that can be removed. Raises StageError for a model that cannot be traced at all.

    The result is stored with the model and its copies, as a search tries many widths of one model.
    """
    shapes = _shapes(module, inputs)
    cached = cached_channels(module)
    if cached is None or cached.shapes != shapes:
        with own_random(seed=0):  # the model's code may draw random numbers, and later ones must not change
            found = _found(module, inputs)
        cached = CachedChannels(shapes, found.slots, tuple(found.strands), dict(found.whole))
        cache_channels(module, cached)
    remembered = Channels(module, cached.slots)
    remembered.strands, remembered.whole = [*cached.strands], dict(cached.whole)
    return remembered


Shapes = tuple[tuple[str, torch.Size, bool], ...]


@dataclass(frozen=True)
class CachedChannels:
    """The result for a model of these shapes; copies of the model share it."""

    shapes: Shapes
    slots: tuple[Slot, ...]
    strands: tuple[Strand, ...]
    whole: dict[str, str]

    def __deepcopy__(self, memo: Any) -> "CachedChannels":
        return self


def cached_channels(module: nn.Module) -> CachedChannels | None:
    """Return the result stored with a module; it may be for other shapes than the current ones."""
    found: CachedChannels | None = getattr(module, "_edgepack_channels", None)
    return found


def cache_channels(module: nn.Module, cached: CachedChannels | None) -> None:
    """Store the result for one model with another that was made in the same way."""
    module._edgepack_channels = cached


def _shapes(module: nn.Module, inputs: Inputs) -> Shapes:
    named = [*module.named_parameters(), *module.named_buffers(), *((f"input {at}", x) for at, x in enumerate(inputs))]
    return tuple((name, tensor.shape[int(name.startswith("input ")) :], tensor.requires_grad) for name, tensor in named)


def _found(module: nn.Module, inputs: Inputs) -> Channels:
    found, cuts = _tried(module, inputs, trailing=False)
    if cuts and any(why != OUTPUT for why in found.whole.values()):
        other, _ = _tried(module, inputs, trailing=True)
        return min(found, other, key=lambda each: len(each.whole))
    return found


def _tried(module: nn.Module, inputs: Inputs, *, trailing: bool) -> tuple[Channels, bool]:
    """Find what can be removed, and whether the model cuts channels into parts by views."""
    flow = _traced(module, inputs, trailing=trailing)
    found = _sorted(flow)
    _keep_tried(found, inputs)
    return found, flow.has_cut


def _traced(module: nn.Module, inputs: Inputs, *, trailing: bool) -> Flow:
    flow = Flow(module, rule_of, trailing=trailing)
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad(), _in_parts(), flow.watching():
            answer = module(*inputs)
        for each in tree_leaves(answer):
            if isinstance(each, Tensor):
                flow.hold(flow.canonical(flow.of(each)), OUTPUT)
    except Exception as error:
        at = source_lines.of_error(error, module)
        why = f"{type(error).__name__}: {error}"
        raise StageError(
            f"cannot trace how channels flow through this model{f', at {at}' if at else ''} ({why})",
            "train a smaller model, or use factorize or quantize",
        ) from error
    finally:
        for part, mode in modes.items():
            part.training = mode
    return flow


@contextmanager
def _in_parts() -> Iterator[None]:
    """Run transformer layers as separate operators, not as one fused operator."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _sorted(flow: Flow) -> Channels:
    """Sort pieces that are removed together into strands of similar pieces."""
    found = Channels(flow.module, flow.slots)
    makers = {at for at, slot in enumerate(found.slots) if makes_channels(found.layers[at], slot)}
    found.read = {at for at, slot in enumerate(found.slots) if slot.start in flow.read}
    held = {int(flow.parents[label]): why for label, why in reversed(flow.held.items())}
    suspects: dict[int, list[str]] = defaultdict(list)
    for label, whys in flow.suspects.items():
        suspects[int(flow.parents[label])] += whys
    alike: dict[tuple[int, ...], dict[int, Places]] = defaultdict(dict)  # by the slots of the pieces
    for root, piece in _pieces(flow, found.slots).items():
        if makers & piece.keys():
            alike[*sorted(makers & piece.keys()), *sorted(piece.keys() - makers)][root] = piece
    for slots, pieces in sorted(alike.items()):
        strand = _strand(found, slots[0], [*pieces.values()], [why for label in pieces for why in suspects[label]])
        reasons = [held[label] for label in pieces if label in held]
        idle = "" if found.slots[strand.root].start in flow.ran else "it does not run in inference"
        if why := next(iter(reasons), "") or idle or _too_thick(strand):
            _stay(found, strand, why)
        elif frozen := _frozen(found, strand):
            _stay(found, strand, f"'{frozen}', which would lose the same channels, is frozen (requires_grad is False)")
            found.whole |= {frozen: FROZEN} if frozen in found.makers(strand) else {}
        else:
            found.strands.append(strand)
    for name, layer in flow.module.named_modules():
        if isinstance(layer, _ConvNd | nn.Linear) and "weight" not in layer._parameters:
            found.whole[name] = "its weight is computed, for example by a parametrization"
    return found


FROZEN = "it is frozen (requires_grad is False)"  # a reason


def _stay(found: Channels, strand: Strand, why: str) -> None:
    found.whole |= {name: why for name in found.makers(strand) if name not in found.whole}


def _pieces(flow: Flow, slots: Sequence[Slot]) -> dict[int, Places]:
    """Return for each label the places with it, by slot."""
    roots = flow.parents.tolist()
    pieces: dict[int, Places] = defaultdict(lambda: defaultdict(list))
    for at, slot in enumerate(slots):
        for place in range(slot.size):
            pieces[roots[slot.start + place]][at].append(place)
    return {root: dict(piece) for root, piece in pieces.items()}


def _strand(found: Channels, root: int, pieces: list[Places], suspects: list[str]) -> Strand:
    pieces.sort(key=lambda piece: piece[root][0])
    layer = found.layers[root]
    repeated = layer.groups if isinstance(layer, _ConvNd) and layer.transposed else 1
    width = len(pieces[0][root]) * repeated
    return Strand(root=root, pieces=tuple(pieces), width=width, suspects=tuple(dict.fromkeys(suspects)))


def _frozen(found: Channels, strand: Strand) -> str:
    """Return the first layer of a strand with frozen weights."""
    for slot in strand.pieces[0]:
        learns = isinstance(found.layers[slot], _ConvNd | nn.Linear | nn.RNNBase)
        weight = found.slots[slot].tensor.startswith("weight") and learns
        if weight and not found._tensor(slot).requires_grad:
            return found.slots[slot].layer
    return ""


def _too_thick(strand: Strand) -> str:
    if len({len(piece[strand.root]) for piece in strand.pieces}) > 1:
        return "its channels form groups of different sizes"
    return "all its channels depend on each other" if len(strand.pieces) == 1 and strand.width > 1 else ""


def _keep_tried(found: Channels, inputs: Inputs) -> None:
    """Keep the strands that can be removed in a trial; if not all can be at once, those that can be together."""
    chance = torch.Generator().manual_seed(0)
    given = tuple(
        torch.randn(each.shape, generator=chance).to(each) if each.is_floating_point() else each for each in inputs
    )
    good: list[Strand] = []
    try:
        with _in_parts(), Unmixed():
            random = lively(found.module, given)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        why = f"with random weights the model fails ({reason}), so a cut cannot be checked"
        reasons = [why] * len(found.strands)
    else:
        good, reasons = separated(found.strands, lambda some: _fault(found, random, some, given))
    for strand, why in zip(found.strands, reasons, strict=True):
        if why:
            _stay(found, strand, _blamed(strand) if why == CHANGED else why)
    found.strands[:] = good


def _blamed(strand: Strand) -> str:
    """Say, as far as known, why outputs change when channels are removed that nothing reads."""
    causes = " or ".join(strand.suspects[:_BLAMED])
    return f"{CHANGED}, perhaps because {causes}" if causes else CHANGED


def _fault(found: Channels, random: nn.Module, strands: Sequence[Strand], inputs: Inputs) -> str:
    """Remove every second piece of these strands on a copy; return what is wrong then, or ""."""
    gone = [piece for strand in strands for piece in strand.pieces[1::2]]
    if not gone:
        return ""
    tried = Channels(copy.deepcopy(random), found.slots)
    tried.read = found.read
    tried.mute(gone)
    with torch.no_grad(), _in_parts(), Unmixed() as watched:
        expected = tree_leaves(tried.module(*inputs))
        if watched.has_overflown:
            return OVERFLOWS
        tried.cut(gone)
        try:
            answers = tree_leaves(tried.module(*inputs))
        except Exception as error:
            at = source_lines.of_error(error, tried.module)
            reason = str(error).strip().partition("\n")[0]
            return f"the model's code assumes this number of channels{f', at {at}' if at else ''} ({reason})"
        wrong = filter(None, map(difference, answers, expected))
        return next(wrong, "") or _fault_in_training(found, tried.module, inputs)


def _fault_in_training(found: Channels, cut: nn.Module, inputs: Inputs) -> str:
    """Say why the model could not be trained any more: some models have parts that run only in training."""
    try:
        cut.train()(*inputs)
    except Exception as error:
        try:
            copy.deepcopy(found.module).train()(*inputs)
        except Exception:  # it failed before too, as with too few samples for a batch norm
            return ""
        at = source_lines.of_error(error, cut)
        return f"the model's code assumes this number of channels in training{f', at {at}' if at else ''}"
    return ""


_REASONS = 3  # listed in a message, at most: a report has those of every layer


def describe_reasons(whole: Mapping[str, str]) -> str:
    """List why layers keep their channels, each reason once, most frequent first: "conv1 and conv2: frozen; ..."."""
    counts = Counter(whole.values())
    said = [
        f"{listed([name for name, each in whole.items() if each == why])}: {why}"
        for why, _ in counts.most_common(_REASONS)
    ]
    left = sum(counts.values()) - sum(number for _, number in counts.most_common(_REASONS))
    return "; ".join([*said, *[f"and {left} more layer{'s' * (left > 1)} for other reasons"] * bool(left)])
