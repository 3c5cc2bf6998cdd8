"""Weights from files: read without running code, held against the model that they are for, and filled in.

What wrappers put before the names of tensors is left out where all fits without it, and what else a training script
saved beside the model is left out too; each time a note says so. Which of two sets of weights is meant is asked.
"""

import argparse
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import nn

from edgepack.errors import StageError, listed
from edgepack.models._notes import note

State = Mapping[str, torch.Tensor]

_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # anywhere in a name
# Of no layer: what losses and metrics keep, the count of torch's AveragedModel, what profilers leave behind.
_NO_LAYER = re.compile(r"(^|\.)n_averaged$|(^|[._])total_(ops|params)$|(^|\.)_extra_state$")
_LOSS = r"(loss(es)?|criteri(a|on|ons)|metrics?)"
_LOSSES = re.compile(rf"(^|\.)((train|val|valid|validation|test)_)?{_LOSS}(_(fn|func|function))?(\.|$)")
_OF_A_LOSS = re.compile(rf"(^|[._]){_LOSS}([._]|$)")  # may be a layer too: `loss_head.weight`
_METRIC = re.compile(r"(^|[._])(acc|accuracy|auc|auroc|f1|confmat|precision|recall)([._]|$)")
_OF_LAYERS = ("weight", "bias", "running_mean", "running_var")
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# Besides tensors: what argparse and numpy leave in the files of training scripts. None of it runs code.
_HARMLESS = [argparse.Namespace, numpy.dtype, numpy.float64, numpy.float32, numpy.int64]


@dataclass(frozen=True, kw_only=True)
class Match:
    """One set of weights in a file, by the names of the model.

    `entry` is where it lies in the file, "" for all of it; `prefix` stands before each name there.
    """

    entry: str
    prefix: str
    tensors: dict[str, torch.Tensor]
    example: tuple[str, str] = ("", "")  # a name in the file and the model's own
    missing: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()  # of another shape, or nothing that the model has
    aside: tuple[str, ...] = ()  # of no layer: left out
    others: tuple[str, ...] = ()  # layers outside of the prefix: left out when the recipe says so

    @property
    def fits(self) -> bool:
        return not (self.missing or self.wrong)

    @property
    def keys(self) -> tuple[str, str, str]:
        """What `checkpoint_key` may call it: its place, its prefix, or both."""
        prefix = self.prefix.rstrip(".")
        return self.entry, prefix, f"{self.entry}.{prefix}".strip(".")


def load_weights(module: nn.Module, path: Path, key: str | None = None) -> None:
    """Fill `module` from a checkpoint; `key` says which weights in it. Raises StageError when it cannot be read, is of
    another model, holds several sets of weights that fit, or integers in place of weights.
    """
    own = _tensors(module)
    match = _chosen(_matches(own, _sets(_read(path), path)), path, key)
    _check_kinds(match, own, path)
    state = OrderedDict(match.tensors)
    state._metadata = module.state_dict()._metadata  # type: ignore[attr-defined]  # which safetensors does not keep
    module.load_state_dict(state, strict=False)
    for told in _told(match, path):
        note(told)


def fits(module: nn.Module, path: Path, key: str | None = None) -> bool:
    """Whether a file holds weights of this very structure."""
    return any(match.fits for match in _asked(_matches(_tensors(module), _sets(_read(path), path)), key))


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value for name, value in module.state_dict().items() if isinstance(value, torch.Tensor)}


def _read(path: Path) -> Any:
    """What is in a .safetensors file, or in one that torch.save wrote; no code of the file runs."""
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([*_HARMLESS, *_numpy_internals()]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what is no checkpoint can fail in any way
        raise StageError(  # torch's own advice, to load it with its code, is no advice
            f"{path.name} cannot be read as weights ({type(error).__name__}): damaged, or more than tensors in it",
            "save the weights alone: torch.save(model.state_dict(), ...), or safetensors.torch.save_model(model, ...)",
        ) from error


def _numpy_internals() -> Iterator[Any]:
    """Numbers of numpy, as a best score is one: under their name of today and the one before numpy 2."""
    scalar = numpy._core.multiarray.scalar  # type: ignore[attr-defined]  # torch's own advice for such files
    yield scalar
    yield scalar, "numpy.core.multiarray.scalar"
    yield from (type(numpy.dtype(kind)) for kind in ("float64", "float32", "int64", "bool"))


def _sets(found: Any, path: Path) -> dict[str, State]:
    """Every state dict of a file, by where it lies in it: "" where the file is one."""
    sets = dict(_state_dicts(found)) if isinstance(found, dict) else {}
    if not sets:
        what = f"a dict of {', '.join(map(str, list(found)[:5]))}" if isinstance(found, dict) else type(found).__name__
        raise StageError(
            f"{path.name} holds no state dict, but {what}", "torch.save(model.state_dict(), ...) makes one"
        )
    return sets


def _state_dicts(found: Mapping[Any, Any], place: str = "", depth: int = 2) -> Iterator[tuple[str, State]]:
    kept = {name: value for name, value in found.items() if not str(name).endswith("_extra_state")}
    if all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in kept.items()):
        if kept or not place:
            yield place, kept
    elif depth:
        for name, value in found.items():
            if isinstance(name, str) and isinstance(value, dict):
                yield from _state_dicts(value, f"{place}.{name}".lstrip("."), depth - 1)


