"""Models of timm: which there are, what they start from, what does not fit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch_factories import reloaded

from edgepack.config import plugins
from edgepack.config.document import Nested
from edgepack.config.plugins import Choice
from edgepack.core.errors import StageError
from edgepack.core.process import libraries
from edgepack.core.signature import Signature, TensorSpec
from edgepack.models.candidate import Candidate
from edgepack.models.complexity import parameters
from edgepack.models.sources import timm
from edgepack.models.sources.timm import catalogue

SMALL = "mobilenetv3_small_050"


def signature(channels: int = 3, classes: int = 4, side: int = 32, **preprocessing: Any) -> Signature:
    picture = TensorSpec(name="input", shape=(channels, side, side))
    return Signature(inputs=(picture,), labels=tuple(str(i) for i in range(classes)), preprocessing=preprocessing)


def choose(name: str = SMALL, **settings: Any) -> Choice:
    return plugins.choose("models", {"timm": name, **settings})


def start(data: Signature | None = None, name: str = SMALL, **settings: Any) -> Candidate:
    return Candidate.start(choose(name, **settings), data or signature())


def wrong(**settings: Any) -> str:
    with pytest.raises(Nested) as failure:
        choose(**settings)
    return str(failure.value)


def published(classes: int = 6, channels: int = 3, name: str = SMALL, **facts: Any) -> nn.Module:
    """Write the folder `published` as timm writes one for the hub, and return its model."""
    torch.manual_seed(7)
    module = libraries.timm().create_model(name, num_classes=classes, in_chans=channels).eval()
    normal = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "input_size": [channels, 64, 64]}
    described = {"architecture": name, "num_classes": classes, "pretrained_cfg": normal, **facts}
    Path("published").mkdir()
    Path("published", "config.json").write_text(json.dumps(described))
    save_file(module.state_dict(), "published/model.safetensors")
    return module


def same(one: nn.Module, other: nn.Module, picture: torch.Tensor) -> bool:
    with torch.no_grad():
        return bool(torch.equal(one.eval()(picture), other.eval()(picture)))


def test_names_and_tags_are_those_of_timm() -> None:
    library = libraries.timm()
    assert set(catalogue.models()) == set(library.list_models())
    published = [name.partition(".") for name in library.list_pretrained()]
    refused = {name for name, _, tag in published if catalogue.models()[name] and tag not in catalogue.models()[name]}
    assert len(refused) < 10, refused  # tags that timm's code puts together beside others that it spells out
    assert catalogue.models()["efficientnet_lite0"] == ("ra_in1k",)


@pytest.mark.parametrize(("channels", "classes"), [(1, 7), (3, 4), (5, 2)])
def test_any_model_takes_the_datas_channels_and_classes(channels: int, classes: int) -> None:
    module = start(signature(channels, classes)).module.eval()
    assert module(torch.zeros(2, channels, 32, 32)).shape == (2, classes)


def test_a_model_for_pictures_of_one_size_is_made_for_that_of_the_data() -> None:
    assert start(signature(side=48), "vit_tiny_patch16_224").module.patch_embed.img_size == (48, 48)
    with pytest.raises(
        StageError, match=r"maxvit_rmlp_pico_rw_256 cannot take this data, .*\[2, 3, 50, 50\].*maxxvit.py"
    ):
        start(signature(side=50), "maxvit_rmlp_pico_rw_256")


def test_a_narrow_model_is_rebuilt_from_its_file(tmp_path: Path) -> None:
    wide, narrow = start(), start(width="50 %")
    assert parameters(narrow.module) < 0.4 * parameters(wide.module)
    again = reloaded(narrow, tmp_path / "saved")
    assert same(again.module, narrow.module, torch.rand(2, 3, 32, 32))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"name": "mobilenetv3_smal_050"}, "unknown timm model 'mobilenetv3_smal_050': did you mean"),
        (
            {"name": "efficientnet_lite0.ra_in1"},
            "unknown weights of efficientnet_lite0 'ra_in1': did you mean 'ra_in1k'",
        ),
        ({"name": "resnet18", "weights": "hub"}, "name the weights with the model: timm: resnet18."),
        ({"weights": "mistyped.pth"}, "there is no file 'mistyped.pth'"),
        ({"weights": "no_such_package:a.pth"}, "no package 'no_such_package' is installed"),
        ({"weights": "edgepack:../a.pth"}, "lies outside of the package 'edgepack'"),
        ({"weights": "folder-mistyped"}, "there is no folder 'folder-mistyped'"),
        ({"weights": "published", "checkpoint": "published/model.safetensors"}, "weights and checkpoint exclude"),
        ({"name": "resnet18", "weights": "published"}, f"is of the model '{SMALL}', not of resnet18"),
        ({"width": "0 %"}, "width is a percentage"),
    ],
)
def test_mistakes_are_found_when_the_recipe_is_read(settings: dict[str, Any], why: str) -> None:
    published()
    assert why in wrong(**settings)


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "models", dict)
    assert "timm is not installed: pip install 'edgepack[timm]'" in wrong()


def test_weights_of_the_same_classes_come_trained(tmp_path: Path) -> None:
    given = published(classes=4)
    choice, made = choose(weights="published"), start(weights="published")
    assert choice.module.trained(choice.config, signature()) and not timm.trained(choose().config, signature())
    assert same(made.module, given, torch.rand(2, 3, 32, 32))
    assert [file.name for file in choice.module.files(choice.config)] == ["config.json", "model.safetensors"]
    assert same(reloaded(made, tmp_path / "saved").module, given, torch.rand(2, 3, 32, 32))
    assert not any("state_dict" in part.pretrained_cfg for part in (made.module, made.copy().module))


def test_for_other_classes_the_head_starts_anew_and_the_rest_is_kept() -> None:
    given = published(classes=6)
    choice, made = choose(weights="published"), start(weights="published").module.eval()
    assert not choice.module.trained(choice.config, signature())
    picture = torch.rand(2, 3, 32, 32)
    assert torch.equal(made.forward_features(picture), given.forward_features(picture))
    assert made.classifier.out_features == 4


def test_the_first_convolution_is_adapted_to_the_channels() -> None:
    given, made = published(), start(signature(1), weights="published").module
    assert torch.allclose(made.conv_stem.weight, given.conv_stem.weight.sum(1, keepdim=True))


def test_weights_for_the_datas_channels_are_taken_as_they_are() -> None:
    given = published(channels=1)
    made = start(signature(1), weights="published").module
    assert torch.equal(made.conv_stem.weight, given.conv_stem.weight)


@pytest.mark.parametrize("around", ["", "state_dict"])
def test_a_file_of_weights_is_read_without_its_code(around: str) -> None:
    state = {f"module.{name}": tensor for name, tensor in published(classes=4).state_dict().items()}
    torch.save({around: state} if around else state, "weights.pth")
    made = start(weights="weights.pth")
    assert torch.equal(made.module.conv_stem.weight, state["module.conv_stem.weight"])


class Touches:
    """What an attacker would send: unpickled, it runs a function."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("touched"),)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (Touches(), "cannot be read as weights (UnpicklingError)"),
        ({"fc.weight": torch.zeros(3)}, "weights.pth holds fewer tensors than this model"),
        ({f"layer{i}.weight": torch.zeros(3) for i in range(300)}, f"weights.pth does not fit {SMALL}: RuntimeError"),
    ],
    ids=["code", "few", "other model"],
)
def test_a_file_that_is_not_of_this_model_is_refused(content: object, why: str) -> None:
    torch.save(content, "weights.pth")
    with pytest.raises(StageError) as failure:
        start(weights="weights.pth")
    assert why in failure.value.message and failure.value.hint
    assert not Path("touched").exists()


