"""Boxes and labels of objects, by a model with anchors: against torchvision, and against pycocotools where it is."""

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from edgepack.config.plugins import choose
from edgepack.core.process.libraries import torchvision
from edgepack.core.signature import Signature, TensorSpec
from edgepack.data.tasks.detection import Detection, multibox, reading
from edgepack.data.tasks.detection.precision import Precision

Outputs = tuple[torch.Tensor, torch.Tensor]
_TARGETS = torch.tensor(
    [
        [[10, 20, 100, 200, 1], [30, 20, 60, 50, 2], [0, 0, 0, 0, -1]],
        [[0, 0, 320, 300, 0], [0, 0, 0, 0, -1], [0, 0, 0, 0, -1]],
    ],
    dtype=torch.float32,
)


def made(size: int = 320, **settings: Any) -> Detection:
    picture = TensorSpec(name="input", shape=(3, size, size))
    signature = Signature(inputs=(picture,), labels=("cup", "dog", "car"))
    choice = choose("tasks", {"detection": settings})
    found: Detection = choice.module.task(choice.config, signature)
    return found


TASK = made()
ANCHORS = torch.from_numpy(TASK.anchors)


def perfect(targets: torch.Tensor = _TARGETS) -> Outputs:
    """The outputs of a model that finds everything."""
    classes, boxes = multibox.given(targets, ANCHORS)
    offsets = torch.zeros(len(targets), len(ANCHORS), 4)
    has = classes > 0
    offsets[has] = multibox.encoded(boxes[has], ANCHORS.expand(len(targets), -1, -1)[has])
    return offsets, torch.nn.functional.one_hot(classes, 4) * 20.0


def noise(count: int = 2) -> Outputs:
    chance = torch.Generator().manual_seed(0)
    offsets, scores = (torch.randn(count, len(ANCHORS), width, generator=chance) for width in (4, 4))
    return offsets, scores


def arrays(outputs: Outputs) -> Any:
    return tuple(each.numpy() for each in outputs)


@pytest.fixture(scope="module")
def ssd() -> Any:
    """torchvision's SSDLite, which has these anchors."""
    make = torchvision().models.detection.ssdlite320_mobilenet_v3_large
    return make(weights=None, weights_backbone=None, num_classes=4).eval()


def test_outputs_and_anchors_are_those_of_torchvision(ssd: Any) -> None:
    from torchvision.models.detection.image_list import ImageList

    assert [each.shape for each in TASK.outputs()] == [(3234, 4), (3234, 4)] == [(len(ANCHORS), 4)] * 2
    maps = [torch.zeros(1, 1, side, side) for side in (20, 10, 5, 3, 2, 1)]
    corners = ssd.anchor_generator(ImageList(torch.zeros(1, 3, 320, 320), [(320, 320)]), maps)[0]
    middles = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], dim=1)
    assert torch.allclose(middles, ANCHORS, atol=1e-3)


def test_the_loss_of_a_picture_is_that_of_torchvision(ssd: Any) -> None:
    from torchvision.models.detection._utils import SSDMatcher
    from torchvision.ops import box_iou

    corners = torch.cat([ANCHORS[:, :2] - ANCHORS[:, 2:] / 2, ANCHORS[:, :2] + ANCHORS[:, 2:] / 2], dim=1)
    offsets, scores = noise()
    for row in range(2):
        truth = _TARGETS[row][_TARGETS[row, :, 4] >= 0]
        given = [{"boxes": truth[:, :4], "labels": truth[:, 4].long() + 1}]
        outputs = {"bbox_regression": offsets[row : row + 1], "cls_logits": scores[row : row + 1]}
        which = SSDMatcher(0.5)(box_iou(truth[:, :4], corners))
        wanted = ssd.compute_loss(given, outputs, [corners], [which])
        found = TASK.loss((offsets[row : row + 1], scores[row : row + 1]), _TARGETS[row : row + 1])
        assert float(found) == pytest.approx(float(sum(wanted.values())), rel=1e-4)


def test_the_loss_is_a_mean_over_samples_also_of_those_without_objects() -> None:
    outputs, none = noise(), torch.full((2, 1, 5), -1.0)
    each = [
        TASK.loss((outputs[0][row : row + 1], outputs[1][row : row + 1]), _TARGETS[row : row + 1]) for row in (0, 1)
    ]
    assert float(TASK.loss(outputs, _TARGETS)) == pytest.approx(float(sum(each)) / 2, rel=1e-5)
    assert float(TASK.loss(outputs, none)) > float(TASK.loss(perfect(none), none)) >= 0
    assert float(TASK.loss(perfect(), _TARGETS)) < 1e-3 < float(TASK.smoothed(perfect(), _TARGETS, 0.1))


