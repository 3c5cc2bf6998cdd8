"""Embeddings: what is alike is near, and files agree where they point the same way."""

import re
from typing import Any

import numpy
import pytest
import torch
from torch.nn import functional

from edgepack.config import plugins
from edgepack.core.signature import Signature, TensorSpec
from edgepack.data.tasks import embedding
from edgepack.data.tasks.embedding import Config, Embedding

SIGNATURE = Signature(inputs=(TensorSpec(name="input", shape=(1, 8, 8)),), labels=("ant", "bee", "cow"))


def task(**settings: Any) -> Embedding:
    return embedding.task(Config(**{"size": 2, **settings}), SIGNATURE)


def at(*degrees: float, length: float = 1.0) -> torch.Tensor:
    turned = torch.tensor(degrees).deg2rad()
    return length * torch.stack([turned.cos(), turned.sin()], dim=1)


def recalls(given: torch.Tensor, targets: list[int]) -> dict[str, float]:
    meter = task().meter()
    for rows in torch.arange(len(targets)).split(2):
        meter.update((given[rows],), torch.tensor(targets)[rows])
    return meter.compute()


def test_a_model_gives_as_many_numbers_as_the_recipe_says() -> None:
    [spec] = task(size=48).outputs()
    assert (spec.name, spec.shape, spec.dtype) == ("embedding", (48,), "float32")
    assert task(size=48).signature.width == 48
    assert task().metric == "recall_at_1"


@pytest.mark.parametrize("model", [{"torchvision": "mobilenet_v3_small"}, {"timm": "test_resnet"}])
def test_models_of_libraries_give_as_many_numbers(model: dict[str, str]) -> None:
    choice = plugins.choose("models", model)
    assert choice.module.build(choice.config, task(size=48).signature)(torch.zeros(2, 1, 32, 32)).shape == (2, 48)


def test_recall_asks_whether_the_nearest_other_sample_is_alike() -> None:
    # The nearest to 0 is 10, to 10 is 0, to 30 is 10 and to 90 is 30: the second and third have another label there.
    assert recalls(at(0, 10, 30, 90), [0, 0, 1, 1]) == {"recall_at_1": 0.75, "recall_at_5": 1.0}
    assert recalls(at(0, 10, 30, 90), [0, 1, 0, 1]) == {"recall_at_1": 0.0, "recall_at_5": 1.0}


def test_recall_looks_at_five_others_at_most() -> None:
    first = recalls(at(0, 1, 2, 3, 4, 5, 90), [0, 1, 1, 1, 1, 1, 0])
    assert first["recall_at_5"] == pytest.approx(5 / 7)  # the two that are alike are the sixth of each other
    assert recalls(at(0, 1, 2, 3, 4, 90), [0, 1, 1, 1, 1, 0])["recall_at_5"] == 1


def test_only_the_direction_counts() -> None:
    given = at(0, 10, 30, 90) * torch.tensor([[1.0], [100.0], [0.01], [5.0]])
    assert recalls(given, [0, 0, 1, 1])["recall_at_1"] == 0.75


def test_a_sample_that_nothing_is_like_does_not_count() -> None:
    assert recalls(at(0, 10, 5), [0, 0, 2]) == {"recall_at_1": 0.0, "recall_at_5": 1.0}
    assert recalls(at(0, 10, 170), [0, 0, 2])["recall_at_1"] == 1


def test_many_samples_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    given, targets = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)), [*range(3)] * 16 + [0, 1]
    whole = recalls(given, targets), task().loss((given,), torch.tensor(targets))
    monkeypatch.setattr(embedding, "_AT_ONCE", 7)
    assert recalls(given, targets) == whole[0]
    torch.testing.assert_close(task().loss((given,), torch.tensor(targets)), whole[1])


def test_the_loss_is_that_of_supervised_contrast() -> None:
    """As equation 2 of the paper says, sample by sample."""
    given, targets = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0, 1, 1, 2])
    near = functional.normalize(given, dim=1)
    each = []
    for i in range(5):  # nothing is like the last one
        others = [a for a in range(6) if a != i]
        total = torch.stack([(near[i] @ near[a] / 0.1).exp() for a in others]).sum()
        alike = [p for p in others if targets[p] == targets[i]]
        each.append(-torch.stack([((near[i] @ near[p] / 0.1).exp() / total).log() for p in alike]).mean())
    torch.testing.assert_close(task(size=4).loss((given,), targets), torch.stack(each).mean())


def test_the_loss_of_a_batch_without_likes_is_zero_and_finite() -> None:
    given = at(0, 10, 20).requires_grad_()
    lost = task().loss((given,), torch.tensor([0, 1, 2]))
    lost.backward()
    assert float(lost.detach()) == 0
    assert given.grad is not None and given.grad.abs().max() == 0


def test_training_moves_what_is_alike_together() -> None:
    given, targets = at(0, 100, 20, 120).requires_grad_(), torch.tensor([0, 0, 1, 1])
    optimizer = torch.optim.SGD([given], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        task().loss((given,), targets).backward()
        optimizer.step()
    assert recalls(given.detach(), targets.tolist())["recall_at_1"] == 1


def test_a_student_learns_the_directions_of_its_teacher() -> None:
    teacher = at(0, 40, 90)
    same = task().distill((at(0, 40, 90, length=7.0),), (teacher,), 4.0)
    turned = task().distill((at(20, 60, 110),), (teacher,), 4.0)  # what is near each sample is as before
    mixed = task().distill((at(40, 0, 90),), (teacher,), 4.0)
    assert float(same) == pytest.approx(0, abs=1e-5)
    assert float(turned) == pytest.approx(1 - numpy.cos(numpy.deg2rad(20)), abs=1e-5)
    assert mixed > turned


@pytest.mark.parametrize(("tolerance", "agreed"), [(0.99, [1, 0, 0]), (0.9, [1, 1, 0])])
def test_files_agree_where_embeddings_point_the_same_way(tolerance: float, agreed: list[int]) -> None:
    ours, theirs = at(3, 20, 180).numpy() * 5, at(0, 0, 0).numpy()
    assert task(tolerance=tolerance).agreement((ours,), (theirs,)).tolist() == agreed


def test_people_are_shown_the_first_numbers_and_the_length() -> None:
    [told] = task(size=6).told((numpy.array([[3.0, 4, 0, 0, 0, 0]], numpy.float32),))
    assert told == "3, 4, 0, 0, ... of length 5"


@pytest.mark.parametrize(
    ("targets", "problem"),
    [
        (torch.tensor([0, 0, 2]), ""),
        (torch.tensor([0.0, 1.0]), r"targets are float32 of shape \[2\], expected int64"),
        (torch.tensor([0, 3, 3]), "targets go from 0 to 3, but the labels are 0 to 2"),
        (torch.tensor([0, 1, 2]), "no two of its samples have the same label"),
    ],
)
def test_targets_say_what_is_alike(targets: torch.Tensor, problem: str) -> None:
    found = task().problem(targets)
    assert re.match(problem, found) if problem else not found


def test_data_without_labels_is_refused() -> None:
    assert "labels" in embedding.incompatibility(Config(), Signature(inputs=SIGNATURE.inputs))
    assert not embedding.incompatibility(Config(), SIGNATURE)


def test_an_embedding_without_a_direction_agrees_with_no_other() -> None:
    nowhere, somewhere = numpy.zeros((1, 2), "float32"), numpy.ones((1, 2), "float32")
    pairs = [(nowhere, nowhere), (nowhere, somewhere), (somewhere, nowhere)]
    assert [float(task().agreement((ours,), (theirs,))[0]) for ours, theirs in pairs] == [1, 0, 0]
