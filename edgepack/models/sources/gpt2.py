"""GPT-2 of any size, from scratch: a causal language model with learned positions.

It reads as many tokens as a window of the data has, and knows the tokens of its tokenizer.
Source: A. Radford et al., Language Models are Unsupervised Multitask Learners, 2019; there without dropout of 768, 12
and 12 for the smallest.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from edgepack.core.errors import StageError
from edgepack.core.frozen import Frozen
from edgepack.core.signature import Signature
from edgepack.models.contract import CheckpointKey, OwnCheckpoint

if TYPE_CHECKING:
    from torch import nn

    from edgepack.models.structure.decoder import Shape


class Sizes(Frozen):
    width: int = Field(ge=8, le=16_384, description="numbers of a token inside the model")
    layers: int = Field(ge=1, le=256, description="layers")
    heads: int = Field(ge=1, le=256, description="attention heads of a layer; they divide the width")
    ffn: int | None = Field(
        default=None, ge=8, description="feed-forward neurons of a layer; default: 4 times the width"
    )

    @model_validator(mode="after")
    def _divides(self) -> "Sizes":
        if self.width % self.heads:
            fitting = [each for each in range(1, self.heads + 1) if self.width % each == 0][-1]
            raise ValueError(f"{self.heads} heads do not divide a width of {self.width}: {fitting} do")
        return self


class Config(Frozen):
    gpt2: Sizes = Field(description="sizes: {width: 192, layers: 6, heads: 6}")
    checkpoint: OwnCheckpoint = None
    checkpoint_key: CheckpointKey = None


def trained(config: Config, signature: Signature) -> bool:
    return config.checkpoint is not None


def incompatibility(config: Config, signature: Signature) -> str:
    if signature.preprocessing.get("kind") != "tokens":
        return "gpt2 reads windows of tokens: use data: {corpus: {texts: ...}} and task: language_modelling"
    return ""


def files(config: Config) -> tuple[Path, ...]:
    return (Path(config.checkpoint),) if config.checkpoint else ()


def build(config: Config, signature: Signature) -> "nn.Module":
    from edgepack.models.checks.trial import tried
    from edgepack.models.structure.decoder import Decoder
    from edgepack.models.weights.loading import load_weights

    if message := incompatibility(config, signature):
        raise StageError(message)
    module = tried(Decoder(_shape(config.gpt2, signature)), signature, "gpt2")
    if config.checkpoint:
        load_weights(module, Path(config.checkpoint), config.checkpoint_key)
    return module


def _shape(sizes: Sizes, signature: Signature) -> "Shape":
    from edgepack.models.structure.decoder import Shape

    return Shape(
        vocabulary=int(signature.preprocessing["vocabulary"]),
        places=signature.inputs[0].shape[0],
        width=sizes.width,
        heads=sizes.heads,
        layers=sizes.layers,
        ffn=sizes.ffn or 4 * sizes.width,
    )
