"""Remove whole channels, attention heads or layers, the least important first, and fine-tune after every cut.

Source: G. Fang et al., DepGraph: Towards Any Structural Pruning, CVPR 2023, arXiv 2301.12900. The Taylor importance is
P. Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019, arXiv 1906.10771. Heads: P. Michel et
al., Are Sixteen Heads Really Better than One?, NeurIPS 2019, arXiv 1905.10650.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from edgepack.compress.contract import Context
from edgepack.compress.stages.prune.config import Config as Config
from edgepack.config import plugins
from edgepack.config.recipe import Place
from edgepack.core.errors import StageError, listed
from edgepack.core.events import Emit, Note
from edgepack.core.units import SHARE
from edgepack.models.structure.layer_names import check_patterns

if TYPE_CHECKING:
    from torch import nn

    from edgepack.compress.contract import Latency
    from edgepack.compress.stages.prune.target_search import Search
    from edgepack.config.device import Quantization
    from edgepack.models.candidate import Candidate
    from edgepack.models.structure.dependency_groups import Group


TAKES, GIVES = "eager", "eager"
VERSION = 10
LIBRARIES = ("torch-pruning",)
READS = ("channel_multiple",)


def uses(config: Config) -> dict[str, str]:
    return {"importances": config.importance}


def incompatibility(config: Config, place: Place) -> str:
    """Say why pruning makes no sense at this place, or ""; `force` in the recipe overrides it."""
    if config.force:
        return ""
    skipped = config.pattern in place.quantization.sparsity
    and_slow = "" if skipped else " and no kernel faster"
    if config.pattern != "channels" and place.encoder:
        return (
            f"{config.pattern} zeros make a transformer's file no smaller{and_slow}; a student with fewer layers is "
            "smaller and faster at nearly the same quality (DistilBERT, arXiv 1910.01108: 40 % smaller, 60 % faster, "
            "97 % of BERT's score): distill, or prune layers, heads and ffn, or set `force: true`"
        )
    if config.pattern != "channels" and not skipped:
        return (
            f"{config.pattern} zeros make a file neither smaller nor faster on hardware that does not skip them: "
            f"prune channels, or set `sparsity: ['{config.pattern}']` in the profile of a device that skips them"
        )
    if place.encoder and "distill" in place.later and "distill" not in place.earlier:
        return (
            "distill transformers before pruning, because a pruned teacher is weaker: move prune after distill, "
            "or set `force: true`"
        )
    return ""


def dry_run(
    candidate: "Candidate", config: Config, quantization: "Quantization", latency: "Latency | None" = None
) -> "Candidate":
    """Cut the untrained structure as `run` will. With a latency target, check whether it can be reached."""
    from edgepack.compress.stages.prune import layer_dropping
    from edgepack.compress.stages.prune.importance import dry_run_score
    from edgepack.compress.stages.prune.target_search import Search, kept
    from edgepack.compress.training.loop import check_trainable
    from edgepack.models.structure.surgery import outputs

    _check(candidate.module, config, sure=False)
    if config.pattern != "channels":
        if config.recover.epochs:
            check_trainable(candidate.module)
        return candidate
    search = Search(config=config, quantization=quantization, latency=latency)
    whole = search.amount(candidate)
    if config.layers is not None:
        candidate = layer_dropping.last(candidate, config.layers)
        candidate.check_rebuilt()
    if config.needs_timing:
        search.limit(candidate, whole)
        return candidate
    ratio = config.ratio or search.ratio(candidate, whole)
    if not config.cuts(ratio):
        return candidate
    keep, inputs = kept(candidate.module, ratio, config), candidate.noise()
    cut = candidate.narrowed(
        keep,
        multiple=quantization.channel_multiple,
        scored=lambda module: dry_run_score(module, config.importance, inputs),
        exclude=config.exclude,
    )
    _check_removed(outputs(candidate.module), cut, ratio, config, quantization)
    cut.check_rebuilt()
    return cut


def run(candidate: "Candidate", config: Config, context: Context) -> "Candidate":
    from edgepack.compress.stages.prune import layer_dropping, sparsity
    from edgepack.compress.stages.prune.importance import sensitivities
    from edgepack.compress.stages.prune.target_search import Search

    _check(candidate.module, config)
    if config.pattern != "channels":
        return sparsity.sparsified(candidate, config, context)
    notes: list[str] = []
    search = Search(config=config, quantization=context.quantization, latency=context.latency)
    whole = search.amount(candidate)
    if config.layers is not None:
        candidate, notes = layer_dropping.shortened(candidate, config.layers, config.recover, context)
    if config.sensitivity:
        notes += sensitivities(candidate.module, config, context)
    ratio = config.ratio or search.ratio(candidate, whole)
    if config.cuts(ratio):
        return _narrowed(candidate, ratio, notes, search, context)
    return _no_narrower(candidate, notes, config, context.emit)


def _narrowed(
    candidate: "Candidate", ratio: float, notes: list[str], search: "Search", context: Context
) -> "Candidate":
    from edgepack.compress.stages.prune.target_search import kept
    from edgepack.compress.training.loop import recover
    from edgepack.models.structure.dependency_groups import survey
    from edgepack.models.structure.surgery import outputs, resizes, sizes
    from edgepack.models.structure.unprunable import reasons

    config, module = search.config, candidate.module
    before, had = sizes(module), outputs(module)
    found = survey(module.eval(), candidate.example_inputs(2), config.exclude)
    for step in range(1, config.steps + 1):
        _cut(module, kept(module, ratio, config, step / config.steps), had, config, context)
        if step == 1:
            candidate.changed(*resizes(before, module)).check_rebuilt()
        recover(module, f"cut {step} of {config.steps}", config.recover, context)
    _check_removed(had, candidate, ratio, config, context.quantization)
    pruned = candidate.changed(*resizes(before, module))
    rule = _rule(module, had, found.groups, context.quantization)
    notes = [*notes, f"{_asked(module, ratio, config)}; {rule}"]
    if config.target:  # the latency is measured once more
        notes.append(f"reached {config.target.tell(search.amount(pruned))}")
    notes += _notes(had, module, reasons(found.whole))
    settled = {"ratio": SHARE.exact(ratio)} if ratio else {}  # an encoder may have its own shares
    decided = {**settled, "target": None} if config.needs_timing else {}
    return replace(pruned, notes=tuple(notes), decided=decided)


def _no_narrower(candidate: "Candidate", notes: list[str], config: Config, emit: Emit) -> "Candidate":
    from edgepack.models.complexity import parameters

    if config.target is None:
        return candidate.changed(notes=tuple(notes))
    enough = {"target": {"params": parameters(candidate.module)}} if config.needs_timing else {}
    reason = f"nothing to prune: the model has no more than {config.target.words()} already"
    emit(Note(text=reason))
    return replace(candidate.changed(notes=(*notes, reason)), decided=enough)


def _check(module: "nn.Module", config: Config, *, sure: bool = True) -> None:
    """Raises StageError for settings that are of no use for this model."""
    from edgepack.compress.stages.prune import layer_dropping
    from edgepack.models.structure.encoder import blocks
    from edgepack.models.structure.surgery import outputs

    check_patterns(config.exclude, outputs(module), "layers with channels", sure=sure)
    encoder = bool(blocks(module))
    if config.of_encoders and not encoder:
        raise StageError(
            f"{config.of_encoders[0]} can be removed from a transformer encoder only, which this model is not",
            "give a ratio of channels, or a target",
        )
    if encoder and not plugins.load("importances", config.importance).FITS_ENCODERS:
        fitting = [each for each in plugins.names("importances") if plugins.load("importances", each).FITS_ENCODERS]
        message = f"importance {config.importance} is for convolutional networks, but this is an encoder"
        raise StageError(message, f"use {', '.join(fitting[:-1])} or {fitting[-1]}")
    if config.layers is not None:
        layer_dropping.check_layers(module, config.layers)


def _asked(module: "nn.Module", ratio: float, config: Config) -> str:
    goal = f"{config.target.words()} takes" if config.target else "asked for"
    return f"{goal} {_fewer(module, ratio, config)}"


def _fewer(module: "nn.Module", ratio: float, config: Config) -> str:
    from edgepack.models.structure.dependency_groups import parts

    nouns = {part.setting: part.noun for part in parts(module).values()}
    shares = {noun: config.share(setting, ratio) for setting, noun in nouns.items()} or {"channels": ratio}
    return " and ".join(f"{SHARE.format(share)} fewer {noun}" for noun, share in shares.items() if share)


def _rule(module: "nn.Module", had: Mapping[str, int], groups: "Sequence[Group]", quantization: "Quantization") -> str:
    """Say how widths were rounded; a layer with part of the channels of a wider layer follows that layer."""
    from edgepack.models.structure.dependency_groups import parts
    from edgepack.models.structure.surgery import outputs

    multiple = quantization.channel_multiple
    if parts(module):
        return f"every layer keeps a head, and a multiple of {multiple} neurons"
    odd = [name for name, left in outputs(module).items() if left < had[name] and left % multiple]
    led = {name: group.name for group in groups for name in group.loses_outputs if name in odd and name != group.name}
    rule = f"every layer keeps a multiple of {multiple}"
    if not odd:
        return rule
    wider = listed([*dict.fromkeys(led.values())])
    return f"{rule} except {listed(odd)}" + (
        f", whose channels are removed with those of {wider}" if len(led) == len(odd) else ""
    )


def _check_removed(
    had: Mapping[str, int], cut: "Candidate", ratio: float, config: Config, quantization: "Quantization"
) -> None:
    """Raises StageError with the reason where the cut removed nothing."""
    from edgepack.compress.stages.prune.target_search import kept
    from edgepack.models.structure.surgery import outputs
    from edgepack.models.structure.unprunable import nothing_removed

    if outputs(cut.module) != had:
        return
    keep, fewer = kept(cut.module, ratio, config), _fewer(cut.module, ratio, config)
    inputs, multiple = cut.example_inputs(2), quantization.channel_multiple

    def share(name: str) -> float:
        return keep.get(name, 1.0) if isinstance(keep, dict) else keep

    raise nothing_removed(cut.module.eval(), inputs, fewer, config.exclude, multiple, share)


def _cut(
    module: "nn.Module", keep: float | dict[str, float], had: Mapping[str, int], config: Config, context: Context
) -> None:
    from edgepack.compress.stages.prune.importance import score
    from edgepack.models.structure.surgery import outputs, shrink

    goals = shrink(
        module.eval(),
        context.data.train.head(2),
        keep=keep,
        score=score(module, config.importance, context),
        multiple=context.quantization.channel_multiple,
        original=had,
        exclude=config.exclude,
    )
    module.zero_grad(set_to_none=True)
    now = outputs(module)
    missed = {name: (now[name], goal) for name, goal in goals.items() if now[name] != goal}
    if missed:
        words = ", ".join(f"{name} has {has} channels instead of {goal}" for name, (has, goal) in missed.items())
        raise StageError(f"the cut missed its target: {words}", "other layers depend on these: try another ratio")


def _notes(had: Mapping[str, int], module: "nn.Module", whole: Mapping[str, str]) -> list[str]:
    """List every layer with channels, heads or neurons, before and after; `whole` says why some keep theirs."""
    from edgepack.models.structure.dependency_groups import parts
    from edgepack.models.structure.surgery import outputs

    now, found = outputs(module), parts(module)
    if found:
        counts = [
            (part.block, had[name] // part.unit, now[name] // part.unit, part.noun) for name, part in found.items()
        ]
    else:
        counts = [(name, was, now[name], _noun(module.get_submodule(name))) for name, was in had.items()]
    return [
        f"{name}: {was} -> {left} {noun}" if was != left else _as_before(name, f"{was} {noun}", whole)
        for name, was, left, noun in counts
    ]


def _noun(layer: "nn.Module") -> str:
    from torch import nn

    return "hidden units" if isinstance(layer, nn.RNNBase) else "channels"


def _as_before(name: str, channels: str, whole: Mapping[str, str]) -> str:
    return f"{name}: {channels} as before" + (f": {whole[name]}" if name in whole else "")
