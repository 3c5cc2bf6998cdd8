"""A folder of real pictures becomes a data set, and what is wrong with it is said before anything is trained."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from picture_factories import COLORS, check_colors, configured, read_pixels, stored, write_folder, write_picture
from PIL import Image
from pydantic import ValidationError

from edgepack.core.errors import RecipeError
from edgepack.data.datasets.image_folder import describe, fingerprint, load
from edgepack.data.pictures import collection, decoding


@pytest.fixture
def pets() -> str:
    return write_folder("pets")


def test_every_class_is_split_and_labelled_by_its_folder(pets: str) -> None:
    assert describe(configured()).labels == ("ant", "bee", "cow")
    data = load(configured(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)))
    assert [split.targets.bincount().tolist() for split in (data.train, data.validation, data.test)] == [
        [6, 6, 6],
        [2, 2, 2],
        [2, 2, 2],
    ]
    check_colors(data)
    assert len({*data.train.targets[:6].tolist()}) > 1  # shuffled: calibration takes the first ones


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_splits_that_are_made_already_are_kept(name: str) -> None:
    for part, count in (("train", 4), (name, 2), ("test", 3)):
        write_folder(f"pets/{part}", count)
    data = load(configured())
    assert (len(data.train), len(data.validation), len(data.test)) == (12, 6, 9)
    check_colors(data)


def test_a_split_that_no_folder_holds_is_drawn_from_train() -> None:
    write_folder("pets/train", 10), write_folder("pets/val", 3)
    data = load(configured(test="30 %"))
    assert (len(data.train), len(data.validation), len(data.test)) == (21, 9, 9)


def test_a_class_may_be_named_train() -> None:
    write_folder("pets", classes=("ant", "bee"))
    for i in range(3):
        write_picture(f"pets/train/{i}.png")
    assert describe(configured()).labels == ("ant", "bee", "train")


def test_what_is_no_picture_is_left_alone(pets: str) -> None:
    before = fingerprint(configured())
    for name in ("pets/notes.txt", "pets/ant/Thumbs.db", "pets/ant/._1.jpg", "pets/.git/x.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("no picture")
    assert len(load(configured()).train) == 18
    assert fingerprint(configured()) == before


@pytest.mark.parametrize("color", ["rgb", "grey"])
def test_pictures_come_as_described(pets: str, color: str) -> None:
    config = configured(color=color)
    (spec,), preprocessing = describe(config).inputs, describe(config).preprocessing
    data = load(config)
    assert stored(data.train).shape[1:] == (spec.shape[0], 18, 18)  # with room to cut at random places
    assert stored(data.test).shape[1:] == spec.shape
    for split in (data.train, data.validation, data.test):
        assert stored(split).dtype == torch.uint8
        assert split.head(2)[0].shape[1:] == next(split.batches(4, seed=1)).inputs[0].shape[1:] == spec.shape
    assert preprocessing["resize"]["shorter_side"], preprocessing["crop"]["to"] == (18, [16, 16])


def test_a_picture_is_prepared_as_an_app_would(pets: str) -> None:
    """Resize, crop, scale, normalize: what `preprocessing` says, done with Pillow and numpy."""
    write_picture("one.png", size=(90, 50))
    mean, std = numpy.array((0.485, 0.456, 0.406)), numpy.array((0.229, 0.224, 0.225))
    resized = numpy.array(Image.open("one.png").resize((32, 18), Image.Resampling.BILINEAR))
    expected = (resized[1:17, 8:24] / 255 - mean) / std
    pixels = read_pixels("one.png")
    stored = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    (prepared,) = collection.prepared((stored,), configured())
    assert numpy.abs(prepared[0].permute(1, 2, 0).numpy() - expected).max() < 1.01 / 255 / 0.2  # a rounding step


def test_training_pictures_differ_by_seed_and_evaluated_ones_never(pets: str) -> None:
    data = load(configured())
    assert data.augmented and not data.validation.augmented and not data.test.augmented
    one, again, other = (next(data.train.batches(18, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(one.inputs[0], again.inputs[0])
    assert not torch.equal(one.inputs[0][one.indices.argsort()], other.inputs[0][other.indices.argsort()])
    plain = load(configured(augment=False))
    assert not plain.augmented
    step = 1.01 / 255 / 0.224  # Pillow rounds to bytes
    torch.testing.assert_close(plain.train.head(18)[0], data.train.head(18)[0], atol=step, rtol=0)


def test_pictures_are_turned_upright() -> None:
    write_folder("pets", classes=("ant", "bee"))
    lying = Image.new("RGB", (40, 40), (255, 0, 0))
    lying.paste((0, 0, 255), (0, 0, 20, 40))  # blue on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right by 90 degrees: blue comes to the top
    lying.save("turned.jpg", exif=exif)
    pixels = read_pixels("turned.jpg")
    assert pixels[2, 8, 2] > 200 > 50 > pixels[2, 8, 0]
    assert pixels[13, 8, 0] > 200 > 50 > pixels[13, 8, 2]


def test_long_thin_and_small_pictures_can_be_used() -> None:
    for size in ((1, 3000), (3000, 1), (3, 3)):
        write_picture("one.png", size=size)
        assert read_pixels("one.png").shape == (16, 16, 3)


@pytest.mark.parametrize("mode", ["P", "L", "LA", "RGBA", "CMYK", "1"])
def test_pictures_of_any_colours_are_converted(mode: str) -> None:
    Image.new("RGB", (20, 20)).convert(mode).save("one.tif")
    assert read_pixels("one.tif").shape == (16, 16, 3)


def test_the_fingerprint_is_that_of_names_and_contents(pets: str) -> None:
    before = fingerprint(configured())
    Path(pets).rename("elsewhere")
    os.utime("elsewhere/ant/1.jpg", (1, 1))
    assert fingerprint(configured("elsewhere")) == before
    write_picture("elsewhere/ant/1.jpg", (1, 2, 3))
    changed = fingerprint(configured("elsewhere"))
    Path("elsewhere/ant/1.jpg").rename("elsewhere/bee/new.jpg")
    assert (
        len({before, changed, fingerprint(configured("elsewhere")), fingerprint(configured("elsewhere", size=17))}) == 4
    )


def test_contents_are_read_once(pets: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgepack.core import files as core_files

    before = fingerprint(configured())
    with monkeypatch.context() as patch:
        patch.setattr(core_files, "file_digest", lambda path: pytest.fail(f"{path} was read again"))
        assert fingerprint(configured()) == before
    for known in Path(".edgepack/data").iterdir():
        known.write_text("[damaged")
    assert fingerprint(configured()) == before


def _remove(*files: str) -> None:
    for file in files:
        Path(file).unlink()


def _two_pictures_left() -> None:
    _remove(*(f"pets/bee/{i}.{'jpg' if i % 2 else 'png'}" for i in range(2, 10)))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda: Path("pets").rename("pet"), "there is no folder 'pets'"),
        (lambda: Path("pets/dog").mkdir(), "there is no picture in pets/dog"),
        (_two_pictures_left, "the class 'bee' has 2 pictures, too few to be split into train, validation and test"),
    ],
)
def test_folders_that_will_not_do_are_refused_before_a_picture_is_opened(spoil: Any, why: str) -> None:
    write_folder("pets")
    spoil()
    with pytest.raises(RecipeError, match=why):
        describe(configured())


@pytest.mark.parametrize(
    ("folders", "why"),
    [
        (["pets"], "pets holds no folders"),
        (["pets/ant"], "pets holds one class only, 'ant'"),
        (["pets/train/ant"], "pets/train holds one class only"),
        (["pets/train/ant", "pets/train/bee", "pets/val/ant"], "pets/val holds one class only"),
        (["pets/train/ant", "pets/train/bee", "pets/val/ant", "pets/val/cow"], "the validation split .* lacks .*'bee'"),
        (
            ["pets/train/ant", "pets/train/bee", *(f"pets/test/{name}" for name in COLORS)],
            "the test split of pets has the class 'cow', which train lacks",
        ),
        (["pets/train/ant", "pets/train/bee", "pets/val", "pets/valid"], "both pets/valid and pets/val may be"),
    ],
)
def test_classes_that_do_not_fit_are_named(folders: list[str], why: str) -> None:
    for folder in folders:
        for i in range(4):
            write_picture(f"{folder}/{i}.png", size=(4, 4))
    with pytest.raises(RecipeError, match=why):
        describe(configured())


def test_pictures_that_cannot_be_read_are_named(pets: str) -> None:
    whole = Path("pets/ant/1.jpg").read_bytes()
    Path("pets/ant/1.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RecipeError, match=r"one picture cannot be read:\n  pets/ant/1.jpg: .*[Tt]runcated"):
        load(configured())
    for i in range(0, 8, 2):
        Path(f"pets/bee/{i}.png").write_text("not a picture")
    Image.new("I;16", (9, 9)).save("pets/cow/deep.png")
    with pytest.raises(RecipeError, match="6 pictures cannot be read") as caught:
        load(configured())
    assert len([line for line in caught.value.message.splitlines() if "pets/" in line]) == 5
    assert caught.value.message.endswith("and 1 more")
    for file in ("pets/ant/1.jpg", *(f"pets/bee/{i}.png" for i in range(0, 8, 2))):
        Path(file).unlink()
    with pytest.raises(RecipeError, match=r"deep.png: it has more than 8 bits a channel"):
        load(configured())


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_as_many_pictures_as_a_recipe_allows_are_left_out(cache: str, pets: str) -> None:
    for file in ("pets/ant/1.jpg", "pets/bee/2.png"):
        Path(file).write_text("no picture")
    data = load(configured(cache=cache, bad_samples={"skip": 2}))
    assert sum(map(len, (data.train, data.validation, data.test))) == 28
    check_colors(data)
    assert data.notes[0].startswith("2 of 30 pictures cannot be read, and are left out, such as pets/ant/1.jpg: ")
    with pytest.raises(RecipeError, match="2 pictures cannot be read, more than the 1 that bad_samples leaves out"):
        load(configured(cache=cache, bad_samples={"skip": 1}))


@pytest.mark.parametrize(
    "settings",
    [
        {"validation": "60 %", "test": "40 %"},
        {"test": "0 %"},
        {"resize": 15},
        {"color": "grey", "mean": (0.1, 0.2, 0.3)},
        {"std": (0.5, 0.0, 0.5)},
        {"size": 0},
        {"color": "blue"},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        configured(**settings)


def test_each_row_is_the_picture_that_its_label_says() -> None:
    """Cut as if each was resized whole and then cut, of odd and even sizes, in all splits, with a copy among them."""
    for i in range(12):
        for label in range(2):
            write_picture(f"pets/{'ab'[label]}/{i}.png", (20 * i, 0, 200 * label), (18 + i, 41 - i))
    files = [(_middle(file), "ab".index(file.parent.name)) for file in sorted(Path("pets").rglob("*.png"))]
    shutil.copy("pets/a/3.png", "pets/a/copy.png")
    data, seen = load(configured()), set()
    for split in (data.train, data.validation, data.test):
        kept = stored(split)
        start = (kept.shape[-1] - 16) // 2
        cut = kept[:, :, start : start + 16, start : start + 16].numpy().astype(float)
        for row, target in zip(cut, split.targets.tolist(), strict=True):
            off = [numpy.abs(row - pixels).mean() for pixels, _ in files]
            assert min(off) < 0.6 and files[int(numpy.argmin(off))][1] == target  # a rounding step, or another
            seen.add(int(numpy.argmin(off)))
    assert len(seen) == 24


def _middle(file: Path) -> Any:
    """Resized whole, and then cut."""
    picture = Image.open(file)
    scale = 18 / min(picture.size)
    width, height = (max(18, round(length * scale)) for length in picture.size)
    resized = numpy.array(picture.resize((width, height), Image.Resampling.BILINEAR))
    top, left = (height - 16) // 2, (width - 16) // 2
    return resized[top : top + 16, left : left + 16].transpose(2, 0, 1)


@pytest.mark.parametrize("what", ["is_dir", "exists", "stat"])
def test_what_a_link_leads_to_and_may_not_be_read_is_told(
    what: str, pets: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("elsewhere").mkdir()
    Path("pets/ant/more").symlink_to(Path("elsewhere" if what == "stat" else "elsewhere/x.jpg").resolve())
    real = getattr(Path, what)

    def refused(path: Path, **how: Any) -> Any:
        if path.name == "more":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, **how)

    monkeypatch.setattr(Path, what, refused)
    with pytest.raises(RecipeError, match=r"^cannot read pets/ant/more: Permission denied$"):
        describe(configured())


def test_a_file_that_the_system_does_not_give_is_no_bad_sample() -> None:
    with pytest.raises(RecipeError, match=r"^cannot read pets/gone\.png: No such file or directory$"):
        decoding.all_decoded({Path("pets/gone.png"): "gone"}, configured().frame)


def test_a_class_that_lost_its_pictures_says_why() -> None:
    write_folder("pets", 3)
    for file in ("pets/ant/0.png", "pets/ant/1.jpg"):
        Path(file).write_text("no picture")
    with pytest.raises(RecipeError, match=r"the class 'ant' has 1 different picture.*: 2 of 3 pictures are unreadable"):
        load(configured(bad_samples={"skip": 9}))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_picture_that_would_fill_the_memory_is_not_opened(pets: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 38 * 40 // 2)
    with pytest.raises(RecipeError, match="3 pictures cannot be read") as caught:
        load(configured())
    assert "decompression bomb" in caught.value.message
