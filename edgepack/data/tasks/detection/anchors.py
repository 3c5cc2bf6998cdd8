"""Anchors: the boxes that a model's outputs are offsets from, fixed by the size of the picture.

Several grids lie over the picture, each `stride` pixels wide; in the middle of each cell stand boxes of one size in
several shapes. Grids follow each other from the finest to the coarsest, cells row by row, shapes innermost.

Source: W. Liu et al., SSD: Single Shot MultiBox Detector, ECCV 2016, arXiv 1512.02325, section 2.2.
"""

from collections.abc import Iterator, Sequence
from math import ceil, sqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy

    Floats = numpy.typing.NDArray[numpy.float32]

Grid = tuple[int, int]


def grids(height: int, width: int, strides: Sequence[int]) -> list[Grid]:
    """Return rows and columns of each grid; a last cell may be cut by the edge of the picture.

    >>> grids(320, 320, [16, 32, 64, 128, 256, 512])
    [(20, 20), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1)]
    """
    return [(ceil(height / stride), ceil(width / stride)) for stride in strides]


def count(found: Sequence[Grid], ratios: Sequence[float]) -> int:
    """Return the number of anchors.

    >>> count(grids(320, 320, [16, 32, 64, 128, 256, 512]), [2, 3])
    3234
    """
    return sum(rows * columns for rows, columns in found) * (2 + 2 * len(ratios))


def anchors(
    height: int, width: int, strides: Sequence[int], scales: tuple[float, float], ratios: Sequence[float]
) -> "Floats":
    """Return the middle (x, y), width and height of each anchor in pixels, float32 [anchors, 4]."""
    import numpy

    found = grids(height, width, strides)
    made = []
    for (rows, columns), (size, larger) in zip(found, _sizes(scales, len(found)), strict=True):
        y, x = numpy.meshgrid((numpy.arange(rows) + 0.5) / rows, (numpy.arange(columns) + 0.5) / columns, indexing="ij")
        shapes = numpy.minimum(1, [*_shapes(size, larger, ratios)])
        middles = numpy.stack([x, y], axis=-1).reshape(-1, 1, 2).repeat(len(shapes), axis=1)
        made.append(numpy.concatenate([middles, numpy.broadcast_to(shapes, middles.shape)], axis=2).reshape(-1, 4))
    whole: Floats = (numpy.concatenate(made) * [width, height, width, height]).astype("float32")
    return whole


def _sizes(scales: tuple[float, float], levels: int) -> list[tuple[float, float]]:
    """Return the size of the anchors of each grid, evenly spaced, and of the next one; the last is the picture's."""
    first, last = scales
    steps = [first + (last - first) * level / (levels - 1) for level in range(levels)] if levels > 1 else [first]
    return list(zip(steps, [*steps[1:], 1.0 if levels > 1 else last], strict=True))


def _shapes(size: float, larger: float, ratios: Sequence[float]) -> Iterator[tuple[float, float]]:
    """Yield width and height: two squares, and each ratio lying and standing."""
    yield size, size
    yield sqrt(size * larger), sqrt(size * larger)
    for ratio in ratios:
        long, short = size * sqrt(ratio), size / sqrt(ratio)
        yield long, short
        yield short, long
