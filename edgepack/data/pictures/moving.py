"""Cut pictures at random places and mirror half of them."""

from typing import TYPE_CHECKING

from edgepack.data.loading import draws

if TYPE_CHECKING:
    from torch import Generator, Tensor


def moved(pictures: "Tensor", size: int, random: "Generator", *, mirror: bool = True) -> "Tensor":
    """Return a window of `size` x `size` at a random place of each picture [n, c, h, w]; half are mirrored."""
    import torch

    count, channels, height, width = pictures.shape
    rows = torch.randint(height - size + 1, (count, 1), generator=random) + torch.arange(size)
    columns = torch.randint(width - size + 1, (count, 1), generator=random) + torch.arange(size)
    if mirror:
        columns = torch.where(torch.rand(count, 1, generator=random) < 0.5, columns.flip(1), columns)
    sample, channel = torch.arange(count)[:, None, None, None], torch.arange(channels)[:, None, None]
    window: Tensor = pictures[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]
    return window


def moved_each(pictures: "Tensor", size: int, seeds: "Tensor") -> "Tensor":
    """Do the same to each picture by its own seed: what becomes of it depends on no other picture."""
    import torch

    height, width = pictures.shape[2:]
    tops, lefts = draws.integers(seeds, 0, height - size + 1), draws.integers(seeds, 1, width - size + 1)
    mirrored = draws.integers(seeds, 2, 2)
    windows = pictures.new_empty((len(pictures), pictures.shape[1], size, size))
    for window, picture, top, left, mirror in zip(
        windows, pictures, tops.tolist(), lefts.tolist(), mirrored.tolist(), strict=True
    ):
        cut = picture[:, top : top + size, left : left + size]
        torch.Tensor.copy_(window, cut.flip(2) if mirror else cut)
    return windows
