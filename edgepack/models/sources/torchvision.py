"""Any torchvision classifier, segmentation model or SSDLite, at any width, with the channels and classes of the data.

Its trained weights are those of ImageNet, or of COCO with the 21 classes of Pascal VOC: pictures of three channels. For
other data the layers at both ends are changed: the first convolution keeps what it has learned, summed or repeated over
the channels, as in timm (R. Wightman, PyTorch Image Models, `adapt_input_conv`), and the last one starts anew.
"""

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationInfo, field_validator

from edgepack.config.document import unknown
from edgepack.core.errors import DeviceError, StageError
from edgepack.core.frozen import Frozen
from edgepack.core.signature import Signature
from edgepack.models.contract import CheckpointKey, InChannels, OwnCheckpoint, Width
from edgepack.models.sources import _detectors

if TYPE_CHECKING:
    from torch import Tensor, nn


LIBRARIES = ("torchvision", "torch-pruning")

_AUXILIARY = ("googlenet", "inception_v3")  # these return more than logits in training, unless told not to
_ATTENTION = ("vit_", "swin_", "maxvit_")  # their heads have a fixed width: no single channel can be removed
_DENSE = "segmentation"  # the folder of torchvision's models that give a class for each pixel
_CLASSES, _DENSE_CLASSES = 1000, 21  # of ImageNet and of Pascal VOC, background included
_BUILDER = r"@register_model\(\)\n(?:@.*\n(?:    .*\n|\)\n)*)*def (\w+)\([^)]*?weights: Optional\[(\w+)\]"
# Of LR-ASPP, which adds the logits of two layers, and of detectors, which have one for each grid.
_OTHER_HEADS = ("classifier.low_classifier", "head.classification_head")
_HEADLESS = "IMAGENET1K_FEATURES"  # weights without a classifier: for feature extraction only


class Config(Frozen):
    torchvision: str = Field(description="name of the model in torchvision, for example resnet18")
    width: Width = 1.0
    in_channels: InChannels = None
    weights: str | None = Field(
        default=None,
        description="pretrained weights of ImageNet, or for other tasks of COCO, for example DEFAULT; downloaded once",
    )
    checkpoint: OwnCheckpoint = None
    checkpoint_key: CheckpointKey = None

    @field_validator("torchvision")
    @classmethod
    def _exists(cls, name: str) -> str:
        if name not in names():
            raise ValueError(unknown("torchvision model", name, names()))
        return name

    @field_validator("weights")
    @classmethod
    def _published(cls, weights: str | None, info: ValidationInfo) -> str | None:
        model = info.data.get("torchvision")
        if weights is not None and model and weights not in _weights(model):
            raise ValueError(unknown(f"weights of {model}", weights, _weights(model)))
        return weights


def trained(config: Config, signature: Signature) -> bool:
    """Return whether it starts trained: from a checkpoint, or from weights that fit every layer."""
    classes = _DENSE_CLASSES if _folder(config.torchvision) else _CLASSES
    detects = config.torchvision in _detectors.NAMES
    fits = _detectors.has_classes_of_coco(signature) if detects else signature.width == classes
    whole = fits and signature.inputs[0].shape[0] == 3 and config.width == 1
    return config.checkpoint is not None or (config.weights is not None and whole)


def incompatibility(config: Config, signature: Signature) -> str:
    shape = signature.inputs[0].shape
    if len(shape) != 3:
        return f"torchvision models need pictures, but the data has inputs of shape {[*shape]}"
    if config.in_channels not in (None, shape[0]):
        return f"in_channels is {config.in_channels}, but the data has {shape[0]}: remove it"
    if config.width < 1 and config.torchvision.startswith(_ATTENTION):
        return f"{config.torchvision} cannot be narrowed, its attention has fixed heads: remove width"
    return _of_another_task(config.torchvision, signature)


def _of_another_task(name: str, signature: Signature) -> str:
    """Return why the model's outputs are not those of the task, or ""."""
    if why := _detectors.mismatch(name, signature):
        return why
    wants_dense = [len(each.shape) for each in signature.outputs] == [3]
    if wants_dense and not _folder(name):
        known = ", ".join(_published(_DENSE))
        return f"{name} gives one class for a whole picture, but the task wants one for each pixel: use one of {known}"
    if _folder(name) and not wants_dense:
        return (
            f"{name} gives a class for each pixel, but the task wants other outputs: use a classifier, or segmentation"
        )
    return ""


def is_encoder(config: Config) -> bool:
    return config.torchvision.startswith("vit_")


def files(config: Config) -> tuple[Path, ...]:
    return (Path(config.checkpoint),) if config.checkpoint else ()


def build(config: Config, signature: Signature) -> "nn.Module":
    from edgepack.models.checks.trial import tried
    from edgepack.models.sources._narrowing import narrow
    from edgepack.models.weights.loading import load_weights

    if message := incompatibility(config, signature):
        raise StageError(message)
    module = _structure(config.torchvision, signature)
    module = tried(module, signature, config.torchvision)
    if config.weights:
        _fill(module, config.torchvision, config.weights)
    if config.width < 1:
        narrow(module, signature, config.width, config.torchvision)
    if config.checkpoint:
        load_weights(module, Path(config.checkpoint), config.checkpoint_key)
    return module


def names() -> tuple[str, ...]:
    """List every classifier and segmentation model that torchvision builds, and its detectors for phones."""
    return tuple(sorted({**_published(), **_published(_DENSE), **_detectors.NAMES}))


def _weights(name: str) -> tuple[str, ...]:
    return _detectors.NAMES.get(name) or _published(_folder(name))[name]


def _folder(name: str) -> str:
    """Return the folder of torchvision/models in which the model is defined: "" for classifiers."""
    return _DENSE if name in _published(_DENSE) else ""


