"""Match weights from files with the model, and load them.

What wrappers put before the names of tensors is left out where all fits without it, and what else a training script
saved beside the model is left out too; each time a note says so. Which of two sets of weights is meant is asked.
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

import torch
from torch import nn

from edgepack.core.errors import StageError
from edgepack.models.notes import note
from edgepack.models.weights.checkpoints import State, nameless, read, state_dicts
from edgepack.models.weights.kinds import SPARSE, check_kinds, check_names, kind, quoted

_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # anywhere in a name
# Tensors of no layer: of losses and metrics, the count of torch's AveragedModel, values left by profilers.
_NO_LAYER = re.compile(r"(^|\.)n_averaged$|(^|[._])total_(ops|params)$|(^|\.)_extra_state$")
_LOSS = r"(loss(es)?|criteri(a|on|ons)|metrics?)"
_LOSSES = re.compile(rf"(^|\.)((train|val|valid|validation|test)_)?{_LOSS}(_(fn|func|function))?(\.|$)")
_OF_A_LOSS = re.compile(rf"(^|[._]){_LOSS}([._]|$)")  # may be a layer too: `loss_head.weight`
_METRIC = re.compile(r"(^|[._])(acc|accuracy|auc|auroc|f1|confmat|precision|recall)([._]|$)")
_OF_LAYERS = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True, kw_only=True)
class Match:
    """A set of weights in a file, under the names of the model.

    `entry` is its place in the file, "" for all of it; `prefix` stands before each name there, and `bare` is the prefix
    without the parts that wrappers added. For `ema.module.0.weight` and the model's `0.weight` these are "",
    "ema.module." and "ema.".
    """

    entry: str
    prefix: str
    bare: str
    tensors: dict[str, torch.Tensor]
    names: dict[str, str]  # the model's name -> the name in the file
    missing: tuple[str, ...]
    misshapen: tuple[str, ...]
    foreign: tuple[str, ...]  # under the prefix, but not in the model
    aside: tuple[str, ...]  # of no layer: left out
    others: tuple[str, ...]  # layers outside the prefix: left out if the recipe says so
    folded: tuple[str, ...]  # computed from two tensors of the file

    @property
    def wrong(self) -> tuple[str, ...]:
        return self.misshapen + self.foreign

    @property
    def whole(self) -> bool:
        return not (self.missing or self.misshapen)

    @property
    def fits(self) -> bool:
        return not (self.missing or self.wrong)

    @property
    def prefixes(self) -> tuple[str, str]:
        return self.bare.rstrip("."), self.prefix.rstrip(".")

    @property
    def keys(self) -> tuple[str, str]:
        """Return its place and prefix, without wrappers and with them: `state_dict.ema`, `state_dict.ema.module`."""
        short, long = (f"{self.entry}.{prefix}".strip(".") for prefix in self.prefixes)
        return short, long


def load_weights(module: nn.Module, path: Path, key: str | None = None) -> None:
    """Load a checkpoint into `module`; `key` selects a set of weights in it. Raises StageError when it cannot be read,
    is of another model, holds several sets of weights that fit, or integers in place of weights.
    """
    own, found = _tensors(module), read(path)
    matches = _matches(own, state_dicts(found, path))
    match = _chosen(matches, own, path, key)
    check_kinds(match.tensors, own, path)
    state = OrderedDict((name, _for(own[name], tensor)) for name, tensor in match.tensors.items())
    state._metadata = module.state_dict()._metadata  # type: ignore[attr-defined]  # which safetensors does not keep
    module.load_state_dict(state, strict=False)
    left = (*_passed_over(matches, match, own), *_without_names(module, nameless(found))) if key is None else ()
    for text in (*_load_notes(match), *left):
        note(f"{path.name}: {text}")


def fits(module: nn.Module, path: Path, key: str | None = None) -> bool:
    """Return whether a file holds weights of exactly this structure."""
    return any(match.fits for match in _asked(_matches(_tensors(module), state_dicts(read(path), path)), key))


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value for name, value in module.state_dict().items() if isinstance(value, torch.Tensor)}


def _for(own: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Round averages of counts."""
    return tensor.round() if tensor.is_floating_point() and not own.is_floating_point() else tensor


def _matches(own: State, states: Mapping[str, State]) -> list[Match]:
    """Match each set of weights under each possible prefix, the plainest first. State of optimizers does not count."""
    ends = {_last(name) for name in own}
    of_layers = {entry: state for entry, state in states.items() if any(_last(name) in ends for name in state)}
    found = []
    for entry, state in (of_layers or states).items():
        tried = _tried(own, state, entry)
        if not any(match.fits for match in tried) and (made := _folded(state)):
            rest = {name: tensor for name, tensor in state.items() if name not in made[1]}
            tried += _tried(own, rest | made[0], entry, tuple(made[0]))
        found += tried
    return found


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _tried(own: State, state: State, entry: str, folded: tuple[str, ...] = ()) -> list[Match]:
    """Match one set of weights; tensors of another complete set, such as an average, do not count as errors."""
    matches = [_match(own, state, entry, prefix, folded) for prefix in _prefixes(own, state)]
    apart = []
    for match in matches:
        taken = {name for each in matches if each is not match and each.whole for name in each.names.values()}
        foreign = tuple(name for name in match.foreign if name not in taken)
        others = match.others + tuple(name for name in match.foreign if name in taken)
        apart.append(replace(match, foreign=foreign, others=others))
    return apart


