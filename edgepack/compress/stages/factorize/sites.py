"""Find the layers that can be split into two thin ones, what each would save, and why others cannot."""

import copy
import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

import torch
from torch import Tensor, nn

from edgepack.compress.stages.factorize.low_rank import SplitScheme, break_even, schemes, shape
from edgepack.compress.targets import Metric
from edgepack.core.errors import StageError, listed
from edgepack.core.process.random_numbers import own_random
from edgepack.models.candidate import Candidate
from edgepack.models.checks.changes import difference, separated
from edgepack.models.structure.encoder import first_token_only
from edgepack.models.structure.layer_names import matches
from edgepack.models.structure.surgery import is_plain, replace_layer, split

PAYS = 0.6  # share of the break-even rank up to which two thin layers are not slower than one
_KINDS = (nn.Conv2d, nn.Linear, nn.Embedding)
_NAMES = 8  # names listed in a hint

Call = tuple[int, int]  # one call of a layer: its number of output positions, and the number for a k x 1 filter


@dataclass(frozen=True, kw_only=True)
class Site:
    """A layer that can be split."""

    layer: nn.Module
    schemes: tuple[SplitScheme, ...]
    calls: tuple[Call, ...]

    @property
    def is_table(self) -> bool:
        return isinstance(self.layer, nn.Embedding)

    def break_even(self, scheme: SplitScheme) -> float:
        return break_even(self.layer, scheme)

    def pays(self, scheme: SplitScheme) -> float:
        """Return the rank up to which a split pays: where it is faster, or for an embedding where it saves weights."""
        return (1.0 if self.is_table else PAYS) * self.break_even(scheme)

    def full(self, scheme: SplitScheme) -> int:
        return min(shape(self.layer, scheme))

    def saved(self, metric: Metric, scheme: SplitScheme, rank: int) -> float:
        """Return what a split removes from the model's parameters, MACs or bytes."""
        weight: Tensor = self.layer.weight
        outputs, inputs = shape(self.layer, scheme)
        seconds = sum(places for places, _ in self.calls)
        firsts = sum(between for _, between in self.calls) if scheme == "spatial" else seconds
        if metric != "macs":
            seconds = firsts = weight.element_size() if metric == "size" else 1
        elif self.is_table:
            return float(-rank * outputs * seconds)  # a lookup multiplies nothing
        return float(seconds * weight.numel() - rank * (inputs * firsts + outputs * seconds))


@dataclass(frozen=True, kw_only=True)
class Survey:
    """Every layer that the patterns match, in model order: a site, or a reason why it cannot be split."""

    sites: dict[str, Site]
    whole: dict[str, str]
    named: frozenset[str]  # patterns without a wildcard
    looked_at: tuple[str, ...]


def survey(candidate: Candidate, patterns: Sequence[str], allowed: Sequence[SplitScheme]) -> Survey:
    """Find the sites. Raises StageError where a pattern matches no layer that can be split."""
    module = candidate.module.eval()
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, _KINDS)}
    unfit = _unfit(module, layers)
    unfit |= _read_by_hand(candidate, [name for name in layers if name not in unfit])
    able = [name for name in layers if name not in unfit]
    for pattern in patterns:
        if not any(matches(name, [pattern]) for name in able):
            raise StageError(f"no layer that can be split matches '{pattern}'", _hint(pattern, module, able, unfit))
    looked_at = tuple(name for name in layers if matches(name, patterns))
    calls = _calls(candidate, {name: layers[name] for name in looked_at if name in able})
    return Survey(
        sites={name: _site(layers[name], each, allowed) for name, each in calls.items() if each},
        whole={**unfit, **{name: _unused(layers[name]) for name in calls if not calls[name]}},
        named=frozenset({*patterns} & {*looked_at}),
        looked_at=looked_at,
    )


_IDLE = "it is never called: it is unused, or another part of the model uses its weight"
_CONSTANT = "its output is the same for every sample"


def _unused(layer: nn.Module) -> str:
    return _CONSTANT if isinstance(layer, nn.Embedding) else _IDLE


def _site(layer: nn.Module, calls: Sequence[Call], allowed: Sequence[SplitScheme]) -> Site:
    """Return the site of a layer. If none of the allowed schemes fits the layer, its only scheme is used."""
    there = schemes(layer)
    return Site(layer=layer, schemes=tuple(each for each in there if each in allowed) or there, calls=tuple(calls))


