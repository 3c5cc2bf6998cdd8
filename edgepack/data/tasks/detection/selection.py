"""Select objects inside of an exported file: what reading.py does, by tensor operations of fixed shapes.

ExecuTorch has no non-maximum suppression, and that of ONNX gives another number of boxes for each picture. Here it is
unrolled: `most` times the surest box that is left is taken, and those that it covers are dropped. That is greedy
suppression itself, no approximation of it.
"""

import torch
from torch import Tensor
from torch.nn import functional

from edgepack.data.tasks.detection.reading import CANDIDATES, GROWN, LARGEST, MOVED


def objects(
    offsets: Tensor,
    scores: Tensor,
    anchors: Tensor,
    *,
    picture: tuple[int, int],
    threshold: float,
    overlap: float,
    most: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes [n, most, 4], probabilities [n, most] and labels [n, most] as floats, the surest first.

    Arguments are those of reading.objects, for n pictures. Places that are not needed hold zeros. The result is the
    same but for candidates whose scores equal that of the last one: which of them are looked at is up to the runtime.
    It takes memory for some matrices of CANDIDATES^2 numbers a picture.
    """
    likely = scores.softmax(2)[..., 1:]  # the first column is background
    labels = likely.shape[2]
    _, order = likely.flatten(1).topk(min(CANDIDATES, len(anchors) * labels))
    # Of equal scores, which int8 gives often, each runtime has its own order: they are put in that of the anchors.
    order = -(-order).topk(order.shape[1]).values
    likely = likely.flatten(1).gather(1, order)
    which = order // labels
    boxes = decoded(offsets.gather(1, which[..., None].expand(-1, -1, 4)), anchors[which])
    boxes = torch.minimum(boxes.clamp(min=0), boxes.new_tensor([*picture, *picture]))
    # A first place of zeros is what is picked when nothing is left.
    boxes, likely = functional.pad(boxes, (0, 0, 1, 0)), functional.pad(likely, (1, 0))
    numbers, classes = (functional.pad(each.float(), (1, 0)) for each in (order, order - which * labels))
    kept = _surest(likely * (likely >= threshold), _conflict(boxes, classes, numbers) <= overlap, most)
    return boxes.gather(1, kept[..., None].expand(-1, -1, 4)), likely.gather(1, kept), classes.gather(1, kept)


def decoded(offsets: Tensor, anchors: Tensor) -> Tensor:
    """Return the corners of anchors that were moved and resized, [..., 4]."""
    middles = anchors[..., :2] + MOVED * offsets[..., :2] * anchors[..., 2:]
    halves = anchors[..., 2:] * (GROWN * offsets[..., 2:]).clamp(max=LARGEST).exp() / 2
    return torch.cat([middles - halves, middles + halves], dim=-1)


def _conflict(boxes: Tensor, classes: Tensor, numbers: Tensor) -> Tensor:
    """Return the intersection over union of boxes with one class, and 1 of each with itself, [n, k, k].

    A box without area shares nothing with itself. Classes are compared by differences: those are delegated.
    """
    same, itself = (1 - (each[:, :, None] - each[:, None]).abs() for each in (classes, numbers))
    return torch.maximum(shared(boxes, boxes) * same.clamp(min=0), itself)


def shared(ones: Tensor, others: Tensor) -> Tensor:
    """Return the intersection over union of boxes [n, k, 4] and others, [n, j, 4] or [j, 4], as [n, k, j]."""
    left, top, right, bottom = ones[..., None].unbind(2)
    its_left, its_top, its_right, its_bottom = others[..., None, :, :].unbind(-1)
    width = (torch.minimum(right, its_right) - torch.maximum(left, its_left)).clamp(min=0)
    height = (torch.minimum(bottom, its_bottom) - torch.maximum(top, its_top)).clamp(min=0)
    both, areas = width * height, (right - left) * (bottom - top)
    return both / (areas + (its_right - its_left) * (its_bottom - its_top) - both).clamp(min=1e-9)


def _surest(likely: Tensor, beside: Tensor, most: int) -> Tensor:
    """Return the rows to keep, the surest first, [n, most]: 0 where none is left.

    `likely` are [n, k], and `beside` [n, k, k] says of each box which others may stay beside it.
    """
    left, none = likely[:, None], torch.zeros_like(likely[:, None])
    picked = []
    for _ in range(most):
        picked.append(left.argmax(2, keepdim=True))  # of equal ones the first
        left = torch.where(beside.gather(1, picked[-1].expand(-1, -1, left.shape[2])), left, none)
    return torch.cat(picked, dim=1).squeeze(2)
