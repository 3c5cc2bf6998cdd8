"""LSTM and GRU over sounds, texts and series of numbers, and a Linear on the mean over time.

Features come first where the data is raw sound, and a table of embeddings where it is text; padding at the end of a
text changes nothing.
Source: S. Hochreiter and J. Schmidhuber, Long Short-Term Memory, Neural Computation 9, 1997; K. Cho et al., Learning
Phrase Representations using RNN Encoder-Decoder, EMNLP 2014, arXiv 1406.1078.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from edgepack.core.errors import StageError
from edgepack.core.frozen import Frozen
from edgepack.core.signature import Signature
from edgepack.data.sounds import front_end
from edgepack.models.contract import Checkpoint, CheckpointKey

if TYPE_CHECKING:
    from torch import nn


class Config(Frozen):
    recurrent: Literal["lstm", "gru"] = Field(description="kind of its layers")
    hidden: int = Field(default=128, ge=1, le=4096, description="numbers that a layer remembers, in each direction")
    layers: int = Field(default=1, ge=1, le=16, description="layers, each of which reads the one before it")
    bidirectional: bool = Field(default=False, description="read from both ends; a stream has no other end")
    embedding: int = Field(default=128, ge=1, le=4096, description="texts: numbers that stand for a token")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="after each layer, in training")
    checkpoint: Checkpoint | None = Field(
        default=None, description="file with weights of exactly this model: .safetensors, .pth"
    )
    checkpoint_key: CheckpointKey = None


def trained(config: Config, signature: Signature) -> bool:
    return config.checkpoint is not None


def incompatibility(config: Config, signature: Signature) -> str:
    shape = signature.inputs[0].shape
    if signature.preprocessing.get("kind") == "text" or len(shape) == 2:
        return ""
    if len(shape) == 1 and front_end.of(signature.preprocessing) is not None:
        return ""
    return (
        f"a recurrent net reads sounds, texts or series [steps, numbers], but the data has inputs of shape {[*shape]}"
    )


def files(config: Config) -> tuple[Path, ...]:
    return (Path(config.checkpoint),) if config.checkpoint else ()


def build(config: Config, signature: Signature) -> "nn.Module":
    from edgepack.models.checks.trial import tried
    from edgepack.models.sources.recurrent.net import net
    from edgepack.models.weights.loading import load_weights

    if message := incompatibility(config, signature):
        raise StageError(message)
    module = tried(net(config, signature), signature, "recurrent")
    if config.checkpoint:
        load_weights(module, Path(config.checkpoint), config.checkpoint_key)
    return module
