"""What data sets of pictures share: how splits are drawn, how pictures are shifted and mirrored at random."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy
    from torch import Generator, Tensor

    Indices = numpy.typing.NDArray[numpy.int64]


def drawn(classes: Sequence[int], shares: Mapping[str, float]) -> "dict[str, Indices]":
    """Where the samples of each part stand: about this share of every class, one at least, and the rest as "train".

    Drawn and shuffled by numpy's legacy generator, whose stream never changes from version to version.
    """
    import numpy

    random = numpy.random.RandomState(0)
    known = numpy.asarray(classes)
    parts: dict[str, list[Any]] = {"train": [], **{name: [] for name in shares}}
    for label in numpy.unique(known):
        members = random.permutation(numpy.flatnonzero(known == label))
        ends = numpy.cumsum([quota(len(members), share) for share in shares.values()])
        for name, part in zip((*shares, "train"), numpy.split(members, ends), strict=True):
            parts[name].append(part)
    return {name: random.permutation(numpy.concatenate(members)) for name, members in parts.items()}


def quota(samples: int, share: float) -> int:
    """How many of a class's samples a part gets.

    >>> quota(100, 0.15), quota(3, 0.15)
    (15, 1)
    """
    return max(1, round(samples * share))


def moved(pictures: "Tensor", size: int, random: "Generator") -> "Tensor":
    """From each picture [n, c, h, w] a window of `size` x `size` at a random place, every second one mirrored."""
    import torch

    count, channels, height, width = pictures.shape
    rows = torch.randint(height - size + 1, (count, 1), generator=random) + torch.arange(size)
    columns = torch.randint(width - size + 1, (count, 1), generator=random) + torch.arange(size)
    mirrored = torch.rand(count, 1, generator=random) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    sample, channel = torch.arange(count)[:, None, None, None], torch.arange(channels)[:, None, None]
    window: Tensor = pictures[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]
    return window
