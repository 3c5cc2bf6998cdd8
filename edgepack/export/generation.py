"""A decoder as it writes text: some tokens at a time, with the keys and values of those before kept.

    decoder = generator(candidate)              # of the candidate's own numbers, int8 ones too
    Step(decoder)(tokens, position)             # the cache is a part of it: ExecuTorch
    OpenStep(decoder)(tokens, pasts)            # it is given, and given back longer: ONNX
    greedy(decoder, prompt=[12, 7], count=20)   # what files must generate

A quantized candidate is a graph of one length. Its layers, each with the rounding around it, are cut out of the graph
and put into the decoder that the candidate was made from, so any length is computed with the same integers.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from edgepack.core.errors import StageError
from edgepack.export.tensor_layers import layer_of
from edgepack.models.candidate import rebuild
from edgepack.models.structure.decoder import Cache, Decoder, Past
from edgepack.models.structure.fx_graph import tensor_of

if TYPE_CHECKING:
    from edgepack.models.candidate import Candidate

aten = torch.ops.aten
_INPUTS = {  # operators of layers with weights, and which argument is what they read
    aten.linear.default: 0,
    aten.embedding.default: 1,
    aten.layer_norm.default: 0,
    aten.rms_norm.default: 0,
}
_ROUNDING = ("quantized_decomposed", "torchao")  # namespaces of operators
Tensors = dict[tuple[int, torch.Size], nn.Parameter]  # by their memory: what is one tensor stays one


def generator(candidate: "Candidate") -> Decoder:
    """Return a decoder that generates, with the candidate's own weights, which stays as it is.

    Raises StageError if more is int8 than Linear layers and tables.
    """
    if candidate.form == "exported":
        module = rebuild(candidate.factory, candidate.surgery)
        for name, layer in _layers(candidate.module, _weighted(module)).items():
            module.set_submodule(name, layer)
    else:
        # A stage may time what it goes on to train.
        shared = {id(each): nn.Parameter(each.detach(), requires_grad=False) for each in candidate.module.parameters()}
        module = copy.deepcopy(candidate.module, shared)
    assert isinstance(module, Decoder), "asked of candidates that generate"
    module.eval().requires_grad_(False)
    return module


def end_of_text(candidate: "Candidate") -> int:
    """Return the token that ends a text, and stands before one: 0 of a tokenizer that was trained here."""
    return int(candidate.signature.preprocessing.get("end_id", 0))


def _weighted(module: nn.Module) -> set[str]:
    return {name for name, part in module.named_modules() if any(True for _ in part.parameters(recurse=False))}


def _layers(graph: fx.GraphModule, wanted: set[str]) -> dict[str, fx.GraphModule]:
    tensors: Tensors = {}
    cut: set[fx.Node] = set()
    found = {layer_of(node): _cut(graph, node, tensors, cut) for node in graph.graph.nodes if node.target in _INPUTS}
    rounded = [node for node in graph.graph.nodes if _rounds(node) and node not in cut]
    if rounded or wanted != found.keys():
        names = sorted({*wanted} ^ {*found}) or sorted({layer_of(node) for node in rounded})
        raise StageError(
            f"a decoder generates with int8 Linear layers and tables only, not so in '{names[0]}'",
            "remove `activations` of quantize, or set it to dynamic",
        )
    return found


def _cut(graph: fx.GraphModule, layer: fx.Node, tensors: Tensors, cut: set[fx.Node]) -> fx.GraphModule:
    """Return the part of a graph from what a layer reads, before it is rounded, to what it gives."""
    start = layer.args[_INPUTS[layer.target]]
    while _rounds(start):
        start = start.args[0]
    part, root = fx.Graph(), nn.Module()
    known = {start: part.placeholder("given")}
    for node in _before(layer, known):
        if node.op == "get_attr":
            tensor, name = tensor_of(graph, node), str(node.target).rpartition(".")[2]
            own = nn.Parameter(tensor, requires_grad=False)
            if tensor.is_floating_point():  # integers of a table and of a layer are packed in two ways
                own = tensors.setdefault((tensor.data_ptr(), tensor.shape), own)
            root.register_parameter(name, own)
            known[node] = part.get_attr(name)
        else:
            known[node] = part.node_copy(node, known.__getitem__)
    part.output(known[layer])
    cut.update(known)
    return fx.GraphModule(root, part)


def _before(node: fx.Node, known: dict[fx.Node, fx.Node]) -> Iterator[fx.Node]:
    """Yield the nodes that lead to this one, and it, each after those that it reads."""
    for each in node.all_input_nodes:
        if each not in known:
            yield from _before(each, known)
    if node not in known:
        yield node


def _rounds(node: fx.Node) -> bool:
    if node.op != "call_function":
        return False
    return getattr(node.target, "namespace", "") in _ROUNDING


class _Kept(Cache):
    """Has room for the keys and values of all places, and puts those of new tokens there."""

    def __init__(self, past: Past, at: Tensor) -> None:
        self.past, self.at = past, at

    def joined(self, new: Past) -> Past:
        keys = aten.index_put_(self.past.keys, [None, None, None, self.at], new.keys)
        return Past(keys, aten.index_put_(self.past.values, [None, None, self.at], new.values))


class Step(nn.Module):  # type: ignore[misc]
    """Takes tokens, [1, length] int64, and the place of the first of them, [1]; returns logits [1, length, vocabulary].

    The tokens before were given in earlier calls; those at place 0 begin a new text.
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.model = decoder
        for place, (heads, size) in cache_shapes(decoder).items():
            self.register_buffer(f"keys_{place}", torch.zeros(1, heads, size, decoder.places), persistent=False)
            self.register_buffer(f"values_{place}", torch.zeros(1, heads, decoder.places, size), persistent=False)

    def forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        at, seen = position + torch.arange(tokens.shape[1]), torch.arange(self.model.places)
        pasts = {
            place: Past(getattr(self, f"keys_{place}"), getattr(self, f"values_{place}"))
            for place in cache_shapes(self.model)
        }
        return self.model.read(tokens, at, seen, {place: _Kept(past, at) for place, past in pasts.items()})


