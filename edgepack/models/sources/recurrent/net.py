"""The layers of recurrent nets: what reads a sequence in one direction, or in both."""

from typing import Any

import torch
from torch import Tensor, nn

from edgepack.core.signature import Signature
from edgepack.data.sounds import front_end
from edgepack.models.log_mel import LogMel
from edgepack.models.sources.recurrent.config import Config

_KINDS = {"lstm": nn.LSTM, "gru": nn.GRU}


class Mean(nn.Module):  # type: ignore[misc]
    """The mean over the steps of [n, steps, width], or over those of a text alone; in fp32, as in sums of many steps
    a rounding of each would add up.
    """

    stays_fp32 = True

    def forward(self, outputs: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            return outputs.mean(1)
        counted = mask.to(outputs.dtype)[:, :, None]
        return (outputs * counted).sum(1) / counted.sum(1).clamp(min=1)


class Together(nn.Module):  # type: ignore[misc]
    """Puts the outputs of two directions together, [n, steps, width] each; in fp32, as their layers give them."""

    stays_fp32 = True

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return torch.cat([one, other], dim=2)


class BothWays(nn.Module):  # type: ignore[misc]
    """Reads texts [n, tokens, width] from their beginning and from their end, which is not that of the padding.

    Two layers, as torch's own bidirectional one would begin with the padding. `order` has for each token the place of
    the one to take there when the text is turned; padding stays where it is.
    """

    def __init__(self, ahead: nn.RNNBase, back: nn.RNNBase) -> None:
        super().__init__()
        self.ahead, self.back, self.together = ahead, back, Together()

    def forward(self, tokens: Tensor, order: Tensor) -> Tensor:
        turned, _ = self.back(_reordered(tokens, order))
        together: Tensor = self.together(self.ahead(tokens)[0], _reordered(turned, order))
        return together


def _reordered(tokens: Tensor, order: Tensor) -> Tensor:
    return tokens.gather(1, order[:, :, None].expand(-1, -1, tokens.shape[2]))


def turned(mask: Tensor) -> Tensor:
    """Return the places that turn texts with this mask, int64 [n, tokens]; a second time they turn them back.

    >>> turned(torch.tensor([[1, 1, 1, 0, 0]]))
    tensor([[2, 1, 0, 3, 4]])
    """
    places = torch.arange(mask.shape[1], device=mask.device)[None]
    length = mask.sum(1, keepdim=True)
    return torch.where(places < length, length - 1 - places, places)


class SeriesNet(nn.Module):  # type: ignore[misc]
    """Maps series [n, steps, numbers] to outputs [n, outputs]."""

    def __init__(self, layers: list[nn.RNNBase], dropout: float, outputs: int) -> None:
        super().__init__()
        self.layers, self.dropout = nn.ModuleList(layers), nn.Dropout(dropout)
        self.mean, self.head = Mean(), nn.Linear(_width(layers[-1]), outputs)

    def forward(self, series: Tensor) -> Tensor:
        for layer in self.layers:
            series = self.dropout(layer(series)[0])
        outputs: Tensor = self.head(self.mean(series))
        return outputs


class SoundNet(SeriesNet):
    """Maps features of sounds [n, mels, frames] to outputs [n, outputs], or raw sounds [n, samples]."""

    def __init__(self, made: LogMel | None, layers: list[nn.RNNBase], dropout: float, outputs: int) -> None:
        super().__init__(layers, dropout, outputs)
        self.front_end = nn.Identity() if made is None else made

    def forward(self, sound: Tensor) -> Tensor:
        outputs: Tensor = super().forward(self.front_end(sound).transpose(1, 2))
        return outputs


class TextNet(nn.Module):  # type: ignore[misc]
    """Maps texts, input_ids and attention_mask [n, tokens], padded at their end, to outputs [n, outputs]."""

    def __init__(self, embedding: nn.Embedding, layers: list[nn.Module], dropout: float, outputs: int) -> None:
        super().__init__()
        self.embedding, self.layers, self.dropout = embedding, nn.ModuleList(layers), nn.Dropout(dropout)
        self.mean, self.head = Mean(), nn.Linear(_width(layers[-1]), outputs)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        tokens, order = self.embedding(input_ids), turned(attention_mask)
        for layer in self.layers:
            tokens = self.dropout(layer(tokens, order) if isinstance(layer, BothWays) else layer(tokens)[0])
        outputs: Tensor = self.head(self.mean(tokens, attention_mask))
        return outputs


def _width(layer: Any) -> int:
    """Return how many numbers a layer gives for each step."""
    if isinstance(layer, BothWays):
        return _width(layer.ahead) + _width(layer.back)
    return int(layer.hidden_size) * (2 if layer.bidirectional else 1)


def net(config: Config, signature: Signature) -> nn.Module:
    """Return the untrained net for these inputs."""
    shape, made = signature.inputs[0].shape, front_end.of(signature.preprocessing)
    if signature.preprocessing.get("kind") == "text":
        table = nn.Embedding(signature.preprocessing["vocabulary"], config.embedding)
        layers = _stacked(config, config.embedding, _both_ways if config.bidirectional else _layer)
        return TextNet(table, layers, config.dropout, signature.width)
    if made is None:
        return SeriesNet(_stacked(config, shape[1], _layer), config.dropout, signature.width)
    raw = LogMel(**made) if len(shape) == 1 else None
    return SoundNet(raw, _stacked(config, made["mels"], _layer), config.dropout, signature.width)


def _stacked(config: Config, width: int, make: Any) -> list[Any]:
    """Return layers of which each reads what the one before it gives; each is pruned by itself."""
    layers: list[Any] = []
    for _ in range(config.layers):
        layers.append(make(config, _width(layers[-1]) if layers else width))
    return layers


def _layer(config: Config, width: int, **settings: bool) -> nn.RNNBase:
    both = {"bidirectional": config.bidirectional, **settings}
    return _KINDS[config.recurrent](width, config.hidden, batch_first=True, **both)


def _both_ways(config: Config, width: int) -> BothWays:
    ahead, back = (_layer(config, width, bidirectional=False) for _ in range(2))
    return BothWays(ahead, back)
