"""What config.json or a GGUF file tells of a model, read without torch; of a GGUF file that is new, with it."""

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from edgepack.core.errors import RecipeError
from edgepack.data import hub
from edgepack.data.texts import gguf

if TYPE_CHECKING:
    from edgepack.models.structure.decoder import Shape

_Count = Annotated[int, Field(gt=0)]
_Sides = _Count | tuple[_Count, _Count]  # of a square, or height and width


class Facts(BaseModel):
    """The facts of an encoder in its config.json, under the names of each model type."""

    model_config = ConfigDict(frozen=True, strict=True)

    model_type: str
    width: _Count = Field(validation_alias=AliasChoices("hidden_size", "dim"))
    heads: _Count = Field(validation_alias=AliasChoices("num_attention_heads", "n_heads"))
    depth: _Count = Field(validation_alias=AliasChoices("num_hidden_layers", "n_layers"))
    id2label: dict[int, str] | None = None
    architectures: tuple[str, ...] | None = None

    @property
    def labels(self) -> list[str]:
        """Return the labels in lower case, in the order of the outputs."""
        return [label.lower() for _, label in sorted((self.id2label or {}).items())]

    @property
    def is_classifier(self) -> bool:
        kinds = ("ForSequenceClassification", "ForImageClassification")
        return any(kind in name for name in self.architectures or () for kind in kinds)


class TextFacts(Facts):
    vocab_size: _Count
    max_position_embeddings: _Count
    pad_token_id: Annotated[int, Field(ge=0)] | None = None

    @property
    def offset(self) -> int:
        """Return the position of the first token: RoBERTa starts after the row of the padding token."""
        pad = 1 if self.pad_token_id is None else self.pad_token_id
        return pad + 1 if "roberta" in self.model_type else 0


class PictureFacts(Facts):
    """The facts of a vision transformer; transformers has defaults for all that its config.json leaves out."""

    width: _Count = Field(default=768, validation_alias="hidden_size")
    heads: _Count = Field(default=12, validation_alias="num_attention_heads")
    depth: _Count = Field(default=12, validation_alias="num_hidden_layers")
    image_size: _Sides = 224
    patch_size: _Sides = 16
    num_channels: _Count = 3

    @property
    def patch(self) -> tuple[int, int]:
        return sides(self.patch_size)

    @property
    def grid(self) -> tuple[int, int]:
        """Return how many patches its own pictures have, down and across."""
        (height, width), (down, across) = sides(self.image_size), self.patch
        return height // down, width // across


_ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "silu": "silu",
    "relu": "relu",
}


class DecoderFacts(Facts):
    """The facts of a causal language model, of the GPT-2 or the Llama kind."""

    width: _Count = Field(validation_alias=AliasChoices("hidden_size", "n_embd"))
    heads: _Count = Field(validation_alias=AliasChoices("num_attention_heads", "n_head"))
    depth: _Count = Field(validation_alias=AliasChoices("num_hidden_layers", "n_layer"))
    places: _Count = Field(validation_alias=AliasChoices("max_position_embeddings", "n_positions"))
    vocab_size: _Count
    ffn: _Count | None = Field(default=None, validation_alias=AliasChoices("intermediate_size", "n_inner"))
    num_key_value_heads: _Count | None = None
    head_dim: _Count | None = None
    epsilon: float = Field(default=1e-5, validation_alias=AliasChoices("rms_norm_eps", "layer_norm_epsilon"))
    activation: str = Field(default="gelu_new", validation_alias=AliasChoices("hidden_act", "activation_function"))
    rope_theta: float | None = None
    rope_parameters: dict[str, Any] | None = None
    rope_scaling: dict[str, Any] | None = None
    attention_bias: bool | None = None
    mlp_bias: bool = False
    use_sliding_window: bool = False
    tie_word_embeddings: bool | None = None
    eos_token_id: int | tuple[int, ...] | None = None

    @property
    def ends(self) -> tuple[int, ...]:
        """Return the tokens that end a text; none where nothing is said."""
        given = self.eos_token_id
        return (given,) if isinstance(given, int) else given or ()

    @property
    def of_gpt2(self) -> bool:
        return self.model_type == "gpt2"

    @property
    def unknown(self) -> str:
        """Return what it has that edgepack's decoder has not, or ""."""
        kind = self._rope.get("rope_type", self._rope.get("type", "default"))
        if self.activation not in _ACTIVATIONS:
            return f"the activation {self.activation}"
        if kind != "default":
            return f"rotary positions of the kind {kind}"
        return "a sliding window" if self.use_sliding_window else ""

    @property
    def _rope(self) -> dict[str, Any]:
        return self.rope_parameters or self.rope_scaling or {}

    def shape(self, vocabulary: int, places: int) -> "Shape":
        """Return the shape of the decoder for so many tokens and places."""
        from edgepack.models.structure.decoder import Shape

        common: dict[str, Any] = {
            "vocabulary": vocabulary,
            "places": places,
            "width": self.width,
            "heads": self.heads,
            "layers": self.depth,
            "epsilon": self.epsilon,
            "activation": _ACTIVATIONS[self.activation],
        }
        if self.of_gpt2:
            return Shape(**common, ffn=self.ffn or 4 * self.width, tied=self.tie_word_embeddings is not False)
        qkv_bias = self.model_type == "qwen2" if self.attention_bias is None else self.attention_bias
        return Shape(
            **common,
            ffn=self.ffn or 4 * self.width,
            key_value_heads=self.num_key_value_heads,
            head_size=self.head_dim,
            positions="rotary",
            rotary_base=float(self._rope.get("rope_theta") or self.rope_theta or 10_000.0),
            norm="rms",
            gated=True,
            query_bias=qkv_bias,
            attention_output_bias=bool(self.attention_bias),
            output_bias=self.mlp_bias,
            tied=bool(self.tie_word_embeddings),
        )


def sides(given: int | tuple[int, int]) -> tuple[int, int]:
    return (given, given) if isinstance(given, int) else given


# As in config.json's model_type.
_OF_KIND: dict[str, type[Facts]] = {
    **dict.fromkeys(("bert", "distilbert", "electra", "roberta", "xlm-roberta"), TextFacts),
    **dict.fromkeys(("vit", "deit"), PictureFacts),
    **dict.fromkeys(("gpt2", "llama", "qwen2", "mistral"), DecoderFacts),
}


def facts(name: str) -> Facts:
    """Read config.json of a model, or its GGUF file.

    Raises RecipeError when it cannot be read, or is of another kind of model.
    """
    if file := gguf.located(name):
        return _parsed(file, json.dumps(gguf.about(file).config).encode())
    path = hub.folder(name, hub.CONFIG) / "config.json"
    return _read(path, path.stat().st_mtime_ns)


@cache
def _read(path: Path, changed: int) -> Facts:
    try:
        return _parsed(path, path.read_bytes())
    except OSError as error:
        raise RecipeError(f"{path} cannot be read as a model's description: {error}") from None


def _parsed(path: Path, content: bytes) -> Facts:
    try:
        kind = json.loads(content).get("model_type")
        if kind not in _OF_KIND:
            raise RecipeError(f"{path} is of a model of kind {kind!r}; edgepack knows {', '.join(_OF_KIND)}")
        return _OF_KIND[kind].model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RecipeError(f"{path} does not describe a model: {where}: {first['msg']}") from None
    except (ValueError, AttributeError) as error:
        raise RecipeError(f"{path} cannot be read as a model's description: {error}") from None
