"""Define what each operator of torch does with channels: see __init__.py.

An operator that has no rule here takes one number to one number, or else nothing can go of what it is given.
"""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from edgepack.models.structure.flow import FIXED, FREE, Flow, Rule, one_label, varying


def unknown(flow: Flow, func: Any, given: dict[str, Any], answer: Any) -> None:
    """Treat an operator without a rule as elementwise if shapes allow; else hold the channels of its inputs."""
    tensors = [each for each in tree_leaves(given) if isinstance(each, Tensor)]
    answers = [each for each in tree_leaves(answer) if isinstance(each, Tensor)]
    if not answers:
        return
    if not tensors:
        constant(flow, func, given, answer)
        return
    shape = torch.broadcast_shapes(*(each.shape for each in tensors)) if _broadcast(tensors) else None
    if shape is None or any(each.shape != shape for each in answers) or "attention" in func._schema.name:
        stop(flow, func, given, answer)
        return
    labels = elementwise(flow, tensors, shape)
    if torch.Tag.pointwise not in func.tags:
        flow.suspect(labels, f"its channels go through '{_name(func)}'")
    for each in answers:
        flow.give(each, labels)


def stop(flow: Flow, func: Any, given: dict[str, Any], answer: Any, what: str = "") -> None:
    """Hold all channels of the inputs; the outputs are fixed."""
    why = flow.meets(what or f"mixed by '{_name(func)}'")
    for each in tree_leaves(given):
        if isinstance(each, Tensor):
            flow.hold(flow.canonical(flow.of(each)), why)
    for each in tree_leaves(answer):
        if isinstance(each, Tensor):
            flow.give(each, torch.tensor(float(FIXED)))


