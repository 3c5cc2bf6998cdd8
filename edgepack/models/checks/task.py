"""Whether a task's methods give what its contract says, tried on a few samples before anything is trained: most of them
are needed only after it.
"""

import logging
from traceback import extract_tb
from typing import TYPE_CHECKING, Any

import numpy
import torch

from edgepack.core.errors import EdgepackError, StageError, reason
from edgepack.core.signature.shown import Shown
from edgepack.models import source_lines

if TYPE_CHECKING:
    from edgepack.data.contract import Arrays, Task

_TEMPERATURE = 4.0


def check_task(
    task: "Task", outputs: tuple[torch.Tensor, ...], inputs: tuple[torch.Tensor, ...], targets: torch.Tensor
) -> None:
    """Raises StageError naming the first method that fails on these samples, or gives something else than it should.

    Outputs of an untrained model may be infinite: zeros stand for such numbers.
    """
    given = tuple(each.detach().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0) for each in outputs)
    files = tuple(each.numpy() for each in _tried(task, "postprocess", given))
    arrays = _tried(task, "condensed", files, tuple(each.numpy() for each in inputs))
    learned = tuple(each.clone().requires_grad_() for each in given)
    _check_loss(task, "loss", learned, targets)
    _check_loss(task, "distill", learned, given, _TEMPERATURE)
    _check_agreement(task, arrays)
    for name, seen, kind in (("told", arrays, str), ("drawn", arrays, Shown), ("truth", targets.numpy(), Shown)):
        found = _tried(task, name, seen)
        if not isinstance(found, list) or len(found) != len(targets):
            raise _wrong(task, name, _shown(found), f"a list with one {kind.__name__} for each sample")
        if odd := [each for each in found if not isinstance(each, kind)]:
            raise _wrong(task, name, f"a list with {odd[0]!r:.60}", f"a list with one {kind.__name__} for each sample")


def _check_loss(task: "Task", name: str, *arguments: Any) -> None:
    found = _tried(task, name, *arguments)
    if not isinstance(found, torch.Tensor) or found.numel() != 1:
        raise _wrong(task, name, _shown(found), "a tensor of one number, the mean over samples")
    if not found.requires_grad:
        raise _wrong(task, name, "a number without a gradient", "one that torch computes from outputs")


def _check_agreement(task: "Task", arrays: "Arrays") -> None:
    count = len(arrays[0])
    found = _tried(task, "agreement", arrays, arrays)
    if not isinstance(found, numpy.ndarray) or found.shape != (count,):
        raise _wrong(task, "agreement", _shown(found), f"a numpy array of shape [{count}], a number for each sample")
    if not ((found >= 0) & (found <= 1)).all():
        raise _wrong(task, "agreement", f"{float(found[0]):.4g} for the first sample", "numbers from 0 to 1")
    if found.mean() == 0:
        raise _wrong(task, "agreement", "0 for outputs and the very same ones", "1, as they mean the same")


def _tried(task: "Task", name: str, *arguments: Any) -> Any:
    try:
        return getattr(task, name)(*arguments)
    except EdgepackError:
        raise
    except Exception as error:
        logging.getLogger(__name__).exception("%s() of %s failed", name, type(task).__name__)
        place = source_lines.place("", extract_tb(error.__traceback__))
        at = f", at {place}" if place else ""
        message = f"{name}() of the task {type(task).__name__} failed: {reason(error)}{at}"
        raise StageError(message, "see build.log for the traceback") from error


def _wrong(task: "Task", name: str, found: str, wanted: str) -> StageError:
    return StageError(f"{name}() of the task {type(task).__name__} gives {found}", f"return {wanted}")


def _shown(found: object) -> str:
    """
    >>> _shown(numpy.zeros((3, 2))), _shown(None), _shown(["a"]), _shown(1.5)
    ('ndarray of shape [3, 2]', 'nothing', 'a list of 1', 'float')
    """
    if found is None:
        return "nothing"
    if isinstance(found, list):
        return f"a list of {len(found)}"
    shape = getattr(found, "shape", None)
    return type(found).__name__ + ("" if shape is None else f" of shape {[*shape]}")
