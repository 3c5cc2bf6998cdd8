"""A source of models is a module with

Config                                     has a field of the plugin's own name: `torchvision: resnet18`
trained(config, signature) -> bool         whether the model starts with weights that are trained for these classes
misfit(config, signature) -> str           why it cannot take this data, or ""; no torch
build(config, signature) -> nn.Module      the model, with the right inputs and number of classes

and, where they differ from these defaults,

ENCODER = False                            whether its models are transformer encoders
FOREIGN = False                            whether its models are anybody's: tried, and exported, before training
LIBRARIES = ()                             packages besides torch whose version changes the model
files(config) -> tuple[Path, ...]          what the model is made of besides its settings: other content, other model
installed(config) -> dict[str, str]        versions of the packages that a user's own code imports: others, other model

What `checkpoint`, `checkpoint_key` and `weights` say in a Config are weights to start from: a saved candidate is
rebuilt without them.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from pydantic import AfterValidator, Field, PlainSerializer, PlainValidator, ValidationInfo, WithJsonSchema

from edgepack.config.plugins import Choice, choose
from edgepack.core.frozen import Frozen
from edgepack.core.signature import Signature
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

_WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".tar")


def _readable(checkpoint: str) -> str:
    if Path(checkpoint).suffix.lower() not in _WEIGHTS:
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


Checkpoint = Annotated[str, AfterValidator(_readable)]


def _of_checkpoint(key: str | None, info: ValidationInfo) -> str | None:
    if key is not None and info.data.get("checkpoint", "") is None:
        raise ValueError("it says which weights of a checkpoint are meant, and there is no checkpoint")
    return key


CheckpointKey = Annotated[
    str | None,
    AfterValidator(_of_checkpoint),
    Field(description="which weights, where a file holds several: state_dict_ema, or what their names begin with"),
]


class ModelSource(Protocol):
    Config: type[Frozen]

    def trained(self, config: Any, signature: Signature) -> bool: ...
    def misfit(self, config: Any, signature: Signature) -> str: ...
    def build(self, config: Any, signature: Signature) -> "nn.Module": ...