def _bare(names: Iterable[str]) -> dict[str, str]:
    """Map the names without the parts that wrappers added to the names in the file; keep these parts where two names
    would become the same.
    """
    whole = [*names]
    bare = {".".join(part for part in name.split(".") if part not in _WRAPPERS): name for name in whole}
    return bare if len(bare) == len(whole) else {name: name for name in whole}


def _prefixes(own: State, state: State) -> list[str]:
    """Return possible prefixes: none, or what stands before the first or the last name of the model."""
    counted = [name for name in _bare(own) if not name.endswith("num_batches_tracked")]
    ends = {*counted[:1], *counted[-1:]}
    found = {name.removesuffix(end) for end in ends for name in _bare(state) if name.endswith(f".{end}")}
    return ["", *sorted(found, key=lambda prefix: (len(prefix), prefix))]


def _match(own: State, state: State, entry: str, bare: str, folded: tuple[str, ...]) -> Match:
    theirs, ours = _bare(state), _bare(own)
    named = {f"{bare}{name}": own_name for name, own_name in ours.items()}
    names = {own_name: theirs[name] for name, own_name in named.items() if name in theirs}
    tensors = {name: _dense(state[there], own[name]) for name, there in names.items()}
    given = {own[name].data_ptr() for name in tensors}
    missing = [
        name
        for name, tensor in own.items()
        # Tensors that share memory are stored once, and old batch norms of torch did not count batches.
        if name not in tensors and tensor.data_ptr() not in given and not name.endswith("num_batches_tracked")
    ]
    used = {*names.values()}
    prefix = _with_wrappers(bare, used)
    foreign: list[str] = []
    aside: list[str] = []
    others: list[str] = []
    for name in theirs.values():
        if name not in used:
            inside = name.startswith(prefix)
            group = aside if _of_no_layer(name, state[name], inside) else foreign if inside else others
            group.append(name)
    return Match(
        entry=entry,
        prefix=prefix,
        bare=bare,
        tensors=tensors,
        names=names,
        missing=tuple(missing),
        misshapen=tuple(name for name, tensor in tensors.items() if own[name].shape != tensor.shape),
        foreign=tuple(foreign),
        aside=tuple(aside),
        others=tuple(others),
        folded=folded,
    )


def _with_wrappers(bare: str, names: Iterable[str]) -> str:
    """Return the prefix as it is in the file: "ema.module." for "ema." and `ema.module.0.weight`."""
    starts = [_start(name, bare) for name in names] or [bare.split(".")[:-1]]
    shared = takewhile(lambda parts: len({*parts}) == 1, zip(*starts, strict=False))
    return "".join(f"{parts[0]}." for parts in shared)


def _start(name: str, bare: str) -> list[str]:
    parts, left = name.split("."), bare.split(".")[:-1]
    for i, part in enumerate(parts):
        if left and part == left[0]:
            left.pop(0)
        elif part not in _WRAPPERS:
            return parts[:i]
    return parts[:-1]


