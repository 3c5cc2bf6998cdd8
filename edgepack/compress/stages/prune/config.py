"""What a recipe may say of pruning."""

from typing import Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from edgepack.compress.contract import StageConfig, Training
from edgepack.compress.targets import Target
from edgepack.compress.training.recovery import Recovery
from edgepack.core.units import SHARE, Share

_OF_ENCODERS = ("heads", "ffn", "layers")  # settings


class Config(StageConfig):
    model_config = ConfigDict(
        json_schema_extra={"anyOf": [{"required": [k]} for k in ("ratio", "target", "pattern", *_OF_ENCODERS)]},
    )

    ratio: Share | None = Field(
        default=None, description="share of the channels of every layer that goes; 50 % leaves a quarter of the weights"
    )
    target: Target | None = Field(
        default=None, description="in place of a ratio what is left: one of params, macs, size, latency"
    )
    heads: Share | None = Field(
        default=None, description="of an encoder: share of the attention heads of every layer that goes, not the ratio"
    )
    ffn: Share | None = Field(
        default=None, description="of an encoder: share of the feed-forward neurons that goes, not the ratio"
    )
    layers: int | tuple[int, ...] | None = Field(
        default=None,
        description="of an encoder: how many layers go, those that the validation split misses least, or their places",
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
    insist: bool = Field(default=False, description="do what edgepack advises against, with its reasons")

    @field_validator("ratio")
    @classmethod
    def _leaves_something(cls, ratio: float | None) -> float | None:
        if ratio is not None and not 0 < ratio < 1:
            raise ValueError(
                f"ratio is the share of channels that goes, above 0 % and below 100 %, got {SHARE.format(ratio)}"
            )
        return ratio

    @field_validator("heads", "ffn")
    @classmethod
    def _leaves_some(cls, share: float | None) -> float | None:
        if share is not None and not 0 <= share < 1:
            raise ValueError(f"the share that goes is 0 % or more and below 100 %, got {SHARE.format(share)}")
        return share

    @field_validator("layers")
    @classmethod
    def _in_order(cls, layers: int | tuple[int, ...] | None) -> int | tuple[int, ...] | None:
        if isinstance(layers, int) and layers < 1:
            raise ValueError(f"layers is how many go, at least 1, or a list of their places, got {layers}")
        if isinstance(layers, tuple) and (not layers or layers[0] < 0 or list(layers) != sorted({*layers})):
            raise ValueError(f"layers are places from 0, each once and in order, got {[*layers]}")
        return layers

    @model_validator(mode="after")
    def _one_goal(self) -> "Config":
        if self.pattern != "channels":
            return self._of_zeros()
        if self.ratio is not None and self.target is not None:
            raise ValueError("give either a ratio, as 50 %, or a target, as {macs: 40 %}")
        if self.target is None and self.layers is None and not self.cuts(self.ratio or 0):
            raise ValueError(
                "give either a ratio, as 50 %, or a target, as {macs: 40 %}; of an encoder also layers, heads or ffn"
            )
        if (self.ratio is not None or self.target is not None) and None not in (self.heads, self.ffn):
            raise ValueError("heads and ffn leave nothing to the ratio or target: leave one of the three out")
        return self

    def _of_zeros(self) -> "Config":
        if self.of_encoders:
            raise ValueError(f"{self.of_encoders[0]} go whole: leave the pattern out")
        if self.pattern == "2:4" and (self.ratio, self.target) != (None, None):
            raise ValueError("2:4 is half of the weights by definition: leave ratio and target out")
        if self.sensitivity:
            raise ValueError("sensitivity is measured of channels: leave it out")
        if self.pattern == "unstructured" and self.target:
            raise ValueError("zeros between weights make nothing smaller: give a ratio in place of the target")
        if self.pattern == "unstructured" and self.ratio is None:
            raise ValueError("give the ratio of the weights that become zero, as 50 %")
        return self

    @property
    def needs_timing(self) -> bool:
        return self.target is not None and self.target.metric == "latency"

    @property
    def trainings(self) -> tuple[Training, ...]:
        return (self.recover,)

    @property
    def of_encoders(self) -> list[str]:
        """The settings given that only an encoder understands."""
        return [name for name in _OF_ENCODERS if getattr(self, name) is not None]

    def share(self, part: str, ratio: float) -> float:
        """What goes of "heads" or "ffn": its own share, or the ratio."""
        own: float | None = getattr(self, part)
        return ratio if own is None else own

    def cuts(self, ratio: float) -> bool:
        """Whether anything is to go besides layers."""
        return any((ratio, self.heads, self.ffn))
