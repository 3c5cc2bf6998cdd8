"""Split wide layers into two thin ones where their activations have low rank.

A k x k convolution becomes k x k to `rank` channels and 1 x 1 back (channel), or k x 1 and 1 x k (spatial), whichever
has fewer weights for the energy; a Linear becomes two, an embedding table a narrow one and a Linear. Energy is measured
on what calibration samples make the layer answer, so that a rank is chosen for the error it causes and not for the norm
of a weight.
Source: X. Zhang et al., Accelerating Very Deep Convolutional Networks, TPAMI 2016, arXiv 1505.06798; M. Jaderberg et
al., BMVC 2014, arXiv 1405.3866; X. Wang et al., SVD-LLM, ICLR 2025, arXiv 2403.07378 (see low_rank.py).
"""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from edgepack.compress.contract import Context, StageConfig, Training
from edgepack.compress.targets import Target
from edgepack.config.device import Quantization
from edgepack.core.units import SHARE, Share

if TYPE_CHECKING:
    from torch import nn

    from edgepack.compress.stages.factorize.goals import Decision, Goal
    from edgepack.compress.stages.factorize.low_rank import Curve, SplitScheme
    from edgepack.compress.stages.factorize.sites import Survey
    from edgepack.models.candidate import Candidate
    from edgepack.models.structure.surgery import Edit

TAKES, GIVES = "eager", "eager"
VERSION = 7
READS = ("channel_multiple",)

_ENERGY = "95 %"  # used if no goal is given


class Recovery(Training):
    """Settings of the training after the splits."""

    epochs: int = Field(default=3, ge=0, le=10_000, description="epochs")


class Config(StageConfig):
    energy: Share | None = Field(
        default=None, description=f"fraction of each layer's output energy to keep; {_ENERGY} without a rank or target"
    )
    rank: int | None = Field(
        default=None, ge=1, description="instead of energy: number of channels between the two thin layers"
    )
    target: Target | None = Field(
        default=None, description="instead of energy: size of the result, such as {params: 60 %}"
    )
    scheme: Literal["auto", "channel", "spatial"] = Field(
        default="auto",
        description="channel: k x k and 1 x 1; spatial: k x 1 and 1 x k; auto: fewer weights (with a rank: channel)",
    )
    layers: tuple[str, ...] = Field(default=("*",), description="names or patterns of the layers to consider")
    calibration: int = Field(default=256, ge=1, description="number of training samples for calibration")
    recover: Recovery = Field(default=Recovery(), description="training after the splits")

    @model_validator(mode="before")
    @classmethod
    def _some_goal(cls, given: Any) -> Any:
        if isinstance(given, dict) and all(given.get(key) is None for key in ("energy", "rank", "target")):
            return {**given, "energy": _ENERGY}
        return given

    @field_validator("energy")
    @classmethod
    def _share(cls, energy: float | None) -> float | None:
        if energy is not None and not 0 < energy < 1:
            raise ValueError(f"energy is a percentage, above 0 % and below 100 %, got {SHARE.format(energy)}")
        return energy

    @field_validator("target")
    @classmethod
    def _countable(cls, target: Target | None) -> Target | None:
        if target is not None and target.metric == "latency":
            raise ValueError("factorize has no latency target: use params, macs or size")
        return target

    @model_validator(mode="after")
    def _one_goal(self) -> "Config":
        given = [key for key in ("energy", "rank", "target") if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of energy, rank and target, got {' and '.join(given)}")
        return self

    @property
    def trainings(self) -> tuple[Training, ...]:
        return (self.recover,)


def dry_run(candidate: "Candidate", config: Config, quantization: Quantization) -> "Candidate":
    """Check all that can be known before training: fail where `run` would, and split where the rank is given."""
    from edgepack.compress.training.loop import check_trainable
    from edgepack.models.structure.surgery import apply

    if config.recover.epochs:
        check_trainable(candidate.module)
    edits = [_edit(name, scheme, rank) for name, (scheme, rank) in _goal(candidate, config, quantization).known.items()]
    for edit in edits:
        apply(candidate.module, edit)
    return candidate.changed(*edits)


def run(candidate: "Candidate", config: Config, context: Context) -> "Candidate":
    from edgepack.compress.stages.factorize.low_rank import curves
    from edgepack.compress.training.loop import fit
    from edgepack.compress.training.loss import Distillation

    module, goal = candidate.module, _goal(candidate, config, context.quantization)
    decision = goal.decide(curves(module, goal.wanted, context.data.train, config.calibration, upto=goal.upto))
    notes = _notes(goal.survey, decision)
    edits = [_split(module, name, curve, rank) for name, (curve, rank) in decision.splits.items()]
    if edits:
        lesson = Distillation.of(context.teacher)
        fit(module, context, config.recover, doing="recovering after the splits", distillation=lesson)
    return candidate.changed(*edits, notes=notes)


def _goal(candidate: "Candidate", config: Config, quantization: Quantization) -> "Goal":
    from edgepack.compress.stages.factorize.goals import AtEnergy, AtRank, ForTarget
    from edgepack.compress.stages.factorize.sites import survey

    automatic: tuple[SplitScheme, ...] = ("channel",) if config.rank else ("channel", "spatial")
    found = survey(candidate, config.layers, automatic if config.scheme == "auto" else (config.scheme,))
    if config.rank:
        return AtRank(found, config.rank, quantization.channel_multiple)
    if config.target:
        return ForTarget(found, candidate, config.target, quantization.channel_multiple)
    assert config.energy is not None
    return AtEnergy(found, config.energy, quantization.channel_multiple)


def _edit(name: str, scheme: "SplitScheme", rank: int) -> "Edit":
    from edgepack.models.structure.surgery import Edit

    return Edit(op="split_spatial" if scheme == "spatial" else "split", layer=name, to={"rank": rank})


def _split(module: "nn.Module", name: str, curve: "Curve", rank: int) -> "Edit":
    """Replace the layer by two thin ones, with their weights."""
    import torch

    from edgepack.models.structure.surgery import apply

    layer, edit = module.get_submodule(name), _edit(name, curve.scheme, rank)
    apply(module, edit)
    pair = module.get_submodule(name)
    with torch.no_grad():
        for thin, weight in zip(pair, curve.thin(rank), strict=True):
            thin.weight.copy_(weight)
        if getattr(layer, "bias", None) is not None:
            pair[1].bias.copy_(layer.bias)
    return edit


def _notes(survey: "Survey", decision: "Decision") -> tuple[str, ...]:
    """Return one line for every layer examined: what was done, and why."""
    from edgepack.compress.stages.factorize.goals import IN, percent

    whole = {**survey.whole, **decision.whole}
    notes = {name: f"not split: {whole[name]}" for name in survey.looked_at if name in whole}
    for name, (curve, rank) in decision.splits.items():
        site, remark = survey.sites[name], decision.remarks.get(name, "")
        done = f"split{IN[curve.scheme]} at rank {rank} of {site.full(curve.scheme)}"
        kept = f"keeping {percent(curve.exactly(rank))} of its energy"
        notes[name] = f"{done}, {kept}{f' ({remark})' if remark else ''}"
    return (*decision.heading, *(f"{name}: {notes[name]}" for name in survey.looked_at))
