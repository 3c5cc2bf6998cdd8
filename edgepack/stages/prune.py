"""Remove whole channels, the least important first, and recover after every cut with the teacher's help.

Source: G. Fang et al., DepGraph: Towards Any Structural Pruning, CVPR 2023, arXiv 2301.12900. The Taylor importance is
P. Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019, arXiv 1906.10771.
"""

import copy
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from edgepack.errors import StageError
from edgepack.events import Emit, Note, StepProgress
from edgepack.patterns import check_patterns, matches
from edgepack.stages import Context, StageConfig, Training
from edgepack.targets import Target
from edgepack.units import SHARE, Share

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgepack.candidate import Candidate
    from edgepack.device import Quantization
    from edgepack.stages import Latency
    from edgepack.surgery import Score

TAKES, GIVES = "eager", "eager"
VERSION = 4
LIBRARIES = ("torch-pruning",)
READS = ("channel_multiple",)

_TAYLOR_BATCHES = 8
_TRIALS = (0.25, 0.5)  # ratios of the sensitivity report
_TRIAL_SAMPLES = 1024  # of the validation split


class Recovery(Training):
    """Training after a cut."""

    epochs: int = Field(default=2, ge=0, le=10_000, description="passes over the training split after every step")


class Config(StageConfig):
    model_config = ConfigDict(
        json_schema_extra={"anyOf": [{"required": [key]} for key in ("ratio", "target", "pattern")]},
    )

    ratio: Share | None = Field(
        default=None, description="share of the channels of every layer that goes; 50 % leaves a quarter of the weights"
    )
    target: Target | None = Field(
        default=None, description="in place of a ratio what is left: one of params, macs, size, latency"
    )
    steps: int = Field(default=3, ge=1, le=100, description="cuts on the way, each followed by recovery")
    importance: Literal["taylor", "l1", "l2", "lamp", "bn_scale", "random"] = Field(
        default="taylor", description="what a channel is worth; bn_scale is l2 where no batch norm follows"
    )
    spare: tuple[str, ...] = Field(default=(), description="names or patterns of layers that keep all their channels")
    pattern: Literal["channels", "unstructured", "2:4"] = Field(
        default="channels", description="what goes: whole channels, or single weights where the device gains from that"
    )
    sensitivity: bool = Field(
        default=False, description="report first what cutting each layer alone does to the accuracy"
    )
    recover: Recovery = Field(default=Recovery(), description="training after every cut")

    @field_validator("ratio")
    @classmethod
    def _leaves_something(cls, ratio: float | None) -> float | None:
        if ratio is not None and not 0 < ratio < 1:
            raise ValueError(
                f"ratio is the share of channels that goes, above 0 % and below 100 %, got {SHARE.format(ratio)}"
            )
        return ratio

    @model_validator(mode="after")
    def _one_goal(self) -> "Config":
        if self.pattern == "2:4" and (self.ratio, self.target) == (None, None):
            return self
        if self.pattern == "2:4":
            raise ValueError("2:4 is half of the weights by definition: leave ratio and target out")
        if self.pattern != "channels" and self.sensitivity:
            raise ValueError("sensitivity is measured of channels: leave it out")
        if self.pattern == "unstructured" and self.target:
            raise ValueError("zeros between weights make nothing smaller: give a ratio in place of the target")
        if (self.ratio is None) == (self.target is None):
            raise ValueError("give either a ratio, as 50 %, or a target, as {macs: 40 %}")
        return self

    @property
    def measures(self) -> bool:
        """Whether what it does depends on timings."""
        return self.target is not None and self.target.metric == "latency"


def misfit(config: Config, quantization: "Quantization") -> str:
    """Why this makes no sense for the device, or ""."""
    if config.pattern == "channels" or config.pattern in quantization.sparsity:
        return ""
    return (
        f"{config.pattern} zeros make a file neither smaller nor faster on hardware that multiplies them all the same: "
        f"prune channels, or say `sparsity: ['{config.pattern}']` in the profile of a device that skips them"
    )


