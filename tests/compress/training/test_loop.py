import copy
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch_factories import Kind, accuracy, candidate, context, data, learned
from torch_factories import tiny_models as tiny_models

from edgepack.compress.contract import Training
from edgepack.compress.stages import quantize
from edgepack.compress.training import batch_norm, evaluation
from edgepack.compress.training import numerics as training_numerics
from edgepack.compress.training.loop import fit
from edgepack.compress.training.loss import Distillation
from edgepack.compress.training.numerics import Numerics, numerics
from edgepack.core import provenance
from edgepack.core.errors import StageError
from edgepack.core.events import Event, StepProgress
from edgepack.data import splits
from edgepack.data.contract import Task
from edgepack.data.splits import Split


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    with training_numerics.deterministic(0, 1):
        yield


def settings(**changes: Any) -> Training:
    return Training(**{"epochs": 3, "learning_rate": 1e-2, "batch_size": 16, **changes})


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", ["residual", "mlp", "depthwise"])
def test_a_net_learns(kind: Kind) -> None:
    module = candidate(kind).module
    best = fit(module, context(), settings(epochs=8), doing="learning")
    assert best.score == accuracy(module) > 0.9
    assert accuracy(module, data().test) > 0.9
    assert not module.training


def test_a_student_learns_from_its_teacher_alone() -> None:
    """With all the weight on the teacher, wrong labels do no harm."""
    honest = data()
    wrong = replace(honest.train, targets=(honest.train.targets + 1) % 3)
    teacher, student = learned().module, candidate("mlp").module
    before = weights(teacher)
    lesson = Distillation(teacher=teacher, alpha=1.0)
    fit(student, context(data=replace(honest, train=wrong)), settings(epochs=8), doing="", distillation=lesson)
    assert accuracy(student) > 0.9
    assert equal(weights(teacher), before)


class Scripted:
    """The tiny task, with scores read from a list instead of taken."""

    def __init__(self, *scores: float) -> None:
        self.given = list(scores)

    def __getattr__(self, name: str) -> Any:
        return getattr(context().task, name)

    def meter(self) -> Any:
        found = {"accuracy": 0.0, "accuracy.top5": 1.0}
        return SimpleNamespace(
            update=lambda outputs, targets: None, compute=lambda: {**found, "accuracy": self.given.pop(0)}
        )


class Errors(Scripted):
    """Lower scores are better, and how far they are off by chance is not known."""

    counts_samples = False

    def better(self, score: float) -> float:
        return -score


@pytest.mark.parametrize(("scores", "best"), [((0.1, 0.5, 0.9, 0.3), 2), ((0.9, 0.1, 0.2, 0.3), 0), ((0, 0, 0, 1), 3)])
def test_the_best_epoch_is_kept_the_first_included(scores: tuple[float, ...], best: int) -> None:
    module, seen = candidate("mlp").module, list[dict[str, torch.Tensor]]()
    fitted = fit(
        module,
        context(task=Scripted(*scores)),
        settings(),
        doing="",
        each_epoch=lambda epoch: seen.append(weights(module)),
    )
    assert (fitted.epoch, fitted.score) == (best, scores[best])
    assert [i for i, state in enumerate(seen) if equal(state, weights(module))] == ([best] if best < 3 else [])


@pytest.mark.parametrize(
    ("scores", "best"), [((9, 5, 1, 3), 2), ((1, 9, 2, 3), 0), ((5, 4, 3, 2), 3), ((2, 1, 1, 1), 3)]
)
def test_the_epoch_with_the_lowest_error_is_kept(scores: tuple[float, ...], best: int) -> None:
    fitted = fit(candidate("mlp").module, context(task=Errors(*scores)), settings(), doing="")
    assert (fitted.epoch, fitted.score) == (best, scores[best])
    stopped: list[Event] = []
    trained = context(task=Errors(1, 2, 3, 4), events=stopped)
    fit(candidate("mlp").module, trained, settings(epochs=9, early_stop=2), doing="")
    assert "stopped after epoch 2 of 9" in " ".join(getattr(each, "text", "") for each in stopped)


@pytest.mark.parametrize(("lucky", "kept"), [(0.94, 3), (1.0, 1)])
def test_an_early_epoch_is_kept_only_where_chance_does_not_explain_its_lead(lucky: float, kept: int) -> None:
    """Of 48 validation samples three more right ones may be luck, six are not."""
    assert len(context().data.validation) == 48
    fitted = fit(candidate("mlp").module, context(task=Scripted(0.1, lucky, 0.8, 0.875)), settings(), doing="")
    assert fitted.epoch == kept


class Broken(Scripted):
    """Its loss of classes from `most` on is no number."""

    def __init__(self, most: int) -> None:
        super().__init__(*[0.5] * 9)
        self.most = most

    def loss(self, outputs: tuple[torch.Tensor, ...], targets: torch.Tensor) -> torch.Tensor:
        return (outputs[0].mean(1) / (targets < self.most)).mean()


