"""Torchvision's segmentation models: any width, the channels and classes of the data, their published weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgepack.config import plugins
from edgepack.core.errors import StageError
from edgepack.core.signature import Signature, TensorSpec
from edgepack.models.candidate import Candidate
from edgepack.models.sources import torchvision
from edgepack.models.sources.torchvision import Config

LRASPP = "lraspp_mobilenet_v3_large"


def _signature(channels: int = 1, classes: int = 4) -> Signature:
    labels = tuple(map(str, range(classes)))
    picture = TensorSpec(name="input", shape=(channels, 32, 48))
    signature: Signature = (
        plugins.choose("tasks", "segmentation").module.task(None, Signature(inputs=(picture,), labels=labels)).signature
    )
    return signature


def _built(name: str, signature: Signature, **settings: Any) -> nn.Module:
    return torchvision.build(Config.model_validate({"torchvision": name, **settings}), signature).eval()


@pytest.mark.parametrize("width", ["100 %", "25 %"])
def test_every_pixel_gets_a_logit_of_each_class(width: str) -> None:
    assert _built(LRASPP, _signature(), width=width)(torch.zeros(2, 1, 32, 48)).shape == (2, 4, 32, 48)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deeplabv3_mobilenet_v3_large", "fcn_resnet50", "deeplabv3_resnet50"])
def test_others_are_narrowed_too(name: str) -> None:
    wide, narrow = (_built(name, _signature(), width=width) for width in ("100 %", "25 %"))
    assert sum(each.numel() for each in narrow.parameters()) < 0.1 * sum(each.numel() for each in wide.parameters())
    assert narrow(torch.zeros(2, 1, 32, 48)).shape == (2, 4, 32, 48)


@pytest.mark.parametrize(
    ("name", "dense", "why"),
    [
        ("resnet18", True, "resnet18 gives one class for a whole picture, but the task wants one for each pixel"),
        (LRASPP, False, f"{LRASPP} gives a class for each pixel, but the task wants other outputs"),
        (LRASPP, True, ""),
    ],
)
def test_a_model_of_another_task_is_refused(name: str, dense: bool, why: str) -> None:
    signature = _signature() if dense else Signature(inputs=_signature().inputs, labels=("a", "b"))
    message = torchvision.incompatibility(Config(torchvision=name), signature)
    assert message.startswith(why) and bool(message) == bool(why)
    if why:
        with pytest.raises(StageError, match="task wants"):
            _built(name, signature)


@pytest.mark.parametrize("name", [LRASPP, "deeplabv3_mobilenet_v3_large"])
def test_published_weights_are_kept_but_for_the_layers_of_the_classes(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    torch.manual_seed(7)
    published = _built(name, _signature(3, classes=21)).state_dict()
    extra = {"aux_classifier.4.weight": torch.zeros(21, 10, 1, 1)}
    monkeypatch.setattr(
        "torch.hub.download_url_to_file", lambda url, path, *_, **__: torch.save({**published, **extra}, path)
    )
    config = Config(torchvision=name, weights="DEFAULT")
    assert torchvision.trained(config, _signature(3, classes=21)) and not torchvision.trained(config, _signature(3))
    same = _built(name, _signature(3, classes=21), weights="DEFAULT").state_dict()
    assert all(torch.equal(same[key], published[key]) for key in published)
    other = _built(name, _signature(3, classes=4), weights="DEFAULT").state_dict()
    assert {key for key in other if not torch.equal(other[key], published[key])} == {
        key for key in published if published[key].shape[:1] == (21,)
    }
    grey = _built(name, _signature(1, classes=21), weights="DEFAULT").state_dict()
    assert sum(not torch.equal(grey[key], published[key]) for key in published) == 1


def test_a_saved_candidate_is_read_again(tmp_path: Path) -> None:
    made = Candidate.start(plugins.choose("models", {"torchvision": LRASPP, "width": "25 %"}), _signature())
    made.save(tmp_path)
    again, picture = Candidate.load(tmp_path), torch.rand(1, 1, 32, 48)
    assert torch.equal(again.module.eval()(picture), made.module.eval()(picture))
