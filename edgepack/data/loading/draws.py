"""Random numbers that depend on a seed and a sample alone, so that any process may draw them, in any order.

seeds = of_samples(seed, indices)        # one for each sample
integers(seeds, 0, 7), integers(seeds, 1, 7)        # its first and second draw, 0 to 6

The generator is SplitMix64: each draw is a hash of the seed and a counter, and all samples of a batch are drawn at
once.
Source: G. Steele, D. Lea and C. Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA 2014.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy
    from torch import Tensor

    Words = numpy.typing.NDArray[numpy.uint64]

_STEP = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio, odd
_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


def of_samples(seed: int, indices: "Tensor") -> "Tensor":
    """Return a seed for each sample, int64 of the shape of `indices`, never negative."""
    import numpy
    import torch

    start = _mixed(numpy.array([seed % 2**64], numpy.uint64))
    found = _mixed(start + _stepped(indices.numpy().astype(numpy.uint64)))
    return torch.from_numpy((found >> numpy.uint64(1)).astype(numpy.int64))


def integers(seeds: "Tensor", draw: int, bound: int) -> "Tensor":
    """Return an integer from 0 to `bound` - 1 for each seed: its draw of this number, counted from 0."""
    import numpy
    import torch

    found = _mixed(seeds.numpy().astype(numpy.uint64) + _stepped(numpy.array([draw + 1], numpy.uint64)))
    return torch.from_numpy((found % numpy.uint64(bound)).astype(numpy.int64))


def _stepped(counters: "Words") -> "Words":
    import numpy

    return counters * numpy.uint64(_STEP)


def _mixed(words: "Words") -> "Words":
    import numpy

    for shift, factor in _ROUNDS:
        words = (words ^ (words >> numpy.uint64(shift))) * numpy.uint64(factor)
    return words ^ (words >> numpy.uint64(31))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of torch, numpy and Python in the block, and leave them as they were."""
    import numpy
    import torch

    before = torch.get_rng_state(), numpy.random.get_state(), random.getstate()
    torch.manual_seed(seed)
    numpy.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        numpy.random.set_state(before[1])
        random.setstate(before[2])