def test_a_loss_has_gradients_for_all_outputs_and_a_student_like_its_teacher_none() -> None:
    student = tuple(each.requires_grad_() for each in noise())
    teacher = perfect()
    for loss in (TASK.loss(student, _TARGETS), TASK.distill(student, teacher, 4.0)):
        found = torch.autograd.grad(loss, student)
        assert all(bool(each.isfinite().all()) and float(each.abs().sum()) > 0 for each in found)
    assert float(TASK.distill(teacher, teacher, 4.0)) == 0


def test_what_a_perfect_model_finds() -> None:
    meter = TASK.meter()
    meter.update(perfect(), _TARGETS)
    assert meter.compute() == {"map": 1.0, "map.50": 1.0}
    assert TASK.told(arrays(perfect())) == ["2 objects: car 1.00, dog 1.00", "1 object: cup 1.00"]
    assert TASK.told(arrays(perfect(torch.full((1, 1, 5), -1.0)))) == ["nothing"]
    boxes, labels, _ = next(TASK.objects(arrays(perfect())))
    assert labels.tolist() == [2, 1] and numpy.allclose(boxes, _TARGETS[0, [1, 0], :4], atol=1e-3)


def test_a_report_draws_what_is_found_and_what_is_right() -> None:
    found, right = TASK.drawn(arrays(perfect())), TASK.truth(_TARGETS.numpy())
    assert [(each.label, round(each.left, 4), round(each.bottom, 4)) for each in found[0].boxes] == [
        ("car", 0.0938, 0.1562),
        ("dog", 0.0312, 0.625),
    ]
    assert found[0].words == "2 objects: car 1.00, dog 1.00"
    assert [[each.label for each in shown.boxes] for shown in right] == [["dog", "car"], ["cup"]]
    assert right[1].boxes[0].right == 1 and [each.words for each in right] == ["2 objects: dog, car", "1 object: cup"]


def test_agreement_is_the_share_of_objects_with_a_partner() -> None:
    all_, none, moved = _TARGETS, torch.full((2, 1, 5), -1.0), _TARGETS.clone()
    moved[0, 0, :4] += torch.tensor([60.0, 0, 60, 0])
    other = _TARGETS.clone()
    other[1, 0, 4] = 1
    agreed = [TASK.agreement(arrays(perfect(all_)), arrays(perfect(each))) for each in (all_, none, moved, other)]
    assert [each.tolist() for each in agreed] == [[1, 1], [0, 0], [0.5, 1], [1, 0]]
    assert TASK.agreement(arrays(perfect(none)), arrays(perfect(none))).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("box", "why"),
    [
        ([10, 10, 10, 20, 0], r"the box 1 of sample 1 has no area: \[10.0, 10.0, 10.0, 20.0, 0.0\]"),
        ([float("nan"), 1, 2, 3, 0], "the box 1 of sample 1 is not of finite numbers"),
        ([0, 0, 330, 20, 1], "the box 1 of sample 1 goes beyond the picture of 320 x 320 pixels"),
        ([0, 0, 10, 10, 3], "the box 1 of sample 1 has a label that is none of 0 to 2"),
        ([0, 0, 10, 10, 0.5], "the box 1 of sample 1 has a label that is none of 0 to 2"),
    ],
)
def test_a_box_that_cannot_be_learned_is_named(box: list[float], why: str) -> None:
    targets = _TARGETS.clone()
    assert TASK.problem(targets) == ""
    targets[1, 1] = torch.tensor(box)
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(TASK.problem(targets))
    assert "expected float32 of shape [n, most, 5]" in TASK.problem(torch.zeros(3, dtype=torch.int64))


def test_of_boxes_with_one_label_that_overlap_the_surest_is_kept() -> None:
    boxes = numpy.array([[0, 0, 10, 10], [1, 0, 11, 10], [1, 0, 11, 10], [30, 0, 40, 10]], float)
    assert reading.surest(boxes, numpy.array([0, 0, 1, 0]), 0.5, 9).tolist() == [0, 2, 3]
    assert reading.surest(boxes, numpy.array([0, 0, 1, 0]), 0.9, 2).tolist() == [0, 1]
    assert reading.surest(boxes[:0], numpy.array([]), 0.5, 9).tolist() == []


