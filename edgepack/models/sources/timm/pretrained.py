"""Build timm's models, and load pretrained weights into them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from edgepack.core.errors import StageError, reason
from edgepack.core.process.libraries import timm
from edgepack.core.signature import Signature
from edgepack.models.notes import note
from edgepack.models.weights.checkpoints import State, read, state_dicts
from edgepack.models.weights.kinds import check_kinds

_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+")
_CLOSE = 1e-3  # means and deviations that differ by less are the same, rounded
_ANOTHER = "use the model that the weights were saved from, or another file"


def made(name: str, signature: Signature, classes: int, **more: Any) -> nn.Module:
    """Build a model for this many classes, and for this size of pictures if the model has a fixed one."""
    channels, height, width = signature.inputs[0].shape
    known = timm().models.get_pretrained_cfg(name.partition(".")[0])
    if known is not None and known.fixed_input_size:
        more["img_size"] = (height, width)
    try:
        module: nn.Module = timm().create_model(name, num_classes=classes, in_chans=channels, **more)
    except StageError:
        raise
    except Exception as error:  # every model checks its arguments in its own way
        raise StageError(
            f"timm cannot build {name} for pictures of {channels} x {height} x {width}: {reason(error)}",
            "use another size for the data, or another model",
        ) from error
    return module


def fill(module: nn.Module, name: str, path: Path, known: Mapping[str, Any], signature: Signature) -> None:
    """Load pretrained weights, except for a classifier of other classes.

    timm itself converts them: the first convolution to the data's channels, positions to the pictures' size. `known`
    has the settings of the weights where they differ from those of timm.
    """
    own: dict[str, Tensor] = module.state_dict()
    settings = {**module.pretrained_cfg, **known}
    state = _in_order(_state(path, own), own, settings, path)
    check_kinds({each: tensor for each, tensor in state.items() if each in own}, own, path)
    classes = _classes(state, settings)
    overlay = {**known, "state_dict": state, "num_classes": classes, "input_size": _input_size(state, own, settings)}
    try:
        source = made(name, signature, classes, pretrained=True, pretrained_cfg_overlay=overlay)
    except StageError as error:
        cause = error.__cause__ or error
        raise StageError(f"{path.name} does not fit {name}: {reason(cause)}", _ANOTHER) from error
    given = source.state_dict()
    module.load_state_dict({each: given[each] if given[each].shape == own[each].shape else own[each] for each in own})
    _compare_normal(settings, signature)
    if licence := known.get("license"):
        note(f"licence of the weights, as published with them: {licence}")


def _state(path: Path, own: State) -> dict[str, Tensor]:
    """Return the one set of weights in a file. Raises StageError if there are several."""
    states = {place: state for place, state in state_dicts(read(path), path).items() if len(state) > len(own) / 2}
    if len(states) != 1:
        found = f"{len(states)} sets of weights: {', '.join(states)}" if states else "fewer tensors than this model"
        raise StageError(f"{path.name} holds {found}", "save one state dict alone: torch.save(model.state_dict(), ...)")
    (state,) = states.values()
    return {_WRAPPERS.sub("", name): tensor for name, tensor in state.items()}


def _in_order(state: dict[str, Tensor], own: State, settings: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Rename weights of a model that was written anew with other names, if all are there in the same order."""
    ends = _named(settings, "classifier") + _named(settings, "first_conv")

    def same(name: str, there: str) -> bool:
        alike = own[name].shape == state[there].shape or name.rpartition(".")[0] in ends
        return alike and name.rpartition(".")[2] == there.rpartition(".")[2]

    if own.keys() & state.keys() or len(own) != len(state) or not all(map(same, own, state)):
        return state
    name, there = next(iter(zip(own, state, strict=True)))
    note(f"{path.name}: its tensors have other names, and were matched by order: '{there}' for '{name}', and so on")
    return dict(zip(own, state.values(), strict=True))


def _named(settings: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Return the names of the layers at one end of a model: "classifier" or "first_conv"."""
    found = settings.get(key)
    return (found,) if isinstance(found, str) else tuple(found or ())


def _classes(state: State, settings: Mapping[str, Any]) -> int:
    """Return the number of classes of the weights; some have one more, for the background, which timm leaves out."""
    for name in _named(settings, "classifier"):
        if f"{name}.weight" in state:
            return len(state[f"{name}.weight"]) - int(settings.get("label_offset") or 0)
    return int(settings["num_classes"])


def _input_size(state: State, own: State, settings: Mapping[str, Any]) -> tuple[int, ...]:
    """Return what the weights take, [channels, height, width]: the channels are those of the first convolution."""
    channels, *sides = settings["input_size"]
    for name in (f"{each}.weight" for each in _named(settings, "first_conv")):
        if name in state and state[name].dim() == own[name].dim():
            channels = channels if state[name].shape == own[name].shape else state[name].shape[1]
    return (channels, *sides)


def _compare_normal(settings: Mapping[str, Any], signature: Signature) -> None:
    """Note that pictures are normalised by other numbers than those that the weights were trained with."""
    given = signature.preprocessing.get("normalize")
    if not isinstance(given, dict) or [*map(len, given.values())] != 2 * [len(settings["mean"])]:
        return
    pairs = (pair for key in ("mean", "std") for pair in zip(settings[key], given[key], strict=True))
    if any(abs(one - other) > _CLOSE for one, other in pairs):
        mean, std = ([*settings[key]] for key in ("mean", "std"))
        note(f"its weights were trained on pictures normalised with mean: {mean}, std: {std}; set these in `data`")
