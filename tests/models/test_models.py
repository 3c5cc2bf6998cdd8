import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_model
from torch import nn
from torch_factories import reloaded

from edgepack.config import plugins
from edgepack.core.errors import DeviceError, EdgepackError, StageError
from edgepack.core.signature import Signature, TensorSpec
from edgepack.models.candidate import Candidate
from edgepack.models.complexity import parameters
from edgepack.models.sources import torchvision
from edgepack.models.sources.torchvision import Config


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
    assert torchvision.trained(config, signature())
    assert not torchvision.trained(Config(torchvision="resnet18"), signature())


@pytest.mark.parametrize("name", ["mobilenet_v2", "mnasnet0_5"])
def test_every_net_takes_its_own_weights_back(name: str) -> None:
    before = build(name)
    save_model(before, "weights.safetensors")
    picture = torch.rand(2, 1, 32, 32)
    assert torch.equal(build(name, checkpoint="weights.safetensors")(picture), before(picture))


@pytest.mark.parametrize("around", ["state_dict", "model_state_dict", "model", ""])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_a_pickled_checkpoint_is_read_as_training_scripts_write_it(around: str, prefix: str) -> None:
    before = build("squeezenet1_1")
    state = {f"{prefix}{name}": tensor for name, tensor in before.state_dict().items()}
    torch.save({around: state, "epoch": 3} if around else state, "weights.pth")
    picture = torch.rand(2, 1, 32, 32)
    assert torch.equal(build("squeezenet1_1", checkpoint="weights.pth")(picture), before(picture))