class _Joined(Cache):
    """Joins new keys and values to those before, as apps hold them: both [1, heads, tokens, channels]."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def joined(self, new: Past) -> Past:
        self.keys = torch.cat((self.keys, new.keys.transpose(2, 3)), dim=2)
        self.values = torch.cat((self.values, new.values), dim=2)
        return Past(self.keys.transpose(2, 3), self.values)


class OpenStep(nn.Module):  # type: ignore[misc]
    """Takes tokens, [1, length] int64, and of each layer keys and values of those before, [1, heads, past, channels].

    Returns logits [1, length, vocabulary], and keys and values of all tokens, to be given with the next ones.
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.model = decoder

    def forward(self, tokens: Tensor, pasts: Sequence[Tensor]) -> tuple[Tensor, ...]:
        before, new = pasts[0].shape[2], tokens.shape[1]
        at, seen = torch.arange(before, before + new), torch.arange(before + new)
        caches = [_Joined(*pair) for pair in zip(pasts[::2], pasts[1::2], strict=True)]
        logits = self.model.read(tokens, at, seen, dict(zip(cache_shapes(self.model), caches, strict=True)))
        return logits, *(tensor for cache in caches for tensor in (cache.keys, cache.values))


def cache_shapes(decoder: Decoder) -> dict[int, tuple[int, int]]:
    """Return the number of heads of keys and values, and their channels, of each layer that attends, by its place."""
    attentions = {place: getattr(layer, "attention", None) for place, layer in enumerate(decoder.layers)}
    return {
        place: (int(each.num_key_value_heads), int(each.attention_head_size))
        for place, each in attentions.items()
        if each is not None  # else it was dropped
    }


def greedy(decoder: Decoder, prompt: Sequence[int], count: int) -> list[int]:
    """Return the tokens that a decoder writes after a prompt, always the likeliest one."""
    step, position = Step(decoder), 0
    written: list[int] = []
    while len(written) < count:
        tokens = [written[-1]] if written else list(prompt)
        logits = step(torch.tensor([tokens]), torch.tensor([position]))
        position += len(tokens)
        written.append(int(logits[0, -1].argmax()))
    return written
