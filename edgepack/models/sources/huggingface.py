"""A transformer encoder for text classification, through transformers: BERT, DistilBERT, RoBERTa, ELECTRA, MiniLM.

The name is a folder as save_pretrained() writes it, a model that a package carries, or one of the Hugging Face hub.
The head is of its own where the model was trained for as many classes, else it starts anew.
"""

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from edgepack.core.errors import RecipeError, StageError
from edgepack.core.frozen import Frozen
from edgepack.core.signature import Signature
from edgepack.core.signature.labels import order_of_numbers
from edgepack.data import hub
from edgepack.data.texts import tokenizer
from edgepack.models.contract import Checkpoint, CheckpointKey
from edgepack.models.structure.layer_names import chosen

if TYPE_CHECKING:
    from torch import nn

ENCODER = True
LIBRARIES = ("transformers",)
KINDS = ("bert", "distilbert", "electra", "roberta", "xlm-roberta")  # as in config.json's model_type
_PADDED = 256  # an embedding table may have this many more rows than its tokenizer has tokens
_HEADS = ("classifier", "pooler", "pre_classifier")  # parts that are new in a model without a classification head


class Config(Frozen):
    huggingface: str = Field(description="a folder, all-MiniLM-L6-v2 (with the extra minilm), or owner/name of the hub")
    layers: int | tuple[int, ...] | None = Field(
        default=None, description="number of first layers to keep, or a list of layer indices from 0; default: all"
    )
    weights: Literal["pretrained"] | None = Field(default="pretrained", description="null: start from random weights")
    checkpoint: Checkpoint | None = Field(
        default=None, description="file with weights of exactly this model: .safetensors, .pth"
    )
    checkpoint_key: CheckpointKey = None

    @field_validator("huggingface")
    @classmethod
    def _readable(cls, name: str) -> str:
        try:
            facts(name)
        except RecipeError as error:
            raise ValueError(f"{error.message}: {error.hint}" if error.hint else error.message) from None
        return name

    @field_validator("layers")
    @classmethod
    def _there(cls, layers: int | tuple[int, ...] | None, info: ValidationInfo) -> int | tuple[int, ...] | None:
        name = info.data.get("huggingface")
        if layers is None or name is None:
            return layers
        return chosen(layers, facts(name).depth, f"'{name}'")


_Count = Annotated[int, Field(gt=0)]


class Facts(BaseModel):
    """The facts of an encoder in its config.json, under the names of each model type."""

    model_config = ConfigDict(frozen=True, strict=True)

    model_type: str
    vocab_size: _Count
    max_position_embeddings: _Count
    width: _Count = Field(validation_alias=AliasChoices("hidden_size", "dim"))
    heads: _Count = Field(validation_alias=AliasChoices("num_attention_heads", "n_heads"))
    depth: _Count = Field(validation_alias=AliasChoices("num_hidden_layers", "n_layers"))
    pad_token_id: Annotated[int, Field(ge=0)] | None = None
    id2label: dict[int, str] | None = None
    architectures: tuple[str, ...] | None = None

    @property
    def labels(self) -> list[str]:
        """Return the labels in lower case, in the order of the outputs."""
        return [label.lower() for _, label in sorted((self.id2label or {}).items())]

    @property
    def offset(self) -> int:
        """Return the position of the first token: RoBERTa starts after the row of the padding token."""
        pad = 1 if self.pad_token_id is None else self.pad_token_id
        return pad + 1 if "roberta" in self.model_type else 0


def trained(config: Config, signature: Signature) -> bool:
    """Return whether it starts trained: from a checkpoint, or a classifier of these classes or as many unnamed ones.

    It does not count as trained with fewer layers than it was trained with.
    """
    if config.checkpoint is not None:
        return True
    known = facts(config.huggingface)
    classifier = any("ForSequenceClassification" in name for name in known.architectures or ())
    numbered = [f"label_{i}" for i in range(len(signature.labels))]
    same = known.labels in ([label.lower() for label in signature.labels], numbered)
    return config.weights is not None and config.layers is None and classifier and same


def incompatibility(config: Config, signature: Signature) -> str:
    name, known, text = config.huggingface, facts(config.huggingface), signature.preprocessing
    if text.get("kind") != "text":
        return f"'{name}' reads text, but the data has inputs of shape {[*signature.inputs[0].shape]}"
    checks = (_of_heads(known), _of_length(known, signature), _of_tokens(known, text), _of_labels(known, signature))
    problem = next((each for each in checks if each), "") or _of_tokenizer(name, text)
    return f"'{name}' {problem}" if problem else ""


def _of_heads(known: Facts) -> str:
    return f"has {known.heads} heads, which do not divide its width of {known.width}" * (known.width % known.heads > 0)


def _of_length(known: Facts, signature: Signature) -> str:
    length, places = signature.inputs[0].shape[0], known.max_position_embeddings - known.offset
    return f"reads at most {places} tokens, but max_length of the data is {length}" if length > places else ""


def _of_tokens(known: Facts, text: dict[str, Any]) -> str:
    tokens, rows = text["vocabulary"], known.vocab_size
    if tokens > rows or rows - tokens > _PADDED:
        return f"knows {rows:,} tokens, but the tokenizer of the data has {tokens:,}: it is of another model"
    pad, own = text["special_tokens"]["pad"]["id"], known.pad_token_id
    if own not in (None, pad):
        return f"pads with token {own}, the tokenizer of the data with {pad}: it is of another model"
    return ""