def test_a_checkpoint_from_before_batches_were_counted_fits() -> None:
    before = build()
    old = {name: each for name, each in before.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(old, "weights.pt")
    picture = torch.rand(2, 1, 32, 32)
    assert torch.equal(build(checkpoint="weights.pt")(picture), before(picture))


class Touches:
    """What an attacker would send: unpickled, it runs a function."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("touched"),)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (Touches(), "cannot be read as weights (UnpicklingError)"),
        (nn.Linear(2, 2), "cannot be read as weights (UnpicklingError)"),
        (torch.zeros(3), "holds Tensor, not a state dict"),
        ({"epoch": 3, "loss": 0.5}, "holds a dict of epoch, loss, not a state dict"),
        ({"fc.weight": torch.zeros(3)}, "is of another model"),
        ({}, "is of another model"),
        (None, "cannot be read as weights"),
    ],
    ids=["code", "whole model", "tensor", "other facts", "other model", "empty", "no checkpoint at all"],
)
def test_a_file_that_is_no_checkpoint_of_this_model_is_refused(content: object, why: str) -> None:
    torch.save(content, "weights.pth") if content is not None else Path("weights.pth").write_bytes(b"PK no such thing")
    with pytest.raises(StageError) as failure:
        build(checkpoint="weights.pth")
    assert why in failure.value.message
    assert failure.value.hint
    assert not Path("touched").exists()


def test_a_damaged_safetensors_file_is_refused() -> None:
    Path("weights.safetensors").write_bytes(b"x" * 64)
    with pytest.raises(StageError, match=r"weights\.safetensors cannot be read as weights"):
        build(checkpoint="weights.safetensors")


class Publisher:
    """Stands in for the download server: gives the weights of `published` and notes which hash was asked for."""

    def __init__(self, published: nn.Module) -> None:
        self.state: Any = published.state_dict()
        self.asked: list[tuple[str, str]] = []

    def __call__(self, url: str, path: str, hash_prefix: str, progress: bool) -> None:
        assert not progress
        self.asked.append((url.rpartition("/")[2], hash_prefix))
        torch.save(self.state, path)


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], tuple[nn.Module, Publisher]]:
    """publish("resnet18") puts an ImageNet model with random weights online."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def start(name: str) -> tuple[nn.Module, Publisher]:
        torch.manual_seed(7)
        module = build(name, signature(3, classes=1000, side=64))
        server = Publisher(module)
        monkeypatch.setattr("torch.hub.download_url_to_file", server)
        return module, server

    return start


Publish = Callable[[str], tuple[nn.Module, Publisher]]


def test_published_weights_are_kept_whole_where_the_data_is_alike(publish: Publish) -> None:
    published, server = publish("mobilenet_v3_small")
    like = signature(3, classes=1000, side=64)
    picture = torch.rand(2, 3, 64, 64)
    for _ in range(2):
        built = build("mobilenet_v3_small", like, weights="DEFAULT")
        assert torch.equal(built(picture), published(picture))
    assert server.asked == [("mobilenet_v3_small-047dcff4.pth", "047dcff4")]  # once, its hash checked


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v2"])
def test_a_grey_picture_is_answered_like_the_same_in_three_channels(name: str, publish: Publish) -> None:
    published, _ = publish(name)
    built = build(name, signature(1, classes=1000, side=64), weights="IMAGENET1K_V1")
    grey = torch.rand(2, 1, 64, 64)
    torch.testing.assert_close(built(grey), published(grey.expand(2, 3, 64, 64)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("of", [(0, 1), (0, 1, 2, 0), (0, 1, 2, 0, 1, 2, 0)])
def test_other_channels_repeat_the_three_and_are_answered_as_strongly(of: tuple[int, ...], publish: Publish) -> None:
    published, _ = publish("resnet18")
    before: Any = published
    built: Any = build("resnet18", signature(len(of), classes=1000), weights="DEFAULT")
    torch.testing.assert_close(built.conv1.weight, before.conv1.weight[:, of] * 3 / len(of))


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "shufflenet_v2_x0_5"])
def test_with_other_classes_only_the_last_layer_starts_anew(name: str, publish: Publish) -> None:
    published, _ = publish(name)
    built = build(name, signature(3, classes=5), weights="DEFAULT")
    before, after = published.state_dict(), built.state_dict()
    changed = {key.rpartition(".")[0] for key in after if not torch.equal(after[key], before[key])}
    assert len(changed) == 1
    assert built(torch.rand(2, 3, 32, 32)).shape == (2, 5)


def test_weights_are_narrowed_after_they_are_loaded(publish: Publish) -> None:
    published, _ = publish("resnet18")
    narrow: Any = build("resnet18", signature(3), weights="DEFAULT", width="50 %")
    assert torch.equal(narrow.conv1.weight, published.conv1.weight[:32])


def test_names_of_layers_from_the_early_days_are_understood(publish: Publish) -> None:
    published, server = publish("densenet121")
    before = published.state_dict()
    server.state = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", key): each for key, each in before.items()}
    assert server.state.keys() != before.keys()
    after = build("densenet121", signature(3, classes=1000, side=64), weights="DEFAULT").state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_what_torchvision_does_to_pictures_inside_a_model_is_in_its_weights(publish: Publish) -> None:
    published, server = publish("googlenet")
    server.state["aux1.fc1.weight"] = torch.zeros(3)  # published with heads that are used in training alone
    built = build("googlenet", signature(3, classes=1000, side=64), weights="DEFAULT")
    inside: Any = published
    inside.transform_input = True
    picture = torch.rand(2, 3, 64, 64)
    # The first convolution pads with zeros: inside of the border its output is the same.
    expected = inside.conv1(inside._transform_input(picture))[:, :, 2:-2, 2:-2]
    first: Any = built
    torch.testing.assert_close(first.conv1(picture)[:, :, 2:-2, 2:-2], expected, rtol=1e-3, atol=1e-4)


def _offline(url: str, path: str, hash_prefix: str, progress: bool) -> None:
    raise URLError("Name or service not known")


def _tampered(url: str, path: str, hash_prefix: str, progress: bool) -> None:
    raise RuntimeError(f'invalid hash value (expected "{hash_prefix}", got "00000000")')


def _harmful(url: str, path: str, hash_prefix: str, progress: bool) -> None:
    torch.save(Touches(), path)


@pytest.mark.parametrize(
    ("server", "why", "kind"),
    [
        (_offline, "Name or service not known", DeviceError),  # CI may try again
        (_tampered, 'expected "f37072fd"', StageError),
        (_harmful, "UnpicklingError", StageError),
    ],
)
def test_weights_that_cannot_be_had_say_what_to_do(
    server: object, why: str, kind: type[EdgepackError], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("torch.hub.download_url_to_file", server)
    with pytest.raises(kind) as failure:
        build(weights="DEFAULT")
    assert why in failure.value.message
    assert "https://download.pytorch.org/models/resnet18-f37072fd.pth" in failure.value.message
    assert str(tmp_path / "torch/hub/checkpoints") in failure.value.hint
    assert "checkpoint" in failure.value.hint
    assert not Path("touched").exists()


def test_a_saved_candidate_needs_no_download(publish: Publish, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    publish("resnet18")
    choice = plugins.choose("models", {"torchvision": "resnet18", "weights": "DEFAULT", "width": "50 %"})
    before = Candidate.start(choice, signature())
    monkeypatch.setattr("torch.hub.download_url_to_file", _offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "another machine"))
    after = reloaded(before, tmp_path / "saved")
    picture = torch.rand(2, 1, 32, 32)
    assert torch.equal(after.module.eval()(picture), before.module.eval()(picture))


@pytest.mark.parametrize(
    ("settings", "data", "expected"),
    [
        ({}, signature(3, classes=1000), False),
        ({"weights": "DEFAULT"}, signature(3, classes=1000), True),
        ({"weights": "DEFAULT"}, signature(3, classes=10), False),
        ({"weights": "DEFAULT"}, signature(1, classes=1000), False),
        ({"weights": "DEFAULT", "width": "50 %"}, signature(3, classes=1000), False),
    ],
)
def test_a_model_counts_as_trained_when_every_layer_was_kept(
    settings: dict[str, str], data: Signature, expected: bool
) -> None:
    config = Config.model_validate({"torchvision": "resnet18", **settings})
    assert torchvision.trained(config, data) is expected


@pytest.mark.parametrize(
    ("name", "settings", "side", "why"),
    [
        ("shufflenet_v2_x0_5", {"width": "50 %"}, 32, "cannot be narrowed to 50 %"),
        ("swin_t", {"width": "50 %"}, 32, "cannot be narrowed, its attention has fixed heads"),
        ("alexnet", {}, 32, "alexnet cannot take this data, a tensor of shape [2, 1, 32, 32]: RuntimeError"),
        ("vit_b_32", {}, 40, "vit_b_32 cannot take pictures of 40 x 40"),
        ("maxvit_t", {}, 32, "maxvit_t cannot take pictures of 32 x 32"),
    ],
)
def test_what_a_model_cannot_be_made_is_said_by_its_name(
    name: str, settings: dict[str, str], side: int, why: str
) -> None:
    with pytest.raises(StageError) as failure:
        build(name, signature(side=side), **settings)
    assert why in failure.value.message


@pytest.mark.parametrize("name", ["vit_b_32", "swin_t", "convnext_tiny"])
def test_transformers_take_the_pictures_of_the_data(name: str) -> None:
    assert build(name)(torch.zeros(2, 1, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"torchvision": "resnet81"}, "did you mean 'resnet18'"),
        ({"torchvision": "fasterrcnn_resnet50_fpn"}, "unknown torchvision model"),
        ({"width": "0 %"}, "above 0 % and up to 100 %, got 0 %"),
        ({"width": "150 %"}, "got 150 %"),
        ({"checkpoint": "weights.onnx"}, "a checkpoint is a .safetensors file"),
        ({"checkpoint": "gone.safetensors"}, "there is no file 'gone.safetensors'"),
        ({"weights": "IMAGENET1K_V7"}, "did you mean 'IMAGENET1K_V1'? (allowed: DEFAULT, IMAGENET1K_V1)"),
        ({"torchvision": "vgg16", "weights": "IMAGENET1K_FEATURES"}, "unknown weights of vgg16"),
        ({"weights": "DEFAULT", "checkpoint": "w.pth"}, "remove one of them"),
        ({"in_channels": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as failure:
        Config.model_validate({"torchvision": "resnet18", **wrong})
    assert message in str(failure.value)


def test_channels_must_be_those_of_the_data() -> None:
    config = Config(torchvision="resnet18", in_channels=3)
    assert torchvision.incompatibility(config, signature(3)) == ""
    assert "in_channels is 3, but the data has 1" in torchvision.incompatibility(config, signature(1))
    assert torchvision.incompatibility(Config(torchvision="resnet18"), signature(1)) == ""
    text = Signature(inputs=(TensorSpec(name="input", shape=(128,), dtype="int64"),), labels=("a", "b"))
    assert "need pictures, but the data has inputs of shape [128]" in torchvision.incompatibility(
        Config(torchvision="resnet18"), text
    )


def test_names_are_those_that_torchvision_builds() -> None:
    from edgepack.core.process.libraries import torchvision as library

    models = library().models
    for folder, module in (("", models), ("segmentation", models.segmentation)):
        known = set(torchvision._published(folder))
        assert known == set(models.list_models(module=module)) and known < set(torchvision.names())
        for name in known:
            members = {*models.get_model_weights(name).__members__} - {"IMAGENET1K_FEATURES"}
            assert set(torchvision._published(folder)[name]) == members


def test_a_model_is_chosen_by_the_plugins_own_key() -> None:
    choice = plugins.choose("models", {"torchvision": "resnet18", "width": "25 %"})
    assert (choice.name, choice.plain()["width"]) == ("torchvision", "25 %")
