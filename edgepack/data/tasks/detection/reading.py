"""Turn the outputs of a detector into objects: what an app does after the model. It needs NumPy alone.

    facts = json.load(open("io/detection.json"))
    anchors = numpy.fromfile("io/anchors.bin", "<f4").reshape(-1, 4)
    boxes, labels, scores = objects(outputs["boxes"][0], outputs["scores"][0], anchors, **facts)

Boxes are left, top, right and bottom in pixels of the model's input; labels are lines of io/labels.txt, from 0.
"""

from typing import Any

import numpy
from numpy.typing import NDArray

Array = NDArray[Any]

MOVED, GROWN = 0.1, 0.2  # an offset of 1 moves an anchor by a tenth of its size, or makes it exp(0.2) times as large
LARGEST = 4.135  # the logarithm of 62.5, by which an anchor may grow at most: more would overflow
CANDIDATES = 400  # scores of a picture that are looked at, the highest ones


def objects(
    offsets: Array,
    scores: Array,
    anchors: Array,
    *,
    picture: tuple[int, int],
    threshold: float,
    overlap: float,
    most: int,
) -> tuple[Array, Array, Array]:
    """Return boxes [k, 4], labels [k] and probabilities [k] of the objects in one picture, the surest first.

    `offsets` are [anchors, 4] and `scores` [anchors, 1 + labels], as the model gives them; `anchors` [anchors, 4] are
    their middles and sizes, and `picture` the width and height of the input. An object has at least the probability
    `threshold`; of boxes with one label that share more than `overlap` of the area of both, only the surest is kept;
    `most` are given at most.
    """
    likely = probabilities(scores)[:, 1:]  # the first column is background
    order = numpy.argsort(-likely, axis=None, kind="stable")[:CANDIDATES]
    order = order[likely.flat[order] >= threshold]
    which, labels = numpy.unravel_index(order, likely.shape)
    boxes = decoded(offsets[which], anchors[which])
    boxes = numpy.clip(boxes, 0, numpy.tile(numpy.asarray(picture, boxes.dtype), 2))
    kept = surest(boxes, labels, overlap, most)
    return boxes[kept], labels[kept], likely.flat[order[kept]]


def probabilities(scores: Array) -> Array:
    """Return the softmax of each row."""
    powers = numpy.exp(scores - scores.max(axis=1, keepdims=True))
    found: Array = powers / powers.sum(axis=1, keepdims=True)
    return found


def decoded(offsets: Array, anchors: Array) -> Array:
    """Return the corners of anchors that were moved and resized, [k, 4]."""
    middles = anchors[:, :2] + MOVED * offsets[:, :2] * anchors[:, 2:]
    halves = anchors[:, 2:] * numpy.exp(numpy.minimum(GROWN * offsets[:, 2:], LARGEST)) / 2
    return numpy.concatenate([middles - halves, middles + halves], axis=1)


def surest(boxes: Array, labels: Array, overlap: float, most: int) -> Array:
    """Return the rows to keep of boxes that come the surest first (non-maximum suppression)."""
    kept: list[Any] = []
    left = numpy.arange(len(boxes))
    while len(left) and len(kept) < most:
        first, left = left[0], left[1:]
        kept.append(first)
        same = (labels[left] == labels[first]) & (shared(boxes[first : first + 1], boxes[left])[0] > overlap)
        left = left[~same]
    return numpy.array(kept, dtype=int)


def shared(ones: Array, others: Array) -> Array:
    """Return which share of the area of two boxes lies in both (intersection over union), [ones, others]."""
    low = numpy.maximum(ones[:, None, :2], others[None, :, :2])
    high = numpy.minimum(ones[:, None, 2:], others[None, :, 2:])
    both = numpy.prod(numpy.maximum(high - low, 0), axis=2)
    areas = [numpy.prod(each[:, 2:] - each[:, :2], axis=1) for each in (ones, others)]
    found: Array = both / numpy.maximum(areas[0][:, None] + areas[1] - both, 1e-9)
    return found