def test_a_loss_that_is_not_finite_at_the_first_batch_ends_training_with_that_batch() -> None:
    basic = context().data
    first = next(basic.train.batches(16, seed=0)).indices.tolist()
    named = ", ".join(map(str, first))
    told = (
        f"the loss of the first batch is .*, though the outputs of the model are finite; it has the samples {named} of"
    )
    with pytest.raises(StageError, match=told):
        fit(candidate("mlp").module, context(task=Broken(2)), settings(), doing="")
    bad = basic.train.inputs[0].clone()
    bad[first[3]] = float("nan")
    spoilt = replace(basic, train=replace(basic.train, inputs=(bad,)))
    with pytest.raises(StageError, match=rf"inputs are NaN or Inf in {first[3]}; it has the samples {named}"):
        fit(candidate("mlp").module, context(data=spoilt), settings(), doing="")
    module = candidate("mlp").module
    with torch.no_grad():
        module[1].weight.fill_(float("inf"))
    with pytest.raises(StageError, match="is nan: so are outputs of the model; it has the samples"):
        fit(module, context(), settings(), doing="")


def test_no_epochs_leave_the_model_as_it_was() -> None:
    module = candidate("mlp").module
    before = weights(module)
    assert fit(module, context(), settings(epochs=0), doing="").epoch == 0
    assert equal(weights(module), before)


@pytest.mark.parametrize("kind", ["residual", "mlp", "depthwise"])
def test_one_seed_gives_one_result_bit_for_bit(kind: Kind) -> None:
    def trained(seed: int) -> dict[str, torch.Tensor]:
        module = candidate(kind).module
        fit(module, context(seed=seed), settings(), doing="", distillation=Distillation(teacher=learned().module))
        return weights(module)

    assert equal(trained(1), trained(1))
    assert not equal(trained(1), trained(2))


class Volumes(nn.Module):  # type: ignore[misc]
    """Convolutions in two dimensions, tied and frozen ones too, one in three, and kernels that are mixed (CondConv)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.still = (nn.Conv2d(n, 4, 3, padding=1) for n in (1, 4, 4))
        self.still.weight = self.again.weight
        self.frozen = nn.Conv2d(4, 4, 1).requires_grad_(False)
        self.kernels = nn.Parameter(0.1 * torch.randn(3, 4, 4, 3, 3))
        self.deep, self.choice, self.head = nn.Conv3d(4, 4, 1), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.frozen(torch.relu(self.still(torch.relu(self.again(torch.relu(self.first(x)))))))
        x = self.deep(x[:, :, None])[:, :, 0]
        n, c, h, w = x.shape
        kernels = (self.choice(x.mean((2, 3))).softmax(1) @ self.kernels.flatten(1)).view(n * c, c, 3, 3)
        x = nn.functional.conv2d(x.reshape(1, n * c, h, w), kernels, padding=1, groups=n).view(n, c, h, w)
        logits: torch.Tensor = self.head(torch.relu(x).mean((2, 3)))
        return logits


def test_weights_of_five_dimensions_beside_convolutions_in_two_are_trained() -> None:
    module = Volumes()
    module.kernels.grad = torch.ones_like(module.kernels)
    before = weights(module)
    assert numerics(module).channels_last
    fit(module, context(), settings(), doing="learning")
    moved = {name for name, tensor in weights(module).items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if not name.startswith("frozen")}
    assert module.still.weight is module.again.weight and not module.frozen.weight.requires_grad
    assert all(tensor.is_contiguous() for tensor in module.state_dict().values())


class Deep(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.flat, self.deep, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Conv3d(4, 4, (1, 3, 3)), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(torch.relu(self.deep(torch.relu(self.flat(x))[:, :, None])).mean((2, 3, 4)))
        return logits


def test_convolutions_in_two_and_three_dimensions_are_trained_in_int8() -> None:
    made = replace(candidate("mlp"), module=Deep())
    trained = quantize.run(made, quantize.Config(mode="qat", epochs=1), context())
    assert bool(torch.isfinite(evaluation.predict(trained.module, data().test)[0]).all())


class Counted(nn.Module):  # type: ignore[misc]
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.seen = inner, 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.seen += len(inputs)
        logits: torch.Tensor = self.inner(inputs)
        return logits


@pytest.mark.parametrize(("augmented", "times"), [(False, 1), (True, 3)])
def test_the_teacher_is_asked_once_unless_the_data_differs_every_time(augmented: bool, times: int) -> None:
    teacher = Counted(learned().module)
    there = context(data=data(augmented=augmented))
    fit(candidate("mlp").module, there, settings(), doing="", distillation=Distillation(teacher=teacher))
    assert teacher.seen == times * len(there.data.train)
    again = copy.deepcopy(teacher)  # as another stage loads it
    fit(candidate("mlp").module, there, settings(), doing="", distillation=Distillation(teacher=again))
    assert again.seen == (2 * teacher.seen if augmented else teacher.seen)


def test_remembered_answers_are_those_of_the_right_samples() -> None:
    """What is remembered and what is asked anew teach the same."""

    def taught(augmented: bool) -> dict[str, torch.Tensor]:
        student = candidate("mlp").module
        lesson = Distillation(teacher=learned("mlp").module)
        fit(student, context(data=data(augmented=augmented)), settings(), doing="", distillation=lesson)
        return weights(student)

    asked = taught(augmented=True)
    for name, tensor in taught(augmented=False).items():
        torch.testing.assert_close(tensor, asked[name], rtol=1e-3, atol=1e-4)


AMX = "avx2 avx512f avx512_bf16 amx_tile amx_int8 amx_bf16"
FEATURES = {"none": "", "avx512": "avx2 avx512f avx512_bf16", "amx": AMX, "arm": "asimd asimddp bf16 i8mm"}


def on(features: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the processor had these features."""
    monkeypatch.setattr(provenance, "cpu", lambda: {"name": "a processor", "features": features})