def rehearse(
    candidate: "Candidate", config: Config, quantization: "Quantization", latency: "Latency | None" = None
) -> "Candidate":
    """Cut the structure as `run` will, its weights untrained. For a latency, whether it can be reached at all."""
    from edgepack.surgery import sizes

    check_patterns(config.spare, _layers(candidate.module), "layers with channels", sure=False)
    if config.pattern != "channels":
        return candidate
    if config.measures:
        _limit(candidate, config, quantization, latency)
        return candidate
    ratio = config.ratio or _ratio_for(candidate, config, quantization, latency)
    if not ratio:
        return candidate
    cut = candidate.narrowed(1 - ratio, multiple=quantization.channel_multiple, spare=config.spare)
    _check_removed(sizes(candidate.module), cut.module, ratio, quantization)
    cut.check_rebuilt()
    return cut


def run(candidate: "Candidate", config: Config, context: Context) -> "Candidate":
    from edgepack.surgery import resizes, sizes

    module, before = candidate.module, sizes(candidate.module)
    check_patterns(config.spare, _layers(module), "layers with channels")
    if config.pattern != "channels":
        return _sparsified(candidate, config, context)
    notes = _sensitivities(module, config, context) if config.sensitivity else []
    ratio = config.ratio or _ratio_for(candidate, config, context.quantization, context.latency)
    if not ratio:
        return _as_it_is(candidate, config, notes, context.emit)
    for step in range(1, config.steps + 1):
        _cut(module, (1 - ratio) ** (step / config.steps), before, config, context)
        if step == 1:
            candidate.changed(*resizes(before, module)).check_rebuilt()
        _recover(module, step, config.steps, config, context)
    _check_removed(before, module, ratio, context.quantization)
    pruned = candidate.changed(*resizes(before, module))
    notes += [_asked(config, ratio, context), *_reached(pruned, config, context), *_notes(before, module)]
    decided = {"ratio": SHARE.exact(ratio), "target": None} if config.measures else {}
    return replace(pruned, notes=tuple(notes), decided=decided)


def _asked(config: Config, ratio: float, context: Context) -> str:
    goal = f"{config.target.words()} takes" if config.target else "asked for"
    every = f"every layer keeps a multiple of {context.quantization.channel_multiple}"
    return f"{goal} {SHARE.format(ratio)} fewer channels; {every}"


def _reached(pruned: "Candidate", config: Config, context: Context) -> list[str]:
    """What is left, where a target was set; a latency is timed once more."""
    if config.target is None:
        return []
    return [f"reached {config.target.tell(_amount(config.target, pruned, context.latency))}"]


def _as_it_is(candidate: "Candidate", config: Config, notes: list[str], emit: Emit) -> "Candidate":
    from edgepack.candidate import parameters

    assert config.target is not None, "only a target can be met without a cut"
    enough = {"target": {"params": parameters(candidate.module)}} if config.measures else {}
    told = f"nothing to prune: the model has no more than {config.target.words()} already"
    emit(Note(text=told))
    return replace(candidate.changed(notes=(*notes, told)), decided=enough)


def _recover(module: "nn.Module", step: int, steps: int, config: Config, context: Context) -> None:
    from edgepack.train import Distillation, fit, refresh_batch_norm

    refresh_batch_norm(module, context.data.train)
    doing = f"recovering after cut {step} of {steps}"
    fit(module, context, config.recover, doing=doing, distillation=Distillation.of(context.teacher))


def _check_removed(
    before: dict[str, dict[str, int]], module: "nn.Module", ratio: float, quantization: "Quantization"
) -> None:
    from edgepack.surgery import resizes

    if not resizes(before, module):
        multiple = quantization.channel_multiple
        raise StageError(
            f"nothing was removed: at {SHARE.format(ratio)} no layer has a whole block of {multiple} channels to spare",
            "ask for a larger ratio, spare fewer layers, or set channel_multiple lower in the device profile",
        )


def _ratio_for(
    candidate: "Candidate", config: Config, quantization: "Quantization", latency: "Latency | None"
) -> float:
    """The smallest ratio that meets the target, by bisection over what is really left; 0 if it is met already."""
    from edgepack.surgery import widest

    limit = _limit(candidate, config, quantization, latency)
    if limit is None:
        return 0.0
    return 1 - widest(lambda keep: _left(candidate, keep, config, quantization, latency), limit)