def elementwise(flow: Flow, tensors: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    found = torch.tensor(float(FREE)).expand(shape)
    wide = [(each, flow.canonical(flow.of(each)).expand(shape)) for each in tensors]
    moving = [labels for _, labels in wide if bool((labels > 0).any())]
    for tensor, labels in sorted(wide, key=lambda each: not bool((each[1] > 0).any())):
        others = [each for each in moving if each is not labels]
        still = not bool((labels > 0).any())
        if one_for_all(flow, tensor, shape, others, still=still):
            if not still:
                flow.hold(labels, flow.meets("combined with a tensor of more channels"))
            if others:
                continue
        flow.join(found, labels, beside(flow, tensor))
        found = torch.where(found == FREE, labels, found)
    return found


def beside(flow: Flow, tensor: Tensor) -> str:
    name = flow.tensors.get(id(tensor))
    return f"its channels are combined with the {name}, which is in no layer that can be resized" if name else ""


def one_for_all(flow: Flow, tensor: Tensor, shape: Sequence[int], others: Sequence[Tensor], *, still: bool) -> bool:
    """Return whether a tensor has the same values for all channels of the others."""
    own = [1] * (len(shape) - tensor.dim()) + [*tensor.shape]
    repeated = [at for at in range(len(shape)) if own[at] == 1 and shape[at] > 1]
    moves = {at for labels in others for at in varying(labels)}
    return moves <= {*repeated} if still else bool(moves & {*repeated})


def moves(flow: Flow, func: Any, given: dict[str, Any], answer: Any) -> None:
    """Move the labels as the operator moves the elements."""
    tensor = next(iter(given.values()))
    if isinstance(tensor, Tensor) and tensor in flow.matrices:
        turns(flow, func, given, answer)
        return
    before = {id(each): flow.of(each) for each in tree_leaves(given) if isinstance(each, Tensor)}
    indices = [*tree_leaves(given.get("indices")), given.get("index")]
    keep = {id(each) for each in indices if isinstance(each, Tensor)}
    moved = tree_map_only(Tensor, lambda each: each if id(each) in keep else before[id(each)], given)
    fill = {"value": FREE} if func._schema.name == "aten::constant_pad_nd" else {}
    moved.pop("dtype", None)
    if func._schema.name == "aten::im2col":  # pads with zeros, which here must become constants
        labels = _moved(func, {**moved, "self": moved["self"] - FREE}) + FREE
    else:
        labels = _moved(func, {**moved, **fill})
    for each, one in zip(tree_leaves(answer), tree_leaves(labels), strict=True):
        if one.untyped_storage().data_ptr() in {b.untyped_storage().data_ptr() for b in before.values()}:
            flow.labels[each] = one  # a view: writes to one change the other
        else:
            flow.give(each, one)


def turns(flow: Flow, func: Any, given: dict[str, Any], answer: Any) -> None:
    """Follow a weight through views that leave it a weight."""
    weight = next(iter(given.values()))
    sides, name = flow.matrices[weight], _name(func)
    flow.reads(weight)
    if not isinstance(answer, Tensor):  # pieces of it
        stop(flow, func, given, answer)
    elif name == "t" or (name == "transpose" and weight.dim() == 2):
        flow.matrices[answer] = sides[::-1]
    elif name in ("detach", "alias", "clone", "_to_copy", "lift_fresh", "contiguous"):
        flow.matrices[answer] = sides
    elif [n for n in answer.shape if n > 1] == [n for n in weight.shape if n > 1] and answer.shape[:2] == (
        *weight.shape[:2],
    ):
        flow.matrices[answer] = (*sides[:2], *[None] * (answer.dim() - 2))  # 1 x 1 as a Linear, and back
    else:
        stop(flow, func, given, answer)


def rolls(flow: Flow, func: Any, given: dict[str, Any], answer: Any) -> None:
    """Hold channels that are rolled or gathered: by numbers of the code, with which fewer channels would be others."""
    tensor, asked = given["self"], given.get("dims", given.get("dim"))
    dimensions = [asked] if isinstance(asked, int) else asked or [*range(tensor.dim())]
    if {at % tensor.dim() for at in dimensions} & {*varying(flow.canonical(flow.of(tensor)))}:
        stop(flow, func, given, answer)
    else:
        moves(flow, func, given, answer)


def views(flow: Flow, func: Any, given: dict[str, Any], answer: Any) -> None:
    moves(flow, func, given, answer)
    tensor = next(iter(given.values()))
    if answer in flow.labels and tensor in flow.labels:
        cuts(flow, _name(func), flow.canonical(flow.labels[tensor]), flow.labels[answer])


def cuts(flow: Flow, name: str, before: Tensor, labels: Tensor) -> None:
    """Handle channels that a view cuts into rows and columns: one of the two can lose places, equal in all others."""
    moving = varying(flow.canonical(labels))
    if len(moving) < 2 or len(moving) <= len(varying(before)):
        return
    flow.has_cut = True
    goes = moving[0 if flow.trailing else -1]
    flow.suspect(labels, f"its channels are cut into parts by '{name}'")
    for at in moving:
        if at != goes:
            flow.join(labels, labels.narrow(at, 0, 1))


def parts(flow: Flow, func: Any, given: dict[str, Any], answer: Any) -> None:
    """Keep parts of equal size equal; parts of other sizes are left to the model's code, and to the trial."""
    moves(flow, func, given, answer)
    tensor, dimension = given["self"], given.get("dim", 0) % max(1, given["self"].dim())
    labels = flow.of(tensor)
    pieces = tree_leaves(answer)
    if dimension not in varying(flow.canonical(labels)):
        return
    if func._schema.name in ("aten::select", "aten::unbind"):
        flow.hold(flow.canonical(labels), f"single channels are picked{flow.place()}")
        return
    flow.suspect(labels, f"its channels are split by number with '{_name(func)}'")
    size, step = pieces[0].shape[dimension], given.get("step", 1)
    start = given.get("start") or 0
    if step > 1 and labels.shape[dimension] % step == 0:
        blocks = labels.unflatten(dimension, (-1, step))
        flow.join(blocks, blocks.narrow(dimension + 1, 0, 1))
        return
    same = all(piece.shape[dimension] == size for piece in pieces) and start % max(1, size) == 0
    if same and size and size < labels.shape[dimension] and labels.shape[dimension] % size == 0:
        flow.alike(labels, dimension, size)


def convolves(flow: Flow, func: Any, given: dict[str, Any], answer: Tensor) -> None:
    weight, bias, groups = given["weight"], given.get("bias"), given.get("groups", 1)
    labels, sides = flow.of(given["input"]), flow.matrices.get(weight)
    if sides is None or sides[0] is None or sides[1] is None:
        of = "is in no layer" if isinstance(weight, nn.Parameter) else "is computed"
        what = f"mixed by a weight that {of}"
        stop(flow, func, {"input": given["input"]}, answer, what)
        return
    flow.reads(weight)
    transposed, channels = bool(given.get("transposed", False)), given["input"].shape[1]
    makes, takes = (sides[1], sides[0]) if transposed else sides[:2]
    flow.ran.add(int(makes[0]))
    if 1 < groups == channels:
        gives = depthwise(flow, labels, makes, takes, transposed)
    else:
        per_group = channels // groups
        if groups > 1:
            flow.alike(takes if transposed else makes, 0, per_group if transposed else len(makes) // groups)
        flow.read.add(int(takes[0]))
        flow.takes(labels, 1, takes if transposed else takes.repeat(groups))
        gives = makes.repeat(groups) if transposed else makes
    if bias is not None:
        flow.join(flow.of(bias), gives)
    flow.give(answer, gives.reshape(1, -1, *[1] * (answer.dim() - 2)))


def depthwise(flow: Flow, labels: Tensor, makes: Tensor, takes: Tensor, transposed: bool) -> Tensor:
    channels = labels.shape[1]
    if transposed:
        flow.takes(labels, 1, takes)
        return takes.repeat_interleave(len(makes))
    each = makes.reshape(channels, -1)
    flow.join(each, each[:, :1])
    flow.takes(labels, 1, each[:, 0])
    return makes


def multiplies(flow: Flow, func: Any, given: dict[str, Any], answer: Tensor) -> None:
    """Handle a matrix product in which one side is a layer's weight."""
    if answer.dim() != 2:
        stop(flow, func, given, answer)
        return
    left, right = given["mat1" if "mat1" in given else "self"], given["mat2"]
    one, other = flow.matrices.get(left), flow.matrices.get(right)
    sides = one or other
    if (one is None) == (other is None) or sides is None or sides[0] is None or sides[1] is None:
        stop(flow, func, given, answer)
        return
    flow.reads(left if one else right)
    flow.read.add(int(sides[1 if one else 0][0]))
    if other is not None:
        flow.takes(flow.of(left), 1, other[0])
        flow.ran.add(int(other[1][0]))
        labels = other[1].expand(answer.shape)
    else:
        flow.takes(flow.of(right), 0, one[1])
        flow.ran.add(int(one[0][0]))
        labels = one[0][:, None].expand(answer.shape)
    if "mat1" in given:
        flow.join(flow.of(given["self"]), labels)
    flow.give(answer, labels)


def looks_up(flow: Flow, func: Any, given: dict[str, Any], answer: Tensor) -> None:
    sides = flow.matrices.get(given["weight"])
    if sides is None or sides[1] is None:
        stop(flow, func, given, answer)
        return
    if sides[0] is not None:
        flow.hold(flow.canonical(sides[0]), flow.meets("looked up by their number"))
    flow.give(answer, sides[1])


def normalises(flow: Flow, func: Any, given: dict[str, Any], answer: Any) -> None:
    """Handle norms per channel or over all channels: in both, the remaining channels can be normalised alone."""
    labels = flow.of(given["input"])
    known = [given.get(name) for name in ("weight", "bias", "running_mean", "running_var")]
    for each in (each for each in known if each is not None):
        if "layer_norm" in func._schema.name:
            flow.join(labels, flow.of(each), beside(flow, each))
        else:
            flow.takes(labels, 1, flow.of(each))
    if "group_norm" in func._schema.name and given["group"] > 1:
        width = flow.fresh(labels.shape[1])
        flow.takes(labels, 1, width)
        flow.alike(width, 0, len(width) // given["group"])
    first, *rest = tree_leaves(answer)
    flow.give(first, labels)
    for each in rest:
        flow.give(each, torch.tensor(float(FREE)))


def pools(flow: Flow, func: Any, given: dict[str, Any], answer: Any) -> None:
    """Reduce the last dimensions, as many as the operator's name says."""
    tensor = given.get("self", given.get("input"))
    reduced(flow, func, given, answer, tensor, [-1 - at for at in range(_dimensions(func))])


def reduces(flow: Flow, func: Any, given: dict[str, Any], answer: Any) -> None:
    if isinstance(given.get("other"), Tensor):  # the elementwise maximum of two
        unknown(flow, func, given, answer)
        return
    tensor = next(iter(given.values()))
    asked = given.get("dim")
    chosen = [asked] if isinstance(asked, int) else [*asked] if asked else [*range(tensor.dim())]
    reduced(flow, func, given, answer, tensor, chosen, keeps=bool(given.get("keepdim")))


def reduced(
    flow: Flow, func: Any, given: Any, answer: Any, tensor: Tensor, over: Sequence[int], keeps: bool = True
) -> None:
    labels = flow.canonical(flow.of(tensor))
    if not over:
        unknown(flow, func, given, answer)
        return
    found = one_label(labels, [at % labels.dim() for at in over], keeps)
    if found is None:
        stop(flow, func, {"input": tensor}, answer)
        return
    for each in tree_leaves(answer):
        flow.give(each, found)


def along(flow: Flow, func: Any, given: dict[str, Any], answer: Any) -> None:
    """Handle operators along a dimension, such as softmax and sort, which must not be that of the channels."""
    labels = flow.canonical(flow.of(given["self"]))
    found = one_label(labels, [given.get("dim", -1) % max(1, labels.dim())], keeps=True)
    if found is None:
        stop(flow, func, given, answer)
        return
    for each in tree_leaves(answer):
        flow.give(each, found)


def picks(flow: Flow, func: Any, given: dict[str, Any], answer: Any) -> None:
    """Reduce a dimension to one of its elements; by default the last dimension."""
    reduces(flow, func, {**given, "dim": given.get("dim", -1)}, answer)


def gates(flow: Flow, func: Any, given: dict[str, Any], answer: Tensor) -> None:
    """Handle GLU: the first half times the second."""
    dimension = given.get("dim", -1) % answer.dim()
    labels = flow.of(given["self"])
    flow.alike(labels, dimension, answer.shape[dimension])
    flow.give(answer, labels.narrow(dimension, 0, answer.shape[dimension]))


def constant(flow: Flow, func: Any, given: dict[str, Any], answer: Any) -> None:
    for each in tree_leaves(answer):
        flow.give(each, torch.tensor(float(FREE)))


def writes(flow: Flow, func: Any, given: dict[str, Any], answer: Tensor) -> None:
    flow.of(given["self"]).copy_(flow.of(given["src"]).expand(given["self"].shape))


def _broadcast(tensors: Sequence[Tensor]) -> bool:
    try:
        torch.broadcast_shapes(*(each.shape for each in tensors))
    except RuntimeError:
        return False
    return True


def _moved(func: Any, given: dict[str, Any]) -> Any:
    names = [argument.name for argument in func._schema.arguments if not argument.kwarg_only]
    rest = {name: value for name, value in given.items() if name not in names}
    values = [given[name] for name in names if name in given]
    try:
        return func(*values, **rest)
    except RuntimeError:  # for other strides
        return torch.ops.aten.reshape(*values)


def _name(func: Any) -> str:
    return str(func._schema.name).removeprefix("aten::")


def _dimensions(func: Any) -> int:
    found = re.search(r"(\d)d", func._schema.name)
    return int(found[1]) if found else 2


_BY_RULE: dict[Rule, str] = {
    moves: (
        "permute transpose t expand squeeze unsqueeze cat stack flip repeat clone detach alias pixel_shuffle "
        "pixel_unshuffle native_channel_shuffle channel_shuffle constant_pad_nd reflection_pad1d reflection_pad2d "
        "reflection_pad3d replication_pad1d replication_pad2d replication_pad3d index_select index unfold im2col "
        "upsample_nearest1d upsample_nearest2d upsample_nearest3d lift_fresh contiguous _to_copy diagonal"
    ),
    rolls: "roll gather",
    views: "view _unsafe_view reshape _reshape_alias",
    parts: "split split_with_sizes unsafe_split slice select unbind",
    convolves: "convolution _convolution",
    multiplies: "mm addmm bmm baddbmm mv addmv dot",
    looks_up: "embedding",
    normalises: (
        "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm "
        "_batch_norm_with_update native_layer_norm native_group_norm"
    ),
    pools: (
        "avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool2d adaptive_max_pool2d "
        "adaptive_max_pool3d max_pool2d_with_indices max_pool3d_with_indices upsample_linear1d upsample_bilinear2d "
        "upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa avg_pool1d"
    ),
    reduces: (
        "mean sum nansum amax amin max min aminmax var std var_mean logsumexp linalg_vector_norm norm prod any all "
        "argmax argmin median nanmedian count_nonzero"
    ),
    picks: "kthvalue mode",
    along: "_softmax _log_softmax cumsum cumprod cummax cummin sort topk argsort logcumsumexp",
    gates: "glu",
    writes: "copy",
    constant: (
        "zeros_like ones_like empty_like full_like new_zeros new_ones new_empty new_full new_empty_strided zero fill"
    ),
}
_RULES: dict[str, Rule] = {name: rule for rule, names in _BY_RULE.items() for name in names.split()}


def rule_of(operator: str) -> Rule:
    return _RULES.get(operator, unknown)
