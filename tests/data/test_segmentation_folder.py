"""Pictures with a mask for each: both stay together, and what does not fit is named before anything is trained."""

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from edgepack.core.errors import RecipeError
from edgepack.data.datasets.segmentation_folder import Config, describe, fingerprint, load, notes
from edgepack.data.splits import Data, Split

_GREYS = numpy.array([20, 120, 220])  # the grey of each class


def _write(name: str, count: int = 10, images: str = "a", masks: str = "b") -> None:
    """Pictures of three greys in large areas, each in the grey of its class; the border has no class."""
    random = numpy.random.default_rng(len(name))
    for i in range(count):
        mask = random.integers(0, 3, (5, 4)).repeat(8, 0).repeat(8, 1).astype(numpy.uint8)
        picture = Image.fromarray(_GREYS[mask].astype(numpy.uint8))
        mask[:2] = 250
        for root, content, ending in (
            (images, picture, "jpg" if i % 2 else "png"),
            (masks, Image.fromarray(mask), "png"),
        ):
            path = Path(root, name, f"{i}.{ending}")
            path.parent.mkdir(parents=True, exist_ok=True)
            content.save(path)


def _configured(**settings: Any) -> Config:
    return Config(
        **{
            **{"images": "a", "masks": "b", "labels": ("sky", "road", "car"), "ignore": 250},
            **{"size": 24, "resize": 28, "color": "grey", "mean": (0,), "std": (1,)},
            **settings,
        }
    )


def _parts(data: Data) -> list[Split]:
    return [data.train, data.validation, data.test]


def _check_together(split: Split, seed: int | None) -> None:
    """The class of nearly every pixel is that of its grey; those on edges are mixed."""
    for batch in split.batches(4, seed=seed):
        greys = batch.inputs[0][:, 0] * 255
        assert batch.targets.shape == greys.shape == (len(batch.indices), 24, 24)
        nearest = (greys[..., None] - torch.tensor(_GREYS)).abs().argmin(-1)
        valid = batch.targets != 255
        assert valid.float().mean() > 0.5
        assert (nearest == batch.targets)[valid].float().mean() > 0.85
        for mask in batch.targets:
            assert {*mask.unique().tolist()} <= {0, 1, 2, 255}


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
@pytest.mark.parametrize("augment", [True, False, {"crop": ("30 %", "100 %"), "color": 0.01}])
def test_masks_stay_with_their_pictures(augment: Any, cache: str) -> None:
    _write("")
    data = load(_configured(augment=augment, cache=cache))
    assert [len(split) for split in _parts(data)] == [6, 2, 2] and data.augmented == bool(augment)
    for split in _parts(data):
        _check_together(split, None)
        _check_together(split, 3)


def test_samples_are_the_same_for_any_number_of_workers() -> None:
    _write("")
    data = load(_configured(cache="disk"))
    one, two = ([*each.train.batches(2, seed=5)] for each in (data, data.read_by(2)))
    for alone, read in zip(one, two, strict=True):
        assert torch.equal(alone.inputs[0], read.inputs[0]) and torch.equal(alone.targets, read.targets)
    other = next(data.train.batches(2, seed=6))
    assert not torch.equal(other.targets, one[0].targets)


def test_splits_that_are_made_already_are_kept() -> None:
    for name, count in (("train", 5), ("val", 2), ("test/deeper", 3)):
        _write(name, count)
    Path("a/notes.txt").write_text("no picture")
    data = load(_configured())
    assert [len(split) for split in _parts(data)] == [5, 2, 3]
    for split in _parts(data):
        _check_together(split, None)


def test_a_picture_of_two_splits_stays_in_one() -> None:
    _write("train", 5)
    for path in sorted(Path().glob("[ab]/train/[0-2].*")):
        other = path.parents[1] / "test" / path.name
        other.parent.mkdir(exist_ok=True)
        other.write_bytes(path.read_bytes())
    data = load(_configured(validation="30 %"))
    assert [len(split) for split in _parts(data)] == [1, 1, 3]
    assert data.notes == ("3 of 8 pictures are copies of others: one of each is kept",)


def test_masks_may_have_a_palette_and_two_classes_one_bit() -> None:
    _write("")
    for path in Path("b").iterdir():
        mask = Image.open(path)
        mask.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
        mask.save(path)
    _check_together(load(_configured()).train, None)
    for path in Path("b").iterdir():
        Image.fromarray(numpy.array(Image.open(path)) % 2 == 1).save(path)
    data = load(_configured(labels=("even", "odd")))
    assert {*next(data.test.batches(2)).targets.unique().tolist()} == {0, 1}