def _limit(
    candidate: "Candidate", config: Config, quantization: "Quantization", latency: "Latency | None"
) -> float | None:
    """The most that may be left; None if no more is there now. Raises StageError naming what can be reached."""
    assert config.target is not None, "the configuration has a ratio or a target"
    target, now = config.target, _amount(config.target, candidate, latency)
    limit = target.limit(now)
    if now <= limit:
        return None
    closest = _left(candidate, 0.0, config, quantization, latency)
    if closest > limit:
        share = SHARE.exact(math.ceil(1000 * closest / now) / 1000)  # rounded up: it must be in reach itself
        spared = " that is not spared" if config.spare else ""
        raise StageError(
            f"pruning cannot reach {target.words()}: with one block of {quantization.channel_multiple} channels in "
            f"every layer{spared} there is still {target.tell(closest)}, {share} of now",
            f"ask for that or more{', spare fewer layers' * bool(config.spare)}, or begin with a smaller student",
        )
    return limit


def _left(
    candidate: "Candidate", keep: float, config: Config, quantization: "Quantization", latency: "Latency | None"
) -> float:
    import torch

    assert config.target is not None, "the configuration has a ratio or a target"
    with torch.random.fork_rng(devices=[]):  # building this one again from its ratio must draw the same numbers
        narrow = candidate.narrowed(keep, multiple=quantization.channel_multiple, spare=config.spare)
        return _amount(config.target, narrow, latency)


def _amount(target: Target, candidate: "Candidate", latency: "Latency | None") -> float:
    from edgepack.candidate import macs, parameters, stored_bytes

    match target.metric:
        case "params":
            return parameters(candidate.module)
        case "macs":
            return macs(candidate)
        case "size":
            return stored_bytes(candidate.module)
        case "latency":
            if latency is None:
                raise StageError("nothing here can measure a latency", "give a ratio, or a target of macs")
            return latency(candidate)


def _cut(
    module: "nn.Module", keep: float, original: dict[str, dict[str, int]], config: Config, context: Context
) -> None:
    from edgepack.surgery import shrink, sizes

    goals = shrink(
        module.eval(),
        context.data.train.head(2)[0],
        keep=keep,
        score=_score(module, config.importance, context),
        multiple=context.quantization.channel_multiple,
        original={name: _outputs(widths) for name, widths in original.items()},
        spare=config.spare,
    )
    module.zero_grad(set_to_none=True)
    now = sizes(module)
    missed = {name: (_outputs(now[name]), goal) for name, goal in goals.items() if _outputs(now[name]) != goal}
    if missed:
        words = ", ".join(f"{name} has {has} channels instead of {goal}" for name, (has, goal) in missed.items())
        raise StageError(f"the cut missed its target: {words}", "other layers depend on these: try another ratio")


def _layers(module: "nn.Module") -> list[str]:
    from edgepack.surgery import sizes

    return [name for name, widths in sizes(module).items() if _outputs(widths)]


def _outputs(widths: dict[str, int]) -> int:
    return widths.get("out_channels", widths.get("out_features", 0))


def _score(module: "nn.Module", importance: str, context: Context) -> "Score":
    from torch_pruning import importance as known

    if importance == "taylor":
        _accumulate_gradients(module, context)
    scores: dict[str, Score] = {
        "taylor": known.GroupTaylorImportance(),
        "l1": known.GroupMagnitudeImportance(p=1),
        "l2": known.GroupMagnitudeImportance(p=2),
        "lamp": known.LAMPImportance(p=2),
        "bn_scale": _by_norm,
        "random": known.RandomImportance(),
    }
    return scores[importance]


def _by_norm(group: Any) -> "Tensor":
    """The scale of the batch norm behind each channel; the size of its weights where none follows (squeeze-excite)."""
    from torch_pruning import importance as known

    worth: Tensor | None = known.BNScaleImportance()(group)
    return known.GroupMagnitudeImportance(p=2)(group) if worth is None else worth


def _accumulate_gradients(module: "nn.Module", context: Context) -> None:
    """Fresh gradients of the real loss: stale ones would rank the channels of an earlier model."""
    module.zero_grad(set_to_none=True)
    for i, batch in enumerate(context.data.train.batches(64, seed=context.seed)):
        if i == _TAYLOR_BATCHES:
            break
        context.task.loss(module(*batch.inputs), batch.targets).backward()


