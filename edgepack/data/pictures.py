"""Share code of picture data sets: random shifts and mirroring."""

from typing import TYPE_CHECKING

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
