"""Segmentation: what masks may be, the loss, and the scores."""

import math
import re

import numpy
import pytest
import torch
from torch.nn import functional

from edgepack.core.signature import Signature, TensorSpec
from edgepack.data.tasks import segmentation
from edgepack.data.tasks.segmentation import IGNORED, Config, Segmentation

_PICTURE = TensorSpec(name="input", shape=(1, 4, 6))
_LABELS = ("sky", "road", "car")


@pytest.fixture
def task() -> Segmentation:
    return segmentation.task(Config(), Signature(inputs=(_PICTURE,), labels=_LABELS))


def _logits(masks: torch.Tensor) -> torch.Tensor:
    """Logits that give these masks."""
    return functional.one_hot(masks.long(), 3).permute(0, 3, 1, 2) * 9.0


def _masks(count: int = 5, seed: int = 0) -> torch.Tensor:
    chance = torch.Generator().manual_seed(seed)
    return torch.randint(3, (count, 4, 6), generator=chance, dtype=torch.uint8)


def test_every_pixel_has_a_logit_of_each_class(task: Segmentation) -> None:
    assert task.signature.outputs == (TensorSpec(name="out", shape=(3, 4, 6)),)
    assert task.signature.width == 3 and task.metric == "miou"


@pytest.mark.parametrize(
    ("inputs", "labels", "why"),
    [
        ((TensorSpec(name="x", shape=(9,)),), _LABELS, r"this task is for pictures, but .* shape \[9\]"),
        ((_PICTURE, _PICTURE), _LABELS, "this task is for pictures"),
        ((_PICTURE,), (), "needs the names of the classes"),
        ((_PICTURE,), tuple(map(str, range(256))), "room for 255 classes, but the data has 256"),
    ],
)
def test_data_that_does_not_fit_is_refused(inputs: tuple[TensorSpec, ...], labels: tuple[str, ...], why: str) -> None:
    assert re.search(why, segmentation.incompatibility(Config(), Signature(inputs=inputs, labels=labels)))


def test_a_mask_with_an_unknown_class_is_named(task: Segmentation) -> None:
    masks = _masks()
    masks[0, 0, 0] = IGNORED
    assert task.problem(masks) == task.problem(masks.long()) == ""
    masks[3, 2, 1], masks[4, 0, 0] = 7, 9
    assert task.problem(masks) == "the mask of sample 3 has the class 7, but the labels are 0 to 2"
    negative = _masks().long()
    negative[1, 0, 0] = -1
    assert "sample 1 has the class -1" in task.problem(negative)


@pytest.mark.parametrize("targets", [torch.zeros(2), torch.zeros(2, 4, 6), torch.zeros(2, 6, 4, dtype=torch.uint8)])
def test_targets_that_are_no_masks_are_named(task: Segmentation, targets: torch.Tensor) -> None:
    assert "expected masks, uint8 or int64 of shape [n, 4, 6]" in task.problem(targets)


def test_the_loss_is_cross_entropy_of_the_pixels_that_have_a_class(task: Segmentation) -> None:
    masks, outputs = _masks(2), torch.randn(2, 3, 4, 6)
    torch.testing.assert_close(task.loss((outputs,), masks), functional.cross_entropy(outputs, masks.long()))
    masks[0, :, 3:] = IGNORED
    each = [
        functional.cross_entropy(outputs[:1, :, :, :3], masks[:1, :, :3].long()),
        functional.cross_entropy(outputs[1:], masks[1:].long()),
    ]
    torch.testing.assert_close(task.loss((outputs,), masks), sum(each) / 2)
    assert task.smoothed((outputs,), masks, 0.1) != task.loss((outputs,), masks)


def test_a_batch_without_any_class_has_a_loss_of_zero(task: Segmentation) -> None:
    masks = torch.full((2, 4, 6), IGNORED, dtype=torch.uint8)
    assert task.loss((torch.randn(2, 3, 4, 6),), masks) == 0
    meter = task.meter()
    meter.update((torch.randn(2, 3, 4, 6),), masks)
    assert meter.compute() == {"miou": 0, "accuracy.pixels": 0}


def test_distillation_is_that_of_a_classification_of_pixels(task: Segmentation) -> None:
    own, teacher = torch.randn(2, 3, 4, 6), torch.randn(2, 3, 4, 6)
    pixels = [each.permute(0, 2, 3, 1).reshape(-1, 3) / 4 for each in (own, teacher)]
    wanted = functional.kl_div(pixels[0].log_softmax(1), pixels[1].softmax(1), reduction="batchmean") * 16
    torch.testing.assert_close(task.distill((own,), (teacher,), 4.0), wanted)
    assert task.distill((teacher,), (teacher,), 4.0) == 0


def test_the_scores_are_those_of_all_samples_together(task: Segmentation) -> None:
    """As scikit-learn's, over all pixels; however many come at a time."""
    from sklearn.metrics import accuracy_score, jaccard_score

    truth, given = _masks(5, seed=1), _masks(5, seed=2)
    truth[0, 0] = IGNORED
    meter = task.meter()
    for rows in (slice(0, 2), slice(2, 5)):
        meter.update((_logits(given[rows]),), truth[rows])
    pixels = truth[truth != IGNORED].numpy(), given[truth != IGNORED].numpy()
    assert math.isclose(meter.compute()["miou"], jaccard_score(*pixels, average="macro"))
    assert math.isclose(meter.compute()["accuracy.pixels"], accuracy_score(*pixels))


def test_classes_that_no_mask_has_do_not_count(task: Segmentation) -> None:
    truth = torch.zeros(1, 4, 6, dtype=torch.uint8)
    given = truth.clone()
    given[0, :2] = 2
    meter = task.meter()
    meter.update((_logits(given),), truth)
    assert meter.compute() == {"miou": 0.5, "accuracy.pixels": 0.5}


def test_agreement_and_words_need_no_torch(task: Segmentation) -> None:
    mask = torch.zeros(2, 4, 6, dtype=torch.uint8)
    mask[0, 0], mask[1] = 2, 1
    outputs, other = _logits(mask).numpy(), _logits(mask * 0).numpy()
    assert task.agreement((outputs,), (other,)).tolist() == [0.75, 0]
    assert task.told((outputs,)) == ["sky 75 %, car 25 %", "road 100 %"]
    assert isinstance(outputs, numpy.ndarray)


def test_a_report_draws_masks(task: Segmentation) -> None:
    mask = torch.zeros(1, 4, 6, dtype=torch.uint8)
    mask[0, 0], mask[0, 1] = 2, IGNORED
    [right], [given] = task.truth(mask.numpy()), task.drawn((_logits(mask.where(mask < 3, 0)).numpy(),))
    assert (right.words, given.words) == ("sky 67 %, car 33 %", "sky 75 %, car 25 %")
    assert right.mask == given.mask  # pixels without a class are drawn as the first one
    assert task.truth(mask[:, 1:2].numpy())[0].words == "nothing"
