"""Compose scenes of small pictures: objects on a background of soft noise, each where it hides little of others.

    composed(pictures, labels, count=100, side=96, most=4, seed=0)

Both kinds of truth are known to the pixel: a mask with the class of each pixel, and a box for each object.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy

    Bytes = numpy.typing.NDArray[numpy.uint8]
    Integers = numpy.typing.NDArray[numpy.int64]
    Floats = numpy.typing.NDArray[numpy.float32]

VERSION = 1  # bump when the same objects and seed would give other scenes
_SIDES = 0.25, 0.5  # of objects, as shares of the scene's side
_HIDDEN = 0.1  # largest share of the smaller one of two boxes that another may cover
_TRIES = 10  # places that are drawn for an object, before the scene goes without it
_GRID = 5  # points of a side between which the background is interpolated
_GREY = 30, 120  # of the background
_FAINT = 16  # an object's pixels are those above it: around many there are traces of the background they were cut from
_INSIDE = 128  # of 255: ... and of a resized object those of which it covers half


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """Scenes with the truth about them.

    pictures    uint8 [n, 1, side, side], grey
    masks       uint8 [n, side, side]: 0 is background, and 1 + label an object of this label
    boxes       float32 [n, most, 4]: left, top, right and bottom of each whole object in pixels, 0 where there is none
    labels      int64 [n, most]: the label of each box, -1 where there is none
    """

    pictures: "Bytes"
    masks: "Bytes"
    boxes: "Floats"
    labels: "Integers"


def composed(pictures: "Bytes", labels: Any, *, count: int, side: int, most: int, seed: int) -> Scenes:
    """Return scenes of 1 to `most` objects, drawn from square pictures [objects, h, h] whose background is 0. They are
    uint8, and `labels` [objects] integers from 0.

    Uses numpy's legacy generator, whose stream is the same in all versions.
    """
    import numpy

    random = numpy.random.RandomState(seed)
    found = Scenes(
        pictures=numpy.empty((count, 1, side, side), numpy.uint8),
        masks=numpy.zeros((count, side, side), numpy.uint8),
        boxes=numpy.zeros((count, most, 4), numpy.float32),
        labels=numpy.full((count, most), -1, numpy.int64),
    )
    for scene in range(count):
        picture, mask = found.pictures[scene, 0], found.masks[scene]
        picture[:] = _background(side, random)
        taken: list[tuple[int, int, int, int]] = []
        for which in random.randint(len(pictures), size=random.randint(1, most + 1)).tolist():
            for (left, top), body, shape in _placed(pictures[which], side, taken, random):
                found.labels[scene, len(taken)] = labels[which]
                found.boxes[scene, len(taken)] = box = _box(shape, left, top)
                taken.append(box)
                window = slice(top, top + len(body)), slice(left, left + len(body))
                picture[window][shape] = body[shape]
                mask[window][shape] = 1 + labels[which]
    return found


def _background(side: int, random: Any) -> "Bytes":
    """Return a few random greys, interpolated over the scene: neither black as the objects' own, nor of one grey."""
    return _resized(random.randint(*_GREY, size=(_GRID, _GRID)).astype("uint8"), side)


def _placed(
    picture: "Bytes", side: int, taken: "list[tuple[int, int, int, int]]", random: Any
) -> "Iterator[tuple[tuple[int, int], Bytes, Any]]":
    """Yield where an object of a random size and place begins, left and top, its pixels, and which of them are its own;
    nothing where every place that was drawn hides too much.
    """
    size = random.randint(*(round(share * side) for share in _SIDES))
    shape = _resized((picture > _FAINT).astype("uint8") * 255, size) >= _INSIDE
    for left, top in random.randint(side - size + 1, size=(_TRIES, 2)).tolist() if shape.any() else ():
        box = _box(shape, left, top)
        if all(_hidden(box, other) <= _HIDDEN for other in taken):
            yield (left, top), _resized(picture, size), shape
            return


def _resized(picture: "Bytes", side: int) -> "Bytes":
    import numpy
    from PIL import Image

    return numpy.array(Image.fromarray(picture).resize((side, side), Image.Resampling.BILINEAR))


def _box(shape: Any, left: int, top: int) -> tuple[int, int, int, int]:
    rows, columns = shape.any(1).nonzero()[0], shape.any(0).nonzero()[0]
    return left + int(columns[0]), top + int(rows[0]), left + int(columns[-1]) + 1, top + int(rows[-1]) + 1


def _hidden(box: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    """Return which share of the smaller box lies in the other.

    >>> _hidden((0, 0, 10, 10), (5, 0, 7, 10)), _hidden((0, 0, 2, 2), (2, 0, 4, 4))
    (1.0, 0.0)
    """
    width, height = (min(box[i + 2], other[i + 2]) - max(box[i], other[i]) for i in (0, 1))
    smaller = min((each[2] - each[0]) * (each[3] - each[1]) for each in (box, other))
    return max(0, width) * max(0, height) / smaller
