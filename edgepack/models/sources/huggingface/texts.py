"""Encoders of text: BERT, DistilBERT, RoBERTa, ELECTRA, MiniLM."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.core.signature import Signature
from edgepack.data import hub
from edgepack.data.texts import gguf, tokenizer
from edgepack.models.sources.huggingface.facts import TextFacts

if TYPE_CHECKING:
    from torch import nn

AUTO = "AutoModelForSequenceClassification"
_PADDED = 256  # an embedding table may have this many more rows than its tokenizer has tokens


def incompatibility(name: str, known: TextFacts, signature: Signature) -> str:
    """Say why it cannot take the data, without its name, or ""."""
    text = signature.preprocessing
    if text.get("kind") != "text":
        return f"reads text, but the data has inputs of shape {[*signature.inputs[0].shape]}"
    checks = (_of_length(known, signature), _of_tokens(known, text))
    return next((each for each in checks if each), "") or of_tokenizer(name, text)


def _of_length(known: TextFacts, signature: Signature) -> str:
    length, places = signature.inputs[0].shape[0], known.max_position_embeddings - known.offset
    return f"reads at most {places} tokens, but max_length of the data is {length}" if length > places else ""


def _of_tokens(known: TextFacts, text: dict[str, Any]) -> str:
    tokens, rows = text["vocabulary"], known.vocab_size
    if tokens > rows or rows - tokens > _PADDED:
        return f"knows {rows:,} tokens, but the tokenizer of the data has {tokens:,}: it is of another model"
    pad, own = text["special_tokens"]["pad"]["id"], known.pad_token_id
    if own not in (None, pad):
        return f"pads with token {own}, the tokenizer of the data with {pad}: it is of another model"
    return ""


def of_tokenizer(name: str, text: dict[str, Any]) -> str:
    """Compare the words of the tokenizers, if the model has one: the same number of tokens may mean other words."""
    own = own_words(name) if "words" in text else None
    same = own in (None, text.get("words"))
    return "" if same else f"comes with a tokenizer of other words than that of the data: tokenizer: {name}"


def own_words(name: str) -> str | None:
    """Return a hash of the tokens of a model's own tokenizer, if it has one."""
    if file := gguf.located(name):
        return _hash(gguf.about(file).tokenizer)
    path = hub.folder(name, hub.CONFIG) / tokenizer.FILE
    return _words(path, path.stat().st_mtime_ns) if path.is_file() else None


@cache
def _hash(content: str) -> str | None:
    return tokenizer.words(tokenizer.read(content.encode())) if content else None


@cache
def _words(path: Path, changed: int) -> str:
    return tokenizer.words(tokenizer.read_file(path))


def embedder(model: Any, known: TextFacts, signature: Signature, pooling: str) -> "nn.Module":
    """Return the model that makes an embedding of texts of the data's length around the model of transformers."""
    from edgepack.models.structure.encoder import TextEmbedder, shorten

    length = signature.inputs[0].shape[0]
    shorten(model, length + known.offset)
    if hasattr(model, "pooler"):
        model.pooler = None  # it was trained to tell whether a sentence follows another
    return TextEmbedder(model, length, known.offset, width=known.width, size=signature.width, pooling=pooling)


def adapted(model: "nn.Module", known: TextFacts, signature: Signature) -> "nn.Module":
    """Return the classifier of texts of the data's length around the model of transformers."""
    from edgepack.models.structure.encoder import TextClassifier, shorten

    length = signature.inputs[0].shape[0]
    shorten(model, length + known.offset)
    return TextClassifier(model, length, known.offset)