def _matches(own: State, sets: Mapping[str, State]) -> list[Match]:
    """Each set under each prefix that it may have; the plainest first."""
    found = []
    for entry, state in sets.items():
        tried = [_match(own, state, entry, prefix) for prefix in _prefixes(own, state)]
        if not any(match.fits for match in tried) and (folded := _folded(state)):
            tried += [_match(own, folded, entry, prefix) for prefix in _prefixes(own, folded)]
        found += tried
    return found


def _bare(names: Iterable[str]) -> dict[str, str]:
    """The names as they are without the parts that wrappers put in, each with the name itself; or as they are, where
    two would be the same.
    """
    whole = [*names]
    bare = {".".join(part for part in name.split(".") if part not in _WRAPPERS): name for name in whole}
    return bare if len(bare) == len(whole) else {name: name for name in whole}


def _prefixes(own: State, state: State) -> list[str]:
    """What may stand before every name: nothing, or what stands before the first or the last one of the model."""
    counted = [name for name in _bare(own) if not name.endswith("num_batches_tracked")]
    ends = {*counted[:1], *counted[-1:]}
    found = {name.removesuffix(end) for end in ends for name in _bare(state) if name.endswith(f".{end}")}
    return ["", *sorted(found, key=lambda prefix: (len(prefix), prefix))]


def _match(own: State, state: State, entry: str, prefix: str) -> Match:
    theirs, ours = _bare(state), _bare(own)
    named = {f"{prefix}{bare}": name for bare, name in ours.items()}
    tensors = {named[bare]: state[name] for bare, name in theirs.items() if bare in named}
    wrong = [name for name, tensor in tensors.items() if own[name].shape != tensor.shape]
    given = {own[name].data_ptr() for name in tensors}
    missing = [
        name
        for name, tensor in own.items()
        # Tensors that share memory are stored once, and batch norms counted no batches in the early days of torch.
        if name not in tensors and tensor.data_ptr() not in given and not name.endswith("num_batches_tracked")
    ]
    aside: list[str] = []
    others: list[str] = []
    for bare, name in theirs.items():
        if bare not in named:
            inside = bare.startswith(prefix)
            kind = aside if _of_no_layer(name, state[name], inside) else wrong if inside else others
            kind.append(name)
    example = next(((theirs[bare], name) for bare, name in named.items() if bare in theirs), ("", ""))
    return Match(
        entry=entry,
        prefix=prefix,
        tensors=tensors,
        example=example,
        missing=tuple(missing),
        wrong=tuple(wrong),
        aside=tuple(aside),
        others=tuple(others),
    )


def _of_no_layer(name: str, tensor: torch.Tensor, inside: bool) -> bool:
    """Whether a tensor that the model does not have is nothing that it computes with."""
    lower = name.lower()
    if _NO_LAYER.search(lower) or _LOSSES.search(lower) or (tensor.dim() < 2 and _OF_A_LOSS.search(lower)):
        return True
    small = tensor.dim() < 2 and name.rpartition(".")[2] not in _OF_LAYERS
    return not inside and (small or bool(_METRIC.search(lower)))


def _folded(state: State) -> dict[str, torch.Tensor] | None:
    """With one weight in place of the two that weight norm keeps, by its old names and its new ones; None without any.

    Source: T. Salimans and D. Kingma, Weight Normalization, 2016, arXiv 1602.07868.
    """
    pairs = {}
    for name in state:
        for g, v, of in ((r"(.*)_g$", r"\1_v", r"\1"), (_ORIGINAL + "0$", r"\1parametrizations.\2.original1", r"\1\2")):
            direction = re.sub(g, v, name)
            if re.fullmatch(g, name) and direction in state:
                pairs[re.sub(g, of, name)] = (name, direction)
    parts = {part for pair in pairs.values() for part in pair}
    rest = {name: tensor for name, tensor in state.items() if name not in parts}
    return {**rest, **{name: _normed(state[g], state[v]) for name, (g, v) in pairs.items()}} if pairs else None


_ORIGINAL = r"(.*?)parametrizations\.(\w+)\.original"