def test_integers_in_place_of_weights_are_refused() -> None:
    state = published().state_dict()
    save_file({**state, "conv_head.weight": state["conv_head.weight"].to(torch.int8)}, "weights.safetensors")
    with pytest.raises(StageError, match="weights that are not float"):
        start(weights="weights.safetensors")


def test_weights_in_a_package_under_other_names_are_matched_by_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = published(classes=9).state_dict()
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "carried").mkdir()
    (tmp_path / "carried" / "__init__.py").write_text("raise RuntimeError('it is not imported')")
    renamed = {f"net.{place}.{name.rpartition('.')[2]}": state[name] for place, name in enumerate(state)}
    torch.save(renamed, tmp_path / "carried" / "weights.pth")
    made = start(weights="carried:weights.pth")
    assert torch.equal(made.module.conv_head.weight, state["conv_head.weight"])
    assert "matched by order: 'net.0.weight' for 'conv_stem.weight'" in made.notes[0]


def test_weights_of_the_hub_are_those_of_the_tag_at_the_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    given, asked = published(classes=4, name="efficientnet_lite0"), []

    def download(name: str, revision: str | None, **settings: Any) -> str:
        asked.append((name, revision))
        return "published"

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    made = start(name="efficientnet_lite0.ra_in1k", revision="4f0c2a7")
    assert {*asked} == {("timm/efficientnet_lite0.ra_in1k", "4f0c2a7")}
    assert torch.equal(made.module.conv_head.weight, given.conv_head.weight)
    assert made.factory.config["weights"] is made.factory.config["revision"] is None
    asked.clear()
    assert choose("efficientnet_lite0.ra_in1k", weights=None).config.weights is None
    assert not asked


