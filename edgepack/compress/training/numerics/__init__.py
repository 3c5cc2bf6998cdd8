"""Layout, precision and determinism of training on this processor."""

import copy
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy
import torch
from torch import nn

from edgepack.config.compute import AskedPrecision, Hardware, Precision
from edgepack.core.errors import StageError
from edgepack.core.provenance import BF16, cpu_features
from edgepack.models.structure.fx_graph import device_of, move


@dataclass(frozen=True, kw_only=True)
class Numerics:
    """How tensors are laid out and multiplied in training: chosen by `numerics`, never by a timing or the processor."""

    channels_last: bool
    precision: Precision = "fp32"

    @property
    def name(self) -> str:
        mixed = "" if self.precision == "fp32" else self.precision
        return "+".join(filter(None, ("channels_last" * self.channels_last, mixed))) or "default"

    @property
    def mixed(self) -> torch.dtype | None:
        """Return the type in which layers multiply that can, or None."""
        return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]


def numerics(module: nn.Module, precision: AskedPrecision = "auto", hardware: Hardware | None = None) -> Numerics:
    """Return how `module` is trained. Raises StageError where the recipe asks for what is not possible.

    On a CPU this depends on the model alone, so that two builds of one recipe compute the same. Figures:
    benchmarks/numerics.md. channels_last is never slower for convolutions and up to twice as fast for depthwise ones.
    With AVX-512 BF16 alone bf16 is always slower, and with AMX training narrow models has ended in NaN: it is used
    only if a recipe asks for it. A GPU uses its own mixed precision unless a recipe asks for another one.
    """
    hardware = hardware or Hardware()
    program = isinstance(module, torch.fx.GraphModule)
    if program and precision not in ("auto", "fp32"):
        raise StageError("an exported program is trained in fp32 only", "use precision: fp32")
    chosen = "fp32" if program else hardware.precision if precision == "auto" else precision
    check_precision(chosen, hardware)
    convolutions = any(isinstance(layer, nn.Conv2d) for layer in module.modules())
    return Numerics(channels_last=convolutions or program, precision=chosen)


def check_precision(precision: AskedPrecision, hardware: Hardware) -> None:
    """Raises StageError where the hardware has no such instructions: a processor would emulate bf16, which is slow."""
    chosen = hardware.precision if precision == "auto" else precision
    if hardware.gpu is None and chosen == "fp16":
        raise StageError("precision: fp16 is for GPUs, and this build trains on the CPU", "use precision: fp32")
    if hardware.gpu is None and chosen == "bf16":
        check_bf16()


def to_device(module: nn.Module, device: torch.device, how: Numerics) -> None:
    """Move a module to the device that it is trained on, in the layout for training."""
    _move(module, device)
    _lay_out(module, torch.channels_last if how.channels_last else torch.preserve_format)


def to_cpu(module: nn.Module) -> None:
    """Move a module back to the CPU, in the plain layout."""
    _move(module, torch.device("cpu"))
    _lay_out(module, torch.contiguous_format)


def on_cpu(module: nn.Module) -> nn.Module:
    """Return an exported program on the CPU, where it can be converted: a copy if it is elsewhere. Others stay."""
    if not isinstance(module, torch.fx.GraphModule) or device_of(module).type == "cpu":
        return module
    found = copy.deepcopy(module)
    move(found, torch.device("cpu"))
    return found


def _move(module: nn.Module, device: torch.device) -> None:
    if isinstance(module, torch.fx.GraphModule):
        move(module, device)
    else:
        module.to(device)


def _lay_out(module: nn.Module, order: torch.memory_format) -> None:
    """Set the memory format of four-dimensional tensors only; `Module.to` would change five-dimensional ones too."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.to(memory_format=order)
            if tensor.grad is not None:
                tensor.grad.data = tensor.grad.data.to(memory_format=order)


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
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else products on a GPU may be summed in any order
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.allow_tf32
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.allow_tf32 = False  # fp32 is fp32, as it is for products of matrices by default
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
