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
from edgepack.models.outputs import rows

if TYPE_CHECKING:
    from edgepack.models.candidate import Candidate


ANSWERS = "answers.npy"

_PATIENCE = 900  # seconds, for a process that loads a model and runs it once
_ROUNDING = 1e-3  # of the largest output: other batch sizes sum in another order
_KEEP = "keep it in the state dict with self.register_buffer(name, tensor), or make it deterministic"
_ONCE = "make it deterministic in eval(): F.dropout(x, training=self.training), no noise, no counters"


def check_calls(module: nn.Module, inputs: Inputs, name: str) -> None:
    """Raises StageError where the same samples give other outputs when run again, or one by one."""
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
    """Raises StageError where a model that is made again, with the same state dict, gives other outputs.

    `module` is changed: it is run in training mode first, and its constant weights get noise, so that no zero hides a
    difference.
    """
    with own_random(), suppress(Exception):  # the stage that trains reports a model that cannot be trained
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
    """Raises StageError where the model, saved and loaded in another process, gives other outputs: random numbers drawn
    at import, and the order of a set of names, are different there.
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
    """Say why a process ended. Only exit status 1 is a Python exception, with its message on the last line; after a
    crash or another exit, the last line may be anything.
    """
    if code < 0:
        named = next((each.name for each in signal.Signals if each == -code), f"signal {-code}")
        return f"the process was killed by {named}"
    last = printed.strip().splitlines()[-1:]
    return last[0] if last and code == 1 else f"the process ended with the exit status {code}"


def check_alike(one: nn.Module, two: nn.Module, inputs: Inputs, name: str) -> None:
    """Raises StageError where models with the same weights give other outputs; names state outside the state dict."""
    if not same(answer(one, inputs), answer(two, inputs)):
        programs = any(isinstance(module, torch.fx.GraphModule) for module in (one, two))
        why = "" if programs else unsaved(one, two)
        raise StageError(f"{name} gives other outputs than before{why}", _KEEP)


def same(one: torch.Tensor, two: torch.Tensor, reach: float | None = None, rounding: float = _ROUNDING) -> bool:
    """Return whether outputs are equal up to `rounding`, a share of `reach`, else of the largest of `one`. NaN and
    infinity must be at the same positions.
    """
    if one.shape != two.shape:
        return False
    limit = rounding * (largest(one) if reach is None else reach)
    return bool(torch.allclose(one, two, rtol=0, atol=limit, equal_nan=True))


def largest(given: torch.Tensor) -> float:
    """Return the largest magnitude among the finite numbers, 0 if there is none.

    >>> largest(torch.tensor([1.0, -2.0, float("nan"), -float("inf")]))
    2.0
    """
    finite = given[given.isfinite()]
    return float(finite.abs().max()) if len(finite) else 0.0


def answer(module: nn.Module, inputs: Inputs) -> torch.Tensor:
    with torch.no_grad():
        return rows(module(*inputs))


def disturb(module: nn.Module) -> None:
    """Add noise to constant weights: zeros or ones, as in the last norm of a block, would hide what is before."""
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.numel() and weight.is_floating_point() and bool((weight == weight.flatten()[0]).all()):
                weight.add_(0.1 * torch.randn(weight.shape, generator=chance))


def _part(module: nn.Module, first: Inputs, second: Inputs, row: int | None = None) -> str:
    """Name the innermost module whose outputs differ first, for all samples or for one row."""
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
    """Return the output of each module, in the order in which they finish."""
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
    """Name the first state outside the state dict in which two models of one structure differ."""
    for (name, part), (_, other) in zip(one.named_modules(), two.named_modules(), strict=False):
        of = f" of '{name}', a {type(part).__name__}" if name else f" of the {type(part).__name__}"
        for key, value in _held(part).items():
            if not _equal(value, _held(other).get(key)):
                return f": '{key}'{of}, is in no state dict and differs"
    return ""


def _held(part: nn.Module) -> dict[str, Any]:
    """Return the attributes of a module besides weights and submodules, and its non-persistent buffers."""
    own = {key: value for key, value in vars(part).items() if not key.startswith("_")}
    hidden = {key: part._buffers[key] for key in part._non_persistent_buffers_set}
    private = {
        key: value
        for key, value in vars(part).items()
        if key.startswith("_") and isinstance(value, torch.Tensor | numpy.ndarray | float | int | list | tuple)
    }
    return {**hidden, **own, **private}


def _equal(one: Any, two: Any) -> bool:
    """Compare tensors, plain values and containers of these; any other values count as equal."""
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
