"""Layout, precision and determinism of training on this processor."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy
import torch
from torch import nn

from edgepack.compress.contract import Precision
from edgepack.core.errors import StageError
from edgepack.core.provenance import BF16, cpu_features


@dataclass(frozen=True, kw_only=True)
class Numerics:
    """How tensors are laid out and multiplied in training: chosen by `numerics`, never by a timing or the processor."""

    channels_last: bool
    bfloat16: bool

    @property
    def name(self) -> str:
        return "+".join(["channels_last"] * self.channels_last + ["bf16"] * self.bfloat16) or "default"


def numerics(module: nn.Module, precision: Precision = "fp32") -> Numerics:
    """Return how `module` is trained on a CPU. Raises StageError where the recipe asks for what is not possible.

    This depends on the model alone, so that two builds of one recipe compute the same. Figures: benchmarks/numerics.md.
    channels_last is never slower for convolutions and up to twice as fast for depthwise ones. With AVX-512 BF16 alone
    bf16 is always slower, and with AMX training narrow models has ended in NaN: it is used only if a recipe asks for
    it.
    """
    program = isinstance(module, torch.fx.GraphModule)
    if precision == "bf16":
        check_bf16()
        if program:
            raise StageError("an exported program is trained in fp32 only", "use precision: fp32")
    convolutions = any(isinstance(layer, nn.Conv2d) for layer in module.modules())
    return Numerics(channels_last=convolutions or program, bfloat16=precision == "bf16")


def check_bf16() -> None:
    """Raises StageError on a processor that would emulate bf16, which is slow."""
    if not cpu_features() & BF16:
        raise StageError(
            f"this processor has no bf16 instructions: it has none of {', '.join(sorted(BF16))}", "use precision: fp32"
        )


@contextmanager
def deterministic(seed: int, threads: int) -> Iterator[None]:
    """Make the results reproducible: one seed, one number of threads, no operator whose result depends on timing."""
    torch.manual_seed(seed)
    numpy.random.seed(seed % 2**32)  # users' functions and models draw from these two
    random.seed(seed)
    torch.set_num_threads(threads)
    torch.utils.deterministic.fill_uninitialized_memory = False
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
