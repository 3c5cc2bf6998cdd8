"""Scenes with boxes, composed of another data set's pictures."""

from pathlib import Path
from typing import Any

import pytest
import torch

from edgepack.config.plugins import choose
from edgepack.core.errors import RecipeError
from edgepack.data.splits import PARTS, Data
from edgepack.data.tasks.detection import Detection

SETTINGS = {"size": 32, "most": 2, "train": 20, "validation": 5, "test": 6}


def made(**settings: Any) -> Any:
    return choose("datasets", {"object_scenes": {"of": {"digits": {"size": 16}}, **SETTINGS, **settings}})


@pytest.fixture(scope="module")
def data() -> Data:
    choice = made()
    found: Data = choice.module.load(choice.config)
    return found


def test_scenes_are_what_the_task_wants(data: Data) -> None:
    choice, task = made(), choose("tasks", {"detection": {"strides": (8,)}})
    signature = choice.module.describe(choice.config)
    assert signature.inputs[0].shape == (1, 32, 32) and len(signature.labels) == 10
    detection: Detection = task.module.task(task.config, signature)
    data.check(detection)
    assert [len(getattr(data, part)) for part in PARTS] == [20, 5, 6]
    assert all(detection.problem(targets) == "" for part in PARTS for targets in getattr(data, part).truths())


def test_splits_are_cut_with_their_boxes(data: Data) -> None:
    task = choose("tasks", {"detection": {"strides": (8,)}})
    choice = made()
    detection = task.module.task(task.config, choice.module.describe(choice.config))
    cut = data.cut({"test": 3}, detection).test
    assert len(cut) == 3
    kept, every = (torch.cat([*split.truths()]) for split in (cut, data.test))
    assert all(any(torch.equal(one, other) for other in every) for one in kept)


def test_only_training_scenes_are_mirrored_and_the_same_seed_gives_the_same(data: Data) -> None:
    assert data.augmented and not data.test.augmented
    first, again, other = (next(data.train.batches(20, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first.inputs[0], again.inputs[0]) and torch.equal(first.targets, again.targets)
    assert not torch.equal(first.targets[first.indices.argsort()], other.targets[other.indices.argsort()])


def test_the_fingerprint_is_of_the_other_data_and_the_settings() -> None:
    prints = {
        choice.module.fingerprint(choice.config)
        for choice in (made(), made(most=3), made(of={"digits": {"size": 20}}), made())
    }
    assert len(prints) == 3


def test_a_recipe_with_all_defaults_gives_the_same() -> None:
    choice = made()
    again = choose("datasets", {"object_scenes": choice.plain()})
    assert again.config == choice.config


def test_other_data_than_square_grey_pictures_is_refused() -> None:
    Path("shop.py").write_text("def load(): ...\n")
    choice = made(of={"python": {"function": "shop:load", "shape": (3, 8, 8), "labels": ("a", "b")}})
    with pytest.raises(RecipeError, match="square grey pictures, but python has inputs of other shapes"):
        choice.module.describe(choice.config)


def test_scenes_are_told_by_the_classes_that_are_there(data: Data) -> None:
    choice = made(targets="tags")
    found: Data = choice.module.load(choice.config)
    task = choose("tasks", "multi_label_classification")
    found.check(task.module.task(task.config, choice.module.describe(choice.config)))
    for boxes, tags in zip(torch.cat([*data.test.truths()]), found.test.targets, strict=True):
        assert {*tags.nonzero()[:, 0].tolist()} == {int(label) for label in boxes[:, 4] if label >= 0}
    assert torch.equal(found.test.head(6)[0], data.test.head(6)[0]), "the scenes are those of boxes"


def test_scenes_are_told_by_the_class_of_each_pixel(data: Data) -> None:
    choice = made(targets="masks")
    found: Data = choice.module.load(choice.config)
    signature, task = choice.module.describe(choice.config), choose("tasks", "segmentation")
    found.check(task.module.task(task.config, signature))
    assert signature.labels == ("background", *map(str, range(10))) and not found.augmented
    for boxes, mask in zip(torch.cat([*data.test.truths()]), found.test.targets, strict=True):
        assert {*mask.unique().tolist()} == {0, *(1 + int(label) for label in boxes[:, 4] if label >= 0)}


def test_scenes_are_told_by_the_number_of_objects(data: Data) -> None:
    choice = made(targets="count")
    found: Data = choice.module.load(choice.config)
    signature, task = choice.module.describe(choice.config), choose("tasks", "regression")
    found.check(task.module.task(task.config, signature))
    assert signature.labels == ("objects",)
    boxes = torch.cat([*data.train.truths()])
    assert torch.equal(found.train.targets[:, 0], (boxes[:, :, 4] >= 0).sum(1).float())
    first, again = (next(found.train.batches(20, seed=seed)) for seed in (1, 2))
    assert not torch.equal(first.inputs[0][first.indices.argsort()], again.inputs[0][again.indices.argsort()])


def test_scenes_of_a_split_hold_objects_of_this_split_alone() -> None:
    Path("greys.py").write_text(
        "import torch\n"
        "def load():\n"
        "    def split(count, grey):\n"
        "        return torch.full((count, 1, 28, 28), grey), torch.arange(count) % 3\n"
        "    return {'train': split(30, 0.8), 'validation': split(6, 0.9), 'test': split(6, 1.0)}\n"
    )
    of = {"python": {"function": "greys:load", "shape": (1, 28, 28), "labels": ("a", "b", "c")}}
    choice = made(of=of, targets="masks")
    found: Data = choice.module.load(choice.config)
    for part, grey in zip(PARTS, (204, 230, 255), strict=True):
        batch = next(getattr(found, part).batches(5))
        assert torch.equal(batch.inputs[0][:, 0] == grey / 255, batch.targets > 0)