def test_an_app_reads_outputs_with_what_a_bundle_ships() -> None:
    for name, content in (TASK.attachments() | TASK.examples()).items():
        Path(name).write_bytes(content)
    space: dict[str, Any] = {}
    exec(Path("detection.py").read_text(), space)  # noqa: S102 - as an app does that copied it
    anchors = numpy.fromfile("anchors.bin", "<f4").reshape(-1, 4)
    facts = json.loads(Path("detection.json").read_text())
    offsets, scores = arrays(perfect())
    found = space["objects"](offsets[0], scores[0], anchors, **facts)
    for ours, theirs in zip(found, next(TASK.objects((offsets, scores))), strict=True):
        assert numpy.array_equal(ours, theirs)


def test_the_code_for_apps_has_the_same_numbers() -> None:
    files = TASK.examples()
    assert {*files} == {"detection.py", "Detection.kt", "Detection.swift"}
    wanted = {
        "moved": reading.MOVED,
        "grown": reading.GROWN,
        "largest": reading.LARGEST,
        "candidates": reading.CANDIDATES,
    }
    for name in ("Detection.kt", "Detection.swift"):
        found = re.findall(r"(moved|grown|largest|candidates)(?:: Float)? = ([0-9.]+)", files[name].decode(), re.I)
        assert {key.lower(): float(value) for key, value in found} == wanted


@pytest.mark.parametrize("seed", range(3))
def test_precision_is_that_of_pycocotools(seed: int) -> None:
    coco, evaluation = (pytest.importorskip(f"pycocotools.{name}") for name in ("coco", "cocoeval"))
    random = numpy.random.default_rng(seed)
    precision = Precision(4)
    truths: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for picture in range(30):
        truth, boxes, labels, scores = _some(random)
        precision.add(boxes, labels, scores, truth)
        for *box, label in truth:
            truths.append({**_annotation(picture, box, label), "id": len(truths) + 1, "iscrowd": 0, "area": 1})
        found += [
            {**_annotation(picture, box, label), "score": score}
            for box, label, score in zip(boxes, labels, scores, strict=True)
        ]
    with contextlib.redirect_stdout(io.StringIO()):
        known = coco.COCO()
        categories = [{"id": label} for label in range(4)]
        known.dataset = {"images": [{"id": i} for i in range(30)], "annotations": truths, "categories": categories}
        known.createIndex()
        judged = evaluation.COCOeval(known, known.loadRes(found), "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    assert precision.compute() == pytest.approx({"map": judged.stats[0], "map.50": judged.stats[1]}, abs=1e-9)
    assert 0.05 < precision.compute()["map"] < 0.9


def _some(random: Any) -> Any:
    """Objects of three of four labels in a picture, and boxes near them, beside them, twice, and of equal scores."""
    count = random.integers(0, 6)
    corners = random.uniform(0, 200, (count, 2))
    truth = numpy.concatenate([corners, corners + random.uniform(20, 90, (count, 2))], axis=1)
    truth = numpy.concatenate([truth, random.integers(0, 3, (count, 1))], axis=1)
    near = truth[random.random(count) < 0.8]
    near = numpy.concatenate([near, near[: len(near) // 2], _shuffled(truth, random)])
    boxes, labels = near[:, :4] + random.uniform(-8, 8, (len(near), 4)), near[:, 4].astype(int)
    labels = numpy.where(random.random(len(labels)) < 0.1, 3, labels)
    scores = random.random(len(labels)).round(1)
    order = numpy.argsort(-scores, kind="stable")
    return truth, boxes[order], labels[order], scores[order]


def _shuffled(truth: Any, random: Any) -> Any:
    return truth[random.permutation(len(truth))[:2]] + numpy.array([30, 0, 30, 0, 0])


def _annotation(picture: int, box: Any, label: float) -> dict[str, Any]:
    left, top, right, bottom = map(float, box)
    return {"image_id": picture, "category_id": int(label), "bbox": [left, top, right - left, bottom - top]}


def test_without_objects_precision_is_0() -> None:
    assert Precision(2).compute() == {"map": 0.0, "map.50": 0.0}


@pytest.mark.parametrize(
    ("data", "why"),
    [({"shape": (4,), "labels": ("a", "b")}, "for pictures"), ({"shape": (1, 8, 8), "labels": ()}, "needs labels")],
)
def test_data_without_pictures_or_labels_is_refused(data: dict[str, Any], why: str) -> None:
    signature = Signature(inputs=(TensorSpec(name="input", shape=data["shape"]),), labels=data["labels"])
    choice = choose("tasks", "detection")
    assert why in choice.module.incompatibility(choice.config, signature)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"scales": ("50 %", "20 %")}, "scales must be above 0 % and rise"),
        ({"strides": (8, 8)}, "strides must rise"),
        ({"ratios": (1.0,)}, "greater than 1"),
    ],
)
def test_settings_that_give_no_anchors_are_refused(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        made(**settings)
