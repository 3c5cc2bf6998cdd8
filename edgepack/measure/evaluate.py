"""Evaluate an exported file on the test split, in its own runtime, at batch 1."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from itertools import islice
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.core.errors import StageError
from edgepack.core.frozen import Frozen
from edgepack.data.contract import Task
from edgepack.measure.timing.protocol import Run

if TYPE_CHECKING:
    import numpy

    from edgepack.data.splits import Batch, Split

    Array = numpy.typing.NDArray[Any]


CHUNK = 256_000_000  # bytes of inputs that are written, or sent to a device, at once

# Two processors sum the same products in another order: float32 outputs differ in the last digits, and a value half way
# between two int8 steps may round to the other one. The limit allows a few such steps, relative to the largest output;
# a broken file is off by far more.
ROUNDING = 0.05

# Rounding changes few decisions, those between two nearly equal outputs: in int8 files one or two per cent. A file that
# changes more than this share of decisions, by more than rounding, computes something else than the model.
_TURNED = 0.05
# So does a file whose differences exceed this share of the variance between samples, even if no decision changes: if
# nearly all samples have one class, decisions say little.
_UNLIKE = 0.5

BROKEN = (
    "remove this format from `export`, or keep the layers it gets wrong in fp32; if int8 products saturate on the "
    "device, set quantization.int8_saturates in its profile"
)
BROKEN_FLOAT = "remove this format from `export`, or write that part of the model with other operators"


def outputs(
    run: Run,
    *,
    file: Path,
    runtime: str,
    split: "Split",
    folder: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> "Array":
    """Return the file's logits, [n, classes]; logits.npy is left in `folder`.

    The split is written and run in parts of at most CHUNK bytes: a whole one may be larger than the disk, or take hours
    to send. `progress` is told the number of rows that are done, and of all.
    """
    import numpy

    first = split.head(1)
    inputs = [folder / f"input-{i}.npy" for i in range(len(first))]
    target = folder / "logits.npy"
    rows = max(1, CHUNK // max(1, sum(tensor.nbytes for tensor in first)))
    size = min(split.at_once, rows)
    rows -= rows % size
    batches = split.batches(size)
    parts = []
    for start in range(0, len(split), rows):
        count = min(rows, len(split) - start)
        _write(islice(batches, ceil(count / size)), count, inputs)
        job = {"mode": "predict", "row": start, "rows": count, "runtime": runtime, "file": str(file)}
        run({**job, "inputs": [str(path) for path in inputs], "output": str(target)})
        parts.append(load(target))
        progress(start + count, len(split))
    for path in inputs:
        path.unlink()
    if len(parts) == 1:
        return parts[0]
    numpy.save(target, numpy.concatenate(parts), allow_pickle=False)
    return load(target)


def _write(batches: "Iterable[Batch]", rows: int, paths: Sequence[Path]) -> None:
    """Write each input of these batches as a .npy file with this many rows."""
    from numpy.lib import format

    with ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in paths]
        for batch in batches:
            for file, tensor in zip(files, batch.inputs, strict=True):
                array = tensor.contiguous().numpy()
                if file.tell() == 0:
                    shape = (rows, *array.shape[1:])
                    described = {"descr": format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": shape}
                    format.write_array_header_1_0(file, described)
                file.write(array.data)


def mismatched_rows(task: Task, logits: "Array", reference: "Array", count: int) -> list[int]:
    """Return the rows to look at when outputs differ: those with other decisions first, then by largest difference."""
    import numpy

    other = task.decide(logits) != task.decide(reference)
    far = numpy.nan_to_num(numpy.abs(logits - reference), nan=numpy.inf).max(axis=-1)
    return [int(row) for row in numpy.lexsort((-far, ~other))[:count]]


def load(path: Path) -> "Array":
    import numpy

    array: Array = numpy.load(path, allow_pickle=False)
    return array


class Agreement(Frozen):
    """How far two sets of outputs agree: share of equal decisions, largest difference, cosine of all outputs.

    If a row is not finite in either of them, it counts as different, and the other two figures are None. `not_finite`
    is the number of such rows.
    """

    agreement: float
    largest_difference: float | None = None
    cosine: float | None = None
    not_finite: int | None = None


def parity(task: Task, logits: "Array", reference: "Array") -> Agreement:
    import numpy

    alike = task.decide(logits) == task.decide(reference)
    finite = numpy.isfinite(logits).all(axis=-1) & numpy.isfinite(reference).all(axis=-1)
    if not finite.all():
        return Agreement(agreement=float((finite & alike).mean()), not_finite=int((~finite).sum()))
    logits, reference = logits.astype("float64"), reference.astype("float64")  # large float32 squares overflow
    norms = numpy.linalg.norm(logits) * numpy.linalg.norm(reference)
    return Agreement(
        agreement=float(alike.mean()),
        largest_difference=float(numpy.abs(logits - reference).max()),
        cosine=float((logits * reference).sum() / (norms + 1e-30)),
    )


def check_same(task: Task, logits: "Array", reference: "Array", of: str, hint: str = BROKEN) -> None:
    """Raises StageError where outputs are not finite, or far from those of the torch model: the file is broken,
    whatever the budgets are. Rounding and int8 stay below these limits; their effect is checked by the budgets.
    """
    import numpy

    if wrong := int((~numpy.isfinite(logits).all(axis=-1)).sum()):
        raise StageError(f"{of} outputs NaN or Inf for {wrong:,} of {len(logits):,} test samples", hint)
    turned, unlike = _distance(task, logits, reference)
    rows = len(logits)
    if turned <= max(1, _TURNED * rows) and unlike <= _UNLIKE:
        return
    decided = f"decides {turned:,} of {rows:,} test samples differently" if turned else "gives other outputs"
    raise StageError(
        f"{of} {decided} than the torch model that it was exported from, by more than rounding: the file is broken",
        hint,
    )


def _distance(task: Task, logits: "Array", reference: "Array") -> tuple[int, float]:
    """Return how many rows are decided differently by more than rounding, and the share of the variance between rows of
    the reference that the differences make up; 0 if rounding explains them all.
    """
    import numpy

    ours, theirs = logits.astype("float64"), reference.astype("float64")
    far = numpy.abs(ours - theirs).max(axis=-1)
    limit = ROUNDING * float(numpy.abs(theirs).max())
    turned = int(((task.decide(logits) != task.decide(reference)) & (far > limit)).sum())
    if not (far > limit).any():
        return turned, 0.0
    spread = ((theirs - theirs.mean(axis=0)) ** 2).sum()
    return turned, float(((ours - theirs) ** 2).sum() / (spread + 1e-30))
