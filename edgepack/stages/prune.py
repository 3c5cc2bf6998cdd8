"""Remove whole channels, the least important first, and recover after every step with the teacher's help.

Source: G. Fang et al., DepGraph: Towards Any Structural Pruning, CVPR 2023, arXiv 2301.12900. The Taylor importance is
P. Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019, arXiv 1906.10771.
"""

from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from edgepack.errors import StageError
from edgepack.stages import Context, StageConfig, Training
from edgepack.units import SHARE, Share

if TYPE_CHECKING:
    from torch import nn

    from edgepack.candidate import Candidate
    from edgepack.surgery import Score

TAKES, GIVES = "eager", "eager"
VERSION = 1
LIBRARIES = ("torch-pruning",)
READS = ("channel_multiple",)

_TAYLOR_BATCHES = 8


class Recovery(Training):
    """Training after a cut."""

    epochs: int = Field(default=2, ge=0, le=10_000, description="passes over the training split after every step")


class Config(StageConfig):
    ratio: Share = Field(
        description="share of the channels of every layer that goes; 50 % leaves a quarter of the weights"
    )
    steps: int = Field(default=3, ge=1, le=100, description="cuts on the way, each followed by recovery")
    importance: Literal["taylor", "l1", "l2", "lamp", "bn_scale", "random"] = Field(
        default="taylor", description="what a channel is worth"
    )
    recover: Recovery = Field(default=Recovery(), description="training after every cut")

    @field_validator("ratio")
    @classmethod
    def _leaves_something(cls, ratio: float) -> float:
        if not 0 < ratio < 1:
            raise ValueError(
                f"ratio is the share of channels that goes, above 0 % and below 100 %, got {SHARE.format(ratio)}"
            )
        return ratio


def run(candidate: "Candidate", config: Config, context: Context) -> "Candidate":
    from edgepack.surgery import resizes, sizes
    from edgepack.train import Distillation, fit, refresh_batch_norm

    module, before = candidate.module, sizes(candidate.module)
    lesson = Distillation.of(context.teacher)
    for step in range(1, config.steps + 1):
        _cut(module, (1 - config.ratio) ** (step / config.steps), before, config, context)
        if step == 1:
            _check_rebuilt(candidate.changed(*resizes(before, module)))
        refresh_batch_norm(module, context.data.train)
        doing = f"recovering after cut {step} of {config.steps}"
        fit(module, context, config.recover, doing=doing, distillation=lesson)
    edits = resizes(before, module)
    if not edits:
        multiple = context.quantization.channel_multiple
        raise StageError(
            f"nothing was removed: at {config.ratio:.0%} no layer has a whole block of {multiple} channels to spare",
            "ask for a larger ratio, or set channel_multiple lower in the device profile",
        )
    multiple = context.quantization.channel_multiple
    asked = f"asked for {SHARE.format(config.ratio)} fewer channels; every layer keeps a multiple of {multiple}"
    return candidate.changed(*edits, notes=(asked, *_notes(before, module)))


def _check_rebuilt(candidate: "Candidate") -> None:
    """Channels may have gone from layers that the surgery log cannot resize; such a model could not be loaded again."""
    from edgepack.candidate import rebuild

    fresh = rebuild(candidate.factory, candidate.surgery).state_dict()
    for name, tensor in candidate.module.state_dict().items():
        if name not in fresh or fresh[name].shape != tensor.shape:
            layer, _, parameter = name.rpartition(".")
            kind = type(candidate.module.get_submodule(layer)).__name__
            raise StageError(
                f"pruning changed '{parameter}' of the {kind} '{layer}', which edgepack cannot rebuild",
                "models whose channels pass through Conv2d, Linear and BatchNorm2d alone can be pruned",
            )


def _cut(
    module: "nn.Module", keep: float, original: dict[str, dict[str, int]], config: Config, context: Context
) -> None:
    from edgepack.surgery import shrink, sizes

    example = context.data.train.inputs[0][:2]
    goals = shrink(
        module.eval(),
        example,
        keep=keep,
        score=_score(module, config.importance, context),
        multiple=context.quantization.channel_multiple,
        original={name: _outputs(widths) for name, widths in original.items()},
    )
    module.zero_grad(set_to_none=True)
    now = sizes(module)
    missed = {name: (_outputs(now[name]), goal) for name, goal in goals.items() if _outputs(now[name]) != goal}
    if missed:
        words = ", ".join(f"{name} has {has} channels instead of {goal}" for name, (has, goal) in missed.items())
        raise StageError(f"the cut missed its target: {words}", "other layers depend on these: try another ratio")


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
        "bn_scale": known.BNScaleImportance(),
        "random": known.RandomImportance(),
    }
    return scores[importance]


def _accumulate_gradients(module: "nn.Module", context: Context) -> None:
    """Fresh gradients of the real loss: stale ones would rank the channels of an earlier model."""
    module.zero_grad(set_to_none=True)
    for i, batch in enumerate(context.data.train.batches(64, seed=context.seed)):
        if i == _TAYLOR_BATCHES:
            break
        context.task.loss(module(*batch.inputs), batch.targets).backward()


def _notes(before: dict[str, dict[str, int]], module: "nn.Module") -> "list[str]":
    from edgepack.surgery import sizes

    widths = {name: (_outputs(before[name]), _outputs(now)) for name, now in sizes(module).items()}
    return [f"{name}: {was} -> {now} channels" for name, (was, now) in widths.items() if was != now]
