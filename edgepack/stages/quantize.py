"""Train the model to work with int8 weights and activations, then make them int8.

Quantization-aware training through torchao's PT2E flow with the quantizer of ExecuTorch's XNNPACK backend: weights per
channel, activations per tensor. The teacher keeps teaching.
Source: B. Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
CVPR 2018, arXiv 1712.05877.
"""

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field

from edgepack.stages import Context, Training

if TYPE_CHECKING:
    from torch import nn

    from edgepack.candidate import Candidate
    from edgepack.datasets import Split

TAKES, GIVES = "eager", "exported"
VERSION = 1
LIBRARIES = ("torchao", "executorch")

_CALIBRATION = 256  # training samples seen before training starts
_FREEZE = 0.4  # share of the epochs after which the ranges of activations stay as they are


class Config(Training):
    epochs: int = Field(default=3, ge=0, le=10_000, description="passes over the training split; 0: calibration alone")
    learning_rate: float = Field(default=1e-4, gt=0, description="peak rate, a tenth of fine-tuning")


def run(candidate: "Candidate", config: Config, context: Context) -> "Candidate":
    from edgepack.train import Distillation, fit

    prepared = _prepare(candidate)
    _calibrate(prepared, context.data.train)
    lesson = Distillation.of(context.teacher)
    best = fit(
        prepared,
        context,
        config,
        doing="training with int8 in the loop",
        distillation=lesson,
        snapshot=_converted,
        each_epoch=lambda epoch: _freeze(prepared) if epoch >= _FREEZE * config.epochs else None,
    )
    notes = (f"kept epoch {best.epoch} of {config.epochs}",)
    return replace(candidate, module=_converted(prepared), form="exported", notes=notes)


def _prepare(candidate: "Candidate") -> "nn.Module":
    """The model as a graph with fake quantizers in it.

    Batch norm is folded into the convolutions first: prepare_qat_pt2e would rewrite its eps and momentum (torchao
    issue 4107).
    """
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
    from torchao.quantization.pt2e.utils import _fuse_conv_bn_

    _plain_relu(candidate.module)
    graph = candidate.program().module(check_guards=False)
    _fuse_conv_bn_(graph)
    scheme = get_symmetric_quantization_config(is_per_channel=True, is_qat=True)
    prepared: nn.Module = prepare_qat_pt2e(graph, XNNPACKQuantizer().set_global(scheme))
    return prepared


def _plain_relu(module: "nn.Module") -> None:
    """ReLU6 is not fused by the quantizer, and the quantized range bounds the activation just as well."""
    from torch import nn

    from edgepack.surgery import replace_layer

    for name in [name for name, layer in module.named_modules() if isinstance(layer, nn.ReLU6)]:
        replace_layer(module, name, nn.ReLU())


def _calibrate(prepared: "nn.Module", data: "Split") -> None:
    """Let the observers see real activations before any gradient does."""
    import torch
    from torchao.quantization.pt2e import disable_fake_quant, enable_fake_quant

    prepared.apply(disable_fake_quant)
    with torch.no_grad():
        for batch in data.first(_CALIBRATION).batches(64):
            prepared(*batch.inputs)
    prepared.apply(enable_fake_quant)


def _freeze(prepared: "nn.Module") -> None:
    from torchao.quantization.pt2e import disable_observer

    prepared.apply(disable_observer)


def _converted(prepared: "nn.Module") -> "nn.Module":
    """An int8 copy: flipping the graph in training to eval would set every dropout to 0.5 (torchao issue 2980)."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    converted: nn.Module = convert_pt2e(copy.deepcopy(prepared))
    _drop_float_weights(converted)
    return converted


def _drop_float_weights(converted: "nn.Module") -> None:
    """Conversion leaves the float weight beside its int8 copy, and a saved program would carry both."""
    used = {node.target for node in converted.graph.nodes if node.op == "get_attr"}
    for name, _ in [*converted.named_parameters(), *converted.named_buffers()]:
        if name not in used:
            parent, _, leaf = name.rpartition(".")
            delattr(converted.get_submodule(parent), leaf)