def test_pictures_that_are_normalised_by_other_numbers_are_told() -> None:
    published()
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    (told,) = start(signature(normalize={"mean": mean, "std": std}), weights="published").notes
    assert "normalised with mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]" in told
    half = {"mean": [0.5] * 3, "std": [0.5] * 3}
    assert start(signature(normalize=half), weights="published").notes == ()


def test_the_licence_that_weights_are_published_under_is_told() -> None:
    published(pretrained_cfg={"input_size": [3, 64, 64], "license": "cc-by-nc-4.0"})
    assert "licence of the weights, as published with them: cc-by-nc-4.0" in start(weights="published").notes


def test_the_same_labels_in_another_order_are_refused() -> None:
    published(classes=4, label_names=["0", "1", "3", "2"])
    choice = choose(weights="published")
    assert "labels in the order 0, 1, 3, 2" in choice.module.incompatibility(choice.config, signature())


def test_a_checkpoint_is_of_exactly_this_model() -> None:
    before = start().module.eval()
    torch.save(before.state_dict(), "mine.pth")
    choice = choose("mobilenetv3_small_050.lamb_in1k", checkpoint="mine.pth")
    assert choice.config.weights is None and choice.module.trained(choice.config, signature())
    assert same(Candidate.start(choice, signature()).module, before, torch.rand(2, 3, 32, 32))


def test_data_that_is_no_picture_or_has_other_channels_is_refused() -> None:
    text = Signature(inputs=(TensorSpec(name="input", shape=(128,)),), labels=("a", "b"))
    assert "need pictures, but the data has inputs of shape [128]" in timm.incompatibility(choose().config, text)
    assert "in_channels is 1, but the data has 3" in timm.incompatibility(choose(in_channels=1).config, signature())


def test_a_function_of_your_own_may_return_a_model_of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a torch without CUDA, for which torchvision, which timm imports, lacks operators."""
    monkeypatch.syspath_prepend(str(Path.cwd()))
    Path("of_timm.py").write_text(f"import timm\n\ndef make(): return timm.create_model({SMALL!r}, num_classes=4)")
    made = Candidate.start(plugins.choose("models", {"python": "of_timm:make"}), signature())
    assert made.module(torch.zeros(2, 3, 32, 32)).shape == (2, 4)