def _notes(before: dict[str, dict[str, int]], module: "nn.Module") -> "list[str]":
    """Every layer with channels of its own, before and after."""
    from edgepack.surgery import sizes

    widths = {name: (_outputs(before[name]), _outputs(now)) for name, now in sizes(module).items()}
    return [
        f"{name}: {was} -> {now} channels" if was != now else f"{name}: {was} channels as before"
        for name, (was, now) in widths.items()
        if was
    ]


def _sensitivities(module: "nn.Module", config: Config, context: Context) -> list[str]:
    """What it costs to cut each group of layers alone, before any recovery but that of batch norm's statistics."""
    from edgepack.surgery import Groups

    example = context.data.train.head(2)[0]
    names = Groups(module.eval(), example).names_found(config.spare)
    whole = _trial(copy.deepcopy(module), {}, config, context)
    notes = []
    for i, name in enumerate(names):
        context.emit(StepProgress(doing="measuring the sensitivity of each layer", done=i, total=len(names)))
        changes = [_trial(copy.deepcopy(module), {name: 1 - share}, config, context) - whole for share in _TRIALS]
        told = zip(changes, _TRIALS, strict=True)
        words = ", ".join(f"{100 * change:+.1f} points at {share:.0%}" for change, share in told)
        notes.append(f"sensitivity of {name}: {words}")
    return notes


def _trial(module: "nn.Module", keep: dict[str, float], config: Config, context: Context) -> float:
    from edgepack.surgery import shrink
    from edgepack.train import predict, refresh_batch_norm

    score = _score(module.eval(), config.importance, context)
    multiple = context.quantization.channel_multiple
    shrink(module, context.data.train.head(2)[0], keep=keep, score=score, multiple=multiple, spare=config.spare)
    refresh_batch_norm(module, context.data.train, samples=512)
    some = context.data.validation.first(_TRIAL_SAMPLES)
    return context.task.score(predict(module, some).numpy(), some.targets.numpy())


def _sparsified(candidate: "Candidate", config: Config, context: Context) -> "Candidate":
    """Zeros between the weights, the smallest first; later training keeps them (see train.fit), QAT does not."""
    from edgepack.surgery import Edit, apply

    module, ratio = candidate.module, config.ratio or 0.5
    steps = config.steps if config.pattern == "unstructured" else 1  # two of every four are no less at first
    edits = [Edit(op="zeros", layer=name) for name in _thinned(module, config)]
    for edit in edits:
        apply(module, edit)
    for step in range(1, steps + 1):
        _zero(module, [edit.layer for edit in edits], config.pattern, 1 - (1 - ratio) ** (step / steps))
        _recover(module, step, steps, config, context)
    return candidate.changed(*edits, notes=tuple(_zeros(module)))


def _thinned(module: "nn.Module", config: Config) -> list[str]:
    from edgepack.surgery import sizes

    chosen = [name for name, widths in sizes(module).items() if _outputs(widths) and not matches(name, config.spare)]
    if config.pattern == "unstructured":
        return chosen
    return [name for name in chosen if module.get_submodule(name).weight.shape[1] % 4 == 0]


def _zero(module: "nn.Module", layers: list[str], pattern: str, share: float) -> None:
    """Keep the largest weights of all these layers, or two of every four inputs of each."""
    import torch

    weights = [module.get_submodule(name).weight for name in layers]
    with torch.no_grad():
        if pattern == "unstructured":
            sizes = torch.cat([weight.abs().flatten() for weight in weights])
            least = sizes.kthvalue(max(1, round(share * len(sizes)))).values
            for weight in weights:
                weight.mul_(weight.abs() > least)
            return
        for weight in weights:
            fours = weight.abs().transpose(1, -1).unflatten(-1, (-1, 4))
            kept = fours.argsort(dim=-1, stable=True).argsort(dim=-1) >= 2
            weight.mul_(kept.flatten(-2).transpose(1, -1))


def _zeros(module: "nn.Module") -> "list[str]":
    from edgepack.surgery import sizes

    weights = {name: module.get_submodule(name).weight for name, widths in sizes(module).items() if _outputs(widths)}
    return [
        f"{name}: {SHARE.format(float((w == 0).float().mean()))} of its weights are 0" for name, w in weights.items()
    ]
