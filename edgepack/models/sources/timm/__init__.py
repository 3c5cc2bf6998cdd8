"""Any classifier of timm (PyTorch Image Models), at any width, with the input channels and classes of the data.

A name with a tag, efficientnet_lite0.ra_in1k, starts from these weights of the hub; `weights` names others: a folder, a
file, or one in an installed package. The first convolution is adapted to the channels, and a classifier of other
classes starts anew. Source: R. Wightman, PyTorch Image Models, github.com/huggingface/pytorch-image-models.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from edgepack.config.document import unknown
from edgepack.core.errors import RecipeError, StageError, not_installed
from edgepack.core.frozen import Frozen
from edgepack.core.signature import Signature
from edgepack.data import hub
from edgepack.models.contract import CheckpointKey, InChannels, OwnCheckpoint, Width, readable
from edgepack.models.sources.timm import catalogue, weights_files
from edgepack.models.sources.timm.weights_files import TAGGED

if TYPE_CHECKING:
    from torch import nn

LIBRARIES = ("timm", "torchvision", "torch-pruning")
_ENCODERS = ("vit_", "deit_", "deit3_")


class Config(Frozen):
    timm: str = Field(description="name of the model in timm, also with a tag of weights: efficientnet_lite0.ra_in1k")
    width: Width = 1.0
    in_channels: InChannels = None
    revision: str | None = Field(default=None, description="branch, tag or commit on the hub; default: the newest")
    weights: str | None = Field(
        default=None,
        description="pretrained weights: hub (those of the tag; the default with a tag), owner/name on the hub, a "
        "folder, a file, or package:file for one in an installed package; null: none",
    )
    checkpoint: OwnCheckpoint = None
    checkpoint_key: CheckpointKey = None

    @model_validator(mode="before")
    @classmethod
    def _tagged(cls, given: Any) -> Any:
        """Take the weights that a tag names, unless others are given, or none."""
        if isinstance(given, dict) and "." in str(given.get("timm")) and given.get("checkpoint") is None:
            return {"weights": TAGGED, **given}
        return given

    @field_validator("timm")
    @classmethod
    def _exists(cls, name: str) -> str:
        known = catalogue.models()
        if not known:
            raise ValueError(not_installed("timm", "timm"))
        model, _, tag = name.partition(".")
        if model not in known:
            raise ValueError(unknown("timm model", model, known))
        if tag and known[model] and tag not in known[model]:
            raise ValueError(unknown(f"weights of {model}", tag, known[model]))
        return name

    @field_validator("weights")
    @classmethod
    def _readable(cls, weights: str | None, info: ValidationInfo) -> str | None:
        model, revision = info.data.get("timm"), info.data.get("revision")
        if weights is None or model is None:
            return weights
        if weights_files.is_file(weights):
            readable(str(weights_files.file(weights)))
        elif weights == TAGGED and "." not in model:
            tags = catalogue.models()[model]
            raise ValueError(f"name the weights with the model: timm: {model}.{tags[0] if tags else 'TAG'}")
        try:
            weights_files.facts(model, weights, revision)
        except RecipeError as error:
            raise ValueError(f"{error.message}: {error.hint}" if error.hint else error.message) from None
        return weights


def trained(config: Config, signature: Signature) -> bool:
    """Return whether it starts trained: from a checkpoint, or from weights known to fit every layer.

    What a file of weights was trained for is not known.
    """
    known = _known(config)
    size = weights_files.setting(known, "input_size") or [None]
    own = (weights_files.setting(known, "num_classes"), size[0], config.width)
    return config.checkpoint is not None or own == (signature.width, signature.inputs[0].shape[0], 1)


def incompatibility(config: Config, signature: Signature) -> str:
    shape = signature.inputs[0].shape
    if len(shape) != 3:
        return f"timm's models need pictures, but the data has inputs of shape {[*shape]}"
    if config.in_channels not in (None, shape[0]):
        return f"in_channels is {config.in_channels}, but the data has {shape[0]}: remove it"
    if [len(each.shape) for each in signature.outputs] != [1]:
        named = " and ".join(f"{each.name} {[*each.shape]}" for each in signature.outputs)
        return f"timm's models are classifiers, which give one number a label, but the task needs {named}"
    own, given = weights_files.setting(_known(config), "label_names"), [*signature.labels]
    if isinstance(own, list) and own != given and sorted(map(str, own)) == sorted(given):
        # Outputs would be wrong, and nobody would see why.
        return f"its weights have the labels in the order {', '.join(own)}, the data in the order {', '.join(given)}"
    return ""


def is_encoder(config: Config) -> bool:
    return config.timm.startswith(_ENCODERS)


def _known(config: Config) -> dict[str, Any]:
    return weights_files.facts(config.timm, config.weights, config.revision)


def files(config: Config) -> tuple[Path, ...]:
    if config.checkpoint:
        return (Path(config.checkpoint),)
    if config.weights is None:
        return ()
    if weights_files.is_file(config.weights):
        return (weights_files.file(config.weights),)
    return weights_files.in_folder(config.timm, config.weights, config.revision, hub.CONFIG + hub.WEIGHTS)


def build(config: Config, signature: Signature) -> "nn.Module":
    from edgepack.models.checks.trial import tried
    from edgepack.models.sources._narrowing import narrow
    from edgepack.models.sources.timm.pretrained import fill, made
    from edgepack.models.weights.loading import load_weights

    if message := incompatibility(config, signature):
        raise StageError(message)
    module = made(config.timm, signature, signature.width)
    module = tried(module, signature, config.timm)
    if config.weights:
        fill(module, config.timm, files(config)[-1], _known(config).get("pretrained_cfg", {}), signature)
    if config.width < 1:
        narrow(module, signature, config.width, config.timm)
    if config.checkpoint:
        load_weights(module, Path(config.checkpoint), config.checkpoint_key)
    return module
