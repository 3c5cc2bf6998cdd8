"""Weights that are no plain floats: kept as integers, masks, adapters, or without numbers; with the way out."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from edgepack.core.errors import StageError, listed
from edgepack.models.weights.checkpoints import State

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
SPARSE = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
_BEFORE = "save the float weights from before they were quantized: `stages: [quantize: ...]` makes them int8"
_NO_NUMBERS = {
    "bool": "masks or flags are not weights: save the weights that they belong to",
    "complex": "complex models cannot be exported: save one with real weights",
}
# How a model was saved, by the names of its tensors: in words, and how to get plain weights.
_KEPT = {
    r"(^|\.)lora_(embedding_)?[AB](\.|$)": (
        "LoRA adapters next to the weights",
        "merge them into the weights and save the result: model.merge_and_unload() in peft",
    ),
    r"_fake_quant\.|(^|\.)(activation_post_process|fake_quant_enabled|observer_enabled)": (
        "observers of a model that was prepared for int8",
        "save the model from before it was prepared: `stages: [quantize: {mode: qat}]` trains int8 here",
    ),
    r"(^|\.)(zero_point|qweight|qzeros|absmax|quant_map|SCB|weight_(scale(_inv)?|zero_point)|_packed_params)(\.|$)": (
        "quantized weights",
        _BEFORE,
    ),
    r"(weight|bias)_mask$": (
        "pruning masks next to the weights",
        "merge them into the weights before you save: torch.nn.utils.prune.remove(layer, 'weight')",
    ),
    r"weight_u$|(^|\.)parametrizations\.\w+\.\d+\._u$": (
        "weights in the form of spectral norm",
        "save the model without it: torch.nn.utils.remove_spectral_norm(layer), or of a parametrization "
        "remove_parametrizations(layer, 'weight'); or use a model that has it too",
    ),
    r"(^|\.)parametrizations\.": (
        "weights under a parametrization of torch",
        "save the model without it: torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')",
    ),
}


def check_kinds(tensors: State, own: State, path: Path) -> None:
    """Raises StageError for integers and other tensors that are not plain numbers, in place of weights."""
    if empty := [name for name, tensor in tensors.items() if tensor.is_meta]:
        raise StageError(
            f"{path.name} holds names and shapes without values: {quoted(empty)} on torch's meta device",
            "save the model after its weights were loaded; of a model in shards, the full state dict",
        )
    _refuse({name: kind(each) for name, each in tensors.items() if not _is_kind(name, each, own[name])}, path)


def check_names(names: Iterable[str], path: Path) -> None:
    """Raises StageError where names that the model lacks show how its weights were saved."""
    unknown = [*names]
    for pattern, (what, way_out) in _KEPT.items():
        if found := [name for name in unknown if re.search(pattern, name)]:
            raise StageError(f"{path.name} holds {what}: {quoted(found)}", way_out)


def check_floats(path: Path) -> None:
    """Raises StageError where weights or biases in a .safetensors file are not plain floats."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if name.endswith((".weight", ".bias"))]  # noqa: SIM118  (it is no dict)
        kinds = {name: file.get_slice(name).get_dtype() for name in names}
    _refuse({name: kind for name, kind in kinds.items() if kind not in ("F64", "F32", "F16", "BF16")}, path)


def _refuse(wrong: Mapping[str, str], path: Path) -> None:
    if wrong:
        kinds = sorted({*wrong.values()})
        raise StageError(
            f"{path.name} has weights that are not float: {quoted(wrong)} in {', '.join(kinds)}",
            next((way_out for name, way_out in _NO_NUMBERS.items() if name in kinds[0].lower()), _BEFORE),
        )


def _is_kind(name: str, tensor: torch.Tensor, own: torch.Tensor) -> bool:
    if tensor.is_quantized or tensor.layout not in (torch.strided, *SPARSE):
        return False
    if own.is_floating_point() or own.is_complex():
        return tensor.dtype in _FLOATS if own.is_floating_point() else tensor.is_complex()
    if tensor.dtype in _FLOATS:  # an average of counts
        return name.endswith("num_batches_tracked") or bool((tensor == tensor.round()).all())
    return not tensor.is_complex() and not tensor.is_floating_point()


def kind(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def quoted(names: Iterable[str]) -> str:
    return listed([repr(name) for name in names], 3)
