"""Evaluate an exported file on the test split, in its own runtime, at batch 1."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from math import ceil, prod
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
    Arrays = tuple[Array, ...]


CHUNK = 256_000_000  # bytes of inputs that are written, or sent to a device, at once; of outputs that are compared
OUTPUT = "outputs-{}.npy"  # file of one output

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
    task: Task | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> "Arrays":
    """Return the file's outputs, each [n, ...], as files in `folder`, which `load` reads again.

    The split is written and run in parts of at most CHUNK bytes of inputs, and of the outputs of a task: a whole one
    may be larger than the disk, or take hours to send. Of these outputs, what the task condenses them to is kept.
    `progress` is told the number of rows that are done, and of all.
    """
    first = split.head(1)
    inputs = [folder / f"input-{i}.npy" for i in range(len(first))]
    target = folder / "outputs.npz"
    row_bytes = sum(prod(spec.shape) for spec in task.file_signature.outputs) * 4 if task else 0
    rows = max(1, CHUNK // max(1, row_bytes, sum(tensor.nbytes for tensor in first)))
    size = min(split.at_once, rows)
    rows -= rows % size
    batches = split.batches(size)
    for start in range(0, len(split), rows):
        count = min(rows, len(split) - start)
        _write(islice(batches, ceil(count / size)), count, inputs)
        job = {"mode": "predict", "row": start, "rows": count, "runtime": runtime, "file": str(file)}
        run({**job, "inputs": [str(path) for path in inputs], "output": str(target)})
        found = answers(target)
        append(task.condensed(found, _read(inputs)) if task else found, start, count, len(split), folder)
        progress(start + count, len(split))
    for path in (*inputs, target):
        path.unlink()
    return load(folder)


def _read(paths: Sequence[Path]) -> "Arrays":
    import numpy

    return tuple(numpy.load(path, mmap_mode="r", allow_pickle=False) for path in paths)


def answers(path: Path) -> "Arrays":
    """Return the outputs in a file of the worker."""
    import numpy

    with numpy.load(path, allow_pickle=False) as found:
        return tuple(found[name] for name in found.files)


def append(found: "Arrays", start: int, count: int, samples: int, folder: Path) -> None:
    """Write the outputs of `count` samples from `start` on. A piece of a model may give several rows a sample."""
    import numpy

    if count == samples:
        save(found, folder)
        return
    for place, array in enumerate(found):
        each = len(array) // count
        path, shape = folder / OUTPUT.format(place), (samples * each, *array.shape[1:])
        mode = {"mode": "w+", "dtype": array.dtype, "shape": shape} if start == 0 else {"mode": "r+"}
        kept = numpy.lib.format.open_memmap(path, **mode)
        kept[start * each : (start + count) * each] = array
        kept.flush()


def save(found: "Arrays", folder: Path) -> None:
    """Keep outputs as `outputs` does."""
    import numpy

    for place, array in enumerate(found):
        numpy.save(folder / OUTPUT.format(place), array, allow_pickle=False)


def load(folder: Path) -> "Arrays":
    """Return the outputs in a folder; they stay on disk until they are used."""
    return _read(sorted(folder.glob(OUTPUT.format("*")), key=lambda path: int(path.stem.rpartition("-")[2])))


def blocks(*sets: "Arrays") -> "Iterator[tuple[Arrays, ...]]":
    """Yield the rows of sets of outputs, as many at a time as fit into CHUNK bytes."""
    samples = len(sets[0][0])
    size = sum(array.nbytes for each in sets for array in each)
    step = max(1, samples if size <= CHUNK else samples * CHUNK // size)
    for start in range(0, samples, step):
        yield tuple(tuple(array[start : start + step] for array in each) for each in sets)


def scores(task: Task, found: "Arrays", split: "Split") -> dict[str, float]:
    """Return the task's metrics of outputs on a split."""
    import torch

    meter, seen = task.meter(), 0
    for targets in split.truths():
        rows = slice(seen, seen + len(targets))
        meter.update(tuple(torch.from_numpy(array[rows].copy()) for array in found), targets)
        seen += len(targets)
    return task.scores(meter)


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


def mismatched_rows(task: Task, found: "Arrays", reference: "Arrays", count: int) -> list[int]:
    """Return the rows to look at when outputs differ: those that agree least first, then by largest difference."""
    import numpy

    seen = [(task.agreement(*pair), _far(*pair)) for pair in blocks(found, reference)]
    agreed, far = (numpy.concatenate(each) for each in zip(*seen, strict=True))
    return [int(row) for row in numpy.lexsort((-numpy.nan_to_num(far, nan=numpy.inf), agreed))[:count]]


