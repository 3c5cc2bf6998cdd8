"""Mean average precision as COCO defines it, of boxes: over all areas, with every object found by its own score.

A test compares it with pycocotools, which it replaces: it is all that a build needs of it.
Source: T.-Y. Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014, arXiv 1405.0312; cocoeval.py.
"""

from typing import TYPE_CHECKING

import numpy

from edgepack.data.tasks.detection.reading import shared

if TYPE_CHECKING:
    Array = numpy.typing.NDArray[numpy.float64]
    Integers = numpy.typing.NDArray[numpy.int64]

SHARES = numpy.linspace(0.5, 0.95, 10)  # intersection over union from which an object counts as found
_RECALLS = numpy.linspace(0, 1, 101)
_AT_HALF = 0  # the place of 0.5 in SHARES


class Precision:
    """What was found of the objects of each class, picture after picture."""

    def __init__(self, classes: int) -> None:
        self.scores: list[list[Array]] = [[] for _ in range(classes)]
        self.right: list[list[Array]] = [[] for _ in range(classes)]
        self.objects = [0] * classes

    def add(self, boxes: "Array", labels: "Integers", scores: "Array", truth: "Array") -> None:
        """Take what was found in a picture, the surest first, and its objects, [k, 5]: corners and label."""
        for label in {*labels.tolist(), *truth[:, 4].astype(int).tolist()}:
            found, wanted = labels == label, truth[truth[:, 4] == label, :4]
            self.scores[label].append(scores[found])
            self.right[label].append(_right(shared(boxes[found], wanted)))
            self.objects[label] += len(wanted)

    def compute(self) -> dict[str, float]:
        """Return the means over classes that have an object; 0 if none has."""
        each = [
            _average(numpy.concatenate(self.scores[label]), numpy.concatenate(self.right[label]), objects)
            for label, objects in enumerate(self.objects)
            if objects
        ]
        mean = numpy.mean(each, axis=0) if each else numpy.zeros(len(SHARES))
        return {"map": float(mean.mean()), "map.50": float(mean[_AT_HALF])}


def _right(shares: "Array") -> "Array":
    """Return whether each box is an object, at each of SHARES, [boxes, 10]; `shares` are [boxes, objects].

    Boxes take their objects one after the other, and of those that are left the one that they share most with.
    """
    right = numpy.zeros((len(shares), len(SHARES)), dtype=bool)
    if not shares.size:
        return right
    places = numpy.arange(len(SHARES))
    taken = numpy.zeros((len(SHARES), shares.shape[1]), dtype=bool)
    for row, share in enumerate(shares):
        left = numpy.where(taken, -1, share)
        best = left.shape[1] - 1 - left[:, ::-1].argmax(axis=1)  # of equal ones the last, as in cocoeval
        right[row] = left[places, best] >= SHARES
        taken[places[right[row]], best[right[row]]] = True
    return right


def _average(scores: "Array", right: "Array", objects: int) -> "Array":
    """Return the precision at each of SHARES, [10], averaged over 101 recalls: at each of them the best that is reached
    there or beyond, and 0 beyond the last.
    """
    order = numpy.argsort(-scores, kind="stable")
    hits = right[order].cumsum(axis=0)
    precisions = hits / numpy.arange(1, len(hits) + 1)[:, None]
    best = numpy.maximum.accumulate(precisions[::-1])[::-1]
    found = numpy.zeros(len(SHARES))
    for place in range(len(SHARES)):
        at = numpy.searchsorted(hits[:, place] / objects, _RECALLS, side="left")
        found[place] = best[at[at < len(best)], place].sum() / len(_RECALLS)
    return found