@cache
def _published(folder: str = "") -> dict[str, tuple[str, ...]]:
    """List every model of a folder of torchvision/models and the names of its weights, read from its source without
    importing it.

    A builder is a function decorated with `@register_model()`. Classifiers are in the folder itself; detection, video,
    optical-flow and quantized models live in folders below that are not read.
    """
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        return {}
    found: dict[str, tuple[str, ...]] = {}
    for file in (Path(spec.origin).parent / "models" / folder).glob("*.py"):
        text = file.read_text(encoding="utf-8")
        enums = dict(re.findall(r"^class (\w+)\(WeightsEnum\):\n((?:    .*\n|\n)*)", text, re.M))
        builders = re.findall(_BUILDER, text)
        found |= {name: _members(enums[enum]) for name, enum in builders}
    return found


def _members(enum: str) -> tuple[str, ...]:
    return tuple(name for name in re.findall(r"^    (\w+) = ", enum, re.M) if name != _HEADLESS)


def _structure(name: str, signature: Signature) -> "nn.Module":
    """Build the model for this many classes and channels, and this image size if the model has a fixed one."""
    from edgepack.core.errors import reason
    from edgepack.core.process.libraries import torchvision

    channels, height, width = signature.inputs[0].shape
    extra: dict[str, Any] = {"aux_logits": False, "init_weights": True} if name in _AUXILIARY else {}
    extra |= {"image_size": height} if name.startswith("vit_") else {}
    extra |= {"input_size": (height, width)} if name.startswith("maxvit_") else {}
    extra |= {"weights_backbone": None, "aux_loss": False} if _folder(name) else {}
    module: nn.Module
    try:
        if name in _detectors.NAMES:
            module = _detectors.structure(name, signature)
        else:
            module = torchvision().models.get_model(name, num_classes=signature.width, **extra)
    except (AssertionError, ValueError) as error:
        raise StageError(
            f"{name} cannot take pictures of {height} x {width}: {reason(error)}",
            "use another size for the data, or another model",
        ) from error
    if channels != 3:
        _take_channels(module, channels)
    return module


def _ends(module: "nn.Module") -> tuple[str, str]:
    """Return the names of the first convolution and of the last layer."""
    from torch import nn

    layers = [name for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    return layers[0], layers[-1]


def _take_channels(module: "nn.Module", channels: int) -> None:
    """Change the number of input channels of the first convolution."""
    from edgepack.models.structure.surgery import replace_layer, resized

    name, _ = _ends(module)
    layer: Any = module.get_submodule(name)
    sizes = {"in_channels": channels, "out_channels": layer.out_channels, "groups": layer.groups}
    replace_layer(module, name, resized(layer, sizes))


def _fill(module: "nn.Module", name: str, weights: str) -> None:
    """Load the published weights, except for first and last layers of another shape."""
    from edgepack.models.sources._channels import over_channels

    own, state = module.state_dict(), _downloaded(name, weights)
    first, head = _ends(module)
    heads = tuple(f"{each}." for each in (head, *_OTHER_HEADS))
    if name in _AUXILIARY:
        _take_plain_pictures(state, first)
    state[f"{first}.weight"] = over_channels(state[f"{first}.weight"], own[f"{first}.weight"].shape[1])
    for key in (key for key in own if key.startswith(heads) and own[key].shape != state[key].shape):
        state[key] = own[key]
    if name.startswith("vit_"):
        _resize_positions(state, module)
    module.load_state_dict(state)


def _downloaded(name: str, weights: str) -> "dict[str, Tensor]":
    """Return torchvision's published weights, from its cache or by download, with the current names of tensors."""
    from http.client import HTTPException
    from pickle import UnpicklingError
    from urllib.error import URLError

    from edgepack.core.errors import reason
    from edgepack.core.process.libraries import torchvision

    member = torchvision().models.get_model_weights(name)[weights]
    try:
        state = member.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (URLError, HTTPException, TimeoutError, ConnectionError, RuntimeError, UnpicklingError) as error:
        network = isinstance(error, URLError | HTTPException | TimeoutError | ConnectionError)
        raise (DeviceError if network else StageError)(
            f"the weights {weights} of {name} could not be downloaded from {member.url}: {reason(error)}",
            f"download that file on another computer and copy it to {_cache()}, or use checkpoint instead of weights",
        ) from error
    for key in [key for key in state if re.match(r"aux|AuxLogits", key)]:
        del state[key]
    for key in [key for key in state if re.search(r"denselayer\d+\.(norm|relu|conv)\.\d\.", key)]:
        state[re.sub(r"(\.(?:norm|relu|conv))\.(\d\.)", r"\1\2", key)] = state.pop(key)
    found: dict[str, Tensor] = state
    return found


def _cache() -> Path:
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"


def _take_plain_pictures(state: "dict[str, Tensor]", first: str) -> None:
    """Fold the rescaling of images inside these models into the first convolution and its batch norm.

    It rescales from ImageNet's mean and deviation to [-1, 1]; folding is exact except where a convolution pads with
    zeros.
    """
    import torch

    mean, deviation = (torch.tensor(each).view(1, 3, 1, 1) for each in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    weight, norm = state[f"{first}.weight"], f"{first.rpartition('.')[0]}.bn.running_mean"
    state[norm] = state[norm] - (weight * (mean - 0.5) / 0.5).sum(dim=(1, 2, 3))
    state[f"{first}.weight"] = weight * deviation / 0.5


def _resize_positions(state: "dict[str, Tensor]", module: Any) -> None:
    """Interpolate the position embeddings for another image size."""
    from torchvision.models.vision_transformer import interpolate_embeddings

    state.update(interpolate_embeddings(module.image_size, module.patch_size, state))
