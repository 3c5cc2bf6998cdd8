"""A causal language model of one kind of parts: GPT-2, Llama, Qwen and SmolLM differ in its settings only.

    decoder = Decoder(Shape(vocabulary=4096, places=128, width=192, heads=6, layers=6, ffn=768))
    decoder(input_ids)                 # [n, length] int64 -> logits [n, length, vocabulary]

Weights of transformers' models are brought into it (models/sources/huggingface/decoders.py). Queries, keys and values
are layers of their own, named as surgery, distillation and int8 know them from encoders, see `encoder.blocks`. With
`past`, the tokens before are not computed again: see export/generation.py.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, fx, nn

from edgepack.core.frozen import Frozen

_FAR = -10_000.0  # added to the scores of tokens that come later: the softmax makes it 0, in bf16 too
_SPREAD = 0.02  # of new weights. Source: A. Radford et al., Language Models are Unsupervised Multitask Learners, 2019


class Shape(Frozen):
    """The sizes of a decoder, and of which kind its parts are.

    `places` is the longest text that it reads, in tokens. Several heads of queries may share one of keys and values
    (`key_value_heads`, default: none do). A gated feed-forward network multiplies two layers, one of them activated.
    """

    vocabulary: int
    places: int
    width: int
    heads: int
    layers: int
    ffn: int
    key_value_heads: int | None = None
    head_size: int | None = None
    positions: Literal["learned", "rotary"] = "learned"
    rotary_base: float = 10_000.0
    norm: Literal["layer", "rms"] = "layer"
    epsilon: float = 1e-5
    activation: Literal["gelu", "gelu_tanh", "silu", "relu"] = "gelu_tanh"
    gated: bool = False
    query_bias: bool = True  # of queries, keys and values
    attention_output_bias: bool = True
    output_bias: bool = True  # of the feed-forward network
    tied: bool = True  # whether the table of embeddings is the last layer too

    @property
    def channels(self) -> int:
        """Return the channels of a head."""
        return self.head_size or self.width // self.heads


class Past(NamedTuple):
    """Keys and values of a layer."""

    keys: Tensor  # [n, heads, channels, tokens], as a product with queries wants them
    values: Tensor  # [n, heads, tokens, channels]


def _activation(name: str) -> nn.Module:
    of = {"gelu": nn.GELU(), "gelu_tanh": nn.GELU("tanh"), "silu": nn.SiLU(), "relu": nn.ReLU()}
    return of[name]


def _norm(shape: Shape) -> nn.Module:
    return (nn.LayerNorm if shape.norm == "layer" else nn.RMSNorm)(shape.width, eps=shape.epsilon)


class Attention(nn.Module):  # type: ignore[misc]
    """Attends from every token to those before it and itself."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        pairs = shape.key_value_heads or shape.heads
        self.num_attention_heads, self.num_key_value_heads = shape.heads, pairs
        self.attention_head_size, self.all_head_size = shape.channels, shape.heads * shape.channels
        self.query = nn.Linear(shape.width, shape.heads * shape.channels, bias=shape.query_bias)
        self.key = nn.Linear(shape.width, pairs * shape.channels, bias=shape.query_bias)
        self.value = nn.Linear(shape.width, pairs * shape.channels, bias=shape.query_bias)
        self.output = nn.Linear(shape.heads * shape.channels, shape.width, bias=shape.attention_output_bias)

    def forward(self, given: Tensor, turn: "Turn | None", mask: Tensor, past: "Cache | None" = None) -> Tensor:
        queries, keys, values = (
            layer(given).unflatten(2, (-1, self.attention_head_size)) for layer in (self.query, self.key, self.value)
        )
        if turn is not None:
            queries, keys = turn.of(queries), turn.of(keys)
        seen = Past(keys.permute(0, 2, 3, 1), values.transpose(1, 2))
        attended: Tensor = self.output(self._attend(queries, seen if past is None else past.joined(seen), mask))
        return attended

    def _attend(self, queries: Tensor, seen: Past, mask: Tensor) -> Tensor:
        """Return what queries [n, tokens, heads, channels] find, [n, tokens, heads * channels]. Those that share keys
        and values are rows of one matrix: nothing is repeated, and products are of three dimensions, as runtimes
        compute them without a copy.
        """
        n, tokens, heads, channels = queries.shape
        pairs = seen.values.shape[1]
        groups = heads // pairs
        rows = queries.reshape(n, tokens, pairs, groups * channels).transpose(1, 2)
        rows = rows.reshape(n * pairs, tokens * groups, channels)
        scores = torch.bmm(rows, seen.keys.flatten(0, 1)).unflatten(1, (tokens, groups))
        shares = (scores * channels**-0.5 + mask[:, None]).softmax(dim=-1)
        found = torch.bmm(shares.flatten(1, 2), seen.values.flatten(0, 1))
        return found.reshape(n, pairs, tokens, groups * channels).transpose(1, 2).flatten(2)


