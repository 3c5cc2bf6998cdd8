"""Attention with a layer each for queries, keys and values, as surgery, distillation and int8 know it from BERT.

torchvision and timm have these three in one weight, and torch's own module computes nothing narrower than its input. In
an encoder their modules are replaced when a model is built, before anything is trained or saved.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from edgepack.core.process.random_numbers import own_random
from edgepack.models.checks.changes import difference, lively
from edgepack.models.structure.encoder import blocks

Inputs = tuple[Tensor, ...]


class SelfAttention(nn.Module):  # type: ignore[misc]
    """Attends from every token to every token: takes [n, tokens, width], and returns the same shape.

    As torch's module, it may be given the tokens three times; it then returns a pair, the second of which is None.
    """

    def __init__(
        self, query: nn.Linear, key: nn.Linear, value: nn.Linear, output: nn.Linear, heads: int, scaling: float
    ) -> None:
        super().__init__()
        self.num_attention_heads, self.all_head_size = heads, query.out_features
        self.attention_head_size, self.scaling = query.out_features // heads, scaling
        self.query, self.key, self.value, self.output = query, key, value, output
        self.share_dropout, self.output_dropout = nn.Dropout(0.0), nn.Dropout(0.0)

    def forward(self, tokens: Tensor, key: Tensor | None = None, value: Tensor | None = None, **options: Any) -> Any:
        if any(given is not tokens for given in (key, value) if given is not None) or _asks_more(options):
            raise NotImplementedError("this attention is from all tokens to all tokens, and tells no weights")
        parts = (self.query, self.key, self.value)
        queries, keys, values = (
            layer(tokens).unflatten(2, (-1, self.attention_head_size)).transpose(1, 2) for layer in parts
        )
        shares = (queries @ keys.transpose(2, 3) * self.scaling).softmax(dim=-1)
        context = (self.share_dropout(shares) @ values).transpose(1, 2).flatten(2)
        output = self.output_dropout(self.output(context))
        return output if key is None else (output, None)


def _asks_more(options: dict[str, Any]) -> bool:
    """Return whether a call asks for more than plain attention, such as a mask or the weights."""
    return any(value is not None and value is not False for value in options.values())


def separated(module: nn.Module, inputs: Inputs) -> nn.Module:
    """Replace the attention of a vision transformer by modules of the kind above, in place, and return the model.

    It is tried on a copy with random weights first: where outputs differ, or what comes out is no encoder, the model
    stays as it is.
    """
    names = [name for name, part in module.named_modules() if is_fused(part)]
    if names and _answers_the_same(module, names, inputs):
        _separate(module, names)
    return module


def _answers_the_same(module: nn.Module, names: list[str], inputs: Inputs) -> bool:
    try:
        with torch.no_grad(), own_random(seed=0):
            made = lively(module, inputs)
            before = made(*inputs)
            _separate(made, names)
            same = not any(map(difference, tree_leaves(made(*inputs)), tree_leaves(before)))
            return same and len(blocks(made)) == len(names)
    except Exception:  # a model of any kind may fail on random weights, or use its attention in another way
        return False


def is_fused(part: nn.Module) -> bool:
    """Return whether it is attention of torch or of timm's kind, which can be made of separate layers."""
    return _is_of_torch(part) or _is_of_timm(part)


def _is_of_torch(part: nn.Module) -> bool:
    if type(part) is not nn.MultiheadAttention:
        return False
    plain = part.bias_k is None and not part.add_zero_attn and part.in_proj_weight is not None
    return bool(plain and part.batch_first)


def _is_of_timm(part: nn.Module) -> bool:
    """Return whether it has one layer for queries, keys and values, one for its output, and no other weights."""
    qkv, last = getattr(part, "qkv", None), getattr(part, "proj", None)
    if not (isinstance(qkv, nn.Linear) and isinstance(last, nn.Linear) and hasattr(part, "scale")):
        return False
    known = {id(tensor) for layer in (qkv, last) for tensor in layer.parameters()}
    heads = getattr(part, "num_heads", 0)
    alone = all(id(tensor) in known for tensor in (*part.parameters(), *part.buffers()))
    return alone and heads > 0 and qkv.out_features == 3 * last.in_features and last.in_features % heads == 0


def _separate(module: nn.Module, names: list[str]) -> None:
    for name in names:
        part: Any = module.get_submodule(name)
        module.set_submodule(name, _of_torch(part) if isinstance(part, nn.MultiheadAttention) else _of_timm(part))


def _of_torch(part: nn.MultiheadAttention) -> SelfAttention:
    made = _of(part, part.in_proj_weight, part.in_proj_bias, part.out_proj, part.head_dim**-0.5)
    made.share_dropout.p = part.dropout
    return made


def _of_timm(part: Any) -> SelfAttention:
    made = _of(part, part.qkv.weight, part.qkv.bias, part.proj, float(part.scale))
    for layer, name in ((made.share_dropout, "attn_drop"), (made.output_dropout, "proj_drop")):
        layer.p = getattr(getattr(part, name, None), "p", 0.0)
    return made


def _of(part: Any, weight: Tensor, bias: Tensor | None, last: nn.Linear, scaling: float) -> SelfAttention:
    """Return attention with the weights of queries, keys and values, [3 * width, inputs]; frozen ones stay so."""
    biases = [None] * 3 if bias is None else _thirds(bias)
    query, key, value = (_linear(*each) for each in zip(_thirds(weight), biases, strict=True))
    made = SelfAttention(query, key, value, _linear(last.weight, last.bias), part.num_heads, scaling)
    made.train(part.training)
    return made


def _thirds(tensor: Tensor) -> list[nn.Parameter]:
    parts = tensor.detach().chunk(3)
    return [nn.Parameter(part.clone(), requires_grad=tensor.requires_grad) for part in parts]


def _linear(weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Linear:
    """Return a layer with these tensors; on no device, as new weights would draw random numbers."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight, layer.bias = weight, bias
    return layer