def _unfit(module: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, str]:
    """Return why some layers can never be split."""
    names = Counter(id(layer) for _, layer in module.named_modules(remove_duplicate=False))
    users = Counter(id(tensor) for layer in module.modules() for tensor in layer._parameters.values())
    reasons = {}
    for name, layer in layers.items():
        if getattr(layer, "groups", 1) > 1:
            reasons[name] = f"it is a convolution in {layer.groups} groups"
        elif "weight" not in layer._parameters or not (is_plain(layer) or _is_product(layer)):
            reasons[name] = f"a {type(layer).__name__} does more than a Conv2d, Linear or Embedding"
        elif names[id(layer)] > 1 or users[id(layer.weight)] > 1:
            reasons[name] = "its weight is used twice in the model"
    return reasons


def _is_product(layer: nn.Module) -> bool:
    """Return whether a subclass with its own forward does nothing but multiply its input by its weight.

    It is tried with a weight of rank 2, which two thin layers must replace exactly: not so if the weight is
    standardised, or an activation follows.
    """
    with torch.no_grad(), own_random():
        try:
            thin, wide = pair = split(layer, 2).eval()
            whole = copy.deepcopy(layer).eval()
            product = wide.weight.flatten(1) @ _rows(thin).flatten(1)
            whole.weight.copy_((product.T if isinstance(layer, nn.Embedding) else product).reshape(layer.weight.shape))
            if getattr(layer, "bias", None) is not None:
                whole.bias.copy_(wide.bias)
            given = _some_input(layer)
            return not difference(pair(given), whole(given))
        except Exception:  # a subclass may need more than torch's class does
            return False


def _rows(thin: nn.Module) -> Tensor:
    weight: Tensor = thin.weight
    return weight.T if isinstance(thin, nn.Embedding) else weight


def _some_input(layer: nn.Module) -> Tensor:
    if isinstance(layer, nn.Embedding):
        return torch.randint(0, layer.num_embeddings, (_BATCH, 4))
    if isinstance(layer, nn.Linear):
        return torch.randn(_BATCH, layer.in_features)
    reach = zip(layer.kernel_size, layer.dilation, layer.stride, strict=True)
    sides = [size * dilation + 2 * stride for size, dilation, stride in reach]
    return torch.randn(_BATCH, layer.in_channels, *sides)


def _read_by_hand(candidate: Candidate, names: Sequence[str]) -> dict[str, str]:
    """Return layers whose attributes the model's code reads: the pair that replaces one has no weight or width."""
    with own_random():
        _, faults = separated(names, lambda some: _fault(candidate, some))
    found = zip(names, faults, strict=True)
    return {name: f"the model's code uses it in other ways than calling it{why}" for name, why in found if why}


def _fault(candidate: Candidate, names: Sequence[str]) -> str:
    """Return the error of the model with pairs in place of these layers, or ""."""
    from edgepack.models.source_lines import of_error

    tried = candidate.copy().module.eval()
    for name in names:
        replace_layer(tried, name, split(tried.get_submodule(name), 1))
    try:
        with torch.no_grad():
            tried(*candidate.example_inputs(_BATCH))
    except Exception as error:
        place = of_error(error, tried)
        return f", at {place}" if place else ", and fails"
    return ""


def _hint(pattern: str, module: nn.Module, able: Sequence[str], unfit: Mapping[str, str]) -> str:
    if why := next((f"{name}: {reason}" for name, reason in unfit.items() if fnmatch(name, pattern)), ""):
        return why
    kind = next((type(layer).__name__ for name, layer in module.named_modules() if name and fnmatch(name, pattern)), "")
    close = difflib.get_close_matches(pattern, able, n=_NAMES, cutoff=0.5)
    known = f"did you mean {', '.join(close)}?" if close else f"there are {listed(able, _NAMES)}"
    return f"it is a {kind}: only Conv2d, Linear and Embedding are split" if kind else known


def _calls(candidate: Candidate, layers: Mapping[str, nn.Module]) -> dict[str, list[Call]]:
    """Record the calls of each layer in one inference."""
    found: dict[str, list[Call]] = {name: [] for name in layers}

    def look(calls: list[Call], layer: nn.Module, inputs: Tensor, outputs: Tensor) -> None:
        if isinstance(layer, nn.Embedding) and len(inputs) != _BATCH:
            return  # position and segment ids: the same for every sample
        places = outputs.numel() // shape(layer, "channel")[0] // _BATCH
        between = outputs.shape[2] * inputs.shape[3] if isinstance(layer, nn.Conv2d) else places
        calls.append((places, between))

    hooks = [
        layer.register_forward_hook(lambda layer, given, gave, calls=found[name]: look(calls, layer, given[0], gave))
        for name, layer in layers.items()
    ]
    with torch.no_grad(), first_token_only(candidate.module):
        candidate.module(*candidate.example_inputs(_BATCH))
    for hook in hooks:
        hook.remove()
    return found


_BATCH = 2  # some models need more than one sample