def _flat(found: "Arrays") -> "list[Array]":
    """Return each output as [n, numbers]."""
    return [array.reshape(len(array), -1) for array in found]


def _far(found: "Arrays", reference: "Arrays") -> "Array":
    """Return the largest difference in each row."""
    import numpy

    pairs = zip(_flat(found), _flat(reference), strict=True)
    far: Array = numpy.max([numpy.abs(a.astype("float64") - b.astype("float64")).max(axis=1) for a, b in pairs], axis=0)
    return far


def finite(found: "Arrays") -> "Array":
    """Return whether all outputs of each row are finite."""
    import numpy

    alike: Array = numpy.all([numpy.isfinite(array).all(axis=1) for array in _flat(found)], axis=0)
    return alike


class Agreement(Frozen):
    """How far two sets of outputs agree: as the task defines it, largest difference, cosine of all outputs.

    If a row is not finite in either of them, it counts as different, and the other two figures are None. `not_finite`
    is the number of such rows.
    """

    agreement: float
    largest_difference: float | None = None
    cosine: float | None = None
    not_finite: int | None = None


def parity(task: Task, found: "Arrays", reference: "Arrays") -> Agreement:
    import numpy

    agreed, good, far, dots = [], [], [], numpy.zeros(3)
    for ours, theirs in blocks(found, reference):
        agreed.append(task.agreement(ours, theirs))
        good.append(finite(ours) & finite(theirs))
        far.append(_far(ours, theirs))
        dots += _dots(ours, theirs)
    rows, alike = numpy.concatenate(good), numpy.concatenate(agreed)
    if not rows.all():
        return Agreement(agreement=float((rows * alike).mean()), not_finite=int((~rows).sum()))
    return Agreement(
        agreement=float(alike.mean()),
        largest_difference=float(numpy.concatenate(far).max()),
        cosine=float(dots[0] / (numpy.sqrt(dots[1]) * numpy.sqrt(dots[2]) + 1e-30)),
    )


def _dots(ours: "Arrays", theirs: "Arrays") -> "Array":
    """Return the products of both, of ours and of theirs with themselves. Large float32 squares would overflow."""
    import numpy

    dots = numpy.zeros(3)
    with numpy.errstate(invalid="ignore", over="ignore"):
        for a, b in zip(ours, theirs, strict=True):
            mine, its = a.astype("float64"), b.astype("float64")
            dots += [(mine * its).sum(), (mine * mine).sum(), (its * its).sum()]
    return dots


def check_same(task: Task, found: "Arrays", reference: "Arrays", of: str, hint: str = BROKEN) -> None:
    """Raises StageError where outputs are not finite, or far from those of the torch model: the file is broken,
    whatever the budgets are. Rounding and int8 stay below these limits; their effect is checked by the budgets.
    """
    rows = len(found[0])
    if wrong := sum(int((~finite(ours)).sum()) for (ours,) in blocks(found)):
        raise StageError(f"{of} outputs NaN or Inf for {wrong:,} of {rows:,} test samples", hint)
    turned, unlike = _distance(task, found, reference)
    # Without `steady`, rounding cannot be told from errors by the numbers: only a file that agrees on little is broken.
    most = _TURNED if task.steady else _UNLIKE
    if turned <= max(1, most * rows) and (unlike <= _UNLIKE or not task.steady):
        return
    decided = f"decides {turned:,.0f} of {rows:,} test samples differently" if turned >= 1 else "gives other outputs"
    raise StageError(
        f"{of} {decided} than the torch model that it was exported from, by more than rounding: the file is broken",
        hint,
    )


def _distance(task: Task, found: "Arrays", reference: "Arrays") -> tuple[float, float]:
    """Return how many rows are decided differently by more than rounding, and the share of the variance between rows of
    the reference that the differences make up; 0 if rounding explains them all.
    """
    import numpy

    limits = [ROUNDING * float(max(-array.min(), array.max())) for array in reference]
    means = [array.mean(axis=0, dtype="float64") for array in reference]
    turned, far = 0.0, False
    apart, spread = (numpy.zeros(len(reference)) for _ in range(2))  # of each output: their scales differ
    for ours, theirs in blocks(found, reference):
        beyond = numpy.zeros(len(ours[0]), dtype=bool)
        for place, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            off = a.astype("float64") - b
            beyond |= numpy.abs(off).reshape(len(off), -1).max(axis=1) > limits[place]
            apart[place] += (off**2).sum()
            spread[place] += ((b - means[place]) ** 2).sum()
        turned += float((1 - task.agreement(ours, theirs))[beyond].sum())
        far = far or bool(beyond.any())
    return turned, float((apart / (spread + 1e-30)).max()) if far else 0.0
