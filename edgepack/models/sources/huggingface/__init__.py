"""A transformer through transformers: an encoder of text or pictures, or a causal language model.

Of text BERT, RoBERTa, MiniLM and others, of pictures ViT and DeiT; GPT-2, Llama, Qwen2, Mistral and SmolLM.

The name is a folder as save_pretrained() writes it, a model that a package carries, or one of the Hugging Face hub; of
a causal language model also a GGUF file of llama.cpp, whose weights become floats again.
The head is of its own where the model was trained for as many classes, else it starts anew. For embeddings of texts
there is none: the tokens of the last layer are pooled as the model was trained.
"""

from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from edgepack.core.errors import RecipeError, StageError
from edgepack.core.frozen import Frozen
from edgepack.core.signature import Signature
from edgepack.core.signature.labels import order_of_numbers
from edgepack.data import hub
from edgepack.data.texts import gguf
from edgepack.models.contract import Checkpoint, CheckpointKey
from edgepack.models.sources.huggingface import decoders, pictures, texts
from edgepack.models.sources.huggingface.facts import DecoderFacts, Facts, PictureFacts, TextFacts, facts
from edgepack.models.sources.huggingface.pooling import other_part, pooling
from edgepack.models.structure.layer_names import chosen

if TYPE_CHECKING:
    from torch import nn

LIBRARIES = ("transformers",)
# Parts that are new in a model without a classification head.
_HEADS = ("classifier", "pooler", "pre_classifier", "cls_classifier", "distillation_classifier")


class Config(Frozen):
    huggingface: str = Field(
        description="a folder, all-MiniLM-L6-v2 (with the extra minilm), owner/name of the hub, or a .gguf file "
        "(with the extra gguf)"
    )
    pooling: Literal["mean", "cls"] | None = Field(
        default=None,
        description="embeddings of texts: the mean of all tokens, or the first token; default: what the model's "
        f"{hub.POOLING} says, else mean",
    )
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


def trained(config: Config, signature: Signature) -> bool:
    """Return whether it starts trained: from a checkpoint, or a classifier of these classes or as many unnamed ones.

    An encoder of texts is trained for embeddings of its own width. None is with fewer layers than it was trained with.
    """
    if config.checkpoint is not None:
        return True
    known = facts(config.huggingface)
    if isinstance(known, DecoderFacts):
        return config.weights is not None and config.layers is None
    if pools(config, signature):
        return config.weights is not None and config.layers is None and known.width == signature.width
    numbered = [f"label_{i}" for i in range(len(signature.labels))]
    same = known.labels in ([label.lower() for label in signature.labels], numbered)
    return config.weights is not None and config.layers is None and known.is_classifier and same


def incompatibility(config: Config, signature: Signature) -> str:
    name, known = config.huggingface, facts(config.huggingface)
    own = _of_pooling(config) if pools(config, signature) else _of_classifier(config, known, signature)
    problem = _of(known).incompatibility(name, known, signature) or _of_heads(known) or own
    return f"'{name}' {problem}" if problem else ""


def embedding_width(config: Config) -> int | None:
    known = facts(config.huggingface)
    return known.width if isinstance(known, TextFacts) else None


def pools(config: Config, signature: Signature) -> bool:
    """Return whether the model has no head: it gives embeddings of texts."""
    return signature.is_embedding and embedding_width(config) is not None


def _of(known: Facts) -> ModuleType:
    """Return the module for the kind of data that an encoder takes."""
    if isinstance(known, DecoderFacts):
        return decoders
    return pictures if isinstance(known, PictureFacts) else texts


def _of_heads(known: Facts) -> str:
    return f"has {known.heads} heads, which do not divide its width of {known.width}" * (known.width % known.heads > 0)


def _of_pooling(config: Config) -> str:
    try:
        if config.pooling is None:
            pooling(config.huggingface)
        part = other_part(config.huggingface)
    except RecipeError as error:
        return error.message
    return f"has a module {part} after its encoder, which edgepack does not know" if part else ""


def _of_classifier(config: Config, known: Facts, signature: Signature) -> str:
    """Reject the same labels in another order: outputs would be wrong, and nobody would see why."""
    if config.pooling is not None:
        return "has a setting `pooling`, which is for embeddings of texts: remove it"
    own, given = known.labels, [label.lower() for label in signature.labels]
    if not isinstance(known, DecoderFacts) and own != given and sorted(own) == sorted(given):
        return f"has its labels in the order {', '.join(own)}, the data in the order {', '.join(given)}"
    return ""


def is_encoder(config: Config) -> bool:
    return True


def files(config: Config) -> tuple[Path, ...]:
    if config.checkpoint is not None:
        return (*_found(config, hub.CONFIG), *_beside(config), Path(config.checkpoint))
    return (*_found(config, hub.CONFIG + (hub.WEIGHTS if config.weights else ())), *_beside(config))


def _beside(config: Config) -> tuple[Path, ...]:
    """Return the file that says how its tokens are pooled, if it is on this computer."""
    if gguf.located(config.huggingface):
        return ()
    found = hub.optional(config.huggingface, hub.POOLING, fetch=False)
    return (found,) if found else ()