def _normed(size: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """g v / |v|, each norm over the dimensions that g has not."""
    over = [i for i in range(direction.dim()) if size.dim() == 0 or size.shape[i] == 1]
    return direction * (size / torch.linalg.vector_norm(direction.float(), dim=over, keepdim=size.dim() > 0))


def _asked(matches: list[Match], key: str | None) -> list[Match]:
    """Those that the recipe names: by their place before their prefix, where the same word is both."""
    if key is None:
        return matches
    named = ([match for match in matches if match.keys[i] == key.rstrip(".")] for i in range(3))
    return next((found for found in named if found), [])


def _chosen(matches: list[Match], path: Path, key: str | None) -> Match:
    """The one that fits. Raises StageError where there is none, or where the recipe has to say which."""
    asked = _asked(matches, key)
    if not asked:
        known = ", ".join(sorted({repr(name) for match in matches for name in match.keys[:2] if name})) or "no names"
        raise StageError(f"{path.name} has nothing under '{key}', but {known}", "name one of these, or leave it out")
    found = [match for match in asked if match.fits]
    if not found:
        _refuse(min(asked, key=lambda match: len(match.missing) + len(match.wrong)), path)
    whole = [match for match in found if not match.others]
    if len(found) == 1 and key is not None:
        return found[0]
    if len(whole) == 1 or (whole and _alike(whole)):
        return whole[0]
    names = _names(found)
    advice = f"checkpoint_key: {names[-1]}"
    if len(found) > 1:
        listed = " and ".join(map(repr, names))
        raise StageError(
            f"{path.name} contains {len(names)} sets of weights that fit this model: {listed}",
            f"say which beside checkpoint, for example {advice}",
        )
    raise StageError(
        f"{path.name} holds more than this model, whose weights are under '{names[0]}': {_listed(found[0].others)}",
        f"name the whole model; or leave the others out: {advice}",
    )


def _names(matches: list[Match]) -> list[str]:
    """The shortest that tells them apart."""
    return next(
        (names for names in map(list, zip(*(match.keys for match in matches), strict=True)) if _unlike(names)),
        [match.keys[-1] for match in matches],
    )


def _unlike(names: list[str]) -> bool:
    return all(names) and len(set(names)) == len(names)


def _alike(matches: list[Match]) -> bool:
    first, *rest = (match.tensors for match in matches)
    return all(
        first.keys() == other.keys() and all(torch.equal(first[name], other[name]) for name in first) for other in rest
    )


def _refuse(best: Match, path: Path) -> None:
    raise StageError(
        f"{path.name} is of another model: {len(best.missing)} tensors are missing and {len(best.wrong)} do not fit, "
        f"the first is '{[*best.missing, *best.wrong][0]}'",
        "name the model that the checkpoint was saved from, with its width and number of classes",
    )


def _check_kinds(match: Match, own: State, path: Path) -> None:
    """Raises StageError for integers, and whatever else is no plain number, in place of weights."""
    _refuse_kinds({name: _kind(each) for name, each in match.tensors.items() if not _is_kind(each, own[name])}, path)


def check_floats(path: Path) -> None:
    """Raises StageError where weights and biases in a .safetensors file are no plain floats."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if name.endswith((".weight", ".bias"))]  # noqa: SIM118  (it is no dict)
        kinds = {name: file.get_slice(name).get_dtype() for name in names}
    _refuse_kinds({name: kind for name, kind in kinds.items() if kind not in ("F64", "F32", "F16", "BF16")}, path)


def _refuse_kinds(wrong: Mapping[str, str], path: Path) -> None:
    if wrong:
        raise StageError(
            f"{path.name} is not made of float weights: {_listed(wrong)} in {', '.join(sorted({*wrong.values()}))}",
            "save the weights as they were before they were quantized: `stages: [quantize: ...]` makes int8 of them",
        )


def _is_kind(tensor: torch.Tensor, own: torch.Tensor) -> bool:
    if tensor.is_quantized or tensor.layout != torch.strided:
        return False
    if own.is_floating_point() or own.is_complex():
        return tensor.dtype in _FLOATS if own.is_floating_point() else tensor.is_complex()
    if tensor.dtype in _FLOATS:  # an average of counts
        return bool((tensor == tensor.round()).all())
    return not tensor.is_complex() and not tensor.is_floating_point()


def _kind(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _told(match: Match, path: Path) -> Iterator[str]:
    there, own = match.example
    if there != own:
        yield f"{path.name}: '{there}' was taken for '{own}', and so on"
    if left := (*match.aside, *match.others):
        yield f"{path.name}: left out, as nothing of the model: {_listed(left)}"
    kinds = {_kind(tensor) for tensor in match.tensors.values() if tensor.is_floating_point()} - {"float32"}
    if kinds:
        yield f"{path.name}: weights in {', '.join(sorted(kinds))} were made float32"


def _listed(names: Iterable[str]) -> str:
    return listed([repr(name) for name in names], 3)
