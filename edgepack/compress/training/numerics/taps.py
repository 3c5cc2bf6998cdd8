"""Convolutions on a few pixels, without the taps that only ever meet padding.

The last layers of a net made for larger pictures see one pixel: of a 3 x 3 kernel eight taps multiply zeros, and their
gradients, which are zero too, take a good part of a training step (benchmarks/taps.md).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from unittest.mock import patch

import torch
from torch import nn
from torch.nn import functional

_convolve = nn.Conv2d._conv_forward


@contextmanager
def used_only() -> Iterator[None]:
    """Skip unused taps while a model is trained: results are the same, and the skipped taps get gradients of zero."""
    with patch.object(nn.Conv2d, "_conv_forward", _forward):
        yield


def _forward(self: nn.Conv2d, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    plain = self.training and self.padding_mode == "zeros" and not isinstance(self.padding, str)
    if not plain or x.dim() != 4:
        return _convolve(self, x, weight, bias)
    ways = zip(x.shape[2:], self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
    (top, rows, above), (left, columns, beside) = (_used(*way) for way in ways)
    if (rows, columns) == self.kernel_size:
        return _convolve(self, x, weight, bias)
    used = weight[:, :, top : top + rows, left : left + columns]
    return functional.conv2d(x, used, bias, self.stride, (above, beside), self.dilation, self.groups)


@cache
def _used(size: int, kernel: int, stride: int, padding: int, dilation: int) -> tuple[int, int, int]:
    """Return the first tap that meets a pixel, the number of such taps, and the padding for these alone.

    >>> _used(1, 3, 1, 1, 1), _used(2, 3, 2, 1, 1), _used(2, 3, 1, 1, 1)
    ((1, 1, 0), (1, 2, 0), (0, 3, 1))
    """
    outputs = _outputs(size, kernel, stride, padding, dilation)
    reach = (outputs - 1) * stride
    met = [tap for tap in range(kernel) if tap * dilation - padding < size and tap * dilation - padding + reach >= 0]
    left = padding - met[0] * dilation if met else -1
    if left < 0 or _outputs(size, len(met), stride, left, dilation) != outputs:
        return 0, kernel, padding
    return met[0], len(met), left


def _outputs(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
