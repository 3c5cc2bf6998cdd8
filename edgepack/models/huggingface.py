"""A transformer encoder that classifies text, through transformers: BERT, DistilBERT, RoBERTa, ELECTRA, MiniLM.

The name is a folder as save_pretrained() writes it, a model that a package carries, or one of the Hugging Face hub.
The head is of its own where the model was trained for as many classes, else it starts anew.
"""

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from edgepack import hub
from edgepack.config import Frozen
from edgepack.datasets import Signature
from edgepack.errors import RecipeError, StageError
from edgepack.models import Checkpoint
from edgepack.patterns import chosen

if TYPE_CHECKING:
    from torch import nn

ENCODER = True
KINDS = ("bert", "distilbert", "electra", "roberta", "xlm-roberta")  # as config.json's model_type names them
_PADDED = 256  # rows that a model's embedding may have more than its tokenizer has tokens
_HEADS = ("classifier", "pooler", "pre_classifier")  # what a model without a head of its own starts anew


class Config(Frozen):
    huggingface: str = Field(description="a folder, all-MiniLM-L6-v2 (with the extra minilm), or owner/name of the hub")
    layers: int | tuple[int, ...] | None = Field(
        default=None, description="the first so many of its layers, or those at these places from 0; default: all"
    )
    weights: Literal["pretrained"] | None = Field(default="pretrained", description="null: start from random weights")
    checkpoint: Checkpoint | None = Field(default=None, description="weights of this very model: .safetensors, .pth")

    @field_validator("huggingface")
    @classmethod
    def _readable(cls, name: str) -> str:
        try:
            kind = facts(name).get("model_type")
        except RecipeError as error:
            raise ValueError(str(error).partition("\n")[0]) from None
        if kind not in KINDS:
            raise ValueError(f"'{name}' is a model of kind {kind!r}; edgepack knows {', '.join(KINDS)}")
        return name

    @field_validator("layers")
    @classmethod
    def _there(cls, layers: int | tuple[int, ...] | None, info: ValidationInfo) -> int | tuple[int, ...] | None:
        name = info.data.get("huggingface")
        if layers is None or name is None:
            return layers
        known = _first(facts(name), "num_hidden_layers", "n_layers")
        return chosen(layers, known, f"'{name}'")


def trained(config: Config, signature: Signature) -> bool:
    """With a checkpoint, or with the weights of a whole classifier of these very classes."""
    if config.checkpoint is not None:
        return True
    described = facts(config.huggingface)
    classifier = any("ForSequenceClassification" in str(name) for name in described.get("architectures") or ())
    known = len(_labels(described)) == len(signature.labels)
    return config.weights is not None and classifier and known and config.layers is None


def misfit(config: Config, signature: Signature) -> str:
    name, described, text = config.huggingface, facts(config.huggingface), signature.preprocessing
    if text.get("kind") != "text":
        return f"'{name}' reads text, but the data has inputs of shape {[*signature.inputs[0].shape]}"
    checks = (_of_heads(described), _of_length(described, signature), _of_tokens(described, text))
    problem = next((each for each in checks if each), "") or _of_labels(described, signature)
    return f"'{name}' {problem}" if problem else ""


def _of_heads(described: dict[str, Any]) -> str:
    width, heads = _first(described, "hidden_size", "dim"), _first(described, "num_attention_heads", "n_heads")
    return f"has {heads} heads, which do not divide its width of {width}" if width % heads else ""


def _of_length(described: dict[str, Any], signature: Signature) -> str:
    length, places = signature.inputs[0].shape[0], described["max_position_embeddings"] - _offset(described)
    return f"reads at most {places} tokens, but max_length of the data is {length}" if length > places else ""


def _of_tokens(described: dict[str, Any], text: dict[str, Any]) -> str:
    tokens, rows = text["vocabulary"], described["vocab_size"]
    if tokens > rows or rows - tokens > _PADDED:
        return f"knows {rows:,} tokens, but the tokenizer of the data has {tokens:,}: it is of another model"
    pad, own = text["special_tokens"]["pad"]["id"], described.get("pad_token_id")
    return f"pads with token {own}, the tokenizer of the data with {pad}: it is of another model" * (
        own not in (None, pad)
    )


