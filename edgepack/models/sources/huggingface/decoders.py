"""Causal language models: GPT-2, Llama, Qwen2, Mistral and SmolLM, brought into a Decoder of edgepack's own.

Their weights are the same tensors under other names; those of GPT-2 for queries, keys and values come in one. The last
layer and the table have a row for each token of the data's tokenizer: rows that only fill up a table go.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgepack.core.errors import StageError
from edgepack.core.signature import Signature
from edgepack.data.texts import kept_pieces
from edgepack.models.sources.huggingface.facts import DecoderFacts
from edgepack.models.sources.huggingface.texts import of_tokenizer, own_words

if TYPE_CHECKING:
    from torch import Tensor, nn

AUTO = "AutoModelForCausalLM"
_PADDED = 1024  # a table may have this many more rows than its tokenizer has tokens
_OF_LLAMA = {
    "model.embed_tokens": "embedding",
    "model.norm": "norm",
    "lm_head": "head",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.o_proj": "attention.output",
    "mlp.gate_proj": "ffn.gate",
    "mlp.up_proj": "ffn.up",
    "mlp.down_proj": "ffn.down",
}
_OF_GPT2 = {
    "transformer.wte": "embedding",
    "transformer.wpe": "positions",
    "transformer.ln_f": "norm",
    "lm_head": "head",
    "ln_1": "attention_norm",
    "ln_2": "ffn_norm",
    "attn.c_attn": "attention.",  # of three layers
    "attn.c_proj": "attention.output",
    "mlp.c_fc": "ffn.up",
    "mlp.c_proj": "ffn.down",
}


def incompatibility(name: str, known: DecoderFacts, signature: Signature) -> str:
    """Say why it cannot take the data, without its name, or ""."""
    text = signature.preprocessing
    if text.get("kind") != "tokens":
        return "is a language model, but the data is no text to model: use data: {corpus: {texts: ...}}"
    if known.unknown:
        return f"has {known.unknown}, which edgepack does not know"
    if known.heads % (known.num_key_value_heads or 1):
        return f"has {known.num_key_value_heads} heads of keys, which do not divide its {known.heads} of queries"
    kept = _kept(text)
    length, tokens = signature.inputs[0].shape[0], kept[-1] + 1 if kept else int(text["vocabulary"])
    if length > known.places:
        return f"reads at most {known.places} tokens, but a window of the data has {length}"
    if tokens > known.vocab_size or known.vocab_size - tokens > _PADDED:
        return (
            f"knows {known.vocab_size:,} tokens, but the tokenizer of the data has {tokens:,}: it is of another model"
        )
    return of_tokenizer(name, text) or _of_end(name, known, text)


def _kept(text: Mapping[str, Any]) -> list[int]:
    """Return the tokens of the model that the data's tokenizer has; none where it has all."""
    return kept_pieces.unpacked(text["kept"]) if "kept" in text else []


def _of_end(name: str, known: DecoderFacts, text: Mapping[str, Any]) -> str:
    """Compare the token that ends a text, where the words of the tokenizers cannot be."""
    end, kept = text.get("end_id"), _kept(text)
    end = kept[int(end)] if kept and end is not None else end
    if end is None or not known.ends or end in known.ends or own_words(name) is not None:
        return ""
    ends = " or ".join(map(str, known.ends))
    return f"ends a text with token {ends}, the tokenizer of the data with {end}: it is of another model"


def fresh(known: DecoderFacts, signature: Signature) -> "nn.Module":
    """Return a Decoder with new weights, for windows of the data's length."""
    from edgepack.models.structure.decoder import Decoder

    places, vocabulary = signature.inputs[0].shape[0], int(signature.preprocessing["vocabulary"])
    return Decoder(known.shape(vocabulary, places))


def adapted(model: Any, known: DecoderFacts, signature: Signature) -> "nn.Module":
    """Return a Decoder with the weights of a model of transformers, for windows of the data's length.

    Raises StageError for a model with other tensors than those of its kind.
    """
    module = fresh(known, signature)
    ours, theirs = module.state_dict(), _renamed(model.state_dict(), known)
    kept = _kept(signature.preprocessing)
    for name in ("embedding.weight", "head.weight", "positions.weight"):
        if name in theirs and name in ours:
            rows = kept if kept and name != "positions.weight" else slice(len(ours[name]))
            theirs[name] = theirs[name][rows]
    if {*theirs} != {*ours}:
        other = sorted({*theirs} ^ {*ours})
        raise StageError(f"its tensor '{other[0]}' and {len(other) - 1} more are not those of a {known.model_type}")
    module.load_state_dict(theirs)
    return module


def _renamed(weights: Mapping[str, "Tensor"], known: DecoderFacts) -> dict[str, "Tensor"]:
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        place, _, kind = name.rpartition(".")
        layer = _layer_of(place)
        part = place.removeprefix(layer)
        ours = (_OF_GPT2 if known.of_gpt2 else _OF_LLAMA).get(part, part)
        before = f"layers.{layer.split('.')[2]}." if layer else ""
        turned = known.of_gpt2 and layer and tensor.dim() == 2  # its layers keep their weights the other way round
        weight = tensor.T.contiguous() if turned else tensor
        if ours == "attention.":
            thirds = zip(("query", "key", "value"), weight.chunk(3), strict=True)
            found |= {f"{before}attention.{each}.{kind}": third.clone() for each, third in thirds}
        elif not kind.startswith(("masked_bias", "inv_freq")):
            found[f"{before}{ours}.{kind}"] = weight
    return found


def _layer_of(place: str) -> str:
    """
    >>> _layer_of("model.layers.11.mlp.up_proj"), _layer_of("transformer.wte")
    ('model.layers.11.', '')
    """
    parts = place.split(".")
    return ".".join(parts[:3]) + "." if len(parts) > 3 and parts[2].isdigit() else ""
