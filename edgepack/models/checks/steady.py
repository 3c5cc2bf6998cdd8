"""Whether a model gives the same answers each time: when it is called, when it is made again from the same settings,
and whatever other samples are in the batch. A device gives it one sample at a time, and a saved one is made again.
"""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import nn

from edgepack.core.errors import StageError
from edgepack.core.process.random_numbers import own_random
from edgepack.models.checks.trial import EACH, Inputs, without_statistics

if TYPE_CHECKING:
    from edgepack.models.candidate import Candidate


ANSWERS = "answers.npy"

_PATIENCE = 900  # seconds, for a process that loads a model and runs it once
_ROUNDING = 1e-3  # of the largest output: sums of other batches come in another order
_KEEP = "keep it in the state dict with self.register_buffer(name, tensor), or make it deterministic"
_ONCE = "make it deterministic in eval(): F.dropout(x, training=self.training), no noise, no counters"


def check_calls(module: nn.Module, inputs: Inputs, name: str) -> None:
    """Raises StageError where the same samples get other answers, when asked again or one by one."""
    module.eval()
    count = len(inputs[0])
    first = answer(module, inputs)
    if not same(first, answer(module, inputs)):
        part = _part(module, inputs, inputs)
        raise StageError(f"{name} gives other outputs each time for the same samples{part}", _ONCE)
    for row in range(count):
        alone = tuple(tensor[row : row + 1] for tensor in inputs)
        if not same(first[row : row + 1], answer(module, alone), largest(first)):
            part = without_statistics(module) or _part(module, inputs, alone, row)
            raise StageError(
                f"the output for a sample depends on the rest of the batch{part}: on a device each sample runs alone",
                EACH,
            )


def check_made_again(module: nn.Module, make: Callable[[], nn.Module], inputs: Inputs, name: str) -> None:
    """Raises StageError where a model made again, with the very state dict of `module`, answers otherwise.

    `module` is changed: it is run as in training first, and its constant weights are no longer constant, so that
    nothing is hidden behind a zero.
    """
    with own_random(), suppress(Exception):  # a model that cannot be trained is told of by the stage that trains
        answer(module.train(), inputs)
    disturb(module)
    with own_random(seed=(torch.initial_seed() + 1) % 2**32):
        again = make()
    try:
        again.load_state_dict(module.state_dict())
    except RuntimeError as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise StageError(f"{name} has another structure each time it is made: {first}", _KEEP) from error
    check_alike(module.eval(), again.eval(), inputs, f"{name}, made again with the same weights,")


