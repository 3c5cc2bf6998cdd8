"""The loss of detectors with anchors: boxes of the anchors that have an object, and the class of each.

Source: W. Liu et al., SSD: Single Shot MultiBox Detector, ECCV 2016, arXiv 1512.02325, section 2.2; objects are
given to anchors as torchvision does it (torchvision.models.detection.ssd).
"""

import torch
from torch import Tensor
from torch.nn import functional

from edgepack.data.tasks.detection.reading import GROWN, MOVED
from edgepack.data.tasks.detection.selection import shared

_NEAR = 0.5  # intersection over union from which an anchor has the object
_BACKGROUND = 3  # anchors without an object that are learned, for each that has one


def loss(outputs: tuple[Tensor, ...], targets: Tensor, anchors: Tensor, smoothing: float = 0) -> Tensor:
    """Return smooth L1 of offsets plus cross entropy of classes, for each sample by its anchors that have an object;
    the mean over samples.
    """
    offsets, scores = (each.float() for each in outputs)
    classes, boxes = given(targets, anchors)
    has = classes > 0
    off = functional.smooth_l1_loss(
        offsets[has], encoded(boxes[has], anchors.expand(*has.shape, 4)[has]), reduction="none"
    )
    wrong = functional.cross_entropy(scores.transpose(1, 2), classes, reduction="none", label_smoothing=smoothing)
    return _mean(off.sum(1), wrong, has)


def distance(outputs: tuple[Tensor, ...], teacher: tuple[Tensor, ...], temperature: float) -> Tensor:
    """Return L1 of offsets, where the teacher sees an object, plus the KL divergence of classes at a temperature, there
    and at the other anchors where it is largest; each by the number of anchors where it sees one.

    Source: G. Chen et al., Learning Efficient Object Detection Models with Knowledge Distillation, NeurIPS 2017.
    """
    offsets, scores = (each.float() for each in outputs)
    goals, taught = (each.float() for each in teacher)
    sees = taught.argmax(2) > 0
    off = (offsets[sees] - goals[sees]).abs()
    soft, goal = (functional.log_softmax(each / temperature, dim=2) for each in (scores, taught))
    apart = functional.kl_div(soft, goal, reduction="none", log_target=True).sum(2) * temperature**2
    return _mean(off.sum(1), apart, sees)


def _mean(off: Tensor, wrong: Tensor, has: Tensor) -> Tensor:
    """Return the mean over samples of a loss on boxes, [anchors that have one], and one on classes, [n, anchors]."""
    # A picture without any object teaches what background is: its hardest anchors count as beside a single object.
    weight = 1 / has.sum(1).clamp(min=1)
    rows = has.nonzero()[:, 0]
    return ((off * weight[rows]).sum() + ((has | _hardest(wrong, has)) * wrong * weight[:, None]).sum()) / len(has)


def _hardest(wrong: Tensor, has: Tensor) -> Tensor:
    """Return which anchors without an object to learn, [n, anchors]: those with the largest loss."""
    rank = wrong.detach().masked_fill(has, -1).argsort(1, descending=True).argsort(1)
    return (rank < _BACKGROUND * has.sum(1, keepdim=True).clamp(min=1)) & ~has


def given(targets: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Return the class of each anchor, 0 for background, [n, anchors], and the box of its object, [n, anchors, 4].

    An anchor has the object that it covers best if they share enough; and each object has at least the anchor that
    covers it best. Targets are [n, most, 5]: corners and label, or -1.
    """
    there = targets[..., 4] >= 0
    shares = shared(targets[..., :4], _corners(anchors)).masked_fill(~there[..., None], -1)
    share, which = shares.max(1)
    samples, objects = there.nonzero(as_tuple=True)
    nearest = shares.argmax(2)[samples, objects]
    share[samples, nearest], which[samples, nearest] = 1.0, objects
    boxes = targets.gather(1, which[..., None].expand(-1, -1, 5))
    return ((boxes[..., 4] + 1) * (share >= _NEAR)).long(), boxes[..., :4]


def encoded(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Return the offsets of boxes, given by their corners, from anchors: the inverse of reading.decoded."""
    middles, sizes = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    moved = (middles - anchors[..., :2]) / anchors[..., 2:] / MOVED
    return torch.cat([moved, (sizes / anchors[..., 2:]).log() / GROWN], dim=-1)


def _corners(anchors: Tensor) -> Tensor:
    return torch.cat([anchors[:, :2] - anchors[:, 2:] / 2, anchors[:, :2] + anchors[:, 2:] / 2], dim=1)
