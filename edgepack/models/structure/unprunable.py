"""Explain why layers keep all their channels, and what to do about it."""

from collections.abc import Callable, Collection, Mapping

from torch import nn

from edgepack.core.errors import StageError, listed
from edgepack.core.units import SHARE
from edgepack.models.structure.channels import FROZEN, Inputs, describe_reasons
from edgepack.models.structure.dependency_groups import EXCLUDED, Group, Survey, survey
from edgepack.models.structure.encoder import blocks
from edgepack.models.structure.flow import OUTPUT
from edgepack.models.structure.surgery import outputs

_SHARES = [k / 100 for k in range(1, 100)]


def reasons(whole: Mapping[str, str]) -> dict[str, str]:
    """Return the reasons that a user may not expect: not those of output layers and of excluded layers."""
    return {name: why for name, why in whole.items() if why not in (OUTPUT, EXCLUDED)}


def nothing_removed(
    module: nn.Module,
    inputs: Inputs,
    fewer: str,
    exclude: Collection[str],
    multiple: int,
    share: Callable[[str], float],
) -> StageError:
    """Return the error for a cut that removes nothing: why, and what to do; `share` is the share to keep by group."""
    found = survey(module, inputs, exclude)
    if not found.groups:
        return StageError(f"nothing was removed: {no_groups(module, found)}", way_out(found))
    if blocks(module):
        why = f"no layer has a whole head, or a block of {multiple} neurons, that can be removed"
    elif all(share(group.name) == 1 for group in found.groups):
        why = "the ratio of every layer is 0 %"
    else:
        why = f"no layer has a whole block of {multiple} channels to remove: {_widths(found.groups)}"
    also = reasons(found.whole)
    why += f"; also, {describe_reasons(also)}" if also else ""
    return StageError(f"nothing was removed: at {fewer} {why}", _larger(found, multiple))


def _widths(groups: Collection[Group]) -> str:
    """
    conv1 has 12, conv2 has 8
    """
    return listed([f"{group.name} has {group.size}" for group in groups])


def no_groups(module: nn.Module, found: Survey) -> str:
    """Say why no layer can lose channels."""
    if why := reasons(found.whole):
        return f"no layer can lose channels: {describe_reasons(why)}"
    if EXCLUDED in found.whole.values():
        return "every layer that could lose channels is excluded"
    answers = listed(list(found.whole)) or "none of its layers"
    others = [
        f"'{name}' is a {type(layer).__name__}"
        for name, layer in module.named_modules()
        if name not in outputs(module) and [*layer.parameters(recurse=False)]
    ]
    stay = f" ({listed(others)}, which cannot be resized)" if others else ""
    return f"{answers} gives the model's output, and there is no other convolution, Linear, LSTM or GRU{stay}"


def way_out(found: Survey) -> str:
    """Say what to do if no layer can lose channels."""
    if FROZEN in found.whole.values():
        return "unfreeze them (requires_grad) in the function that makes the model, or remove prune"
    if EXCLUDED in found.whole.values():
        return "exclude fewer layers"
    others = "use quantize or factorize, a smaller model, or remove prune"
    return others if reasons(found.whole) else f"only convolutions, Linear, LSTM and GRU lose channels: {others}"


def _larger(found: Survey, multiple: int) -> str:
    """Suggest only what helps."""

    def helps(removed: float) -> bool:
        return any(group.left(1 - removed, multiple, group.size) < group.size for group in found.groups)

    able = [removed for removed in _SHARES if helps(removed)]
    ways = [f"use a larger ratio, {SHARE.format(able[0])} or more"] if able else []
    ways += ["exclude fewer layers"] if EXCLUDED in found.whole.values() else []
    ways += ["lower channel_multiple in the device profile"] if multiple > 1 else []
    return ", or ".join(ways) or "the layers have no channels to remove: remove prune"


def cannot_be_narrower(module: nn.Module, inputs: Inputs) -> str:
    """Say why some of its layers keep their channels, for a message; "" if none does."""
    also = reasons(survey(module, inputs).whole)
    return f"; {describe_reasons(also)}" if also else ""
