"""A decoder's .onnx: one graph for a prompt and for each token after it, as onnxruntime-genai calls it.

    input_ids [1, length], past_key_values.N.key and .value [1, heads, past, channels], of every layer N
    -> logits [1, length, vocabulary], present.N.key and .value [1, heads, past + length, channels]

What is present after one call is past in the next; a text begins with a past of no tokens.
Source: https://onnxruntime.ai/docs/genai/reference/config.html.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch
from torch.export import Dim, ExportedProgram

from edgepack.export.formats.onnx.int8 import with_onnx_operators
from edgepack.export.generation import OpenStep, cache_shapes, end_of_text, generator

if TYPE_CHECKING:
    from edgepack.models.candidate import Candidate

_TOKENS, _PAST = 3, 5  # of the example: sizes of 0 and 1 would be taken for the only ones
_PLACES, _END = "edgepack.places", "edgepack.end"  # what a file says of itself
_BEFORE, _AFTER = "past_key_values.{}.{}", "present.{}.{}"


def program(candidate: "Candidate") -> ExportedProgram:
    decoder = generator(candidate)
    sizes = cache_shapes(decoder).values()
    pasts = [torch.zeros(1, heads, _PAST, size) for heads, size in sizes for _ in ("key", "value")]
    inputs = torch.zeros(1, _TOKENS, dtype=torch.int64), pasts
    shapes = {1: Dim.DYNAMIC}, [{2: Dim.DYNAMIC} for _ in pasts]
    found = torch.export.export(OpenStep(decoder).eval(), inputs, dynamic_shapes=shapes)
    if candidate.form == "eager":
        return found
    return torch.export.export(with_onnx_operators(found.module(check_guards=False)), inputs, dynamic_shapes=shapes)


def name(model: ir.Model, candidate: "Candidate") -> None:
    """Name inputs, outputs and their open sizes."""
    inputs, outputs = model.graph.inputs, model.graph.outputs
    layers = [(layer, kind) for layer in range(len(inputs) // 2) for kind in ("key", "value")]
    inputs[0].name, outputs[0].name = candidate.signature.inputs[0].name, candidate.signature.outputs[0].name
    _size(inputs[0], 1, "length")
    _size(outputs[0], 1, "length")
    for before, after, place in zip(inputs[1:], outputs[1:], layers, strict=True):
        before.name, after.name = _BEFORE.format(*place), _AFTER.format(*place)
        _size(before, 2, "past")
        _size(after, 2, "present")


def describe(model: ir.Model, candidate: "Candidate") -> None:
    """Note in a model what genai_config.json is made of."""
    places, end = candidate.signature.inputs[0].shape[0], end_of_text(candidate)
    model.metadata_props.update({_PLACES: str(places), _END: str(end)})


def _size(value: ir.Value, dimension: int, name: str) -> None:
    value.shape = ir.Shape([name if place == dimension else size for place, size in enumerate(value.shape)])


def genai_files(file: Path, name: str) -> dict[str, bytes]:
    """Return what onnxruntime-genai reads beside tokenizer.json and a file, which has this name there."""
    model = ir.load(file) if file.suffix == ".onnx" else None
    if model is None or _PLACES not in model.metadata_props:  # it does not generate
        return {}
    found = {"genai_config": _config(model, name), "tokenizer_config": {"tokenizer_class": "PreTrainedTokenizerFast"}}
    return {f"{stem}.json": json.dumps(content, indent=1).encode() for stem, content in found.items()}


def _config(model: ir.Model, name: str) -> dict[str, Any]:
    places, end = (int(model.metadata_props[key]) for key in (_PLACES, _END))
    _, heads, _, channels = model.graph.inputs[1].shape
    return {
        "model": {
            "type": "llama",  # which of the families of decoders it is makes no difference
            "vocab_size": model.graph.outputs[0].shape[-1],
            "context_length": places,
            "bos_token_id": end,
            "eos_token_id": end,
            "pad_token_id": end,
            "decoder": {
                "filename": name,
                "head_size": channels,
                "num_key_value_heads": heads,
                "num_hidden_layers": len(model.graph.inputs) // 2,
                "inputs": {
                    "input_ids": model.graph.inputs[0].name,
                    "past_key_names": _BEFORE.format("%d", "key"),
                    "past_value_names": _BEFORE.format("%d", "value"),
                },
                "outputs": {
                    "logits": model.graph.outputs[0].name,
                    "present_key_names": _AFTER.format("%d", "key"),
                    "present_value_names": _AFTER.format("%d", "value"),
                },
            },
        },
        "search": {"do_sample": False, "max_length": places, "past_present_share_buffer": False},
    }
