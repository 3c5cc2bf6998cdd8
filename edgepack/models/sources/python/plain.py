"""A user's module as the stages need it: without wrappers, its weights plain tensors in float32."""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook
from torch.nn.utils.weight_norm import WeightNorm

from edgepack.core.errors import StageError, listed, reason
from edgepack.models.checks.steady import answer, same
from edgepack.models.notes import note

# Wrappers that run a model, and the attribute that holds it. They are identified by name, as not all of these libraries
# are installed, and only within these libraries: a user's class may have the same name.
_LIBRARIES = ("torch", "lightning", "lightning_fabric", "pytorch_lightning")
_COMPILED = "OptimizedModule"  # torch gives each its own forward
_WRAPPERS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "module",
    "AveragedModel": "module",
    _COMPILED: "_orig_mod",
    "_FabricModule": "_original_module",
}
_UNSCRIPTED = "return the original module from the function, and give its weights as a checkpoint"
_SAME = 1e-4  # of the largest output: rounding


def plain(module: nn.Module) -> nn.Module:
    """Return a copy without wrappers, in float32. Raises StageError for state that is not in tensors."""
    inner = _unwrapped(module)
    if isinstance(inner, torch.jit.ScriptModule):
        raise StageError("the model is TorchScript, which cannot be trained or exported", _UNSCRIPTED)
    own = _copied(inner)
    _unwrap_parts(own)
    _check_tensors(own)
    return _in_float32(own)


def _copied(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(module, _values(module))
    except Exception as error:  # any error, whatever its attributes cause
        message = f"the model, a {type(module).__name__}, cannot be copied: {reason(error)}"
        raise StageError(
            message, "return the model without its wrapper from the function, such as model.module"
        ) from error


def _unwrapped(module: nn.Module) -> nn.Module:
    inside = _inside(module)
    if inside is None:
        return module
    note(f"taken out of its {type(module).__name__}: the model inside is compressed")
    return _unwrapped(inside)


def _inside(module: nn.Module) -> nn.Module | None:
    """Return the model inside a library's wrapper; None for other modules, and for a wrapper with a user's forward."""
    of: Any = next(filter(_is_wrapper, type(module).__mro__), None)
    if of is None or type(module).forward is not of.forward:
        return None
    if "forward" in vars(module) and of.__name__ != _COMPILED:
        return None
    inside = getattr(module, _WRAPPERS[of.__name__], None)
    return inside if isinstance(inside, nn.Module) else None


def _is_wrapper(kind: type) -> bool:
    return kind.__name__ in _WRAPPERS and kind.__module__.partition(".")[0] in _LIBRARIES


def _unwrap_parts(module: nn.Module) -> None:
    """Unwrap the submodules, also one with several names."""
    for name, part in module._modules.items():
        if part is not None:
            module._modules[name] = inside = _unwrapped(part)
            _unwrap_parts(inside)


def _values(module: nn.Module) -> dict[int, Any]:
    """Return attributes computed from weights, which Python cannot copy, as plain tensors by id."""
    kept = [value for part in module.modules() for value in vars(part).values() if isinstance(value, torch.Tensor)]
    return {id(value): value.detach().clone() for value in kept if value.grad_fn is not None}


def _check_tensors(module: nn.Module) -> None:
    for name, part in module.named_modules():
        if type(part).get_extra_state is not nn.Module.get_extra_state:
            where = f"'{name}', a {type(part).__name__}," if name else f"the model, a {type(part).__name__},"
            raise StageError(
                f"{where} has state that is not tensors (get_extra_state), which is not saved with the weights",
                "keep it in buffers: self.register_buffer(name, tensor)",
            )


def _in_float32(module: nn.Module) -> nn.Module:
    kept = [*module.parameters(), *module.buffers()]
    others = {str(each.dtype).removeprefix("torch.") for each in kept if each.is_floating_point()} - {"float32"}
    if others:
        note(f"weights in {', '.join(sorted(others))} were converted to float32")
    return module.float()


def is_plain(module: nn.Module) -> bool:
    """Return whether every weight is a stored tensor, and none is computed from others in each call."""
    return not any(True for _ in _computed(module))


def folded(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> nn.Module:
    """Return the module, with weights that are computed in each call (weight norm, spectral norm, masks) made plain.

    Raises StageError where its outputs would change.
    """
    found = [*_computed(module)]
    if not found:
        return module
    training = module.training
    before = answer(module.eval(), inputs)
    for description, fold in found:
        try:
            fold()
        except Exception as error:
            raise StageError(f"the {description} cannot be folded into plain weights: {error}", _BY_HAND) from error
    after = answer(module, inputs)
    if not same(before, after, rounding=_SAME):
        raise StageError(f"folded into plain weights, the {found[0][0]} gives other outputs", _BY_HAND)
    shown = listed([description for description, _ in found], 3)
    note(f"folded into plain weights: {shown}")
    return module.train(training)


_BY_HAND = "return the model with plain weights from the function: parametrize.remove_parametrizations(layer, name)"


def _computed(module: nn.Module) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield each computed weight, in words, and a function that makes it plain."""
    for name, part in module.named_modules():
        of = f" of '{name}'" if name else ""
        if parametrize.is_parametrized(part):
            for weight, steps in part.parametrizations.items():
                kinds = " and ".join(type(step).__name__.lstrip("_") for step in steps)
                yield f"{kinds}{of}", partial(_settle, part, weight)
        for hook in part._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm):
                yield f"WeightNorm{of}", partial(remove_weight_norm, part, hook.name)
            elif isinstance(hook, SpectralNorm):
                yield f"SpectralNorm{of}", partial(_settle_spectral_norm, part, hook)
            elif isinstance(hook, prune.BasePruningMethod):
                yield f"mask{of}", partial(prune.remove, part, hook._tensor_name)


def _settle_spectral_norm(part: nn.Module, norm: SpectralNorm) -> None:
    """Remove spectral norm and its hook on loading, which torch does not find: it would look for "weight_orig"."""
    remove_spectral_norm(part, norm.name)
    hooks = part._load_state_dict_pre_hooks
    for key, hook in [*hooks.items()]:
        inner = getattr(hook, "hook", hook)
        if isinstance(inner, SpectralNormLoadStateDictPreHook) and inner.fn is norm:
            del hooks[key]


def _settle(part: nn.Module, weight: str) -> None:
    """Replace a parametrization by a parameter; for frozen ones torch leaves a buffer."""
    learned = any(True for _ in part.parametrizations[weight].parameters(recurse=False))
    parametrize.remove_parametrizations(part, weight)
    if learned and weight in part._buffers:
        frozen = part._buffers.pop(weight)
        part.register_parameter(weight, nn.Parameter(frozen.detach(), requires_grad=False))
