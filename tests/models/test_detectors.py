"""SSDLite as a detector: the tensors of torchvision's own model, and what fits its task."""

from typing import Any

import pytest
import torch

from edgepack.config.plugins import choose
from edgepack.core.process.libraries import torchvision
from edgepack.core.signature import Signature, TensorSpec
from edgepack.models.candidate import Candidate

_SSD = "ssdlite320_mobilenet_v3_large"


def signature(size: int = 64, channels: int = 3, labels: int = 3, **settings: Any) -> Signature:
    picture = TensorSpec(name="input", shape=(channels, size, size))
    plain = Signature(inputs=(picture,), labels=tuple(f"label {n}" for n in range(labels)))
    task = choose("tasks", {"detection": settings})
    found: Signature = task.module.task(task.config, plain).signature
    return found


@pytest.fixture(scope="module")
def candidate() -> Candidate:
    torch.manual_seed(0)
    return Candidate.start(choose("models", {"torchvision": _SSD}), signature())


def test_it_gives_what_torchvision_computes_before_it_selects_boxes(candidate: Candidate) -> None:
    whole = torchvision().models.detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=4
    )
    whole.load_state_dict(candidate.module.state_dict())
    pictures = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        boxes, scores = candidate.module.eval()(pictures)
        found = whole.eval().head([*whole.backbone(pictures).values()])
    assert torch.equal(boxes, found["bbox_regression"]) and torch.equal(scores, found["cls_logits"])


@pytest.mark.parametrize("size", [50, 96, 320])
def test_it_takes_pictures_of_any_size_and_channels(size: int) -> None:
    wanted = signature(size, channels=1)
    module = Candidate.start(choose("models", {"torchvision": _SSD}), wanted).module
    with torch.no_grad():
        found = module(torch.zeros(2, 1, size, size))
    assert [tuple(each.shape[1:]) for each in found] == [each.shape for each in wanted.outputs]


def test_it_can_be_narrowed_and_rebuilt(candidate: Candidate) -> None:
    narrow = candidate.narrowed(0.5, multiple=8)
    narrow.check_rebuilt()
    count = [sum(each.numel() for each in of.module.parameters()) for of in (candidate, narrow)]
    assert count[1] < 0.4 * count[0]


@pytest.mark.parametrize(
    ("name", "settings", "why"),
    [
        ("resnet18", {}, "resnet18 is a classifier, but the task is detection"),
        (_SSD, {"strides": (16, 32)}, "has 144 anchors in such pictures, but the task has 120: remove its strides"),
    ],
)
def test_what_does_not_fit_is_refused_without_torch(name: str, settings: dict[str, Any], why: str) -> None:
    choice = choose("models", {"torchvision": name})
    assert why in choice.module.incompatibility(choice.config, signature(**settings))


def test_a_detector_is_no_classifier() -> None:
    choice = choose("models", {"torchvision": _SSD})
    plain = Signature(inputs=(TensorSpec(name="input", shape=(3, 64, 64)),), labels=("a", "b"))
    assert "is a detector" in choice.module.incompatibility(choice.config, plain)


def test_only_weights_of_coco_for_its_classes_are_trained() -> None:
    choice = choose("models", {"torchvision": _SSD, "weights": "DEFAULT"})
    assert choice.module.trained(choice.config, signature(labels=90))
    assert not choice.module.trained(choice.config, signature(labels=3))
    with pytest.raises(ValueError, match="unknown weights"):
        choose("models", {"torchvision": _SSD, "weights": "IMAGENET1K_V1"})
