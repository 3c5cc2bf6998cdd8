"""Every family of torchvision's classifiers can be pruned, distilled, saved and loaded again."""

from functools import cache
from pathlib import Path

import pytest
import torch
from torch_factories import logits_of, pictures

from edgepack.compress.contract import Context
from edgepack.compress.stages import distill, prune, train
from edgepack.config import plugins
from edgepack.config.device import Quantization
from edgepack.config.plugins import choose
from edgepack.models.candidate import Candidate
from edgepack.models.complexity import macs, parameters
from edgepack.models.structure.surgery import sizes

FAMILIES = (
    "resnet18",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "vgg11_bn",
    "densenet121",
    "regnet_y_400mf",
    "resnext50_32x4d",
    "googlenet",
)
RECOVER = {"epochs": 0}


def start(family: str) -> Candidate:
    """A copy of its own of the family's narrow model."""
    return _narrow(family).copy()


@cache
def _narrow(family: str) -> Candidate:
    torch.manual_seed(0)
    whole = family in ("densenet121", "resnext50_32x4d")  # slow to narrow, and groups want their width
    choice = choose("models", {"torchvision": family, "width": "100 %" if whole else "25 %"})
    return Candidate.start(choice, pictures().signature)


def context() -> Context:
    return Context(
        data=pictures().data,
        task=plugins.load("tasks", "image_classification").task(None, pictures().signature),
        quantization=Quantization(channel_multiple=2),
        seed=0,
        teacher=None,
        emit=lambda event: None,
    )


def same_when_reloaded(made: Candidate, folder: Path) -> bool:
    made.save(folder)
    again = Candidate.load(folder)
    assert sizes(again.module) == sizes(made.module)
    return bool(torch.equal(logits_of(again), logits_of(made)))


@pytest.mark.parametrize("family", FAMILIES)
def test_half_of_the_channels_go(family: str, tmp_path: Path) -> None:
    model = start(family)
    before, cost = parameters(model.module), macs(model)
    importance = "bn_scale" if family.startswith("mobilenet") else "l2"
    settings = {"ratio": "50 %", "steps": 1, "importance": importance, "recover": RECOVER}
    half = prune.run(model, prune.Config.model_validate(settings), context())
    assert parameters(half.module) < 0.55 * before
    assert macs(half) < 0.55 * cost
    assert logits_of(half).shape == (8, 3)
    assert same_when_reloaded(half, tmp_path)


@pytest.mark.parametrize("family", FAMILIES[:6])
def test_a_family_is_trained(family: str, tmp_path: Path) -> None:
    trained = train.run(start(family), train.Config(epochs=1, batch_size=8), context())
    assert bool(logits_of(trained).isfinite().all())
    assert same_when_reloaded(trained, tmp_path)


@pytest.mark.parametrize("family", FAMILIES[:5])
def test_a_narrow_sibling_is_derived(family: str, tmp_path: Path) -> None:
    model = start(family)
    config = distill.Config.model_validate({"compression": 2, "epochs": 1, "batch_size": 8})
    student = distill.run(model, config, context())
    assert parameters(student.module) <= parameters(model.module) / 2
    assert same_when_reloaded(student, tmp_path)


def test_a_student_is_named(tmp_path: Path) -> None:
    student = {"torchvision": "mobilenet_v2", "width": "25 %"}
    config = distill.Config.model_validate({"student": student, "epochs": 1, "batch_size": 8})
    taught = distill.run(start("resnet18"), config, context())
    assert taught.factory.config["width"] == "25 %"
    assert same_when_reloaded(taught, tmp_path)


@pytest.mark.parametrize(
    ("family", "compression"),
    [("resnet18", 1.5), ("mobilenet_v2", 1.5), ("mobilenet_v3_small", 1.6), ("efficientnet_b0", 2.2)],
)
def test_a_shallow_sibling_is_derived(family: str, compression: float, tmp_path: Path) -> None:
    model = start(family)
    config = distill.Config.model_validate({"compression": compression, "scale": "depth", "epochs": 1, "batch_size": 8})
    student = distill.run(model, config, context())
    assert {edit.op for edit in student.surgery} == {"drop"}
    assert same_when_reloaded(student, tmp_path)
