"""Read the objects that a detector's file gives: all that an app does after the model. It needs NumPy alone.

    facts = json.load(open("io/detection.json"))
    boxes, labels, scores = objects(outputs["boxes"][0], outputs["scores"][0], outputs["labels"][0], **facts)

Boxes are left, top, right and bottom in pixels of the model's input; labels are lines of io/labels.txt, from 0.
"""

from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]


def objects(boxes: Array, scores: Array, labels: Array, *, threshold: float) -> tuple[Array, Array, Array]:
    """Return boxes [k, 4], labels [k] and probabilities [k] of the objects in one picture, the surest first.

    `boxes` are [most, 4], `scores` and `labels` [most], as the file gives them: places that it does not need have a
    score of 0. An object has at least the probability `threshold`.
    """
    there = scores >= threshold
    return boxes[there], labels[there].astype(int), scores[there]
