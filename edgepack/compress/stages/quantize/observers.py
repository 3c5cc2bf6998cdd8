"""A graph with observers in it, and the ranges that they find."""

import copy
import math
from typing import Any

import torch
from torch import fx, nn

from edgepack.compress.stages.quantize.capture import aten, tell_recurrent
from edgepack.compress.stages.quantize.contract import Scheme
from edgepack.config import plugins
from edgepack.models.structure.folding import WEIGHTED

BY_ROWS = "by_rows"  # in a graph's meta: see Scheme
KEEPS_RANGE = "keeps_range"  # in a node's meta: the result of its operator has the range of its input
_PER_TENSOR = (torch.per_tensor_affine, torch.per_tensor_symmetric)
_HARD_SWISHES = (aten.hardswish.default, aten.hardswish_.default)
_COARSER = 1.05  # the steps of an integer HardSwish may be larger by this factor
_ROUNDED = 1e-6  # relative error of a scale in float32


def prepare(graph: fx.GraphModule, scheme: Scheme, *, training: bool) -> fx.GraphModule:
    """Return a copy with observers, or with fake quantizers for training.

    Raises StageError for a scheme that the quantizer does not support.
    """
    from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e, prepare_qat_pt2e

    plugin = plugins.load("quantizers", scheme.quantizer)
    quantizer = plugin.quantizer(scheme, training=training)
    prepared: fx.GraphModule = (prepare_qat_pt2e if training else prepare_pt2e)(copy.deepcopy(graph), quantizer)
    plugin.finish(prepared, training=training)
    prepared.meta[BY_ROWS] = scheme.dynamic and scheme.by_rows
    for node in prepared.graph.nodes:
        if node.op == "call_function" and plugin.keeps_range(node.target):
            node.meta[KEEPS_RANGE] = True
    tell_recurrent(prepared, training=training)
    return prepared


def take_ranges(prepared: fx.GraphModule, observed: fx.GraphModule) -> None:
    """Give the fake quantizers of activations the ranges that calibration found.

    One that serves a single tensor keeps updating its range. One shared by several (a block of DenseNet; an image and
    its mean) would drift to their average and clip the widest: it is frozen.
    """
    modules = [prepared.get_submodule(node.target) for node in prepared.graph.nodes if node.op == "call_module"]
    weights = {str(node.args[1].target) for node in observed.graph.nodes if node.target in WEIGHTED}
    for name, observer in observed.named_children():
        if name not in weights and _calibrated(observer):
            fake = prepared.get_submodule(name)
            _set_range(fake, *observer.calculate_qparams())
            if modules.count(fake) > 1:
                fake.disable_observer()
    for fake in hard_swish_observers(prepared):
        _set_range(fake, *exact_three_qparams(fake))


def _calibrated(observer: nn.Module) -> bool:
    """Return whether it is per tensor and has seen data."""
    return hasattr(observer, "min_val") and observer.qscheme in _PER_TENSOR


def _set_range(fake: nn.Module, scale: torch.Tensor, zero_point: torch.Tensor) -> None:
    limits = fake.activation_post_process
    limits.min_val.copy_(((limits.quant_min - zero_point) * scale).squeeze())
    limits.max_val.copy_(((limits.quant_max - zero_point) * scale).squeeze())
    fake.scale.copy_(scale)
    fake.zero_point.copy_(zero_point)


def freeze_ranges(prepared: fx.GraphModule) -> None:
    """Freeze all ranges but the dynamic ones, which the device measures in each inference."""
    from torchao.quantization.pt2e import FakeQuantizeBase

    for fake in hard_swish_observers(prepared):
        _set_range(fake, *exact_three_qparams(fake))  # training continues with the final range
    for fake in prepared.modules():
        if isinstance(fake, FakeQuantizeBase) and not fake.is_dynamic:
            fake.disable_observer()


def hard_swish_observers(prepared: fx.GraphModule) -> "list[Any]":
    """Return the observers of HardSwish inputs, except those that share their range with other tensors (the input of a
    MaxPool, the inputs of a cat).
    """
    calls = [node for node in prepared.graph.nodes if node.op == "call_module"]
    modules = [prepared.get_submodule(node.target) for node in calls]
    return [
        module
        for node, module in zip(calls, modules, strict=True)
        if any(user.target in _HARD_SWISHES for user in node.users)
        and modules.count(module) == 1
        and module.qscheme is torch.per_tensor_affine
        and not module.is_dynamic
    ]


def exact_three_qparams(observer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    scale, zero = observer.calculate_qparams()
    step, origin = scale_with_exact_three(float(scale), int(zero), observer.quant_min, observer.quant_max)
    return torch.full_like(scale, step), torch.full_like(zero, origin)


def scale_with_exact_three(scale: float, zero: int, least: int, most: int) -> tuple[float, int]:
    """Return a scale of 3 / n and a zero point that represent -3 exactly, and the same range to half a step.

    Return the given values if the range ends above -3, or if the steps would become more than 5 % coarser.

    >>> scale_with_exact_three(0.07, -40, -128, 127)
    (0.07142857142857142, -42)
    >>> scale_with_exact_three(1 / 128, 0, -128, 127)
    (0.0078125, 0)
    """
    low, high = (least - zero) * scale, (most - zero) * scale
    fewest = math.ceil(3 / (scale * _COARSER))
    for steps in range(int(3 / scale * (1 + _ROUNDED)), fewest - 1, -1):
        step = 3 / steps
        origin = max(round(least - low / step), least + steps)
        if origin <= most and (most - origin) * step >= high - step / 2:
            return step, origin
    return scale, zero
