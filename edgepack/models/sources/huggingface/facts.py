"""What config.json tells of an encoder, read without torch."""

import json
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from edgepack.core.errors import RecipeError
from edgepack.data import hub

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


def sides(given: int | tuple[int, int]) -> tuple[int, int]:
    return (given, given) if isinstance(given, int) else given


# As in config.json's model_type.
_OF_KIND: dict[str, type[Facts]] = {
    **dict.fromkeys(("bert", "distilbert", "electra", "roberta", "xlm-roberta"), TextFacts),
    **dict.fromkeys(("vit", "deit"), PictureFacts),
}


def facts(name: str) -> Facts:
    """Read config.json of a model. Raises RecipeError when it cannot be read, or is not of a supported encoder."""
    path = hub.folder(name, hub.CONFIG) / "config.json"
    return _read(path, path.stat().st_mtime_ns)


@cache
def _read(path: Path, changed: int) -> Facts:
    try:
        content = path.read_bytes()
        kind = json.loads(content).get("model_type")
        if kind not in _OF_KIND:
            raise RecipeError(f"{path} is of a model of kind {kind!r}; edgepack knows {', '.join(_OF_KIND)}")
        return _OF_KIND[kind].model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RecipeError(f"{path} does not describe an encoder: {where}: {first['msg']}") from None
    except (OSError, ValueError, AttributeError) as error:
        raise RecipeError(f"{path} cannot be read as a model's description: {error}") from None
