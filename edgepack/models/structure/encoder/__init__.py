"""The anatomy of a transformer encoder, of text or pictures: where its layers, attention heads and feed-forward
networks are.

for block in blocks(module):            # none, for a model that is no encoder
    block.query, block.ffn_in, block.heads(module)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from edgepack.core.errors import StageError
from edgepack.models.structure.layer_names import chosen

_SHORT = 1e-12  # added to a squared length, which may be 0
_FAR = -10_000.0  # added to the scores of padding: the softmax makes it 0, in bf16 too


class PictureClassifier(nn.Module):  # type: ignore[misc]
    """A transformers classifier of pictures: takes [n, channels, height, width], and returns [n, classes]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(pixel_values=pictures).logits
        return logits


class TextEncoder(nn.Module):  # type: ignore[misc]
    """A model of transformers that takes (input_ids, attention_mask), [n, length] int64.

    The mask is passed on as numbers to add to the scores, [n, 1, 1, length]: from a two-dimensional mask, transformers
    makes integer arithmetic that quantizers cannot handle. Positions and segments are constants, as text is padded on
    the right and has one segment.
    """

    positions: torch.Tensor
    segments: torch.Tensor
    reads_first_token = True  # and no other, of the last layer's outputs

    def __init__(self, model: nn.Module, length: int, offset: int) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("positions", torch.arange(offset, offset + length)[None], persistent=False)
        self.register_buffer("segments", torch.zeros(1, 1, dtype=torch.int64), persistent=False)
        self.segmented = any(name.endswith("token_type_embeddings") for name, _ in model.named_modules())

    def given(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        """Return what the model of transformers returns."""
        hidden = (1.0 - attention_mask.float())[:, None, None, :] * _FAR
        segments = {"token_type_ids": self.segments} if self.segmented else {}
        return self.model(input_ids=input_ids, attention_mask=hidden, position_ids=self.positions, **segments)


class TextClassifier(TextEncoder):
    """Returns logits, [n, classes]."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.given(input_ids, attention_mask).logits
        return logits


class TextEmbedder(TextEncoder):
    """Returns an embedding of length 1, [n, size]: of the mean of all tokens that are no padding, or of the first one.

    A text of nothing but padding has an embedding of zeros. Where `size` is another than the model's own width, a
    linear projection leads to it.
    Source: N. Reimers and I. Gurevych, Sentence-BERT, EMNLP 2019, arXiv 1908.10084.
    """

    def __init__(self, model: nn.Module, length: int, offset: int, *, width: int, size: int, pooling: str) -> None:
        super().__init__(model, length, offset)
        self.reads_first_token = pooling == "cls"
        self.projection: nn.Module = nn.Identity()
        if size != width:
            self.projection = nn.Linear(width, size, bias=False)
            nn.init.orthogonal_(self.projection.weight)  # angles stay nearly what they were

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = self.given(input_ids, attention_mask).last_hidden_state
        embedding = self.projection(states[:, 0] if self.reads_first_token else _mean(states, attention_mask))
        return embedding * (embedding.square().sum(1, keepdim=True) + _SHORT).rsqrt()


def square_projection(width: int) -> nn.Linear:
    """Return a projection that returns its input, until it is trained or narrowed."""
    layer = nn.Linear(width, width, bias=False)
    nn.init.eye_(layer.weight)
    return layer


def _mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean [n, width] of the states [n, tokens, width] that the mask [n, tokens] does not hide."""
    weights = mask.float()
    return (weights[:, None] @ states)[:, 0] / weights.sum(1, keepdim=True).clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class Block:
    """One layer of an encoder, by the names of its parts."""

    name: str
    attention: str  # the module that has the number of heads
    query: str
    key: str
    value: str
    output: str  # from the heads back to the hidden width
    ffn_in: str
    ffn_out: str
    gate: str = ""  # a second layer beside ffn_in, by whose activation its outputs are multiplied

    def head_size(self, module: nn.Module) -> int:
        attention: Any = module.get_submodule(self.attention)
        return int(next(getattr(attention, name) for name in HEAD_SIZES if hasattr(attention, name)))

    def width(self, module: nn.Module) -> int:
        """Return the hidden width, of what the layer gives."""
        return int(module.get_submodule(end(module, self.ffn_out, -1)).out_features)

    def heads(self, module: nn.Module) -> int:
        return int(module.get_submodule(self.query).out_features) // self.head_size(module)

    def sharing(self, module: nn.Module) -> int:
        """Return how many heads of queries share one of keys and values."""
        attention: Any = module.get_submodule(self.attention)
        pairs = getattr(attention, "num_key_value_heads", None)
        return 1 if pairs is None else int(attention.num_attention_heads) // int(pairs)


HEAD_SIZES = ("attention_head_size", "head_dim")  # what attention modules call the channels of a head
# The parts of a layer in each family: BERT, RoBERTa and ELECTRA; DistilBERT; ViT and DeiT of transformers; of
# torchvision; of timm. These two have their attention from attention.py. The last is that of a Decoder.
_PARTS = tuple(
    dict(zip(("attention", "query", "key", "value", "output", "ffn_in", "ffn_out"), names.split(), strict=True))
    for names in (
        "attention.self attention.self.query attention.self.key attention.self.value attention.output.dense "
        "intermediate.dense output.dense",
        "attention attention.q_lin attention.k_lin attention.v_lin attention.out_lin ffn.lin1 ffn.lin2",
        "attention attention.q_proj attention.k_proj attention.v_proj attention.o_proj mlp.fc1 mlp.fc2",
        "self_attention self_attention.query self_attention.key self_attention.value self_attention.output mlp.0 mlp.3",
        "attn attn.query attn.key attn.value attn.output mlp.fc1 mlp.fc2",
        "attention attention.query attention.key attention.value attention.output ffn.up ffn.down",
    )
)


def blocks(module: nn.Module) -> tuple[Block, ...]:
    """Return the remaining layers of an encoder, in order; none for another kind of model.

    An encoder has one row of layers: MobileViT, with a row at each resolution between its convolutions, is none.
    """
    found = tuple(_blocks(module))
    return found if len({block.name.rpartition(".")[0] for block in found}) == 1 else ()


def _blocks(module: nn.Module) -> Iterator[Block]:
    names = {name for name, _ in module.named_modules()}
    for name, row in module.named_modules():
        if isinstance(row, nn.ModuleList | nn.Sequential):
            for place in (f"{name}.{child}".lstrip(".") for child, _ in row.named_children()):
                found = ({key: f"{place}.{part}" for key, part in parts.items()} for parts in _PARTS)
                parts = next((each for each in found if names.issuperset(each.values())), None)
                gate = f"{place}.{_GATE}" if f"{place}.{_GATE}" in names else ""
                if parts and _is_plain(module, parts["ffn_in"], parts["ffn_out"], gate):
                    yield Block(name=place, **parts, gate=gate)


_GATE = "ffn.gate"  # of a Decoder


def _is_plain(module: nn.Module, wide: str, thin: str, gate: str) -> bool:
    """Return whether a feed-forward network is two layers, perhaps a known gate, and nothing else of their width."""
    makes: Any = module.get_submodule(end(module, wide, -1))
    takes: Any = module.get_submodule(end(module, thin, 0))
    around = wide.rpartition(".")[0]
    inside = around == thin.rpartition(".")[0]
    others = (name for name, _ in module.get_submodule(around).named_parameters()) if inside else ()
    own = tuple(f"{name.rpartition('.')[2]}." for name in (wide, thin, gate) if name)
    known = isinstance(makes, nn.Linear) and isinstance(takes, nn.Linear)
    return known and makes.out_features == takes.in_features and all(name.startswith(own) for name in others)


def end(module: nn.Module, name: str, place: int) -> str:
    """Return the layer itself, or the first (0) or last (-1) of the thin layers that replaced it."""
    layer = module.get_submodule(name)
    while isinstance(layer, nn.Sequential):
        name, layer = f"{name}.{range(len(layer))[place]}", layer[place]
    return name


@contextmanager
def first_token_only(module: nn.Module) -> Iterator[None]:
    """Compute only the first token in the last layer, [n, 1, width], where the rest of the model reads no other.

    The numbers are the same for a sixth of that layer's work: the other tokens need only keys and values. Used for
    export; training may use the last layer's outputs of every token.
    """
    found = blocks(module) if isinstance(module, TextEncoder) and module.reads_first_token else ()
    if not found:
        yield
        return
    last: Any = module.get_submodule(found[-1].name)
    last.forward = partial(_first_token, last, module.get_submodule(found[-1].attention))
    try:
        yield
    finally:
        del last.forward


def _first_token(layer: Any, attention: Any, hidden: torch.Tensor, mask: torch.Tensor, *_: Any, **__: Any) -> Any:
    first, bert = hidden[:, :1], hasattr(attention, "query")
    names = ("query", "key", "value") if bert else ("q_lin", "k_lin", "v_lin")
    linears = (getattr(attention, name) for name in names)
    query, key, value = (
        linear(given).unflatten(2, (-1, attention.attention_head_size)).transpose(1, 2)
        for linear, given in zip(linears, (first, hidden, hidden), strict=True)
    )
    shares = (query @ key.transpose(2, 3) * attention.scaling + mask).softmax(dim=-1)
    context = (shares @ value).transpose(1, 2).flatten(2)
    if bert:
        attended = layer.attention.output(context, first)
        return layer.output(layer.intermediate(attended), attended)
    attended = layer.sa_layer_norm(attention.out_lin(context) + first)
    return layer.output_layer_norm(layer.ffn(attended) + attended)


def rest(module: nn.Module, layers: int | tuple[int, ...], of: str) -> tuple[str, ...]:
    """Return the layers to remove so that only the first `layers` stay, or those at these places.

    Raises StageError for a model that is no encoder, for layers that do not exist, and if none would be removed.
    """
    row = [block.name for block in blocks(module)]
    if not row:
        raise StageError(f"{of} is not a transformer encoder, so it has no layers to choose from", "use compression: 4")
    try:
        kept = chosen(layers, len(row), of)
    except ValueError as error:
        raise StageError(str(error), f"layers: {max(1, len(row) // 2)} keeps the lowest") from error
    places = range(kept) if isinstance(kept, int) else kept
    if len(places) == len(row):
        raise StageError(f"all {len(row)} layers of {of} would be kept", "remove some of them")
    return tuple(name for place, name in enumerate(row) if place not in places)


def droppable_layers(module: nn.Module) -> tuple[str, ...]:
    """Return the layers of an encoder that can be removed, the highest first: all but the lowest.

    Lower layers are more general. Source: H. Sajjad et al., On the Effect of Dropping Layers of Pre-trained Transformer
    Models, 2020, arXiv 2004.03844.
    """
    return tuple(block.name for block in reversed(blocks(module)[1:]))


def renumbered(module: nn.Module, places: dict[int, int]) -> dict[str, torch.Tensor]:
    """Return the weights of an encoder with layers moved to other places; layers without a place are left out."""
    row = f"{_row(module)}."
    weights = {}
    for name, tensor in module.state_dict().items():
        if name.startswith(row):
            place, _, part = name.removeprefix(row).partition(".")
            if int(place) in places:
                weights[f"{row}{places[int(place)]}.{part}"] = tensor
        else:
            weights[name] = tensor
    return weights


def keep_layers(module: nn.Module, layers: int | tuple[int, ...]) -> None:
    """Keep the first `layers` layers, or those at these places, and renumber them."""
    row = _row(module)
    kept = range(layers) if isinstance(layers, int) else layers
    module.set_submodule(row, nn.ModuleList([module.get_submodule(f"{row}.{place}") for place in kept]))


def _row(module: nn.Module) -> str:
    """Return the name of the list that contains the layers."""
    return blocks(module)[0].name.rpartition(".")[0]


def shorten(model: nn.Module, places: int) -> None:
    """Remove positions beyond the text length: half a million weights, in a BERT of 512."""
    name = next(name for name, _ in model.named_modules() if name.endswith("position_embeddings"))
    table: Any = model.get_submodule(name)
    table.weight = nn.Parameter(table.weight.detach()[:places].clone())
    table.num_embeddings = len(table.weight)
