"""Define the settings of pruning in a recipe."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from edgepack.compress.contract import Recovery, StageConfig, Training
from edgepack.compress.targets import Target
from edgepack.config.plugins import Named
from edgepack.core.units import SHARE, Share

Layers = int | float | tuple[int, ...]  # to remove: how many, a fraction, or their indices
_OF_ENCODERS = ("heads", "ffn", "layers")  # settings for encoders only


class Config(StageConfig):
    RENAMED = {"spare": "exclude", "insist": "force"}

    model_config = ConfigDict(
        json_schema_extra={"anyOf": [{"required": [k]} for k in ("ratio", "target", "pattern", *_OF_ENCODERS)]},
    )

    ratio: Share | None = Field(
        default=None,
        description="fraction of channels to remove from every layer; 50 % leaves a quarter of the weights",
    )
    target: Target | None = Field(
        default=None, description="instead of a ratio: size of the result, one of params, macs, size, latency"
    )
    heads: Share | None = Field(
        default=None, description="encoders: fraction of attention heads to remove from every layer, instead of ratio"
    )
    ffn: Share | None = Field(
        default=None, description="encoders: fraction of feed-forward neurons to remove, instead of ratio"
    )
    layers: int | tuple[int, ...] | Share | None = Field(
        default=None,
        description="encoders: number or fraction of layers to remove (the least important first), or their indices",
    )
    steps: int = Field(default=3, ge=1, le=100, description="number of cuts, each followed by recovery")
    importance: Annotated[str, Named("importances")] = Field(
        default="taylor", description="importance of a channel; bn_scale is l2 if no batch norm follows"
    )
    exclude: tuple[str, ...] = Field(default=(), description="names or patterns of layers that keep all their channels")
    pattern: Literal["channels", "unstructured", "2:4"] = Field(
        default="channels",
        description="what to remove: whole channels, or single weights if the device accelerates sparsity",
    )
    sensitivity: bool = Field(
        default=False, description="first report how pruning each single layer changes the accuracy"
    )
    recover: Recovery = Field(default=Recovery(), description="training after every cut")
    force: bool = Field(default=False, description="prune although edgepack advises against it")

    @field_validator("ratio")
    @classmethod
    def _leaves_something(cls, ratio: float | None) -> float | None:
        if ratio is not None and not 0 < ratio < 1:
            raise ValueError(
                f"ratio is the fraction of channels to remove, above 0 % and below 100 %, got {SHARE.format(ratio)}"
            )
        return ratio

    @field_validator("heads", "ffn")
    @classmethod
    def _leaves_some(cls, share: float | None) -> float | None:
        if share is not None and not 0 <= share < 1:
            raise ValueError(f"the fraction to remove is 0 % or more and below 100 %, got {SHARE.format(share)}")
        return share

    @field_validator("layers", mode="before")
    @classmethod
    def _counted(cls, layers: object) -> object:
        if isinstance(layers, str) and not layers.endswith("%"):
            raise ValueError(f"layers is the number of layers to remove, a fraction (25 %) or indices, got {layers!r}")
        return layers

    @field_validator("layers")
    @classmethod
    def _in_order(cls, layers: Layers | None) -> Layers | None:
        if isinstance(layers, float) and not 0 < layers < 1:
            raise ValueError(f"the fraction of layers is above 0 % and below 100 %, got {SHARE.format(layers)}")
        if isinstance(layers, int) and layers < 1:
            raise ValueError(
                f"layers is the number of layers to remove, at least 1, or a list of their indices, got {layers}"
            )
        if isinstance(layers, tuple) and (not layers or layers[0] < 0 or list(layers) != sorted({*layers})):
            raise ValueError(f"layers are indices from 0, each once and in order, got {[*layers]}")
        return layers

    @model_validator(mode="after")
    def _one_goal(self) -> "Config":
        if self.pattern != "channels":
            return self._of_zeros()
        if self.ratio is not None and self.target is not None:
            raise ValueError("give either a ratio (50 %) or a target ({macs: 40 %})")
        if self.target is None and self.layers is None and not self.cuts(self.ratio or 0):
            raise ValueError(
                "give either a ratio (50 %) or a target ({macs: 40 %}); for an encoder also layers, heads or ffn"
            )
        if (self.ratio is not None or self.target is not None) and None not in (self.heads, self.ffn):
            raise ValueError(
                "with heads and ffn there is nothing left for the ratio or target: remove one of the three"
            )
        return self

    def _of_zeros(self) -> "Config":
        if self.of_encoders:
            raise ValueError(f"{self.of_encoders[0]} are removed as a whole: remove the pattern")
        if self.pattern == "2:4" and (self.ratio, self.target) != (None, None):
            raise ValueError("2:4 is half of the weights by definition: remove ratio and target")
        if self.sensitivity:
            raise ValueError("sensitivity is for channels only: remove it")
        if self.pattern == "unstructured" and self.target:
            raise ValueError("sparse weights make nothing smaller: give a ratio instead of the target")
        if self.pattern == "unstructured" and self.ratio is None:
            raise ValueError("give the fraction of weights to set to zero, such as 50 %")
        return self

    @property
    def needs_timing(self) -> bool:
        return self.target is not None and self.target.metric == "latency"

    @property
    def trainings(self) -> tuple[Training, ...]:
        return (self.recover,)

    @property
    def of_encoders(self) -> list[str]:
        """Return the settings given that apply to encoders only."""
        return [name for name in _OF_ENCODERS if getattr(self, name) is not None]

    def share(self, part: str, ratio: float) -> float:
        """Return the share of "heads" or "ffn" to remove: its own setting, or the ratio."""
        own: float | None = getattr(self, part)
        return ratio if own is None else own

    def cuts(self, ratio: float) -> bool:
        """Return whether anything besides layers is removed."""
        return any((ratio, self.heads, self.ffn))
