"""Weights and tables of 4 or 2 bits in groups, and int8 activations token by token, in a graph of torchao's PT2E flow.

A group is so many neighbours of a row that share a scale: number = scale * integer. The scale is the one of a few that
gives the smallest squared error. Both observers round while a model is trained, with the gradient of the identity, and
write themselves into the graph when it is converted.
Source of the gradient: Y. Bengio et al., Estimating or Propagating Gradients Through Stochastic Neurons, arXiv
1308.3432.
"""

import operator
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, fx
from torchao.quantization.granularity import PerGroup, PerToken
from torchao.quantization.pt2e import AffineQuantizedObserverBase
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY
from torchao.quantization.quant_primitives import MappingType

from edgepack.compress.stages.quantize.contract import GROUP_SIZES, Scheme
from edgepack.core.errors import StageError
from edgepack.models.source_lines import part_of
from edgepack.models.structure.folding import LINEAR
from edgepack.models.structure.fx_graph import add_tensor, tensor_of

decomposed = torch.ops.quantized_decomposed
TABLE = torch.ops.aten.embedding.default
# What the largest number of a group is divided by: more than the largest integer clips it, which may be worth it.
_DIVISORS = {4: (7.0, 7.5, 8.0, 8.5, 9.0), 2: (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)}
_SMALLEST = 1e-30  # scale of a group of zeros
_INT8 = (-128, 127)


@dataclass(frozen=True, kw_only=True)
class Groups:
    """How numbers are rounded: to this many bits, with a scale for each `size` of a row.

    Scales are rounded to the type in which the files store them. If they may be negative, the largest number of a group
    gets the integer that has no opposite, -8 or -2; kernels of matrix products do not allow it.
    """

    bits: int
    size: int
    scales: torch.dtype
    negative: bool = False

    @property
    def limits(self) -> tuple[int, int]:
        return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1


def weight_groups(size: int) -> Groups:
    """Return the groups of an int4 weight: XNNPACK stores its scales as bfloat16."""
    return Groups(bits=4, size=size, scales=torch.bfloat16)


def table_groups(bits: int, size: int) -> Groups:
    return Groups(bits=bits, size=size, scales=torch.float16, negative=True)


def rounded(values: Tensor, groups: Groups) -> tuple[Tensor, Tensor]:
    """Round [rows, columns] to int8 integers of that shape, and float32 scales [rows, columns / size]."""
    parts = values.detach().float().unflatten(-1, (-1, groups.size))
    largest = parts.gather(-1, parts.abs().argmax(-1, keepdim=True))
    least = max(torch.finfo(groups.scales).tiny, _SMALLEST)
    best = parts.new_full(largest.shape, torch.inf)
    scales = torch.full_like(largest, least)
    for divisor in _DIVISORS[groups.bits]:
        tried = (largest.abs() / divisor).clamp(min=least).to(groups.scales).float()
        tried = torch.where(largest > 0, -tried, tried) if groups.negative else tried
        error = (_integers(parts, tried, groups) * tried - parts).square().sum(-1, keepdim=True)
        scales, best = torch.where(error < best, tried, scales), torch.minimum(error, best)
    return _integers(parts, scales, groups).flatten(-2).to(torch.int8), scales.squeeze(-1)


def _integers(parts: Tensor, scales: Tensor, groups: Groups) -> Tensor:
    return (parts / scales).round().clamp(*groups.limits)


def check_groups(graph: fx.GraphModule, scheme: Scheme) -> None:
    """Raises StageError for a layer or table to be rounded in groups whose rows the group does not divide.

    The libraries leave such a layer as it is, without a word.
    """
    kinds = {LINEAR: 1} if scheme.int4 else {}
    kinds |= {TABLE: 0} if scheme.table_bits < 8 else {}
    found = [node for node in graph.graph.nodes if node.target in kinds and Q_ANNOTATION_KEY not in node.meta]
    widths = {part_of(node): int(node.args[kinds[node.target]].meta["val"].shape[-1]) for node in found}
    wrong = {layer: width for layer, width in widths.items() if width % scheme.group}
    if wrong:
        layers = ", ".join(f"'{layer}' ({width} wide)" for layer, width in [*wrong.items()][:3])
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        fit = [str(size) for size in GROUP_SIZES if not any(width % size for width in wrong.values())]
        name = next(iter(wrong))
        raise StageError(
            f"a group of {scheme.group} does not divide the rows of {layers}{more}",
            f"set group to {' or '.join(fit)}" if fit else f"no group divides that: keep it in fp32, fp32: ['{name}']",
        )