def _of_labels(known: Facts, signature: Signature) -> str:
    """Reject the same labels in another order: outputs would be wrong, and nobody would see why."""
    own, given = known.labels, [label.lower() for label in signature.labels]
    if own != given and sorted(own) == sorted(given):
        return f"has its labels in the order {', '.join(own)}, the data in the order {', '.join(given)}"
    return ""


def _of_tokenizer(name: str, text: dict[str, Any]) -> str:
    """Compare the words of the tokenizers, if the model has one: the same number of tokens may mean other words."""
    path = hub.folder(name, hub.CONFIG) / tokenizer.FILE
    if "words" not in text or not path.is_file():
        return ""
    same = _words(path, path.stat().st_mtime_ns) == text["words"]
    return "" if same else f"comes with a tokenizer of other words than that of the data: tokenizer: {name}"


@cache
def _words(path: Path, changed: int) -> str:
    return tokenizer.words(tokenizer.read_file(path))


def files(config: Config) -> tuple[Path, ...]:
    if config.checkpoint is not None:
        return (*_found(config, hub.CONFIG), Path(config.checkpoint))
    return _found(config, hub.CONFIG + (hub.WEIGHTS if config.weights else ()))


def build(config: Config, signature: Signature) -> "nn.Module":
    """Make a module that maps input_ids and attention_mask, both [n, length], to logits [n, classes]."""
    from edgepack.models.checks.trial import tried
    from edgepack.models.notes import note
    from edgepack.models.structure.encoder import TextClassifier, keep_layers, shorten
    from edgepack.models.weights.loading import fits, load_weights

    if message := incompatibility(config, signature):
        raise StageError(message)
    checkpoint = Path(config.checkpoint) if config.checkpoint else None
    pretrained = config.weights is not None and checkpoint is None
    if pretrained and _counts_otherwise(config, signature):
        note(f"'{config.huggingface}' names its outputs by number, and {_ORDER}: was it trained so?")
    model = _pretrained(config, signature) if pretrained else _fresh(config, signature)
    theirs = checkpoint is not None and fits(model, checkpoint, config.checkpoint_key)
    if checkpoint and theirs:
        load_weights(model, checkpoint, config.checkpoint_key)
    length, offset = signature.inputs[0].shape[0], facts(config.huggingface).offset
    shorten(model, length + offset)
    module = TextClassifier(model, length, offset)
    if config.layers is not None:
        keep_layers(module, config.layers)
    tried(module, signature, config.huggingface)
    if checkpoint and not theirs:  # it is for the module built here, not for the transformers model inside it
        load_weights(module, checkpoint, config.checkpoint_key)
    return module.eval()


_ORDER = "the labels of the data are numbers in the order of their text"


def _counts_otherwise(config: Config, signature: Signature) -> bool:
    """Return whether LABEL_1 may be the class "1" where the data's second label is "10"."""
    named = facts(config.huggingface).labels == list(signature.labels)
    return trained(config, signature) and not named and order_of_numbers(signature.labels) == "text"


def _fresh(config: Config, signature: Signature) -> "nn.Module":
    from edgepack.core.process.libraries import transformers

    auto = transformers().AutoModelForSequenceClassification
    module: nn.Module = auto.from_config(_configured(config, signature), attn_implementation="eager")
    return module


def _pretrained(config: Config, signature: Signature) -> "nn.Module":
    from edgepack.core.errors import reason
    from edgepack.core.process.libraries import transformers
    from edgepack.models.weights.kinds import check_floats

    (path, *_) = _found(config, hub.CONFIG + hub.WEIGHTS)
    try:
        module, loading_info = transformers().AutoModelForSequenceClassification.from_pretrained(
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
        raise StageError(f"the weights in {path.parent} cannot be read: {reason(error)}", "save them again") from error
    check_floats(path.parent / hub.WEIGHTS[0])
    lost = sorted(key for key in loading_info["missing_keys"] if not any(part in _HEADS for part in key.split(".")))
    if lost:
        raise StageError(
            f"the weights in {path.parent} lack {len(lost)} tensors of its model, the first is '{lost[0]}'",
            "save them with the very model that config.json describes",
        )
    result: nn.Module = module
    return result


def _configured(config: Config, signature: Signature) -> Any:
    from edgepack.core.process.libraries import transformers

    (path,) = _found(config, hub.CONFIG)
    labels = {"id2label": dict(enumerate(signature.labels))} if len(signature.labels) == signature.width else {}
    return transformers().AutoConfig.from_pretrained(path.parent, num_labels=signature.width, **labels)


def facts(name: str) -> Facts:
    """Read config.json of a model. Raises RecipeError when it cannot be read, or is not of a supported encoder."""
    path = hub.folder(name, hub.CONFIG) / "config.json"
    return _read(path, path.stat().st_mtime_ns)


@cache
def _read(path: Path, changed: int) -> Facts:
    try:
        content = path.read_bytes()
        kind = json.loads(content).get("model_type")
        if kind not in KINDS:
            raise RecipeError(f"{path} is of a model of kind {kind!r}; edgepack knows {', '.join(KINDS)}")
        return Facts.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RecipeError(f"{path} does not describe an encoder: {where}: {first['msg']}") from None
    except (OSError, ValueError, AttributeError) as error:
        raise RecipeError(f"{path} cannot be read as a model's description: {error}") from None


def _found(config: Config, wanted: tuple[str, ...]) -> tuple[Path, ...]:
    folder = hub.folder(config.huggingface, wanted)
    return tuple(folder / file for file in wanted)
