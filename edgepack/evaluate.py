"""Whether an exported file still does the task: its outputs on the test split, through its own runtime, at batch 1."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.benchmark import Run
from edgepack.tasks import Task

if TYPE_CHECKING:
    import numpy

    from edgepack.datasets import Split

    Array = numpy.typing.NDArray[Any]


def outputs(run: Run, *, file: Path, runtime: str, split: "Split", folder: Path) -> "Array":
    """The file's logits, [n, classes]; `folder` is left with logits.npy."""
    import numpy

    inputs = [folder / f"input-{i}.npy" for i in range(len(split.inputs))]
    for path, tensor in zip(inputs, split.inputs, strict=True):
        numpy.save(path, tensor.numpy(), allow_pickle=False)
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


def load(path: Path) -> "Array":
    import numpy

    array: Array = numpy.load(path, allow_pickle=False)
    return array


def parity(task: Task, logits: "Array", reference: "Array") -> dict[str, float]:
    """How far two sets of outputs agree: share of equal decisions, largest difference, cosine of all outputs."""
    import numpy

    return {
        "agreement": float((task.decide(logits) == task.decide(reference)).mean()),
        "largest_difference": float(numpy.abs(logits - reference).max()),
        "cosine": float(
            (logits * reference).sum() / (numpy.linalg.norm(logits) * numpy.linalg.norm(reference) + 1e-30)
        ),
    }