def test_the_fingerprint_covers_pictures_masks_and_labels() -> None:
    _write("")
    _write("", images="elsewhere/a", masks="elsewhere/b")
    before = fingerprint(_configured())
    assert fingerprint(_configured(images="elsewhere/a", masks="elsewhere/b")) == before
    other = [fingerprint(_configured(**each)) for each in ({"ignore": 255}, {"labels": ("x", "y", "z")}, {"size": 16})]
    Image.fromarray(numpy.zeros((40, 32), numpy.uint8)).save("b/3.png")
    assert len({before, *other, fingerprint(_configured())}) == 5


def test_an_app_is_told_the_input_and_the_classes() -> None:
    _write("")
    signature = describe(_configured())
    assert signature.labels == ("sky", "road", "car") and signature.inputs[0].shape == (1, 24, 24)
    assert signature.preprocessing["resize"]["shorter_side"] == 28


def _no_mask() -> None:
    Path("b/3.png").unlink()


def _smaller_mask() -> None:
    Image.fromarray(numpy.zeros((20, 32), numpy.uint8)).save("b/3.png")


def _unknown_class() -> None:
    Image.fromarray(numpy.full((40, 32), 7, numpy.uint8)).save("b/3.png")


def _colours() -> None:
    Image.fromarray(numpy.zeros((40, 32, 3), numpy.uint8)).save("b/3.png")


def _sixteen_bits() -> None:
    Image.fromarray(numpy.zeros((40, 32), numpy.uint16)).save("b/3.png")


def _no_picture() -> None:
    Path("a/3.jpg").write_bytes(b"no picture")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (_no_mask, "a/3.jpg: there is no b/3.png"),
        (_smaller_mask, "b/3.png: it is 32 x 20, but its picture a/3.jpg is 32 x 40"),
        (_unknown_class, "b/3.png: it has the class 7, but the labels are 0 to 2"),
        (_colours, "b/3.png: it has colours (mode RGB): a mask has one number for each pixel, that of its class"),
        (_sixteen_bits, "b/3.png: it has more than 8 bits a channel"),
        (_no_picture, "a/3.jpg: cannot identify image file"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_or_left_out(spoil: Any, why: str) -> None:
    _write("")
    spoil()
    with pytest.raises(RecipeError) as caught:
        load(_configured())
    assert f"one picture cannot be read:\n  {why}" in str(caught.value)
    data = load(_configured(bad_samples={"skip": 1}))
    assert sum(map(len, _parts(data))) == 9
    assert any(f"1 of 10 pictures cannot be read, and are left out, such as {why}" in note for note in data.notes)


def test_a_missing_mask_is_told_before_files_are_read() -> None:
    _write("")
    _no_mask()
    with pytest.raises(RecipeError, match=r"there is no b/3\.png"):
        describe(_configured())


def test_masks_without_a_picture_are_noted() -> None:
    _write("")
    Path("a/3.jpg").unlink()
    assert notes(_configured()) == ("1 mask is left out: no picture has its name",)


@pytest.mark.parametrize(
    ("folders", "why"),
    [
        ((), "there is no folder 'a'"),
        (("a/x.png",), "there is no folder 'b'"),
        (("a/x.jpg", "b/x.jpg"), r"there is no mask in b, but .jpg 1 \(masks are PNG files\)"),
        (("a/train/x.png", "a/test/x.png", "b/x.png"), "a has pictures for train and test, but b has masks for train"),
        (("a/val/x.png", "b/x.png"), "a holds a folder val, but none to train on"),
        (("a/x.png", "b/x.png"), "the train split of a has 1 pictures with a mask, too few to be split into train"),
    ],
)
def test_folders_that_cannot_be_used_are_told(folders: tuple[str, ...], why: str) -> None:
    for name in folders:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(name)
    with pytest.raises(RecipeError, match=why):
        describe(_configured())


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"labels": ("sky",)}, "at least 2 items"),
        ({"labels": ("sky", "sky")}, "given twice"),
        ({"ignore": 1}, "ignore is 1, but the classes are 0 to 2"),
        ({"augment": {"rand_augment": 2}}, "augment.rand_augment changes pictures without their masks"),
        ({"augment": {"erase": "10 %"}}, "augment.erase changes pictures without their masks"),
    ],
)
def test_settings_that_cannot_be(settings: Any, why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        _configured(**settings)


def test_classes_that_no_mask_has_are_told() -> None:
    _write("")
    data = load(_configured(labels=("sky", "road", "car", "boat")))
    assert [note for note in data.notes if "boat" in note] == [
        f"the {part} split has no pixel of 'boat'" for part in ("train", "validation", "test")
    ]
    for mask in Path("b").glob("*.png"):
        Image.new("L", (32, 40), 250).save(mask)
    with pytest.raises(RecipeError, match="no mask of the train split has a pixel with a class: all are ignored"):
        load(_configured())
