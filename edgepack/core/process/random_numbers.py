"""Run code without changing the state of any random generator."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import torch


@contextmanager
def own_random(seed: int | None = None) -> Iterator[None]:
    """Run a block with its own random state, and restore Python's, numpy's and torch's state afterwards."""
    python, arrays = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            if seed is not None:
                random.seed(seed)
                numpy.random.seed(seed)
                torch.default_generator.manual_seed(seed)  # only this one is restored: leave other devices' alone
            yield
        finally:
            random.setstate(python)
            numpy.random.set_state(arrays)
