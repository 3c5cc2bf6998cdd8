"""A program as XNNPACK takes it whole, where ExecuTorch's own lowering would leave some of it to slow kernels, or write
a file that does not load or answers otherwise.
"""

import operator
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from edgepack.models.structure.folding import WEIGHTED, fold, fold_weights, has_statistics, norms, scale_and_shift
from edgepack.models.structure.fx_graph import drop_unused, tensor_of

aten = torch.ops.aten
_LINEAR_FROM = 20.0  # default threshold of torch's softplus, above which it is the identity
_ROWS_AND_COLUMNS = (2, 3)  # dimensions of images
_INDISTINCT = 15.0  # log(1 + exp(-15)) is below the float32 resolution of 15


def delegable(
    program: ExportedProgram, inputs: tuple[torch.Tensor, ...], shapes: tuple[Any, ...] | None = None
) -> ExportedProgram:
    """Return the same program if XNNPACK can take it, else a rewritten one, exported anew.

    Each layer gets its own weight and bias: if two layers share an int8 bias, ExecuTorch keeps one copy with the scale
    of the first (1.4.1). Weights computed from other weights are computed here.
    """
    module = program.module(check_guards=False)
    passes: tuple[Callable[[fx.GraphModule], bool], ...] = (
        fold_weights,
        _without_norms,
        _give_own,
        _replace_unsupported,
    )
    if not any([each(module) for each in passes]):
        return program
    drop_unused(module)
    return torch.export.export(module, inputs, dynamic_shapes=shapes)


def _without_norms(module: fx.GraphModule) -> bool:
    """Fold batch norm into its layer, or replace it by a scale and a shift. ExecuTorch fails to fold it into a grouped
    transposed convolution, and folds one over steps into the outputs of a Linear (1.4.1).
    """
    found = [norm for norm in norms(module) if has_statistics(norm)]
    for norm in found:
        if not fold(module, norm):
            scale_and_shift(module, norm)
    return bool(found)


def _give_own(module: fx.GraphModule) -> bool:
    """Give a layer its own copy of a constant that another layer uses, with its dequantization; the file stores equal
    bytes only once anyway.
    """
    taken: set[int] = set()
    found = False
    for layer in [node for node in module.graph.nodes if node.target in WEIGHTED]:
        for place, value in enumerate(layer.args[1:3], start=1):
            held = _held(value)
            if held is None:
                continue
            if (memory := tensor_of(module, held).untyped_storage().data_ptr()) in taken:
                with module.graph.inserting_before(layer):
                    layer.update_arg(place, _copied(module, value, held, f"_{layer.name}_{place}"))
                found = True
            taken.add(memory)
    return found


def _held(value: object) -> fx.Node | None:
    """Return the node of the tensor behind a layer's weight or bias, directly or through dequantization."""
    while isinstance(value, fx.Node) and "dequantize" in str(value.target):
        value = value.args[0]
    return value if isinstance(value, fx.Node) and value.op == "get_attr" else None


def _copied(module: fx.GraphModule, value: fx.Node, held: fx.Node, name: str) -> fx.Node:
    if value is held:
        own = f"_edgepack{name}"  # not a name that the model uses
        module.register_buffer(own, tensor_of(module, held).clone())
        copy = module.graph.get_attr(own)
    else:
        inner = _copied(module, value.args[0], held, name)
        copy = module.graph.call_function(value.target, (inner, *value.args[1:]), dict(value.kwargs))
    copy.meta = dict(value.meta)
    return copy


def _replace_unsupported(module: fx.GraphModule) -> bool:
    """Replace operators that XNNPACK lacks by ones that it has."""
    found = False
    for node in [node for node in module.graph.nodes if node.target in _REPLACEMENTS]:
        with module.graph.inserting_before(node):
            made = _REPLACEMENTS[node.target](_Rewriter(module, node), *node.args)
        if made is not None:
            made.meta.setdefault("val", node.meta["val"])  # a later rewrite may ask for its shape
            node.replace_all_uses_with(made)
            module.graph.erase_node(node)
            found = True
    return found


class _Rewriter:
    """Writes operators in place of a node, with the metadata of its layer."""

    def __init__(self, module: fx.GraphModule, node: fx.Node) -> None:
        self.module = module
        self.meta = {key: value for key, value in node.meta.items() if key in ("nn_module_stack", "stack_trace")}

    def __call__(self, operator: Callable[..., object], *args: object) -> fx.Node:
        node = self.module.graph.call_function(operator, args)
        node.meta = dict(self.meta)
        return node

    def number(self, value: float) -> fx.Node:
        written = repr(float(value)).replace("-", "m").replace("+", "p").replace(".", "_")
        own = f"_edgepack_{written}"  # not a name that the model uses
        if not hasattr(self.module, own):
            self.module.register_buffer(own, torch.tensor([float(value)]))
        return self.module.graph.get_attr(own)


def _hard_sigmoid(call: _Rewriter, x: fx.Node) -> fx.Node:
    """clamp(x + 3, 0, 6) / 6 with float constants: ExecuTorch's own form has integers, and converts them in every
    inference (1.4.1).
    """
    added = call(aten.add.Tensor, x, call.number(3))
    return call(aten.div.Tensor, call(aten.hardtanh.default, added, 0.0, 6.0), call.number(6))


