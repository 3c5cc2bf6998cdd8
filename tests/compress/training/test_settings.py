"""What the settings of a training do, and that the defaults are a plain loop in torch."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.nn import functional
from torch_factories import accuracy, candidate, context, data, learned
from torch_factories import tiny_models as tiny_models

from edgepack.compress.contract import Context, Training
from edgepack.compress.training import checkpoints, evaluation, numerics
from edgepack.compress.training.checkpoints import Checkpoints
from edgepack.compress.training.evaluation import Progress
from edgepack.compress.training.loop import fit
from edgepack.compress.training.loss import Distillation, LabelLoss, Mixing, balanced
from edgepack.core.errors import StageError
from edgepack.core.events import Event, Note
from edgepack.data.contract import Task


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    with numerics.deterministic(0, 1):
        yield


def _settings(**changes: Any) -> Training:
    return Training(**{"epochs": 2, "learning_rate": 1e-2, "batch_size": 16, **changes})


def _fitted(here: Context | None = None, **changes: Any) -> nn.Module:
    module = candidate("residual").module
    fit(module, here or context(), _settings(**changes), doing="learning")
    return module


def _same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(*pair) for pair in pairs)


def test_the_defaults_are_a_plain_loop_of_torch() -> None:
    """To the bit; statistics of batch norm are taken again after each epoch of so few steps."""
    module = candidate("residual").module.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    train, steps, step = data().train, 12, 0
    for epoch in range(2):
        module.train()
        for batch in train.batches(16, seed=epoch):
            share = (step + 1) / 1 if step < 1 else 0.5 * (1 + math.cos(math.pi * (step - 1) / (steps - 1)))
            optimizer.param_groups[0]["lr"] = 1e-2 * share
            optimizer.zero_grad()
            inputs = batch.inputs[0].to(memory_format=torch.channels_last)
            functional.cross_entropy(module(inputs), batch.targets).backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            step += 1
    here = context()
    assert all(map(torch.equal, _fitted(here).parameters(), module.parameters()))
    assert here.trainings[0].kept == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "sgd", "learning_rate": 0.05},
        {"schedule": "linear"},
        {"schedule": "constant", "warm_up": "0 %"},
        {"clip": None},
        {"weight_decay": 0.0},
        {"label_smoothing": 0.1},
        {"class_weights": "balanced", "label_smoothing": 0.1, "mixup": 0.2, "cutmix": 0.2},
        {"mixup": 0.2},
        {"cutmix": 0.2},
        {"mixup": 0.2, "cutmix": 0.2},
        {"ema": 0.9},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_a_net_learns_in_every_way_and_the_same_each_time(changes: dict[str, Any]) -> None:
    once, again = (_fitted(epochs=8, **changes) for _ in range(2))
    assert accuracy(once) > 0.9
    assert _same(once, again)
    assert not _same(once, _fitted(epochs=8))


def test_the_average_of_the_weights_is_what_is_scored_and_kept() -> None:
    here = context()
    module = _fitted(here, ema=0.9, epochs=1)
    plain = _fitted(epochs=1)
    assert not _same(module, plain)
    assert here.trainings[0].epochs[1].score == accuracy(module)
    first = candidate("residual").module.state_dict()
    for name, tensor in module.state_dict().items():  # between the first weights and the last ones
        if tensor.is_floating_point():
            step, whole = (tensor - first[name]).norm(), (plain.state_dict()[name] - first[name]).norm()
            assert step <= whole * 1.5 + 1e-6


def test_the_average_has_statistics_of_its_own_weights() -> None:
    """Where batch norms follow slowly, those of the training contain untrained weights."""

    def slow(**changes: Any) -> float:
        module = candidate("residual").module
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 0.01
        here = context()
        fit(module, here, _settings(epochs=5, **changes), doing="")
        return here.trainings[0].epochs[-1].score or 0.0

    assert slow() > 0.9 and slow(ema=0.9) > 0.9


def test_training_ends_after_so_many_epochs_without_a_better_score() -> None:
    scores = [0.5, 0.6, 0.55, 0.6, 0.9]
    task = context().task

    class Scripted:
        def __getattr__(self, name: str) -> Any:
            return getattr(task, name)

        def meter(self) -> Any:
            return SimpleNamespace(
                update=lambda outputs, targets: None, compute=lambda: {"accuracy": scores.pop(0), "accuracy.top5": 1.0}
            )

    events: list[Event] = []
    here = replace(context(events=events), task=cast(Task, Scripted()))
    fit(candidate("residual").module, here, _settings(epochs=9, early_stop=2), doing="learning")
    notes = [event.text for event in events if isinstance(event, Note)]
    assert notes == ["learning: stopped after epoch 3 of 9: none since epoch 1 had a better score"]
    assert [each.score for each in here.trainings[0].epochs] == [0.5, 0.6, 0.55, 0.6]
    assert scores == [0.9]


def test_labels_are_smoothed_by_the_task() -> None:
    logits, targets = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    task, outputs = context().task, (logits,)
    assert task.smoothed is not None
    even = -functional.log_softmax(logits, 1).mean()
    expected = 0.7 * task.loss(outputs, targets) + 0.3 * even
    torch.testing.assert_close(task.smoothed(outputs, targets, 0.3), expected)

    class Without:
        smoothed: Any = None
        weighted: Any = None

        def __getattr__(self, name: str) -> Any:
            return getattr(task, name)

    with pytest.raises(StageError, match="this task has no label smoothing"):
        _fitted(replace(context(), task=cast(Task, Without())), label_smoothing=0.1)
    with pytest.raises(StageError, match="this task has no class weights"):
        _fitted(replace(context(), task=cast(Task, Without())), class_weights="balanced")


def _loss_on_labels(targets: list[int], **changes: Any) -> LabelLoss:
    return LabelLoss(context().task, _settings(**changes), torch.tensor(targets))


def test_rare_classes_weigh_more_as_in_scikit_learn() -> None:
    targets = numpy.array([0] * 6 + [1] * 3 + [3])
    expected = compute_class_weight("balanced", classes=numpy.array([0, 1, 3]), y=targets)
    weights = balanced(torch.bincount(torch.tensor(targets)), 5)
    assert weights.tolist() == pytest.approx([*expected[:2], 1.0, expected[2], 1.0])
    assert weights[torch.tensor(targets)].mean() == pytest.approx(1.0)


@pytest.mark.parametrize("amount", [0.0, 0.2])
def test_each_sample_counts_by_the_weight_of_its_class(amount: float) -> None:
    """In whatever batch it stands; balanced classes change nothing."""
    logits, targets = torch.randn(6, 3), torch.tensor([0, 0, 0, 1, 1, 2])
    loss = _loss_on_labels(targets.tolist(), class_weights="balanced", label_smoothing=amount)
    parts = [loss(logits[rows], targets[rows]) for rows in ([0, 1], [2, 5], [3, 4])]
    torch.testing.assert_close(loss(logits, targets), sum(parts, torch.zeros(())) / 3)
    if not amount:
        each = functional.cross_entropy(logits, targets, reduction="none")
        torch.testing.assert_close(loss(logits, targets), sum(each[targets == i].mean() for i in range(3)) / 3)
    even = _loss_on_labels([0, 1, 2], class_weights="balanced", label_smoothing=amount)
    torch.testing.assert_close(even(logits, targets), _loss_on_labels([0], label_smoothing=amount)(logits, targets))


def test_a_class_that_is_rare_is_learned_where_it_weighs_more() -> None:
    """Ten of ninety samples are of the class whose recall is asked for."""
    whole = data()
    rare = torch.cat([(whole.train.targets == 0).nonzero()[:2, 0], (whole.train.targets != 0).nonzero()[:, 0]])
    here = replace(context(), data=replace(whole, train=whole.train.chosen(rare)).for_stages())

    def recall(**changes: Any) -> float:
        (logits,) = evaluation.predict(_fitted(here, epochs=1, learning_rate=3e-3, **changes), whole.validation)
        mine = whole.validation.targets == 0
        return float((logits.argmax(1)[mine] == 0).float().mean())

    assert recall(class_weights="balanced") > recall()


def test_mixup_adds_inputs_up() -> None:
    inputs = torch.rand(6, 1, 8, 8)
    (mixed,), others, share = Mixing(mixup=0.4, cutmix=0.0).mixed((inputs,), 3)
    torch.testing.assert_close(mixed, share * inputs + (1 - share) * inputs[others])
    assert sorted(others.tolist()) == [*range(6)] and 0 < share < 1


def test_cutmix_pastes_a_rectangle_and_tells_its_share() -> None:
    whole = torch.arange(6.0)[:, None, None, None].expand(6, 1, 8, 10)
    shares = set()
    for seed in range(20):
        (mixed,), others, share = Mixing(mixup=0.0, cutmix=1.0).mixed((whole,), seed)
        own = (mixed == whole).float().mean((1, 2, 3))
        for row, other in enumerate(others.tolist()):
            assert own[row] == (1.0 if other == row else pytest.approx(share))
            assert {*mixed[row].unique().tolist()} <= {float(row), float(other)}
        shares.add(round(share, 3))
    assert len(shares) > 10 and max(shares) <= 1


@pytest.mark.parametrize(
    ("inputs", "mixing", "why"),
    [
        (torch.zeros(2, 5, dtype=torch.int64), Mixing(mixup=0.2, cutmix=0.0), "numbers of tokens cannot be mixed"),
        (torch.zeros(2, 5), Mixing(mixup=0.0, cutmix=0.2), "cutmix is for pictures"),
    ],
)
def test_inputs_that_cannot_be_mixed_are_refused(inputs: torch.Tensor, mixing: Mixing, why: str) -> None:
    with pytest.raises(StageError, match=why):
        mixing.check((inputs,), context().task)


def test_a_teacher_sees_what_was_mixed() -> None:
    teacher = learned().module
    seen: list[torch.Tensor] = []
    real = teacher.forward
    teacher.forward = lambda x: seen.append(x) or real(x)  # type: ignore[func-returns-value]
    lesson = Distillation(teacher=teacher)
    fit(candidate().module, context(), _settings(epochs=1, mixup=1.0), doing="", distillation=lesson)
    stored = {row.numpy().tobytes() for row in data().train.inputs[0]}
    assert len(seen) == 6 and not any(row.contiguous().numpy().tobytes() in stored for row in seen[0])


def test_the_logits_of_a_teacher_are_kept_unless_they_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgepack.compress.training import loss

    calls = 0

    def predicted(*arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return evaluation.predict(*arguments)

    monkeypatch.setattr(loss, "predict", predicted)
    monkeypatch.setattr(loss, "_KEPT", 96 * 3 * 4 - 1)
    lesson = Distillation(teacher=learned().module)
    fit(candidate().module, context(), _settings(), doing="", distillation=lesson)
    assert calls == 0
    monkeypatch.setattr(loss, "_KEPT", 96 * 3 * 4)
    fit(candidate().module, context(), _settings(), doing="", distillation=lesson)
    assert calls == 1


class Killed(BaseException):
    pass


@pytest.mark.parametrize("changes", [{"optimizer": "sgd"}, {"ema": 0.9}, {"mixup": 0.2}, {"early_stop": 3}])
def test_a_killed_training_goes_on_in_every_way(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "_SHARE", float("inf"))
    undisturbed = _fitted(epochs=3, **changes)

    def killed(progress: Progress, told: object) -> None:
        progress.done += 1
        if progress.done == 15:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "advance", killed)
        with pytest.raises(Killed):
            _fitted(context(checkpoints=Checkpoints(folder=Path("unfinished"))), epochs=3, **changes)
    assert _same(_fitted(context(checkpoints=Checkpoints(folder=Path("unfinished"))), epochs=3, **changes), undisturbed)
