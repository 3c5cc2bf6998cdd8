"""A trainer of a user's own trains in place of edgepack's loop, and what it must not do ends the build."""

import datetime
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_factories import accuracy, candidate, context, data, learned
from torch_factories import tiny_models as tiny_models

from edgepack.compress.contract import Training
from edgepack.compress.stages import prune, quantize
from edgepack.compress.training import numerics, own_trainer
from edgepack.compress.training.checkpoints import Checkpoints
from edgepack.compress.training.loop import fit
from edgepack.compress.training.loss import Distillation
from edgepack.compress.training.own_trainer import Loader
from edgepack.core.errors import StageError
from edgepack.core.events import Event, Note, StepProgress
from edgepack.workflows.build.planning.keys import trainer_facts

PLAIN = """
import torch

def fit(job, rate=0.01):
    optimizer = torch.optim.Adam(job.module.parameters(), lr=rate)
    for epoch in range(job.settings.epochs):
        job.module.train()
        for inputs, targets in job.loader("train"):
            optimizer.zero_grad()
            loss = job.task.loss(job.module(inputs), targets)
            if job.teacher is not None:
                loss = loss + job.task.distill(job.module(inputs), job.teacher(inputs).detach(), 2.0)
            loss.backward()
            optimizer.step()
        job.report(epoch=epoch + 1, loss=float(loss), learning_rate=rate)
"""
BAD = """
from copy import deepcopy
from torch import nn
import torch

def widen(job):
    job.module.head = nn.Linear(16, 5)

def lose(job):
    raise ValueError("out of data")

def spoil(job):
    with torch.no_grad():
        next(job.module.parameters()).fill_(float("nan"))

def wake(job):
    with torch.no_grad():
        for weight in job.module.parameters():
            weight += 0.1

def nothing(job): ...

def weighing(job):
    weighed, plain = (loss(torch.eye(3)[:2], torch.tensor([0, 2])) for loss in (job.loss, job.task.loss))
    assert weighed != plain
    assert weighed == job.loss(torch.eye(3)[:2], torch.tensor([0, 2]))

def curious(job):
    assert not [*job.folder.iterdir()]
    assert not (job.teacher and job.teacher.training)
    job.report(epoch=1, loss=torch.tensor(0.5), score=float("nan"))

def halve(job):
    job.module.half()

def accelerated(job):
    from accelerate import Accelerator

    assert Accelerator(cpu=True, mixed_precision="bf16").mixed_precision == "bf16"

def scoring(job):
    job.module.train()
    job.module.head.eval()  # as of a layer that is frozen
    copy = deepcopy(job.module)
    with torch.no_grad():
        copy.head.weight.zero_()
        copy.head.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
    job.report(epoch=1, score=job.score(copy))
    job.report(epoch=2, score=job.score())
    assert job.module.training and not job.module.head.training and job.module.stem.training
"""


@pytest.fixture(autouse=True)
def own() -> Iterator[None]:
    """Modules `plain_trainer` and `bad_trainer` in the current folder."""
    path = [*sys.path]
    Path("plain_trainer.py").write_text(PLAIN)
    Path("bad_trainer.py").write_text(BAD)
    with numerics.deterministic(0, 1):
        yield
    sys.path[:] = path
    for name in ("plain_trainer", "bad_trainer"):
        sys.modules.pop(name, None)


def _settings(trainer: str = "plain_trainer:fit", **changes: Any) -> Training:
    return Training.model_validate({"epochs": 8, "batch_size": 16, "trainer": trainer, **changes})


def test_it_trains_the_model_in_place() -> None:
    events: list[Event] = []
    module, here = candidate("residual").module, context(events=events)
    best = fit(module, here, _settings(trainer_args={"rate": 0.02}), doing="learning")
    assert best.score == accuracy(module) > 0.9 and best.epoch == 8
    [record] = here.trainings
    assert [each.epoch for each in record.epochs] == [0, *range(1, 9)] and record.kept == 8
    assert record.epochs[3].loss is not None and record.epochs[8].score == best.score
    assert record.epochs[3].score is None  # not reported, so not known
    told = [event for event in events if isinstance(event, StepProgress)]
    assert (told[-1].done, told[-1].total, told[-1].learning_rate) == (8, 8, 0.02)
    assert not module.training


def test_two_trainings_are_the_same_and_each_pass_is_shuffled_anew() -> None:
    one, two = (candidate("residual").module for _ in range(2))
    for module in (one, two):
        fit(module, context(), _settings(epochs=2), doing="")
    assert all(map(torch.equal, one.state_dict().values(), two.state_dict().values()))


def test_it_gets_the_teacher() -> None:
    module = candidate("mlp").module
    lesson = Distillation(teacher=learned().module)
    assert fit(module, context(), _settings(), doing="", distillation=lesson).score > 0.9


def test_it_recovers_what_prune_cut_and_trains_simulated_int8() -> None:
    recover = {"epochs": 6, "batch_size": 16, "trainer": "plain_trainer:fit"}
    cut = prune.run(learned(), prune.Config(ratio="50 %", steps=1, recover=recover), context())  # type: ignore[arg-type]
    assert accuracy(cut.module) > 0.9
    qat = quantize.Config(mode="qat", epochs=2, batch_size=16, trainer="plain_trainer:fit")
    made = quantize.run(learned(), qat, context())
    assert accuracy(made.module) > 0.9


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("widen", r"bad_trainer:widen changed 2 tensors of the model: head.weight \(3, 16\) float32 to \(5, 16\) "),
        ("halve", r"bad_trainer:halve changed \d+ tensors of the model: .*weight .* float32 to .* float16"),
        ("lose", "bad_trainer:lose failed: ValueError: out of data"),
        ("spoil", "bad_trainer:spoil left NaN or Inf in stem"),
    ],
)
def test_what_it_breaks_ends_the_build(name: str, why: str) -> None:
    with pytest.raises(StageError, match=why):
        fit(candidate("residual").module, context(), _settings(f"bad_trainer:{name}"), doing="")


