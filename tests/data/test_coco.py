"""Pictures with boxes in COCO's format."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from edgepack.config.plugins import choose
from edgepack.core.errors import RecipeError
from edgepack.data.contract import Task
from edgepack.data.datasets import coco
from edgepack.data.datasets.coco import Config
from edgepack.data.pictures.boxed import mirrored
from edgepack.data.splits import PARTS, Data

Change = Callable[[dict[str, Any]], None]
_SIZE = 60, 40
_BOX = [20, 5, 25, 30]  # red, on black


def write(count: int = 20, file: str = "instances.json", change: Change = lambda content: None, start: int = 0) -> str:
    """Pictures with a red box in each, and a second one in the first, in which all pixels are a little brighter."""
    Path("shots").mkdir(exist_ok=True)
    left, top, width, height = _BOX
    images, annotations = [], []
    for i in range(start, start + count):
        picture = Image.new("RGB", _SIZE, (i, i, i))
        picture.paste((255, 0, 0), (left, top, left + width, top + height))
        picture.save(f"shots/{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": _SIZE[0], "height": _SIZE[1]})
        annotations.append({"id": 100 + i, "image_id": i, "category_id": 7, "bbox": _BOX})
    annotations.append({"id": 99, "image_id": start, "category_id": 3, "bbox": [0, 0, 10, 10]})
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 7, "name": "red"}, {"id": 3, "name": "corner"}],
    }
    change(content)
    Path(file).write_text(json.dumps(content))
    return file


def loaded(**settings: Any) -> Data:
    return coco.load(configured(**settings))


def configured(**settings: Any) -> Config:
    return Config(**{"images": "shots", "annotations": "instances.json", "size": 32, **settings})


def task(config: Config) -> Task:
    choice = choose("tasks", {"detection": {"strides": (8,)}})
    found: Task = choice.module.task(choice.config, coco.describe(config))
    return found


def test_every_split_has_pictures_with_the_boxes_that_are_in_them() -> None:
    write()
    data = loaded(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert [len(getattr(data, part)) for part in PARTS] == [14, 3, 3]
    data.check(task(configured()))
    seen = 0
    for part in PARTS:
        for batch in getattr(data, part).batches(4, seed=3):
            for picture, target in zip(batch.inputs[0], batch.targets, strict=True):
                left, top, right, bottom, label = target[(target[:, 4] == 1).nonzero()[0, 0]].tolist()
                assert label == 1
                ys, xs = (picture[0] > 0.5).nonzero(as_tuple=True)
                assert abs(int(xs.min()) - left) < 1 and abs(int(xs.max()) + 1 - right) < 1
                assert abs(int(ys.min()) - top) < 1 and abs(int(ys.max()) + 1 - bottom) < 1
                seen += 1
    assert seen == 20


def test_half_of_the_training_pictures_are_mirrored_with_their_boxes_and_no_others() -> None:
    write()
    data = loaded()
    plain = torch.cat([batch.targets for batch in data.train.batches(7)])
    turned = next(data.train.batches(14, seed=0))
    same = (turned.targets == plain[turned.indices]).flatten(1).all(1)
    assert 3 <= int(same.sum()) <= 11
    assert torch.equal(turned.targets[~same], mirrored(plain[turned.indices][~same], 32))
    assert not data.validation.augmented and not loaded(augment=False).train.augmented


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_a_file_for_each_split_and_every_place_to_keep_pixels(cache: str) -> None:
    write(6)
    write(3, "val.json", start=6)
    write(2, "test.json", start=9)
    data = loaded(validation_annotations="val.json", test_annotations="test.json", cache=cache)
    assert [len(getattr(data, part)) for part in PARTS] == [6, 3, 2]
    assert data.test.head(2)[0].shape == (2, 3, 32, 32)


def _set(key: str, number: int, **values: Any) -> Change:
    return lambda content: content[key][number].update(values)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            _set("annotations", 2, bbox=[40, 5, 25, 30]),
            r"instances.json: annotation 102: the box \[40, 5, 25, 30\] goes beyond its picture 2.png, of 60 x 40",
        ),
        (_set("annotations", 2, bbox=[40, 5, 0, 30]), "annotation 102: .* has no area"),
        (_set("annotations", 2, bbox=[40, 5, float("nan"), 30]), "annotation 102: .* is not of finite numbers"),
        (_set("annotations", 2, bbox=[40, 5]), "annotation 102: its bbox is"),
        (_set("annotations", 2, category_id=8), "annotation 102: there is no category 8"),
        (_set("annotations", 2, image_id=77), "annotation 102: there is no picture 77"),
        (_set("images", 2, file_name="gone.png"), "picture 2: there is no file shots/gone.png"),
        (_set("images", 2, file_name="2.txt"), "picture 2: shots/2.txt is no picture"),
        (_set("images", 2, width=0), "picture 2: its size is 0 x 40"),
        (lambda content: content.pop("categories"), "is no file of COCO: it has no list of categories"),
        (lambda content: content["images"].append({"id": 3}), r"images\[20\] has no file_name and width and height"),
    ],
)
def test_what_cannot_be_used_is_named_before_a_picture_is_opened(change: Change, why: str) -> None:
    write(change=change)
    with pytest.raises(RecipeError, match=why):
        coco.describe(configured())


def test_a_file_that_is_no_json_or_not_there() -> None:
    write()
    Path("instances.json").write_text("pictures")
    with pytest.raises(RecipeError, match=r"instances.json is not JSON"):
        coco.describe(configured())
    with pytest.raises(RecipeError, match=r"cannot read gone.json"):
        coco.describe(configured(annotations="gone.json"))


def test_a_picture_of_another_size_or_that_cannot_be_read_is_named() -> None:
    write()
    Image.new("RGB", (40, 60)).save("shots/4.png")
    Path("shots/5.png").write_bytes(b"no picture")
    with pytest.raises(RecipeError, match=r"2 items cannot be used:\n.*shots/4.png: it is 40 x 60 pixels, .* 60 x 40"):
        loaded()
    data = loaded(bad_samples={"skip": 2})
    assert sum(len(getattr(data, part)) for part in PARTS) == 18
    assert any("2 items are left out, such as" in note for note in data.notes)


def test_crowds_are_left_out_and_pictures_without_objects_are_kept() -> None:
    write(change=_set("annotations", 0, iscrowd=1))
    assert coco.notes(configured()) == ("1 crowd is left out: such a box holds many objects",)
    write(change=lambda content: content["annotations"].__delitem__(slice(1, None)))
    assert len(loaded().train) == 14


def test_other_categories_in_a_split_are_refused() -> None:
    write(6)
    write(3, "val.json", start=6, change=_set("categories", 0, name="blue"))
    with pytest.raises(RecipeError, match=r"val.json has other categories than instances.json, such as 'blue'"):
        coco.describe(configured(validation_annotations="val.json"))


def test_the_fingerprint_is_of_pictures_boxes_and_settings() -> None:
    write()
    before = coco.fingerprint(configured())
    assert coco.fingerprint(configured(cache="disk")) == before != coco.fingerprint(configured(size=40))
    write(change=_set("annotations", 0, bbox=[20, 5, 25, 31]))
    changed = coco.fingerprint(configured())
    Image.new("RGB", _SIZE).save("shots/4.png")
    assert len({before, changed, coco.fingerprint(configured())}) == 3


def test_copies_of_a_picture_are_in_one_split_only() -> None:
    def copied(content: dict[str, Any]) -> None:
        for i in range(20):
            shutil.copy(f"shots/{i}.png", f"shots/copy-{i}.png")
            content["images"].append({**content["images"][i], "id": 500 + i, "file_name": f"copy-{i}.png"})
            content["annotations"].append({"id": 600 + i, "image_id": 500 + i, "category_id": 7, "bbox": _BOX})

    write(change=copied)
    data = loaded(augment=False)
    assert "20 of 40 pictures are copies of others: one of each is kept" in data.notes
    seen = [row.numpy().tobytes() for part in PARTS for row in getattr(data, part).head(40)[0]]
    assert len({*seen}) == len(seen) == 20
    write(20, "held-out.json")
    with pytest.raises(RecipeError, match="the train split has no picture that other splits lack"):
        loaded(test_annotations="held-out.json", annotations=write(10, "few.json"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["images"].append(content["images"][0]), "1 id is twice in images, such as 0"),
        (
            lambda content: content["categories"].append({"id": 7, "name": "x"}),
            "1 id is twice in categories, such as 7",
        ),
        (lambda content: content["annotations"].clear(), "instances.json has no box that can be used"),
        (
            lambda content: content["annotations"][0].update(category_id=[7]),
            r"annotation 100: there is no category \[7\]",
        ),
        (lambda content: content["annotations"][0].update(bbox=[1, 1, 10**400, 1]), "is not of finite numbers"),
        (lambda content: content["annotations"][0].update(bbox=[1, 1, 1e-9, 1]), "has no area"),
        (lambda content: content["images"][0].update(file_name="x" * 300 + ".png"), "picture 0: there is no file"),
    ],
)
def test_what_cannot_be_told_apart_or_used_is_told_by_check(change: Change, message: str) -> None:
    write(change=change)
    with pytest.raises(RecipeError, match=message):
        coco.describe(configured())


def test_a_box_is_a_crowd_only_if_it_says_so() -> None:
    write(change=_set("annotations", 0, iscrowd="0"))
    assert coco.notes(configured()) == ()


def test_ids_of_categories_are_numbers_or_texts() -> None:
    write(change=lambda content: content["categories"].append({"id": "x", "name": "other"}))
    assert coco.describe(configured()).labels == ("corner", "red", "other")