@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES)
@pytest.mark.parametrize(
    ("kind", "name"), [("residual", "channels_last"), ("depthwise", "channels_last"), ("mlp", "default")]
)
def test_every_processor_trains_in_fp32(kind: Kind, name: str, features: str, monkeypatch: pytest.MonkeyPatch) -> None:
    on(features, monkeypatch)
    assert numerics(candidate(kind).module).name == name


def test_a_training_gives_the_same_weights_with_and_without_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(features: str) -> dict[str, torch.Tensor]:
        on(features, monkeypatch)
        module, seen = candidate("residual").module, set[torch.dtype]()
        module.head.register_forward_hook(lambda layer, inputs, output: seen.add(output.dtype))
        fit(module, context(), settings(epochs=1), doing="")
        assert seen == {torch.float32}
        return weights(module)

    assert equal(trained(""), trained(AMX))


def bf16(kind: Kind, *, epochs: int = 8, learning_rate: float = 1e-2, **lesson: Any) -> nn.Module:
    module, computed = candidate(kind).module, set[torch.dtype]()
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    hook = layers[-1].register_forward_hook(lambda layer, inputs, output: computed.add(output.dtype))
    how = settings(epochs=epochs, learning_rate=learning_rate, precision="bf16")
    distillation = Distillation(teacher=learned(kind).module, **lesson) if lesson else None
    fit(module, context(), how, doing="", distillation=distillation)
    hook.remove()
    assert torch.bfloat16 in computed
    return module