def _of_labels(described: dict[str, Any], signature: Signature) -> str:
    """The same labels in another order would be answered wrong, and nobody would see why."""
    own = [label.lower() for label in _labels(described)]
    given = [label.lower() for label in signature.labels]
    if own != given and sorted(own) == sorted(given):
        return f"has its labels in the order {', '.join(own)}, the data in the order {', '.join(given)}"
    return ""


def files(config: Config) -> tuple[Path, ...]:
    if config.checkpoint is not None:
        return (*_found(config, hub.CONFIG), Path(config.checkpoint))
    return _found(config, hub.CONFIG + (hub.WEIGHTS if config.weights else ()))


def build(config: Config, signature: Signature) -> "nn.Module":
    """A module that turns input_ids and attention_mask, [n, length] both, into logits [n, classes]."""
    from edgepack.candidate import load_weights
    from edgepack.encoder import TextClassifier, keep_layers, shorten
    from edgepack.models._trial import tried

    if message := misfit(config, signature):
        raise StageError(message)
    pretrained = config.weights is not None and config.checkpoint is None
    model = _pretrained(config, signature) if pretrained else _fresh(config, signature)
    length, offset = signature.inputs[0].shape[0], _offset(facts(config.huggingface))
    shorten(model, length + offset)
    module = TextClassifier(model, length, offset)
    if config.layers is not None:
        keep_layers(module, config.layers)
    tried(module, signature, config.huggingface)
    if config.checkpoint:
        load_weights(module, Path(config.checkpoint))
    return module.eval()


def _fresh(config: Config, signature: Signature) -> "nn.Module":
    from edgepack.models._transformers import transformers

    auto = transformers().AutoModelForSequenceClassification
    module: nn.Module = auto.from_config(_configured(config, signature), attn_implementation="eager")
    return module


def _pretrained(config: Config, signature: Signature) -> "nn.Module":
    from edgepack.models._transformers import transformers
    from edgepack.models._trial import reason

    (path, *_) = _found(config, hub.CONFIG + hub.WEIGHTS)
    try:
        module, told = transformers().AutoModelForSequenceClassification.from_pretrained(
            path.parent,
            config=_configured(config, signature),
            attn_implementation="eager",
            dtype="float32",
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception as error:  # damaged files fail in many ways
        raise StageError(f"the weights in {path.parent} cannot be read: {reason(error)}", "save them anew") from error
    lost = sorted(key for key in told["missing_keys"] if not any(part in _HEADS for part in key.split(".")))
    if lost:
        raise StageError(
            f"the weights in {path.parent} lack {len(lost)} tensors of its model, the first is '{lost[0]}'",
            "save them with the very model that config.json describes",
        )
    result: nn.Module = module
    return result


def _configured(config: Config, signature: Signature) -> Any:
    from edgepack.models._transformers import transformers

    (path,) = _found(config, hub.CONFIG)
    labels = dict(enumerate(signature.labels))
    return transformers().AutoConfig.from_pretrained(path.parent, num_labels=len(labels), id2label=labels)


def facts(name: str) -> dict[str, Any]:
    """What config.json says of a model. Raises RecipeError when it cannot be read."""
    path = hub.folder(name, hub.CONFIG) / "config.json"
    return _read(path, path.stat().st_mtime_ns)


@cache
def _read(path: Path, changed: int) -> dict[str, Any]:
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        _first(described, "hidden_size", "dim")
        _first(described, "num_attention_heads", "n_heads")
        _first(described, "num_hidden_layers", "n_layers")
        known = described["vocab_size"], described["max_position_embeddings"], described["model_type"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecipeError(f"{path} does not describe an encoder ({type(error).__name__}: {error})") from None
    return {**described} if known else {}


def _first(described: dict[str, Any], *keys: str) -> int:
    """A number that kinds of models have under different names. Raises KeyError."""
    found = next((described[key] for key in keys if described.get(key)), None)
    if found is None:
        raise KeyError(keys[0])
    return int(found)


def _offset(described: dict[str, Any]) -> int:
    """The place of the first token: RoBERTa begins after the row of the padding token."""
    roberta = "roberta" in described["model_type"]
    return int(described.get("pad_token_id", 1)) + 1 if roberta else 0


def _labels(described: dict[str, Any]) -> tuple[str, ...]:
    named = described.get("id2label") or {}
    return tuple(str(named[key]) for key in sorted(named, key=int))


def _found(config: Config, wanted: tuple[str, ...]) -> tuple[Path, ...]:
    folder = hub.folder(config.huggingface, wanted)
    return tuple(folder / file for file in wanted)
