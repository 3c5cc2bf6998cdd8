"""LSTM and GRU over sounds, texts and series of numbers, and a Linear on the mean over time.

Features come first where the data is raw sound, and a table of embeddings where it is text; padding at the end of a
text changes nothing.
Source: S. Hochreiter and J. Schmidhuber, Long Short-Term Memory, Neural Computation 9, 1997; K. Cho et al., Learning
Phrase Representations using RNN Encoder-Decoder, EMNLP 2014, arXiv 1406.1078.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.core.errors import StageError
from edgepack.core.signature import Signature
from edgepack.data.sounds import front_end
from edgepack.models.sources.recurrent.config import Config as Config

if TYPE_CHECKING:
    from torch import nn


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
