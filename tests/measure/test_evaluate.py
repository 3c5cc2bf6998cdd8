"""What two sets of outputs have in common, also where they are no numbers."""

from typing import Any

import numpy
import pytest
from factories import at_work, budget, build, device
from torch_factories import context

from edgepack.config.recipe_reading import load_recipe
from edgepack.core.errors import StageError
from edgepack.core.files import digest
from edgepack.judge.gate import judge
from edgepack.measure import evaluate
from edgepack.records.verdict import Verdict
from edgepack.workflows.build.measurements import measurements
from edgepack.workflows.build.outcomes import EvaluationOutcome
from edgepack.workflows.build.planning.step import Step, StepId
from edgepack.workflows.build.store import Entry, Store

NAN, INF = float("nan"), float("inf")
REFERENCE = numpy.array([[1, 0], [1, 0], [1, 0], [0, 1]], "float32")


def judged(logits: Any, reference: Any = REFERENCE) -> tuple[evaluate.Agreement, dict[str, Verdict]]:
    """What is stored, and the verdicts on all that a build makes of it."""
    work = at_work(load_recipe("quickstart"), device(), Store("store"))
    parity = evaluate.parity(context().task, (logits,), (reference,))
    step = Step(id=StepId("evaluation", "model", "onnx"), key=digest("a step"), ingredients={})
    outcome = EvaluationOutcome(scores={"accuracy": 0.5}, rows=4, parity=parity)
    entry = work.store.make(step.kind, step.key, {}, lambda folder: outcome.stored())
    assert isinstance(entry, Entry)
    figures = measurements(build(), step, entry)
    budgets = [budget("parity", "90 %"), budget("parity.difference", "0.5"), budget("parity.cosine", "0.9")]
    return parity, {verdict.metric: verdict for verdict in judge(budgets, ["onnx"], figures)}


def test_what_agrees_passes() -> None:
    parity, verdicts = judged(REFERENCE * numpy.float32(1.25))
    assert (parity.agreement, parity.largest_difference) == (1.0, 0.25)
    assert parity.cosine == pytest.approx(1)
    assert {verdict.outcome for verdict in verdicts.values()} == {"pass"}


@pytest.mark.parametrize("wrong", [NAN, INF, -INF])
def test_a_row_that_is_no_number_fails_parity_and_leaves_the_rest_unmeasured(wrong: float) -> None:
    logits = REFERENCE.copy()
    logits[0, 0] = wrong  # its argmax is that of the reference, or none
    parity, verdicts = judged(logits)
    assert parity == evaluate.Agreement(agreement=0.75, not_finite=1)
    assert (verdicts["parity"].outcome, verdicts["parity"].value) == ("fail", 0.75)
    for metric in ("parity.difference", "parity.cosine"):
        assert verdicts[metric].outcome == "not_measured"
        assert verdicts[metric].reason == "cannot be computed: 1 outputs of the file or of torch are NaN or Inf"


def test_where_torch_gives_no_number_either_nothing_agrees() -> None:
    both = REFERENCE.copy()
    both[0, 0], both[1, 1] = NAN, INF
    assert judged(both, both)[0] == evaluate.Agreement(agreement=0.5, not_finite=2)


def test_large_outputs_are_still_numbers() -> None:
    assert judged(REFERENCE * numpy.float32(1e30), REFERENCE * numpy.float32(1e30))[0].cosine == pytest.approx(1)


ROWS = numpy.random.default_rng(0).normal(size=(200, 5)).astype("float32")


def turned(share: float) -> Any:
    """The first rows, so many of them, answered backwards."""
    logits = ROWS.copy()
    count = round(share * len(logits))
    logits[:count] = logits[:count, ::-1]
    return logits


@pytest.mark.parametrize(
    ("logits", "reference"),
    [
        (ROWS, ROWS),
        (ROWS + 0.01 * numpy.random.default_rng(1).normal(size=ROWS.shape), ROWS),
        (ROWS * 1.2, ROWS),
        (turned(0.04), ROWS),
        (turned(0.005)[:8], ROWS[:8]),  # one is not many, of few samples neither
        (ROWS[::-1] * 1e-3 + 1, ROWS * 1e-3 + 1),  # nothing but rounding tells these samples apart
    ],
    ids=["equal", "noise", "larger", "few", "one", "a flat model"],
)
def test_a_file_as_far_from_torch_as_rounding_can_be_is_left_to_the_budgets(logits: Any, reference: Any) -> None:
    evaluate.check_same(context().task, (logits,), (reference,), "model.onnx")


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (ROWS[::-1], "of 200 test samples differently"),
        (turned(0.3), "of 200 test samples differently"),
        (ROWS * 0, "of 200 test samples differently"),
        (ROWS * NAN, "outputs NaN or Inf for 200 of 200 test samples"),
        (numpy.where(numpy.arange(200)[:, None] == 7, INF, ROWS), "Inf for 1 of 200 test samples"),
        (ROWS * 3, "gives other outputs"),
    ],
    ids=["other samples", "a third", "nothing", "no numbers", "one infinite", "another scale"],
)
def test_a_file_far_from_torch_is_broken(logits: Any, message: str) -> None:
    with pytest.raises(StageError) as failure:
        evaluate.check_same(context().task, (logits,), (ROWS,), "model.onnx")
    assert failure.value.message.startswith("model.onnx ")
    assert message in failure.value.message
    assert failure.value.hint


def test_a_file_of_which_only_the_decisions_are_right_is_broken() -> None:
    reference = ROWS + numpy.array([6, 0, 0, 0, 0], "float32")  # nearly every sample is of one class
    with pytest.raises(StageError, match="gives other outputs"):
        evaluate.check_same(context().task, (reference[::-1],), (reference,), "model.onnx")