class GroupedRounding(AffineQuantizedObserverBase):  # type: ignore[misc]
    """Stands before a weight or table. It is rounded as it is then: nothing is remembered."""

    def __init__(self, *, groups: Groups, training: bool, **_: Any) -> None:
        super().__init__(MappingType.SYMMETRIC, torch.int8, PerGroup(groups.size))
        self.groups, self.rounds = groups, training

    def forward(self, values: Tensor) -> Tensor:
        if not self.rounds:
            return values
        with torch.no_grad():
            integers, scales = rounded(values, self.groups)
            change = (integers.unflatten(-1, (-1, self.groups.size)) * scales[..., None]).flatten(-2) - values
        return values + change

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("scales are found in `convert`, from the weight itself")

    def convert(self, model: fx.GraphModule, observer_node: fx.Node) -> None:
        lookup = observer_node.args[0] if observer_node.args[0].target is TABLE else None
        source = lookup.args[0] if lookup else observer_node.args[0]
        integers, scales = rounded(tensor_of(model, source), self.groups)
        zeros = torch.zeros_like(scales, dtype=torch.int8)  # XNNPACK's lowering wants them
        named = {f"int{self.groups.bits}": integers, "scale": scales, "zero_point": zeros}
        with model.graph.inserting_before(lookup or observer_node):
            read = [
                add_tensor(model, source, _free(model, f"{source.target}_{name}"), value)
                for name, value in named.items()
            ]
            facts = (*self.groups.limits, torch.int8, self.groups.size, torch.float32)
            result = model.graph.call_function(decomposed.dequantize_per_channel_group.default, (*read, *facts))
        if lookup:
            lookup.args = (result, *lookup.args[1:])
        _put(model, observer_node, lookup or result)


def round_rows_read(prepared: fx.GraphModule) -> None:
    """Round the rows of a table that a batch reads instead of all rows, which is the same and takes less time."""
    for lookup in [node for node in prepared.graph.nodes if node.target is TABLE and node.args[0].op == "call_module"]:
        observer = lookup.args[0]
        if isinstance(prepared.get_submodule(observer.target), GroupedRounding):
            lookup.args = (observer.args[0], *lookup.args[1:])
            with prepared.graph.inserting_after(lookup):
                read = prepared.graph.call_module(observer.target, (lookup,))
            lookup.replace_all_uses_with(read, delete_user_cb=lambda user, read=read: user is not read)
            if not observer.users:
                prepared.graph.erase_node(observer)


class TokenRounding(AffineQuantizedObserverBase):  # type: ignore[misc]
    """Stands before an activation [..., features], each row of which gets its own range in every inference."""

    def __init__(self, *, training: bool, **_: Any) -> None:
        super().__init__(MappingType.ASYMMETRIC, torch.int8, PerToken())
        self.rounds = training

    def forward(self, values: Tensor) -> Tensor:
        if not self.rounds:
            return values
        least, most = _INT8
        with torch.no_grad():
            scale, zero = decomposed.choose_qparams_per_token_asymmetric(values, torch.int8)
            scale, zero = scale.float(), zero.float()
            change = (((values / scale).round() + zero).clamp(least, most) - zero) * scale - values
        return values + change

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("ranges are measured in each inference")

    def convert(self, model: fx.GraphModule, observer_node: fx.Node) -> None:
        given, call = observer_node.args[0], model.graph.call_function
        with model.graph.inserting_before(observer_node):
            found = call(decomposed.choose_qparams_per_token_asymmetric.default, (given, torch.int8))
            scale, zero = (call(operator.getitem, (found, place)) for place in range(2))
            facts = (scale, zero, *_INT8, torch.int8)
            integers = call(decomposed.quantize_per_token.default, (given, *facts))
            result = call(decomposed.dequantize_per_token.default, (integers, *facts, torch.float32))
        _put(model, observer_node, result)


def _free(model: fx.GraphModule, name: str) -> str:
    """Return the name, with a number if it is taken: a table that is also a layer's weight is rounded for each."""
    taken = {each for each, _ in model.named_buffers()} | {each for each, _ in model.named_parameters()}
    numbered = (f"{name}_{i}" if i > 1 else name for i in count(1))
    return next(each for each in numbered if each not in taken)


def _put(model: fx.GraphModule, observer_node: fx.Node, result: fx.Node) -> None:
    observer_node.replace_all_uses_with(result)
    model.graph.erase_node(observer_node)