def check_in_process(candidate: "Candidate", inputs: Inputs, name: str) -> None:
    """Raises StageError where the model, saved and loaded in another process, answers otherwise: what its code draws
    when it is imported, and the order of a set of names, are others there.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONHASHSEED": "random"}
    with TemporaryDirectory() as folder:
        candidate.save(Path(folder))
        command = [sys.executable, "-m", "edgepack.models.checks.again", folder]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", env=environment, timeout=_PATIENCE
            )
        except subprocess.TimeoutExpired as error:
            logging.getLogger(__name__).error("%r", error.stderr)
            raise StageError(
                f"{name}, loaded in another process, gave no outputs within {_PATIENCE} s",
                "let the function only make the model: it waits for something, or does other work",
            ) from error
        if done.returncode:
            logging.getLogger(__name__).error("%s", done.stderr)
            why = _ending(done.returncode, done.stderr)
            raise StageError(f"{name} cannot be loaded in another process: {why}", "see build.log for its output")
        again = torch.from_numpy(numpy.load(Path(folder, ANSWERS), allow_pickle=False))
    if not same(answer(candidate.module.eval(), inputs), again):
        raise StageError(
            f"{name}, loaded in another process, gives other outputs: its code draws random numbers at import, or "
            "depends on the order of a set",
            _KEEP,
        )


def _ending(code: int, printed: str) -> str:
    """Why a process ended. Only 1 is an error of Python, whose last line says it: before a crash, or an exit that the
    code asks for, anything may have been printed last.
    """
    if code < 0:
        named = next((each.name for each in signal.Signals if each == -code), f"signal {-code}")
        return f"the process was killed by {named}"
    last = printed.strip().splitlines()[-1:]
    return last[0] if last and code == 1 else f"the process ended with the exit status {code}"


def check_alike(one: nn.Module, two: nn.Module, inputs: Inputs, name: str) -> None:
    """Raises StageError where two models of the same weights answer otherwise, with what they hold besides."""
    if not same(answer(one, inputs), answer(two, inputs)):
        programs = any(isinstance(module, torch.fx.GraphModule) for module in (one, two))
        why = "" if programs else unsaved(one, two)
        raise StageError(f"{name} gives other outputs than before{why}", _KEEP)


def same(one: torch.Tensor, two: torch.Tensor, reach: float | None = None, rounding: float = _ROUNDING) -> bool:
    """Whether outputs are the same but for `rounding`, a share of `reach` or else of the largest of `one`. What is NaN
    or infinite in one has to be so in the other.
    """
    if one.shape != two.shape:
        return False
    limit = rounding * (largest(one) if reach is None else reach)
    return bool(torch.allclose(one, two, rtol=0, atol=limit, equal_nan=True))


def largest(given: torch.Tensor) -> float:
    """The largest magnitude among the finite numbers, 0 where there is none.

    >>> largest(torch.tensor([1.0, -2.0, float("nan"), -float("inf")]))
    2.0
    """
    finite = given[given.isfinite()]
    return float(finite.abs().max()) if len(finite) else 0.0


def answer(module: nn.Module, inputs: Inputs) -> torch.Tensor:
    with torch.no_grad():
        given: torch.Tensor = module(*inputs)
    return given.float()


def disturb(module: nn.Module) -> None:
    """A weight that starts as zeros or ones, as of the last norm in a block, would hide what comes before it."""
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.numel() and weight.is_floating_point() and bool((weight == weight.flatten()[0]).all()):
                weight.add_(0.1 * torch.randn(weight.shape, generator=chance))


def _part(module: nn.Module, first: Inputs, second: Inputs, row: int | None = None) -> str:
    """The innermost part whose outputs differ first, of all samples or of this one alone."""
    one, two = _trace(module, first), _trace(module, second)
    for (name, before), (other, after) in zip(one, two, strict=False):
        if name != other:
            break
        if row is not None and len(before) == len(first[0]):
            before = before[row : row + 1]
        if not same(before, after):
            return f", from '{name}' on" if name else ""
    return ""


def _trace(module: nn.Module, inputs: Inputs) -> list[tuple[str, torch.Tensor]]:
    """What each part gives, in the order in which they are done."""
    given: list[tuple[str, torch.Tensor]] = []

    def noted(name: str) -> Callable[..., None]:
        def note(part: nn.Module, inside: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and output.is_floating_point() and output.dim():
                given.append((name, output.detach().clone()))

        return note

    hooks = [part.register_forward_hook(noted(name)) for name, part in module.named_modules()]
    try:
        answer(module, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return given


def unsaved(one: nn.Module, two: nn.Module) -> str:
    """The first thing that two models of one structure hold in no state dict and do not have in common, in words."""
    for (name, part), (_, other) in zip(one.named_modules(), two.named_modules(), strict=False):
        of = f" of '{name}', a {type(part).__name__}" if name else f" of the {type(part).__name__}"
        for key, value in _held(part).items():
            if not _equal(value, _held(other).get(key)):
                return f": '{key}'{of}, is in no state dict and differs"
    return ""


def _held(part: nn.Module) -> dict[str, Any]:
    """Attributes of a module besides its weights and parts, and the buffers that it does not save."""
    own = {key: value for key, value in vars(part).items() if not key.startswith("_")}
    hidden = {key: part._buffers[key] for key in part._non_persistent_buffers_set}
    private = {
        key: value
        for key, value in vars(part).items()
        if key.startswith("_") and isinstance(value, torch.Tensor | numpy.ndarray | float | int | list | tuple)
    }
    return {**hidden, **own, **private}


def _equal(one: Any, two: Any) -> bool:
    """Of what is neither a tensor nor made of such, nor a plain value, nothing is claimed."""
    if isinstance(one, nn.Module) and isinstance(two, nn.Module):
        return _equal(dict(one.state_dict()), dict(two.state_dict()))
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return bool(torch.equal(one.detach(), two.detach()))
    if isinstance(one, numpy.ndarray) and isinstance(two, numpy.ndarray):
        return bool(numpy.array_equal(one, two))
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        return one.keys() == two.keys() and all(_equal(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return len(one) == len(two) and all(_equal(a, b) for a, b in zip(one, two, strict=True))
    return bool(one == two) if isinstance(one, bool | int | float | str | bytes) else True
