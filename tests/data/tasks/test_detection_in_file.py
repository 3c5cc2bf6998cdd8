"""Objects that a detector's file selects: the same as the app's part selects, and as ONNX's own operator does."""

import json
from pathlib import Path
from typing import Any

import numpy
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from edgepack.config.plugins import choose
from edgepack.core.signature import Signature, TensorSpec
from edgepack.data.tasks.detection import Detection, selection
from edgepack.models.outputs import scorable

_MOST = 12


def made(where: str, **settings: Any) -> Detection:
    picture = TensorSpec(name="input", shape=(3, 48, 64))
    signature = Signature(inputs=(picture,), labels=("cup", "dog", "car"))
    choice = choose("tasks", {"detection": {"strides": (8, 16), "most": _MOST, "postprocess": where, **settings}})
    found: Detection = choice.module.task(choice.config, signature)
    return found


IN_APP, IN_FILE = made("in_app"), made("in_file")


def heads(seed: int, *, tied: bool = False, count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Offsets and scores, sure ones and others; or probabilities of 1, 1/2 and 1/3 alone, as int8 gives many equal."""
    chance = torch.Generator().manual_seed(seed)
    offsets, scores = (torch.randn(count, len(IN_APP.anchors), 4, generator=chance) for _ in range(2))
    offsets[0, :40, :2] -= 300  # beyond the edge of the picture: without area
    return offsets, 30.0 * (scores > 1) if tied else 4 * scores


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("settings", [{}, {"most": 300, "overlap": 0.2}, {"threshold": 0.005}])
def test_the_file_selects_what_the_app_would(seed: int, tied: bool, settings: dict[str, Any]) -> None:
    app, file = made("in_app", **settings), made("in_file", **settings)
    outputs = heads(seed, tied=tied)
    given = scorable(file, outputs, ())
    assert [tuple(each.shape[1:]) for each in given] == [each.shape for each in file.file_signature.outputs]
    found, wanted = (
        [*task.objects(tuple(each.numpy() for each in of))] for task, of in ((file, given), (app, outputs))
    )
    assert sum(len(each[0]) for each in wanted) > 20
    for (boxes, labels, scores), (its_boxes, its_labels, its_scores) in zip(found, wanted, strict=True):
        assert labels.tolist() == its_labels.tolist()
        assert numpy.allclose(boxes, its_boxes, atol=1e-4) and numpy.allclose(scores, its_scores, atol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
def test_metrics_and_agreement_are_those_of_the_app(tied: bool) -> None:
    outputs, others = heads(5, tied=tied), heads(5)
    found = [each[:2] for each in IN_APP.objects(tuple(each.numpy() for each in outputs))]
    rows = [numpy.concatenate([boxes[:6] + 1, labels[:6, None]], axis=1) for boxes, labels in found]
    targets = torch.from_numpy(numpy.stack(rows)).float()
    scored = []
    for task in (IN_APP, IN_FILE):
        meter = task.meter()
        meter.update(scorable(task, outputs, ()), targets)
        ours, theirs = (tuple(each.numpy() for each in scorable(task, of, ())) for of in (outputs, others))
        scored.append([*meter.compute().values(), *task.agreement(ours, theirs)])
        assert task.told(ours) == IN_APP.told(tuple(each.numpy() for each in outputs))
        assert [each.words for each in task.drawn(ours)] == task.told(ours)
    assert scored[0] == pytest.approx(scored[1], abs=1e-6) and 0 < scored[0][0] < 1


def test_suppression_is_that_of_the_operator_of_onnx() -> None:
    offsets, scores = heads(7)
    anchors = torch.from_numpy(IN_FILE.anchors) + torch.tensor([5000.0, 5000, 0, 0])  # no box is cut at an edge
    boxes, likely = selection.decoded(offsets, anchors), scores.softmax(2)[..., 1:]
    kept = suppressed(boxes.numpy(), likely.transpose(1, 2).numpy(), overlap=0.5, threshold=0.5)
    _, sure, labels = selection.objects(
        offsets, scores, anchors, picture=(10**6, 10**6), threshold=0.5, overlap=0.5, most=360
    )
    found = [(row, int(labels[row, at]), float(sure[row, at])) for row, at in (sure > 0).nonzero().tolist()]
    assert sorted(found) == sorted((row, label, float(likely[row, box, label])) for row, label, box in kept)
    assert 100 < len(kept) < 0.9 * int((likely > 0.5).sum())


def suppressed(boxes: Any, scores: Any, overlap: float, threshold: float) -> list[list[int]]:
    """Return picture, label and box of what ONNX Runtime keeps."""
    limits = [
        helper.make_tensor("most", TensorProto.INT64, [1], [1000]),
        helper.make_tensor("overlap", TensorProto.FLOAT, [1], [overlap]),
        helper.make_tensor("threshold", TensorProto.FLOAT, [1], [threshold]),
    ]
    graph = helper.make_graph(
        [helper.make_node("NonMaxSuppression", ["boxes", "scores", "most", "overlap", "threshold"], ["kept"])],
        "suppression",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 3) for name in ("boxes", "scores")],
        [helper.make_tensor_value_info("kept", TensorProto.INT64, [None, 3])],
        limits,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    kept: list[list[int]] = session.run(None, {"boxes": boxes, "scores": scores})[0].tolist()
    return kept


def test_unused_places_hold_zeros() -> None:
    offsets, scores = torch.zeros(1, len(IN_FILE.anchors), 4), torch.zeros(1, len(IN_FILE.anchors), 4)
    scores[..., 0] = 20
    scores[0, 3, 2] = 30
    boxes, sure, labels = scorable(IN_FILE, (offsets, scores), ())
    assert [round(each, 4) for each in sure[0].tolist()] == [1.0] + [0.0] * (_MOST - 1)
    assert labels[0].tolist() == [1.0] + [0.0] * (_MOST - 1) and bool((boxes[0, 1:] == 0).all())
    assert IN_FILE.told((boxes.numpy(), sure.numpy(), labels.numpy())) == ["1 object: dog 1.00"]


def test_an_app_only_reads_what_the_file_gives() -> None:
    files = IN_FILE.attachments() | IN_FILE.examples()
    assert {*files} == {"detection.json", "detection.py", "Detection.kt", "Detection.swift"}
    for name, content in files.items():
        Path(name).write_bytes(content)
    space: dict[str, Any] = {}
    exec(Path("detection.py").read_text(), space)  # noqa: S102 - as an app does that copied it
    given = tuple(each.numpy() for each in scorable(IN_FILE, heads(0), ()))
    found = space["objects"](*(each[0] for each in given), **json.loads(Path("detection.json").read_text()))
    assert len(found[0]) > 3
    for ours, theirs in zip(found, next(IN_FILE.objects(given)), strict=True):
        assert numpy.array_equal(ours, theirs)


def test_training_sees_the_heads_alone() -> None:
    assert IN_FILE.signature == IN_APP.signature == IN_APP.file_signature
    assert [each.name for each in IN_FILE.file_signature.outputs] == ["boxes", "scores", "labels"]
    targets = torch.tensor([[[5, 5, 30, 30, 1.0]]]).expand(6, 1, 5)
    assert torch.equal(IN_FILE.loss(heads(0), targets), IN_APP.loss(heads(0), targets))
