"""How large a model is: parameters, stored bytes, multiply-accumulates."""

from collections.abc import Callable, Iterator
from math import prod
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from edgepack.models.candidate import Candidate

_SCALE = 2  # bytes of a scale of 16 bits


def parameters(module: nn.Module) -> int:
    """Count weights and biases; of an exported program every tensor it stores."""
    return sum(tensor.numel() for tensor in (module.parameters() if not _is_program(module) else _stored(module)))


def stored_bytes(module: nn.Module) -> int:
    """Return the bytes of all tensors, as files store them: packed, if they have fewer than eight bits a number."""
    packed = dict(_packed(module)) if _is_program(module) else {}
    return sum(packed.get(id(tensor), tensor.numel() * tensor.element_size()) for tensor in _stored(module))


def _packed(module: torch.fx.GraphModule) -> Iterator[tuple[int, int]]:
    """Yield the integers, scales and zero points of weights in groups, and the bytes of each in a file."""
    for node in module.graph.nodes:
        if str(node.target) == "quantized_decomposed.dequantize_per_channel_group.default":
            integers, scales, zeros = (attrgetter(str(each.target))(module) for each in node.args[:3])
            bits = (node.args[4] - node.args[3]).bit_length()
            yield id(integers), integers.numel() * bits // 8
            yield id(scales), scales.numel() * _SCALE
            yield id(zeros), 0  # all are zero, and left out


def _stored(module: nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _is_program(module: nn.Module) -> bool:
    return isinstance(module, torch.fx.GraphModule)


def macs(candidate: Candidate) -> int:
    """Count the multiply-accumulates of one inference, by torch's counter on the operators that run."""
    from torch.utils.flop_counter import FlopCounterMode

    from edgepack.models.structure.encoder import first_token_only

    inputs = candidate.example_inputs(2)  # batch norm and exported programs need more than one
    module = candidate.module if candidate.form == "exported" else candidate.module.eval()
    with FlopCounterMode(display=False, custom_mapping=_fused()) as counter, torch.no_grad(), first_token_only(module):
        module(*inputs)
    return int(counter.get_total_flops()) // 2 // 2


def _fused() -> dict[Any, Callable[..., int]]:
    """Count a fused LSTM: the counter knows the products that it is made of, but not the operator."""

    def flops(series: torch.Size, inputs: torch.Size, hidden: torch.Size, *_: Any, **__: Any) -> int:
        return int(2 * series[0] * series[1] * (prod(inputs) + prod(hidden)))

    return {torch.ops.aten.mkldnn_rnn_layer: flops}
