"""Define what a source of models must and may provide, and the settings that sources share."""

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
)

from edgepack.config.plugins import Choice, choose
from edgepack.core.frozen import Frozen
from edgepack.core.signature import Signature
from edgepack.core.units import SHARE, Share
from edgepack.models.weights.file_kinds import not_weights

if TYPE_CHECKING:
    from torch import nn

_REF = {"type": "object", "description": "a model: {torchvision: resnet18, width: 25 %}"}

ModelChoice = Annotated[
    Choice,
    PlainValidator(lambda value: choose("models", value)),
    PlainSerializer(lambda choice: choice.plain()),
    WithJsonSchema(_REF),
]

WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".tar")


def readable(checkpoint: str) -> str:
    """Return the file's name. Raises ValueError where it is no file of weights, as far as its beginning shows."""
    if Path(checkpoint).suffix.lower() not in WEIGHT_FILES:
        raise ValueError(
            "a checkpoint is a .safetensors file, or a state dict in a .pt, .pth, .ckpt, .bin or .tar file; "
            f"got {checkpoint!r}"
        )
    if not Path(checkpoint).is_file():
        raise ValueError(f"there is no file {checkpoint!r}")
    try:
        problem = not_weights(Path(checkpoint))
    except OSError as error:
        raise ValueError(f"cannot read {checkpoint!r}: {error.strerror}") from None
    if problem:
        raise ValueError(f"{checkpoint!r} is {problem}")
    return checkpoint


Checkpoint = Annotated[str, AfterValidator(readable)]


def _instead_of_weights(checkpoint: object, info: ValidationInfo) -> object:
    if checkpoint is not None and info.data.get("weights") is not None:
        raise ValueError("weights and checkpoint exclude each other: remove one of them")
    return checkpoint


OwnCheckpoint = Annotated[
    Checkpoint | None,
    BeforeValidator(_instead_of_weights),
    Field(description="file with weights of exactly this model: .safetensors, .pth"),
]
InChannels = Annotated[int | None, Field(ge=1, description="number of input channels; default: that of the data")]


def _of_checkpoint(key: str | None, info: ValidationInfo) -> str | None:
    if key is not None and info.data.get("checkpoint", "") is None:
        raise ValueError("it selects weights of a checkpoint, but there is no checkpoint")
    return key


CheckpointKey = Annotated[
    str | None,
    AfterValidator(_of_checkpoint),
    Field(description="which weights, if a file holds several: a key such as state_dict_ema, or a prefix of the names"),
]


def _above_zero(width: float) -> float:
    if not 0 < width <= 1:
        raise ValueError(
            f"width is a percentage of the model's channels, above 0 % and up to 100 %, got {SHARE.format(width)}"
        )
    return width


Width = Annotated[Share, AfterValidator(_above_zero), Field(description="fraction of channels to keep in every layer")]


class ModelSource(Protocol):
    """Makes models for given inputs and classes. Stands in models/sources/.

    What has no default below must be defined; what has one may be left out. A whole source:

        "One linear layer."

        from edgepack.core.frozen import Frozen


        class Config(Frozen):
            linear: bool


        def trained(config, signature):
            return False


        def build(config, signature):
            from math import prod

            from torch import nn

            inputs = prod(signature.inputs[0].shape)
            return nn.Sequential(nn.Flatten(), nn.Linear(inputs, len(signature.labels)))

    A recipe selects it with `model: {linear: true}`: its Config has a field with the plugin's name. Fields named
    `checkpoint`, `checkpoint_key`, `weights` and `revision` name the weights to start from: a saved candidate is
    rebuilt without.
    """

    Config: type[Frozen]  # its settings in a recipe; one field has the plugin's name

    FOREIGN: bool = False  # whether a user's own code makes them: they are run and exported before any training
    LIBRARIES: tuple[str, ...] = ()  # packages besides torch whose version changes the model

    @abstractmethod
    def trained(self, config: Any, signature: Signature) -> bool:
        """Return whether the model starts with weights trained for these classes. Without torch."""

    @abstractmethod
    def build(self, config: Any, signature: Signature) -> "nn.Module":
        """Make the model, with the right inputs and number of classes. Raises StageError."""

    def incompatibility(self, config: Any, signature: Signature) -> str:
        """Say why the model cannot take this data, or "". Without torch."""
        return ""

    def is_encoder(self, config: Any) -> bool:
        """Return whether the model is a transformer encoder, as far as its name tells. Without torch."""
        return False

    def embedding_width(self, config: Any) -> int | None:
        """Return the length of the embeddings that the model gives as it was trained, without a head; None if it needs
        one. Without torch.
        """
        return None

    def files(self, config: Any) -> tuple[Path, ...]:
        """Return the files that the model depends on: other content makes another model."""
        return ()

    def installed(self, config: Any) -> dict[str, str]:
        """Return versions of the packages that a user's own code imports: another version makes another model."""
        return {}
