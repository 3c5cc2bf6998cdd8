"""Training pictures are changed at random by what a recipe asks for, each by its own seed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from picture_factories import check_colors, configured, stored, write_folder
from pydantic import ValidationError

from edgepack.config.document import ConfigError
from edgepack.config.recipe_reading import load_recipe
from edgepack.data.datasets.image_folder import fingerprint, load
from edgepack.data.pictures.augmentation import Augmentation, changed_each

PICTURES = torch.randint(0, 256, (12, 3, 18, 18), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
SEEDS = torch.arange(12)


def _changed(**settings: Any) -> torch.Tensor:
    transform = Augmentation(**{"flip": False, **settings}).transform(16, (0.5, 0.25, 0.0))
    return changed_each(PICTURES, transform, SEEDS)


@pytest.mark.parametrize(
    "settings",
    [{"crop": ("20 %", "80 %")}, {"flip": True}, {"rand_augment": 2}, {"color": 0.5}, {"erase": "100 %"}],
    ids=lambda settings: "-".join(settings),
)
def test_pictures_are_changed_and_the_same_each_time(settings: dict[str, Any]) -> None:
    before = torch.get_rng_state()
    once, again = _changed(**settings), _changed(**settings)
    assert torch.equal(once, again) and once.dtype == torch.uint8
    assert once.shape == ((12, 3, 16, 16) if "crop" in settings else PICTURES.shape)
    if "crop" not in settings:
        assert sum(not torch.equal(*pair) for pair in zip(once, PICTURES, strict=True)) >= 3
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_erased_is_the_mean() -> None:
    gone = (_changed(erase="100 %") != PICTURES).any(1)  # by place
    for channel, value in enumerate((127, 63, 0)):
        assert (_changed(erase="100 %")[:, channel][gone] == value).all()


def test_nothing_asked_is_nothing_done() -> None:
    assert torch.equal(_changed(), PICTURES)


@pytest.mark.parametrize("crop", [("0 %", "50 %"), ("80 %", "50 %")])
def test_crops_that_make_no_sense_are_refused(crop: tuple[str, str]) -> None:
    with pytest.raises(ValidationError, match="it must be above 0 %, and rise"):
        Augmentation(crop=crop)  # type: ignore[arg-type]


def test_a_mistake_in_the_settings_is_told_with_its_key_and_nothing_else() -> None:
    write_folder("pets")
    recipe = """
edgepack: 1
task: image_classification
model: {torchvision: resnet18}
data: {image_folder: {folder: pets, augment: {erase: 0.25, rotate: 10}, bad_samples: {skip: none}}}
device: host
stages: [{train: {epochs: 1}}]
export: [onnx]
"""
    Path("recipe.yaml").write_text(recipe)
    with pytest.raises(ConfigError) as caught:
        load_recipe("recipe.yaml")
    assert {each.path for each in caught.value.problems} == {
        "data.image_folder.augment.erase",
        "data.image_folder.augment.rotate",
        "data.image_folder.bad_samples.skip",
    }


def test_a_folder_of_pictures_is_augmented_as_asked_by_any_number_of_processes() -> None:
    write_folder("pets")
    settings = {"crop": ("50 %", "100 %"), "color": 0.1, "erase": "20 %"}
    plain, asked = configured(), configured(augment=settings, cache="none")
    assert fingerprint(plain) != fingerprint(asked)
    data = load(asked)
    assert data.augmented
    check_colors(data)
    one, two = ([*replace(data.train, workers=count).batches(5, seed=1)] for count in (0, 2))
    for mine, other in zip(one, two, strict=True):
        assert torch.equal(mine.inputs[0], other.inputs[0])
        assert mine.inputs[0].shape[2:] == (16, 16)
    assert torch.equal(stored(data.train), stored(load(plain).train))  # passes in order see them unchanged