def build(config: Config, signature: Signature) -> "nn.Module":
    """Make a module that maps input_ids and attention_mask, both [n, length], or pictures [n, channels, height, width]
    to logits [n, classes], or texts to embeddings [n, size], or tokens to the logits of the next ones.
    """
    from edgepack.models.checks.trial import tried
    from edgepack.models.notes import note
    from edgepack.models.structure.encoder import keep_layers
    from edgepack.models.weights.loading import load_weights

    if message := incompatibility(config, signature):
        raise StageError(message)
    checkpoint = Path(config.checkpoint) if config.checkpoint else None
    pretrained = config.weights is not None and checkpoint is None
    if pretrained and _counts_otherwise(config, signature):
        note(f"'{config.huggingface}' names its outputs by number, and {_ORDER}: was it trained so?")
    known = facts(config.huggingface)
    theirs = False
    if isinstance(known, DecoderFacts) and not pretrained and checkpoint is None:  # such as a saved one, made again
        module = decoders.fresh(known, signature)
    else:
        model = _pretrained(config, signature) if pretrained else _fresh(config, signature)
        theirs = checkpoint is not None and _fits(model, checkpoint, config)
        if checkpoint and theirs:
            load_weights(model, checkpoint, config.checkpoint_key)
        module = _adapted(model, config, signature)
    if config.layers is not None:
        keep_layers(module, config.layers)
    tried(module, signature, config.huggingface)
    if checkpoint and not theirs:  # it is for the module built here, not for the transformers model inside it
        load_weights(module, checkpoint, config.checkpoint_key)
    return module.eval()


def _fits(model: Any, checkpoint: Path, config: Config) -> bool:
    """Return whether a checkpoint is of this model of transformers, or of the one without a pooler, which then goes."""
    from edgepack.models.weights.loading import fits

    if fits(model, checkpoint, config.checkpoint_key):
        return True
    pooler = getattr(model, "pooler", None)
    if pooler is None:
        return False
    model.pooler = None
    if fits(model, checkpoint, config.checkpoint_key):
        return True
    model.pooler = pooler
    return False


def _adapted(model: "nn.Module", config: Config, signature: Signature) -> "nn.Module":
    """Return the module of the data's inputs around the model of transformers."""
    known = facts(config.huggingface)
    if isinstance(known, TextFacts) and pools(config, signature):
        return texts.embedder(model, known, signature, config.pooling or pooling(config.huggingface))
    module: nn.Module = _of(known).adapted(model, known, signature)
    return module


_ORDER = "the labels of the data are numbers in the order of their text"


def _counts_otherwise(config: Config, signature: Signature) -> bool:
    """Return whether LABEL_1 may be the class "1" where the data's second label is "10"."""
    if pools(config, signature):
        return False
    named = facts(config.huggingface).labels == list(signature.labels)
    return trained(config, signature) and not named and order_of_numbers(signature.labels) == "text"


def _auto(config: Config, signature: Signature) -> Any:
    from edgepack.core.process.libraries import transformers

    name = "AutoModel" if pools(config, signature) else _of(facts(config.huggingface)).AUTO
    return getattr(transformers(), name)


def _fresh(config: Config, signature: Signature) -> "nn.Module":
    module: nn.Module = _auto(config, signature).from_config(
        _configured(config, signature), attn_implementation="eager"
    )
    return module


def _pretrained(config: Config, signature: Signature) -> "nn.Module":
    from edgepack.core.errors import reason
    from edgepack.models.weights.kinds import check_floats

    (path, *_) = _found(config, hub.CONFIG + hub.WEIGHTS)
    in_gguf = path.suffix.lower() == gguf.ENDING
    how = {"gguf_file": path.name} if in_gguf else {"use_safetensors": True}
    try:
        with redirect_stderr(StringIO()):  # a progress bar of GGUF files cannot be turned off
            module, loading_info = _auto(config, signature).from_pretrained(
                path.parent,
                config=_configured(config, signature),
                attn_implementation="eager",
                dtype="float32",
                local_files_only=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **how,
            )
    except Exception as error:  # damaged files fail in many ways
        raise StageError(f"the weights in {path.parent} cannot be read: {reason(error)}", "save them again") from error
    if not in_gguf:
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

    if file := gguf.located(config.huggingface):
        return transformers().AutoConfig.for_model(**gguf.about(file).config)
    (path,) = _found(config, hub.CONFIG)
    labels = {"id2label": dict(enumerate(signature.labels))} if len(signature.labels) == signature.width else {}
    classes = {} if isinstance(facts(config.huggingface), DecoderFacts) else {"num_labels": signature.width}
    found = transformers().AutoConfig.from_pretrained(path.parent, **classes, **labels)
    found.architectures = found.architectures or []  # the loader walks through them where a type has two classifiers
    return found


def _found(config: Config, wanted: tuple[str, ...]) -> tuple[Path, ...]:
    if file := gguf.located(config.huggingface):
        return (file,)
    folder = hub.folder(config.huggingface, wanted)
    return tuple(folder / file for file in wanted)
