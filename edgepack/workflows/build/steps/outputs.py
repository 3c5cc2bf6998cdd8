"""Compute the outputs of the torch model on the test split, the reference for its exported files."""

from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.core.errors import StageError
from edgepack.data.splits import EXAMPLES
from edgepack.workflows.build.outcomes import ReferenceOutcome
from edgepack.workflows.build.planning.step import Step
from edgepack.workflows.build.workspace import Workspace

if TYPE_CHECKING:
    from edgepack.data.splits import Split
    from edgepack.measure.evaluate import Array
    from edgepack.models.candidate import Candidate


def do(work: Workspace, step: Step, folder: Path) -> ReferenceOutcome:
    """Compute the logits, and save a few samples for the bundle's self-test."""
    import numpy

    found = logits(work.candidate(work.candidate_of(step.ingredients["parent"])), work.data.test)
    numpy.save(folder / "logits.npy", found, allow_pickle=False)
    cases = work.data.test.head(EXAMPLES)
    for i in range(len(cases[0])):
        for spec, tensor in zip(work.signature.inputs, cases, strict=True):
            (folder / f"case-{i}-{spec.name}.bin").write_bytes(tensor[i].numpy().tobytes())
    for i, example in enumerate(work.data.examples[:EXAMPLES]):
        (folder / f"case-{i}.txt").write_bytes(example.encode())
    targets = work.data.test.targets
    return ReferenceOutcome(
        score=work.task.score(found, targets.numpy()),
        rows=len(found),
        of=work.test_samples,
        targets=tuple(targets[:EXAMPLES].tolist()),
    )


def logits(candidate: "Candidate", split: "Split") -> "Array":
    """Return the torch model's outputs. Raises StageError if they are not finite."""
    from edgepack.compress.training import evaluation
    from edgepack.measure import divergence
    from edgepack.models.checks import finite

    found = evaluation.predict(candidate.module, split)
    if wrong := (~found.isfinite().all(1)).nonzero().flatten().tolist():
        some = divergence.rows(split, wrong[:1]).inputs
        message = f"the outputs are NaN or Inf for {len(wrong):,} of {len(found):,} samples"
        raise StageError(f"{message}{finite.first_not_finite(candidate.module, some)}", finite.NOT_FINITE)
    answers: Array = found.numpy()
    return answers