@pytest.mark.parametrize("kind", ["residual", "mlp", "depthwise"])
def test_bf16_learns_as_well_where_a_recipe_asks_for_it(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    on(AMX, monkeypatch)
    module = bf16(kind)
    full = candidate(kind).module
    fit(full, context(), settings(epochs=8), doing="")
    assert accuracy(module) >= accuracy(full) - 0.05
    assert {tensor.dtype for tensor in module.parameters()} == {torch.float32}
    assert all(tensor.is_contiguous() for tensor in module.parameters())
    assert equal(weights(module), weights(bf16(kind)))  # bit for bit, as fp32


def test_bf16_is_taught_by_what_goes_on_inside_a_teacher_too(monkeypatch: pytest.MonkeyPatch) -> None:
    on(AMX, monkeypatch)
    assert accuracy(bf16("residual", inside={"features": 10.0})) > 0.9


@pytest.mark.parametrize("features", ["", "avx2 avx512f avx512_vnni", "asimd asimddp"])
def test_bf16_is_refused_where_the_processor_has_none(features: str, monkeypatch: pytest.MonkeyPatch) -> None:
    on(features, monkeypatch)
    with pytest.raises(StageError, match=r"has no bf16 instructions.*\n.*precision: fp32"):
        fit(candidate("mlp").module, context(), settings(precision="bf16"), doing="")


def test_quantizers_are_never_trained_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    on(AMX, monkeypatch)
    graph = candidate("residual").program().module(check_guards=False)
    assert numerics(graph) == Numerics(channels_last=True)
    with pytest.raises(StageError, match="fp32 only"):
        numerics(graph, "bf16")
    with pytest.raises(ValueError, match="precision must be fp32 here"):
        quantize.Config(precision="bf16")


def test_a_loss_that_is_not_finite_in_bf16_says_to_use_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    on(AMX, monkeypatch)
    with pytest.raises(StageError, match="precision: fp32, or a learning_rate below"):
        bf16("residual", epochs=1, learning_rate=1e30)


def test_batch_norm_forgets_what_it_saw_and_averages_over_all_batches() -> None:
    norm = nn.BatchNorm2d(1, momentum=0.3)
    norm(torch.full((4, 1, 8, 8), 100.0))
    pictures = torch.arange(256.0)[:, None, None, None].expand(256, 1, 8, 8)
    batch_norm.refresh_batch_norm(norm, Split(inputs=(pictures,), targets=torch.zeros(256)), samples=128)
    assert norm.running_mean.item() == pytest.approx((31.5 + 95.5) / 2)
    assert (norm.momentum, norm.training) == (0.3, False)


def test_refreshing_repairs_stale_statistics() -> None:
    module = learned().module
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean += 3
    assert accuracy(module) < 0.9
    batch_norm.refresh_batch_norm(module, data().train)
    assert accuracy(module) > 0.9


def test_progress_has_a_total_and_an_estimate() -> None:
    events: list[Event] = []
    fit(candidate("mlp").module, context(events=events), settings(), doing="learning")
    reported = [event for event in events if isinstance(event, StepProgress)]
    assert {(event.doing, event.total) for event in reported} == {("learning", 3 * 6)}
    assert [event.done for event in reported] == sorted({event.done for event in reported})
    assert all(event.seconds_left is not None and event.seconds_left >= 0 for event in reported)
    assert (reported[-1].done, reported[-1].seconds_left) == (18, 0)


@pytest.mark.parametrize("kind", ["residual", "mlp"])
def test_a_loss_that_is_not_finite_stops_with_advice(kind: Kind) -> None:
    with pytest.raises(StageError, match="learning_rate"):
        fit(candidate(kind).module, context(), settings(learning_rate=1e30), doing="")


def test_a_last_batch_of_one_does_not_break_batch_norm() -> None:
    fit(candidate("residual").module, context(data=data(train=17)), settings(), doing="")


def test_predictions_keep_the_order_whatever_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    module, split = learned("mlp").module, data().test
    whole = evaluation.predict(module, split)[0]
    monkeypatch.setattr(splits, "_MOST", 5)
    torch.testing.assert_close(evaluation.predict(module, split)[0], whole)


@pytest.mark.parametrize(("momentum", "again"), [(0.01, True), (0.5, False), (None, False)])
def test_slow_statistics_are_taken_anew_before_a_model_is_judged(momentum: float | None, again: bool) -> None:
    """MobileNetV3's momentum: with a few steps an epoch its statistics would be those of untrained weights."""
    start = candidate()
    for layer in start.module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = momentum
    fit(start.module, context(), Training(epochs=4, learning_rate=1e-2, batch_size=16), doing="training")
    assert accuracy(start.module) > 0.9
    assert batch_norm.lags(start.module, 6) is again


def test_the_course_of_a_training_is_recorded_and_told() -> None:
    """With the same numbers in the record and the events."""
    events: list[Event] = []
    here = context(events=events)
    best = fit(candidate().module, here, settings(), doing="learning")
    [record] = here.trainings
    assert (record.doing, record.kept) == ("learning", best.epoch)
    assert [each.epoch for each in record.epochs] == [0, 1, 2, 3]
    before, *epochs = record.epochs
    assert before.loss is before.learning_rate is None
    assert record.epochs[best.epoch].score == best.score
    assert record.epochs[best.epoch].validation_loss == best.loss
    losses = [each.loss for each in epochs if each.loss is not None]
    assert len(losses) == 3 and losses[0] > losses[2]
    rates = [each.learning_rate for each in epochs if each.learning_rate is not None]
    assert rates == sorted(rates, reverse=True) and rates[2] < 1e-3
    assert all(each.samples_per_second for each in epochs)
    told = [event for event in events if isinstance(event, StepProgress)][-1]
    assert told.loss is not None and told.samples_per_second is not None
    assert (told.learning_rate, told.score) == (rates[2], epochs[1].score)  # of the epochs before


def test_the_loss_of_an_epoch_is_the_mean_over_its_samples() -> None:
    here = context(data=replace(data(), train=data().train.first(40)))  # two batches of 16, and one of 8
    module = candidate("mlp").module
    seen: list[tuple[float, int]] = []
    real = here.task.loss

    def loss(outputs: tuple[torch.Tensor, ...], targets: torch.Tensor) -> torch.Tensor:
        found = real(outputs, targets)
        if found.requires_grad:
            seen.append((float(found), len(targets)))
        return found

    task = Scripted(0.5, 0.6)
    task.loss = loss  # type: ignore[attr-defined]
    fit(module, replace(here, task=cast(Task, task)), settings(epochs=1), doing="")
    assert [count for _, count in seen] == [16, 16, 8]
    assert here.trainings[0].epochs[1].loss == pytest.approx(sum(each * count for each, count in seen) / 40)
