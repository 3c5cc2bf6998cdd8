"""A training that was killed goes on from its last checkpoint, and ends as if nothing had happened."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch_factories import candidate, context, data, learned
from torch_factories import tiny_models as tiny_models

from edgepack.compress.contract import Context, Training
from edgepack.compress.stages import distill, prune, quantize, train
from edgepack.compress.training import checkpoints, numerics
from edgepack.compress.training.checkpoints import Checkpoints
from edgepack.compress.training.loop import fit
from edgepack.core.events import Event, Note, StepProgress
from edgepack.models.candidate import Candidate

STEPS = 6  # batches an epoch
SETTINGS = Training(epochs=3, learning_rate=1e-2, batch_size=16)


class Killed(BaseException):
    pass


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    with numerics.deterministic(0, 1):
        yield


@pytest.fixture(autouse=True)
def every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint at the end of each, however short it is."""
    monkeypatch.setattr(checkpoints, "_SHARE", float("inf"))


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "_PERIOD", -1.0)


Do = Callable[[Context], Any]


def _ran(do: Do, *, killed_after: int | None = None, folder: str = "unfinished", **changes: Any) -> tuple[Any, int]:
    """What `do` gives, and how many training steps it took; killed after so many."""
    taken = 0
    real = torch.optim.AdamW.step

    def step(optimizer: Any, *arguments: Any, **named: Any) -> Any:
        nonlocal taken
        if taken == killed_after:
            raise Killed
        taken += 1
        return real(optimizer, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        torch.manual_seed(0)
        here = context(checkpoints=Checkpoints(folder=Path(folder)), **changes)
        try:
            return do(here), taken
        except Killed:
            return None, taken


def _weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {**module.state_dict(), "random": torch.rand(3)}  # also what is drawn next


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _learn(context: Context) -> dict[str, torch.Tensor]:
    """A net with dropout, which draws random numbers, on pictures that are shifted at random."""
    module = candidate("residual").module
    module = nn.Sequential(module, nn.Dropout(0.2))
    fit(module, context, SETTINGS, doing="learning")
    return _weights(module)


@pytest.mark.parametrize("killed_after", [1, STEPS, STEPS + 1, 2 * STEPS, 3 * STEPS - 1])
def test_a_killed_training_loses_an_epoch_at_most_and_ends_the_same(killed_after: int) -> None:
    splits = data(augmented=True)
    undisturbed, whole = _ran(_learn, folder="other", data=splits)
    assert whole == 3 * STEPS
    nothing, _ = _ran(_learn, killed_after=killed_after, data=splits)
    assert nothing is None
    again, taken = _ran(_learn, data=splits)
    assert taken == whole - killed_after // STEPS * STEPS
    assert _same(again, undisturbed)


@pytest.mark.usefixtures("every_step")
@pytest.mark.parametrize("killed_after", [STEPS - 1, STEPS + 2, 3 * STEPS - 1])
def test_the_record_of_a_killed_training_is_that_of_an_undisturbed_one(killed_after: int) -> None:
    def record(context: Context) -> Any:
        _learn(context)
        return [each.model_copy(update={"samples_per_second": None}) for each in context.trainings[0].epochs]

    undisturbed, _ = _ran(record, folder="other")
    _ran(record, killed_after=killed_after)
    assert _ran(record)[0] == undisturbed


@pytest.mark.usefixtures("every_step")
def test_an_epoch_that_takes_long_is_saved_before_its_end() -> None:
    splits = data(augmented=True)
    undisturbed, _ = _ran(_learn, folder="other", data=splits)
    _ran(_learn, killed_after=STEPS + 4, data=splits)
    again, taken = _ran(_learn, data=splits)
    assert taken == 3 * STEPS - (STEPS + 4)
    assert _same(again, undisturbed)


def test_a_training_that_ended_is_not_done_again() -> None:
    undisturbed, _ = _ran(_learn)
    again, taken = _ran(_learn)
    assert taken == 0 and _same(again, undisturbed)


def _of_stage(stage: Any, **settings: Any) -> Do:
    def run(context: Context) -> dict[str, torch.Tensor]:
        made: Candidate = stage.run(learned(), stage.Config(**settings), context)
        return _weights(made.module)

    return run


EPOCHS = {"epochs": 2, "batch_size": 16}
STUDENT = {"tiny": "residual", "width": 4}


@pytest.mark.parametrize(
    ("do", "killed_after"),
    [
        (_of_stage(train, **EPOCHS), STEPS),
        (_of_stage(prune, ratio="50 %", steps=2, recover=EPOCHS), 3 * STEPS + 2),  # in the second cut
        (_of_stage(quantize, mode="qat", epochs=4, batch_size=16), 3 * STEPS),  # with ranges frozen
        (_of_stage(distill, student=STUDENT, features=1.0, **EPOCHS), STEPS + 1),
    ],
    ids=["train", "prune", "quantize", "distill"],
)
def test_every_stage_that_trains_goes_on(do: Do, killed_after: int) -> None:
    learned()
    undisturbed, whole = _ran(do, folder="other")
    _ran(do, killed_after=killed_after)
    again, taken = _ran(do)
    assert taken == whole - killed_after // STEPS * STEPS
    assert _same(again, undisturbed)


def test_a_checkpoint_of_another_model_is_not_used() -> None:
    _ran(_learn, killed_after=2 * STEPS)

    def narrower(context: Context) -> Any:
        module = candidate("residual", seed=1).module
        fit(module, context, SETTINGS, doing="learning")

    assert _ran(narrower)[1] == 3 * STEPS


@pytest.mark.parametrize("how", ["cut off", "changed", "no checkpoint"])
def test_a_damaged_checkpoint_is_thrown_away_and_told(how: str) -> None:
    undisturbed, _ = _ran(_learn, folder="other")
    _ran(_learn, killed_after=2 * STEPS)
    [file] = Path("unfinished").iterdir()
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes({"cut off": bytes(content[:-9]), "changed": bytes(content), "no checkpoint": b"{}"}[how])
    events: list[Event] = []
    here = Checkpoints(folder=Path("unfinished"), emit=events.append)
    assert here.next(dict).load() is None
    assert [event.text.partition(":")[0] for event in events if isinstance(event, Note)] == [
        "a checkpoint is damaged, and thrown away"
    ]
    again, taken = _ran(_learn)
    assert taken == 3 * STEPS and _same(again, undisturbed)


def test_a_disk_that_is_full_ends_no_training() -> None:
    Path("unfinished").write_text("a file is in the way")
    events: list[Event] = []
    checkpoint = Checkpoints(folder=Path("unfinished"), emit=events.append).next(dict)
    for _ in range(2):
        checkpoint.save({"a": torch.ones(1)}, {})
    assert len(events) == 1 and "no checkpoint is kept of this training" in str(events[0])


def test_saving_takes_a_small_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "_SHARE", 0.03)
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    checkpoint = Checkpoints(folder=Path("unfinished")).next(dict)
    checkpoint.begun = checkpoint.saved = 100.0
    assert checkpoint.due() and not checkpoint.overdue()  # nothing is known yet
    checkpoint.took = checkpoint.spent = 3.0
    now = 299.0
    assert not checkpoint.due()
    now = 301.0
    assert checkpoint.due() and not checkpoint.overdue()
    now = 401.0
    assert checkpoint.overdue()
    checkpoint.took, checkpoint.spent, checkpoint.saved = 3.0, 6.0, now
    now = 1001.0
    checkpoint.took, checkpoint.spent = 9.0, 15.0  # one that took long, after epochs that took less than they may
    assert checkpoint.due()


def test_progress_goes_on_from_where_it_was() -> None:
    _ran(_learn, killed_after=2 * STEPS)
    events: list[Event] = []
    _ran(_learn, events=events)
    assert [event.done for event in events if isinstance(event, StepProgress)][-1] == 3 * STEPS
    [note] = [event.text for event in events if isinstance(event, Note)]
    assert note == f"learning: goes on after step {2 * STEPS} of {3 * STEPS}, where an earlier build was stopped"
    assert all(event.done > 2 * STEPS for event in events if isinstance(event, StepProgress))
