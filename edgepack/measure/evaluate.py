"""Evaluate an exported file on the test split, in its own runtime, at batch 1."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.core.errors import StageError
from edgepack.core.frozen import Frozen
from edgepack.data.contract import Task
from edgepack.measure.timing.protocol import Run

if TYPE_CHECKING:
    import numpy

    from edgepack.data.splits import Split

    Array = numpy.typing.NDArray[Any]


_BATCH = 256  # samples

# Two processors sum the same products in another order: outputs of float32 differ in the last digits, and where a value
# stands at the edge between two numbers of eight bits, by one step of it. A few such steps, in shares of the largest
# output; what is broken is off by far more.
ROUNDING = 0.05

# Rounding turns few decisions, those between two nearly equal outputs: of int8 files one or two in a hundred. A file
# that turns more than this share of them, by more than rounding, computes something else than the model.
_TURNED = 0.05
# So does one whose differences are more than this share of what tells the samples apart (mean squares), whether or not
# the largest output is another: of a class that nearly every sample has, decisions tell little.
_UNLIKE = 0.5

BROKEN = (
    "remove this format from `export`, or keep the layers it gets wrong in fp32; if int8 products saturate on the "
    "device, set quantization.int8_saturates in its profile"
)
BROKEN_FLOAT = "remove this format from `export`, or write that part of the model with other operators"


def outputs(run: Run, *, file: Path, runtime: str, split: "Split", folder: Path) -> "Array":
    """The file's logits, [n, classes]; `folder` is left with logits.npy."""
    inputs = [folder / f"input-{i}.npy" for i in range(len(split.head(1)))]
    _write(split, inputs)
    target = folder / "logits.npy"
    run(
        {
            "mode": "predict",
            "rows": len(split),
            "runtime": runtime,
            "file": str(file),
            "inputs": [str(p) for p in inputs],
            "output": str(target),
        }
    )
    for path in inputs:
        path.unlink()
    return load(target)


def _write(split: "Split", paths: Sequence[Path]) -> None:
    """Each input of the whole split as a .npy file, batch by batch: prepared, a split may be larger than the memory."""
    from numpy.lib import format

    with ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in paths]
        for batch in split.batches(_BATCH):
            for file, tensor in zip(files, batch.inputs, strict=True):
                array = tensor.contiguous().numpy()
                if file.tell() == 0:
                    shape = (len(split), *array.shape[1:])
                    described = {"descr": format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": shape}
                    format.write_array_header_1_0(file, described)
                file.write(array.data)


def mismatched_rows(task: Task, logits: "Array", reference: "Array", count: int) -> list[int]:
    """The rows to look at when two sets of outputs differ: where decisions do first, then where the values do most."""
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

    A row that is not finite in one of them agrees with none, and then the other two figures are None: `not_finite`
    tells of how many rows that is so.
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
    logits, reference = logits.astype("float64"), reference.astype("float64")  # in float32 large squares are infinite
    norms = numpy.linalg.norm(logits) * numpy.linalg.norm(reference)
    return Agreement(
        agreement=float(alike.mean()),
        largest_difference=float(numpy.abs(logits - reference).max()),
        cosine=float((logits * reference).sum() / (norms + 1e-30)),
    )


def check_same(task: Task, logits: "Array", reference: "Array", of: str, hint: str = BROKEN) -> None:
    """Raises StageError where a file is far from the torch model that it was written from, or gives what is not finite:
    it is broken, whatever the budgets ask. What rounding and int8 do to outputs is below these limits, and is left to
    the budgets.
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
    """How many rows are decided otherwise by more than rounding, and the share of the reference's spread between its
    rows that the differences make up, 0 where rounding explains them all.
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
