"""Run code without changing the state of any random generator."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import torch


@contextmanager
def own_random(seed: int | None = None) -> Iterator[None]:
    """Inside, chance is that of others: what comes after draws as if nothing had been drawn here."""
    python, arrays = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            if seed is not None:
                random.seed(seed)
                numpy.random.seed(seed)
                torch.default_generator.manual_seed(seed)  # the one that is put back: not those of other devices
            yield
        finally:
            random.setstate(python)
            numpy.random.set_state(arrays)
