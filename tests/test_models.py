from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_model
from torch import nn

from edgepack import plugins
from edgepack.candidate import parameters
from edgepack.datasets import Signature, TensorSpec
from edgepack.models import torchvision
from edgepack.models.torchvision import Config


def signature(channels: int = 1, classes: int = 10, side: int = 32) -> Signature:
    picture = TensorSpec(name="input", shape=(channels, side, side))
    return Signature(inputs=(picture,), labels=tuple(str(i) for i in range(classes)))


def build(name: str = "resnet18", data: Signature | None = None, **settings: Any) -> nn.Module:
    config = Config.model_validate({"torchvision": name, **settings})
    return torchvision.build(config, data or signature()).eval()


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_any_classifier_takes_the_datas_channels_and_classes(name: str, channels: int) -> None:
    module = build(name, signature(channels, classes=7))
    assert module(torch.zeros(2, channels, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "squeezenet1_1", "regnet_y_400mf"]
)
def test_width_narrows_every_layer_but_the_answer(name: str) -> None:
    wide, narrow = build(name), build(name, width="25 %")
    assert parameters(narrow) < 0.15 * parameters(wide)
    assert narrow(torch.zeros(2, 1, 32, 32)).shape == (2, 10)


def test_width_is_the_share_of_channels() -> None:
    module = build(width="10 %")
    assert [module.conv1.out_channels, module.layer4[1].conv2.out_channels] == [6, 51]


@pytest.mark.parametrize("width", ["100 %", "30 %"])
def test_a_checkpoint_fills_in_the_weights(width: str) -> None:
    torch.manual_seed(0)
    before = build(width=width)
    save_model(before, "weights.safetensors")
    after = build(width=width, checkpoint="weights.safetensors")
    picture = torch.rand(2, 1, 32, 32)
    assert torch.equal(after(picture), before(picture))
    config = Config.model_validate({"torchvision": "resnet18", "checkpoint": "weights.safetensors"})
    assert torchvision.trained(config)
    assert not torchvision.trained(Config(torchvision="resnet18"))


@pytest.mark.parametrize("name", ["mobilenet_v2", "mnasnet0_5"])
def test_every_net_takes_its_own_weights_back(name: str) -> None:
    before = build(name)
    save_model(before, "weights.safetensors")
    picture = torch.rand(2, 1, 32, 32)
    assert torch.equal(build(name, checkpoint="weights.safetensors")(picture), before(picture))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"torchvision": "resnet81"}, "did you mean 'resnet18'"),
        ({"torchvision": "fasterrcnn_resnet50_fpn"}, "unknown torchvision model"),
        ({"width": "0 %"}, "above 0 % and up to 100 %, got 0 %"),
        ({"width": "150 %"}, "got 150 %"),
        ({"checkpoint": "weights.pt"}, "a checkpoint is a .safetensors file"),
        ({"checkpoint": "gone.safetensors"}, "there is no file 'gone.safetensors'"),
        ({"in_channels": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as failure:
        Config.model_validate({"torchvision": "resnet18", **wrong})
    assert message in str(failure.value)


def test_channels_must_be_those_of_the_data() -> None:
    config = Config(torchvision="resnet18", in_channels=3)
    assert torchvision.misfit(config, signature(3)) == ""
    assert "in_channels is 3, but the data has 1" in torchvision.misfit(config, signature(1))
    assert torchvision.misfit(Config(torchvision="resnet18"), signature(1)) == ""


def test_names_are_those_that_torchvision_builds() -> None:
    from edgepack.models._vision import torchvision as library

    known = set(torchvision.names())
    assert {"resnet18", "vit_b_16", "convnext_tiny"} <= known <= set(library().models.list_models())


def test_a_model_is_chosen_by_the_plugins_own_key() -> None:
    choice = plugins.choose("models", {"torchvision": "resnet18", "width": "25 %"})
    assert (choice.name, choice.plain()["width"]) == ("torchvision", "25 %")