def _softplus(call: _Rewriter, x: fx.Node, beta: float = 1.0, threshold: float = _LINEAR_FROM) -> fx.Node | None:
    """max(x, 0) + log(1 + exp(-|x|)): ExecuTorch's own form needs a comparison, which XNNPACK lacks."""
    if threshold < _INDISTINCT:
        return None
    scaled = x if beta == 1 else call(aten.mul.Tensor, x, call.number(beta))
    inner = call(aten.exp.default, call(aten.neg.default, call(aten.abs.default, scaled)))
    rest = call(aten.log.default, call(aten.add.Tensor, inner, call.number(1)))
    result = call(aten.add.Tensor, call(aten.relu.default, scaled), rest)
    return result if beta == 1 else call(aten.div.Tensor, result, call.number(beta))


def _mish(call: _Rewriter, x: fx.Node) -> fx.Node:
    softplus = _softplus(call, x)
    return call(aten.mul.Tensor, x, call(aten.tanh.default, softplus))


def _log_sigmoid(call: _Rewriter, x: fx.Node) -> fx.Node:
    return call(aten.neg.default, _softplus(call, call(aten.neg.default, x)))


def _max_pool(call: _Rewriter, x: fx.Node, size: list[int], stride: object = None, *rest: object) -> fx.Node | None:
    """Set the default stride, which is the kernel size: XNNPACK's partitioner reads it without a check (1.4.1)."""
    return None if stride else call(aten.max_pool2d.default, x, size, size, *rest)


def _clamp(call: _Rewriter, x: fx.Node, least: float | None = None, most: float | None = None) -> fx.Node | None:
    """Clamp by maximum and minimum with constants if 0 is outside the limits: XNNPACK fuses a clamp into the
    convolution before it, and then allocates memory without end (1.4.1).
    """
    if ("val" in x.meta and not x.meta["val"].is_floating_point()) or _holds_zero(least, most):
        return None
    limited = x if least is None else call(aten.maximum.default, x, call.number(least))
    return limited if most is None else call(aten.minimum.default, limited, call.number(most))


def _holds_zero(least: float | None, most: float | None) -> bool:
    return (least is None or least <= 0) and (most is None or most >= 0)


def _first_of(call: _Rewriter, source: object, index: int) -> fx.Node | None:
    """Rewrite an operator that also returns indices, if only its first result is used."""
    if not isinstance(source, fx.Node) or any(each.users and each.args[1] for each in source.users):
        return None
    replacement = _FIRSTS.get(source.target)
    return replacement(call, *source.args) if replacement else None


def _greatest(call: _Rewriter, x: fx.Node, dim: int, keep: bool = False) -> fx.Node | None:
    """max over a dimension as amax, which ExecuTorch computes itself. XNNPACK's partitioner takes max of every
    four-dimensional tensor, but its lowering fails unless a row or column dimension is reduced and kept (1.4.1).
    """
    return None if keep and dim in _ROWS_AND_COLUMNS else call(aten.amax.default, x, [dim], keep)


def _adaptive_max_pool(call: _Rewriter, x: fx.Node, size: list[int]) -> fx.Node | None:
    """amax over windows, if all have one size: ExecuTorch has no adaptive max pooling, and XNNPACK's int8 pooling
    confuses the scale of its input with that of its output (1.4.1).
    """
    *before, height, width = x.meta["val"].shape
    rows, columns = size
    if height % rows or width % columns:
        return None
    windows = call(aten.reshape.default, x, [*before, rows, height // rows, columns, width // columns])
    return call(aten.amax.default, windows, [-3, -1])


def _crop(
    call: _Rewriter, x: fx.Node, amounts: list[int], mode: str = "constant", value: float | None = None
) -> fx.Node | None:
    """Write negative padding as slices: ExecuTorch's kernel refuses it at run time (1.4.1)."""
    if mode != "constant" or min(amounts, default=0) >= 0:
        return None
    for i, (before, after) in enumerate(zip(amounts[::2], amounts[1::2], strict=True), start=1):
        if min(before, after) < 0:
            x = call(aten.slice.Tensor, x, -i, max(-before, 0), after if after < 0 else sys.maxsize)
    rest = [max(amount, 0) for amount in amounts]
    return call(aten.pad.default, x, rest, mode, value) if any(rest) else x


_FIRSTS: dict[object, Callable[..., fx.Node | None]] = {
    aten.max.dim: _greatest,
    aten.adaptive_max_pool2d.default: _adaptive_max_pool,
}
_REPLACEMENTS: dict[object, Callable[..., fx.Node | None]] = {
    aten.hardsigmoid.default: _hard_sigmoid,
    aten.hardsigmoid_.default: _hard_sigmoid,
    aten.softplus.default: _softplus,
    aten.mish.default: _mish,
    aten.mish_.default: _mish,
    aten.log_sigmoid.default: _log_sigmoid,
    aten.max_pool2d.default: _max_pool,
    aten.clamp.default: _clamp,
    aten.clamp_.default: _clamp,
    aten.clamp_min.default: _clamp,
    aten.clamp_min_.default: _clamp,
    aten.clip.default: _clamp,
    aten.pad.default: _crop,
    operator.getitem: _first_of,
}