class Cache:
    """What a layer's keys and values are joined to: those of the tokens before. Defined where they are kept."""

    def joined(self, new: Past) -> Past:
        raise NotImplementedError


class Turn(NamedTuple):
    """Rotary positions of some tokens: cosines and sines, [tokens, 1, channels].

    Source: J. Su et al., RoFormer, arXiv 2104.09864; halves are paired as in Llama.
    """

    cosines: Tensor
    sines: Tensor

    def of(self, heads: Tensor) -> Tensor:
        first, second = heads.chunk(2, dim=-1)
        return heads * self.cosines + torch.cat((-second, first), dim=-1) * self.sines


class FeedForward(nn.Module):  # type: ignore[misc]
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.up = nn.Linear(shape.width, shape.ffn, bias=shape.output_bias)
        self.gate = nn.Linear(shape.width, shape.ffn, bias=shape.output_bias) if shape.gated else None
        self.activation = _activation(shape.activation)
        self.down = nn.Linear(shape.ffn, shape.width, bias=shape.output_bias)

    def forward(self, given: Tensor) -> Tensor:
        wide = self.up(given)
        wide = self.activation(wide) if self.gate is None else self.activation(self.gate(given)) * wide
        output: Tensor = self.down(wide)
        return output


class Layer(nn.Module):  # type: ignore[misc]
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention_norm, self.attention = _norm(shape), Attention(shape)
        self.ffn_norm, self.ffn = _norm(shape), FeedForward(shape)

    def forward(self, given: Tensor, turn: Turn | None, mask: Tensor, past: Cache | None = None) -> Tensor:
        attended = given + self.attention(self.attention_norm(given), turn, mask, past)
        output: Tensor = attended + self.ffn(self.ffn_norm(attended))
        return output


class Decoder(nn.Module):  # type: ignore[misc]
    """Takes token ids, [n, length] int64, and returns the logits of each next token, [n, length, vocabulary]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.places = shape.places
        self.embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.positions = nn.Embedding(shape.places, shape.width) if shape.positions == "learned" else None
        self.layers = nn.ModuleList([Layer(shape) for _ in range(shape.layers)])
        self.norm = _norm(shape)
        self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)
        self._begin(shape)
        if shape.tied:
            self.head.weight = self.embedding.weight
        if shape.positions == "rotary":
            for name, table in zip(("cosines", "sines"), _rotary(shape), strict=True):
                self.register_buffer(name, table, persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        at = torch.arange(input_ids.shape[1], device=input_ids.device)
        return self.read(input_ids, at, at)

    def read(self, input_ids: Tensor, at: Tensor, seen: Tensor, past: Mapping[int, Cache] = {}) -> Tensor:
        """Return logits of tokens at the places `at`, [length], which attend to those at the places `seen`, as far as
        they are not later. `past` keeps the keys and values of each layer, by its place.
        """
        mask = torch.where(seen[None] > at[:, None], _FAR, 0.0)
        states = self.embedding(input_ids)
        if self.positions is not None:
            states = states + self.positions(at)
        turn = None if self.positions is not None else Turn(self.cosines[at][:, None], self.sines[at][:, None])
        for place, layer in enumerate(self.layers):
            states = layer(states, turn, mask, past.get(place))
        logits: Tensor = self.head(self.norm(states))
        return logits

    def _begin(self, shape: Shape) -> None:
        """Draw new weights; those of layers that add to the sum are smaller, the more layers there are."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:
                adds = name.endswith(("attention.output.weight", "ffn.down.weight"))
                nn.init.normal_(parameter, std=_SPREAD * ((2 * shape.layers) ** -0.5 if adds else 1))


def _rotary(shape: Shape) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of every place, [places, channels]."""
    steps = torch.arange(0, shape.channels, 2, dtype=torch.float64) / shape.channels
    angles = torch.arange(shape.places, dtype=torch.float64)[:, None] * shape.rotary_base**-steps
    both = torch.cat((angles, angles), dim=1)
    return both.cos().float(), both.sin().float()


def is_decoder(module: nn.Module) -> bool:
    """Return whether a module is a decoder, or a graph of a whole one."""
    if not isinstance(module, fx.GraphModule):
        return isinstance(module, Decoder)
    [end] = module.graph.find_nodes(op="output")
    last = end.all_input_nodes[0]
    while "quantize" in str(last.target) and last.all_input_nodes:
        last = last.all_input_nodes[0]
    stack: list[tuple[str, object]] = [*last.meta.get("nn_module_stack", {}).values()]
    decodes = bool(stack) and str(stack[0][1]).endswith(f"{__name__}.{Decoder.__qualname__}")
    return decodes and "head" in [name for name, _ in stack]
