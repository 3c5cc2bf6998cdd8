"""Compute the outputs of the torch model on the test split, the reference for its exported files."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.core.errors import StageError
from edgepack.core.signature.shown import Sample
from edgepack.data.pictures import png
from edgepack.data.splits import EXAMPLES
from edgepack.measure import evaluate
from edgepack.workflows.build.outcomes import ReferenceOutcome
from edgepack.workflows.build.planning.step import Step
from edgepack.workflows.build.workspace import Workspace

if TYPE_CHECKING:
    from torch import Tensor

    from edgepack.data.splits import Batch, Split
    from edgepack.measure.evaluate import Array, Arrays
    from edgepack.models.candidate import Candidate


_WRITTEN = 1000  # numbers of a target that a bundle holds
_TEXT = 500  # letters of a text in a report


def do(work: Workspace, step: Step, folder: Path) -> ReferenceOutcome:
    """Compute the outputs, and save a few samples for the bundle's self-test."""
    found = outputs(work, work.candidate(work.candidate_of(step.ingredients["parent"])), folder)
    cases = work.data.test.head(EXAMPLES)
    for i in range(len(cases[0])):
        for spec, tensor in zip(work.signature.inputs, cases, strict=True):
            (folder / f"case-{i}-{spec.name}.bin").write_bytes(tensor[i].numpy().tobytes())
    for i, example in enumerate(work.data.examples[:EXAMPLES]):
        (folder / f"case-{i}.txt").write_bytes(example.encode())
    targets = next(work.data.test.truths())[:EXAMPLES]
    return ReferenceOutcome(
        scores=evaluate.scores(work.task, found, work.data.test),
        rows=len(found[0]),
        of=work.test_samples,
        targets=tuple(targets.tolist()) if targets[0].numel() <= _WRITTEN else (None,) * len(targets),
        samples=tuple(_samples(work, cases[0].numpy(), targets.numpy(), found)),
    )


def _samples(work: Workspace, inputs: "Array", targets: "Array", found: "Arrays") -> Iterator[Sample]:
    """Yield the first samples with what is right, and what torch gives."""
    texts = (*work.data.examples, *("" for _ in inputs))
    given = work.task.drawn(tuple(array[: len(inputs)] for array in found))
    for row, (values, truth) in enumerate(zip(inputs, work.task.truth(targets), strict=True)):
        yield Sample(
            picture="" if texts[row] else png.picture(values),
            text=texts[row][:_TEXT],
            truth=truth,
            files={"torch": given[row]},
        )


def outputs(work: Workspace, candidate: "Candidate", folder: Path) -> "Arrays":
    """Return what a file of the torch model would give for the test split, kept in a folder. Raises StageError if
    outputs of the model are not finite.
    """
    from edgepack.models.outputs import scorable

    split, done = work.data.test, 0
    for found, batch in finite_outputs(candidate, split):
        arrays = tuple(each.numpy() for each in scorable(work.task, found, batch.inputs))
        evaluate.append(arrays, done, len(arrays[0]), len(split), folder)
        done += len(arrays[0])
    return evaluate.load(folder)


def finite_outputs(candidate: "Candidate", split: "Split") -> "Iterator[tuple[tuple[Tensor, ...], Batch]]":
    """Yield outputs and their batch, some samples at a time. At the end raises StageError if any were not finite."""
    from edgepack.compress.training import evaluation
    from edgepack.measure import divergence
    from edgepack.models.checks import finite

    done, wrong = 0, []
    for found, batch in evaluation.predicted(candidate.module, split):
        good = evaluate.finite(tuple(each.numpy() for each in found))
        wrong += [done + int(row) for row in (~good).nonzero()[0]]
        done += len(good)
        yield found, batch
    if wrong:
        some = divergence.rows(split, wrong[:1]).inputs
        message = f"the outputs are NaN or Inf for {len(wrong):,} of {done:,} samples"
        raise StageError(f"{message}{finite.first_not_finite(candidate.module, some)}", finite.NOT_FINITE)