def test_weights_that_pruning_set_to_zero_stay_zero() -> None:
    recover = {"epochs": 1, "batch_size": 16, "trainer": "bad_trainer:wake"}
    config = prune.Config(pattern="unstructured", ratio="50 %", steps=1, recover=recover)  # type: ignore[arg-type]
    with pytest.raises(StageError, match="bad_trainer:wake changed weights that pruning set to zero, in "):
        prune.run(learned(), config, context())


def test_weights_that_pruning_set_to_zero_get_no_gradient() -> None:
    recover = {"epochs": 2, "batch_size": 16, "trainer": "plain_trainer:fit"}
    config = prune.Config(pattern="unstructured", ratio="50 %", steps=1, recover=recover)  # type: ignore[arg-type]
    module = prune.run(learned(), config, context()).module
    assert accuracy(module) > 0.9
    assert not any(each._backward_hooks for each in module.parameters())


def test_a_trainer_that_sets_up_accelerate_and_edgepacks_own_loop_are_apart() -> None:
    own = Training(epochs=1, batch_size=16)
    for settings in (own, _settings("bad_trainer:accelerated", epochs=1), own):
        fit(learned().module, context(), settings, doing="")


def test_it_can_score_what_it_trains_or_a_copy_at_any_time() -> None:
    here, module = context(), learned().module
    fit(module, here, _settings("bad_trainer:scoring", epochs=3), doing="")
    of_copy, of_module = (each.score for each in here.trainings[0].epochs[1:3])
    assert of_copy == pytest.approx(1 / 3, abs=0.05) and of_module == accuracy(module, data().validation)


def test_one_that_reports_nothing_is_measured_all_the_same() -> None:
    here, module = context(), learned().module
    best = fit(module, here, _settings("bad_trainer:nothing", epochs=3), doing="")
    assert best.score == accuracy(module, data().validation) and best.epoch == 3
    assert [each.epoch for each in here.trainings[0].epochs] == [0, 3]


def test_one_that_changes_nothing_is_told_of() -> None:
    events: list[Event] = []
    fit(candidate("residual").module, context(events=events), _settings("bad_trainer:nothing"), doing="")
    assert "warning: bad_trainer:nothing changed no weight" in [each.text for each in events if isinstance(each, Note)]


def test_arguments_are_checked_before_any_training() -> None:
    own_trainer.check_arguments("plain_trainer:fit", {"rate": 0.1})
    with pytest.raises(StageError, match="unexpected keyword argument 'rat'") as error:
        own_trainer.check_arguments("plain_trainer:fit", {"rat": 0.1})
    assert "(job, rate=0.01)" in error.value.hint


def test_a_loader_has_as_many_batches_as_it_says_and_shuffles_each_pass() -> None:
    split = data(train=33).train
    training, validation = Loader(split, 16, 5), Loader(split, 16, None)
    assert (len(training), len(validation)) == (2, 3)  # batch norm needs two: one sample is left out
    one, two = ([targets.tolist() for _, targets in training] for _ in range(2))
    assert list(map(len, one)) == [16, 16] and one != two
    assert [len(targets) for _, targets in validation] == [16, 16, 1]
    even = Loader(data(train=40).train, 16, 5, drop_last=True)
    assert len(even) == len([*even]) == 2 and len(Loader(data(train=40).train, 16, 5)) == 3


def test_the_code_of_a_trainer_and_what_it_imports_count() -> None:
    assert trainer_facts([]) == {}
    before = trainer_facts(["plain_trainer:fit"])
    assert before == trainer_facts(["plain_trainer:fit"])
    Path("plain_trainer.py").write_text(PLAIN + "\n")
    assert trainer_facts(["plain_trainer:fit"]) != before


def test_each_training_has_a_folder_of_its_own_and_a_teacher_at_rest() -> None:
    here = context(checkpoints=Checkpoints(folder=Path("unfinished")))
    teacher = learned().module.train()
    for _ in range(2):
        settings = _settings("bad_trainer:curious", epochs=1)
        fit(learned().module, here, settings, doing="", distillation=Distillation(teacher=teacher))
    assert len([*Path("unfinished").iterdir()]) == 2
    assert [record.epochs[1].loss for record in here.trainings] == [0.5, 0.5]


def test_it_is_offered_the_loss_that_the_settings_ask_for() -> None:
    for changes in ({"class_weights": "balanced", "label_smoothing": 0.1}, {"label_smoothing": 0.1}):
        fit(learned().module, context(), _settings("bad_trainer:weighing", epochs=1, **changes), doing="")


def test_arguments_that_a_recipe_cannot_hold_are_refused() -> None:
    with pytest.raises(ValueError, match="arguments are numbers, texts, lists and mappings"):
        _settings(trainer_args={"day": datetime.date(2026, 1, 1)})


def test_a_function_that_is_not_there_is_refused_when_the_recipe_is_read() -> None:
    with pytest.raises(ValueError, match="did you mean 'fit'"):
        _settings("plain_trainer:fitt")