def _dense(tensor: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    sparse = tensor.layout in SPARSE and tensor.shape == own.shape and not tensor.is_meta
    return tensor.to_dense() if sparse else tensor


def _of_no_layer(name: str, tensor: torch.Tensor, inside: bool) -> bool:
    """Return whether a tensor that the model lacks is of no layer."""
    lower = name.lower()
    if _NO_LAYER.search(lower) or _LOSSES.search(lower) or (tensor.dim() < 2 and _OF_A_LOSS.search(lower)):
        return True
    small = tensor.dim() < 2 and name.rpartition(".")[2] not in _OF_LAYERS
    return not inside and (small or bool(_METRIC.search(lower)))


def _folded(state: State) -> tuple[dict[str, torch.Tensor], set[str]] | None:
    """Return the weights that weight norm (old or new names) or a pruning mask stores as two tensors each, and the
    names of these tensors. None if there are none.

    Source: T. Salimans and D. Kingma, Weight Normalization, 2016, arXiv 1602.07868.
    """
    made: dict[str, torch.Tensor] = {}
    parts: set[str] = set()
    for first, second, of, together in _PAIRS:
        for name in state:
            other = re.sub(first, second, name)
            if re.fullmatch(first, name) and other in state:
                try:
                    made[re.sub(first, of, name)] = together(state[name], state[other])
                except RuntimeError:  # shapes do not match
                    continue
                parts |= {name, other}
    return (made, parts) if made else None


def _normed(size: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """Return g v / |v|, each norm over the dimensions that g lacks."""
    over = [i for i in range(direction.dim()) if size.dim() == 0 or size.shape[i] == 1]
    return direction * (size / torch.linalg.vector_norm(direction.float(), dim=over, keepdim=size.dim() > 0))


_PAIRS: tuple[tuple[str, str, str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]], ...] = (
    (r"(.*)_g", r"\1_v", r"\1", _normed),
    (r"(.*?)parametrizations\.(\w+)\.original0", r"\1parametrizations.\2.original1", r"\1\2", _normed),
    (r"(.*)_orig", r"\1_mask", r"\1", torch.mul),
)


def _asked(matches: list[Match], key: str | None) -> list[Match]:
    """Return the matches that the recipe names: first by place, then prefix, then both, then a parent of both; of
    these, fitting ones first.
    """
    if key is None:
        return matches
    named = [
        [match for match in matches if match.entry == key],
        [match for match in matches if key in match.prefixes],
        [match for match in matches if key in match.keys],
        [match for match in matches if match.keys[1].startswith(f"{key}.")],
    ]
    fitting = [[match for match in found if match.fits] for found in named]
    found = next((found for found in (*fitting, *named) if found), [])
    exact = [match for match in found if match.fits and key in match.keys]  # not `state_dict.ema`
    return exact or found


def _chosen(matches: list[Match], own: State, path: Path, key: str | None) -> Match:
    """Return the match that fits. Raises StageError if there is none, or if the recipe must say which."""
    asked = _asked(matches, key if key is None else key.strip("."))
    if not asked:
        words = {word for match in matches if match.names for word in (match.entry, *match.prefixes) if word}
        known = ", ".join(map(repr, sorted(words))) or "no names"
        raise StageError(
            f"{path.name} has nothing under '{key}', but {known}", "use one of these, or remove checkpoint_key"
        )
    found = [match for match in asked if match.fits]
    if not found:
        _refuse(min(asked, key=lambda match: len(match.missing) + len(match.wrong)), own, path)
    if len(found) == 1 and (key is not None or not found[0].others):
        return found[0]
    if len(found) > 1 and _alike(found) and (alone := [match for match in found if not match.others]):
        return alone[0]
    names = _names(found)
    advice = f"checkpoint_key: {names[-1] if _PLAIN.fullmatch(names[-1]) else repr(names[-1])}"
    if len(found) > 1:
        raise StageError(
            f"{path.name} contains {len(names)} sets of weights that fit this model: {' and '.join(map(repr, names))}",
            f"choose one next to checkpoint, for example {advice}",
        )
    raise StageError(
        f"{path.name} holds more than this model, whose weights are under '{names[0]}': {quoted(found[0].others)}",
        f"use the whole model, or skip the others: {advice}",
    )


_PLAIN = re.compile(r"[A-Za-z_][\w./-]*")  # what YAML reads as text without quotes


def _names(matches: list[Match]) -> list[str]:
    """Return the shortest names that distinguish the matches; "" is the set that has no prefix in the file."""
    entries, short, long = ([*names] for names in zip(*((each.entry, *each.prefixes) for each in matches), strict=True))
    distinct = (names for names in (entries, short, long) if all(names) and len({*names}) == len(names))
    return next(distinct, [match.keys[1] for match in matches])


def _alike(matches: list[Match]) -> bool:
    first, *rest = (match.tensors for match in matches)
    return all(
        first.keys() == other.keys() and all(_equal(first[name], other[name]) for name in first) for other in rest
    )


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    try:
        return bool(torch.equal(one, other))
    except RuntimeError:  # not comparable, or without values
        return False


def _refuse(best: Match, own: State, path: Path) -> None:
    """Raises StageError for weights that do not fit; says how they were saved if that is known."""
    check_kinds(best.tensors, own, path)
    check_names((*best.foreign, *best.others), path)
    raise StageError(
        f"{path.name} is of another model: {len(best.missing)} tensors are missing and {len(best.wrong)} do not fit, "
        f"the first is '{[*best.missing, *best.wrong][0]}'",
        "use the model that the checkpoint was saved from, with its width and number of classes",
    )


def _load_notes(match: Match) -> Iterator[str]:
    own, there = next(iter(match.names.items()), ("", ""))
    if there != own:
        yield f"'{there}' was taken for '{own}', and so on"
    if match.folded:
        yield f"computed from the two tensors that the file has of each: {quoted(match.folded)}"
    if left := (*match.aside, *match.others):
        yield f"left out, not part of these weights: {quoted(left)}"
    kinds = {kind(tensor) for tensor in match.tensors.values() if tensor.is_floating_point()} - {"float32"}
    if kinds:
        yield f"weights in {', '.join(sorted(kinds))} were converted to float32"


def _passed_over(matches: list[Match], taken: Match, own: State) -> Iterator[str]:
    """List sets left out although they have most of the model's tensors, such as averages without statistics."""
    for match in matches:
        shared = len(match.names) - len(match.misshapen)
        if match.entry != taken.entry and not match.fits and shared > len(own) / 2:
            yield f"'{match.keys[1]}' has {shared} of the model's {len(own)} tensors, and was left out"


def _without_names(module: nn.Module, lists: Mapping[str, list[torch.Tensor]]) -> Iterator[str]:
    shapes = [each.shape for each in module.parameters()]
    for place, tensors in lists.items():
        if shapes == [each.shape for each in tensors]:
            yield f"'{place}' has a tensor for each of the model's {len(shapes)} weights, but no names: left out"
