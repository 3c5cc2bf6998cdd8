"""What a folder of pictures holds beside them: copies, links, litter, splits of other names, files of other kinds."""

import os
import shutil
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
from factories import edgepack, python
from picture_factories import COLORS, check_colors, configured, read_pixels, stored, write_folder, write_picture
from PIL import Image, features

from edgepack.core.errors import RecipeError
from edgepack.data.datasets import image_folder
from edgepack.data.datasets.image_folder import describe, fingerprint, load
from edgepack.data.pictures import decoding
from edgepack.data.pictures.decoding import Decoded, all_decoded
from edgepack.data.splits import Data


@pytest.fixture
def pets() -> str:
    return write_folder("pets")


def _sizes(data: Data) -> dict[str, int]:
    return {part: len(getattr(data, part)) for part in ("train", "validation", "test")}


def _everything(data: Data) -> list[bytes]:
    """The pixels of every picture of every split."""
    return [row.numpy().tobytes() for part in (data.train, data.validation, data.test) for row in stored(part)]


def test_what_programs_leave_behind_is_no_picture_and_no_class(pets: str) -> None:
    before = fingerprint(configured())
    for folder in ("ant/.ipynb_checkpoints", "ant/deep/@eaDir", "__MACOSX/ant", ".cache/bee", "bee/.trash/x"):
        write_picture(f"pets/{folder}/1.png")
    for file in ("ant/Thumbs.db", "ant/.DS_Store", "bee/Desktop.ini", "bee/._2.png"):
        Path("pets", file).write_text("left behind")
    assert describe(configured()).labels == ("ant", "bee", "cow")
    assert (image_folder.notes(configured()), fingerprint(configured())) == ((), before)
    assert load(configured()).notes == ()


def test_links_are_followed_and_loops_cut(pets: str) -> None:
    write_picture("elsewhere/deep/more.png", COLORS["ant"])
    write_picture("elsewhere/single.png", COLORS["bee"])
    for link, target in (
        ("ant/linked", "../../elsewhere/deep"),
        ("bee/one.png", "../../elsewhere/single.png"),
        ("bee/itself", "."),
        ("bee/above", "../.."),
        ("cow/all", ".."),
    ):
        Path("pets", link).symlink_to(target)
    data = load(configured(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)))
    assert sum(_sizes(data).values()) == 32
    assert data.notes == ("3 links are not followed: the target is already read",)
    check_colors(data)


def test_a_class_may_be_a_link_and_lead_back_no_further(pets: str) -> None:
    Path("pets/ant").rename("elsewhere")
    Path("pets/ant").symlink_to("../elsewhere")
    Path("elsewhere/back").symlink_to(Path("pets").absolute())
    assert sum(_sizes(load(configured())).values()) == 30


@pytest.mark.parametrize("place", ["pets/ant/gone.png", "pets/ant/folder", "pets/dog"])
def test_links_that_lead_nowhere_are_named_when_checked(pets: str, place: str) -> None:
    Path(place).symlink_to("/annex/objects/1.png")
    with pytest.raises(RecipeError, match=f"one link is broken:\n  {place} -> /annex/objects/1.png") as caught:
        describe(configured())
    assert "git annex get" in caught.value.hint


def test_a_folder_that_cannot_be_read_is_named(pets: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = os.scandir

    def refusing(path: Path) -> Any:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    Path("pets/bee/closed").mkdir()
    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(RecipeError, match="cannot read pets/bee/closed: Permission denied"):
        describe(configured())


def test_files_that_are_left_out_are_counted_by_ending(pets: str) -> None:
    for file in ("ant/1.txt", "bee/2.TXT", "bee/label", "cow/x.heic"):
        Path("pets", file).write_text("no picture")
    write_picture("pets/loose.png")
    notes = (
        "4 files are left out by ending: .txt 2, without an ending 1, .heic 1 (needs the package pillow-heif)",
        "1 picture is left out: not in the folder of a class",
    )
    assert image_folder.notes(configured()) == load(configured()).notes == notes
    for i in range(3):
        Path(f"pets/dog/{i}.heic").parent.mkdir(exist_ok=True)
        Path(f"pets/dog/{i}.heic").write_text("no picture")
    with pytest.raises(RecipeError, match=r"no picture in pets/dog, but \.heic 3 \(needs the package pillow-heif\)"):
        describe(configured())


def test_a_check_tells_what_is_left_out(pets: str) -> None:
    Path("pets/ant/1.txt").write_text("no picture")
    text = Path("recipes/quickstart.yaml").read_text().splitlines()
    data = "data: {image_folder: {folder: pets, size: 32}}"
    Path("recipe.yaml").write_text("\n".join(data if line.startswith("data:") else line for line in text))
    ran = edgepack("check", "recipe.yaml")
    assert (ran.code, ran.out.splitlines()[-1]) == (0, "  note: 1 file is left out by ending: .txt 1"), ran.err


@pytest.mark.parametrize(
    "ending", ["JFIF", "jpe", "WebP", "bmp", "dib", "TIFF", "gif", "ppm", "PGM", "pbm", "tga", "apng", "avif"]
)
def test_pictures_of_many_endings_are_read(ending: str) -> None:
    if ending == "avif" and not features.check("avif"):
        pytest.skip("this Pillow knows no AVIF")
    write_folder("pets", 4, ("ant", "bee"))
    picture = Image.new("RGB", (20, 20), (255, 255, 255))
    picture.convert({"PGM": "L", "pbm": "1"}.get(ending, "RGB")).save(
        f"pets/ant/new.{ending}", "PNG" if ending == "apng" else None
    )
    assert sum(_sizes(load(configured())).values()) == 9
    assert read_pixels(f"pets/ant/new.{ending}").min() > 240


def test_heic_is_read_where_a_package_teaches_it(pets: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_picture("new.png", (250, 250, 250))
    Path("new.png").rename("pets/ant/new.HEIC")
    taught = []
    package = types.ModuleType("pillow_heif")
    package.__spec__ = ModuleSpec("pillow_heif", None)
    package.register_heif_opener = lambda: taught.append(True)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pillow_heif", package)
    decoding._is_there.cache_clear()
    try:
        assert sum(_sizes(load(configured())).values()) == 31
        assert (taught, image_folder.notes(configured())) == ([True], ())
    finally:
        decoding._is_there.cache_clear()


def test_an_animation_is_its_first_picture() -> None:
    frames = [Image.new("RGB", (20, 20), color) for color in ((250, 0, 0), (0, 250, 0))]
    frames[0].save("two.gif", save_all=True, append_images=frames[1:])
    assert read_pixels("two.gif")[8, 8].tolist() == [250, 0, 0]


def _is_transparent(file: str) -> bool:
    found = all_decoded({Path(file): file}, configured().frame)[file]
    assert isinstance(found, Decoded)
    return found.transparent


def test_colours_of_any_mode_are_those_that_were_saved(recwarn: pytest.WarningsRecorder) -> None:
    picture = Image.new("RGB", (20, 20), (250, 20, 90))
    picture.convert("CMYK").save("one.jpg", quality=100)
    assert abs(read_pixels("one.jpg").astype(int) - (250, 20, 90)).max() < 8
    see_through = picture.convert("RGBA")
    see_through.putalpha(10)
    see_through.save("one.png")
    picture.quantize(4).save("two.png", transparency=b"\x00\x00\x00\x00")
    picture.quantize(4).save("three.gif", transparency=0)
    for file in ("one.png", "two.png", "three.gif"):
        assert read_pixels(file)[8, 8].tolist() == [250, 20, 90]
        assert _is_transparent(file)
    assert not [each for each in recwarn if "ransparency" in str(each.message)]
    see_through.putalpha(255)
    see_through.save("one.png")
    assert not _is_transparent("one.png")


def test_transparent_pictures_are_counted(pets: str) -> None:
    Image.new("RGBA", (20, 20), (250, 20, 90, 100)).save("pets/ant/new.png")
    (note,) = load(configured()).notes
    assert note == "1 picture is partly transparent: the colours stored there are used"


def test_of_copies_one_is_kept_and_none_stands_in_two_splits() -> None:
    """However a picture was saved again: by name, as another kind of file, or with facts about it added."""
    for name in ("ant", "bee"):
        for i in range(6):
            write_picture(f"pets/{name}/{i}.png", COLORS[name])
            first = Image.open(f"pets/{name}/{i}.png")
            shutil.copy(f"pets/{name}/{i}.png", f"pets/{name}/copy-{i}.png")
            for ending in ("bmp", "tif"):
                first.save(f"pets/{name}/{i}.{ending}")
            exif = Image.Exif()
            exif[0x010E] = f"picture {i}"
            first.save(f"pets/{name}/exif-{i}.png", exif=exif)
    data = load(configured(augment=False))
    assert _sizes(data) == {"train": 8, "validation": 2, "test": 2}
    assert len({*_everything(data)}) == 12
    assert data.notes == ("48 of 60 pictures are copies of others: one of each is kept",)


def test_a_picture_of_the_test_split_is_not_trained_on() -> None:
    for part, count in (("Train", 6), ("VAL", 3), ("test", 3)):
        write_folder(f"pets/{part}", count)
    shutil.copy("pets/test/ant/0.png", "pets/Train/ant/copy.png")
    Image.open("pets/test/bee/1.jpg").save("pets/VAL/bee/copy.tif")
    shutil.copy("pets/VAL/cow/1.jpg", "pets/Train/cow/9.jpg")
    data = load(configured(augment=False))
    assert _sizes(data) == {"train": 18, "validation": 9, "test": 9}
    assert len({*_everything(data)}) == 36
    assert data.notes == ("3 of 39 pictures are copies of others: one of each is kept",)


def test_of_several_frames_or_pages_the_first_is_taken_and_told(pets: str) -> None:
    frames = [Image.new("RGB", (40, 30), color) for color in (COLORS["ant"], COLORS["bee"])]
    for i, name in enumerate(("moves.gif", "moves.webp", "pages.tif", "moves.png")):
        frames[0].putpixel((0, 0), (0, 0, 40 * i))  # no copy of the others
        frames[0].save(f"pets/ant/{name}", save_all=True, append_images=frames[1:])
    frames[0].save("pets/ant/photo.mpo.jpg", format="MPO", save_all=True, append_images=frames[1:])
    frames[1].save("pets/bee/still.gif")
    frames[1].resize((9, 9)).save("pets/bee/still.tif")
    data = load(configured(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)))
    check_colors(data)
    assert "4 pictures are with several frames or pages: the first is used" in data.notes


def test_what_is_no_file_is_told_as_such(pets: str) -> None:
    for name in ("pipe.png", "pipe.txt"):
        os.mkfifo(f"pets/ant/{name}")
    assert load(configured()).notes == (
        "1 file is left out by ending: .txt 1",
        "1 thing is left out: named like a picture, but not a file (a pipe, a socket)",
    )


def test_a_picture_under_two_labels_is_not_used(pets: str) -> None:
    shutil.copy("pets/ant/2.png", "pets/bee/like.png")
    Image.open("pets/ant/2.png").save("pets/ant/like.bmp")
    data = load(configured())
    assert sum(_sizes(data).values()) == 29
    assert data.notes == (
        "3 of 32 pictures have copies with another label, such as pets/ant/2.png and pets/bee/like.png: "
        "none of them is used",
    )


def test_copies_leave_enough_of_every_class_or_are_refused(pets: str) -> None:
    for i in range(1, 10):
        Path(f"pets/bee/{i}.{'jpg' if i % 2 else 'png'}").unlink()
        shutil.copy("pets/bee/0.png", f"pets/bee/copy-{i}.png")
    with pytest.raises(RecipeError, match="'bee' has 1 different picture, too few to be split") as caught:
        load(configured())
    assert caught.value.message.endswith(": 9 of 10 pictures are there more than once")
    shutil.rmtree("pets")
    write_folder("pets/train", 6), write_folder("pets/test", 2)
    shutil.copytree("pets/test", "pets/val")
    reason = "the validation split has no picture that other splits lack: all 6 pictures are in the test split too"
    with pytest.raises(RecipeError, match=reason):
        load(configured())


def test_where_the_pictures_of_a_class_went_is_told() -> None:
    shutil.copytree(write_folder("pets/train", 6), "pets/test")
    with pytest.raises(RecipeError, match=r"'ant' has 0 different pictures, .*: all 6 .* are in the test split too"):
        load(configured())
    shutil.rmtree("pets")
    write_folder("pets", 6, ("bee", "cow"))
    Path("pets/ant").symlink_to("bee")
    with pytest.raises(
        RecipeError, match=r"'ant' has 0 different .*: all 6 pictures are under the label 'bee' too"
    ) as caught:
        load(configured())
    assert caught.value.hint.startswith("remove copies, so that each is in one split and one class")


@pytest.mark.parametrize("names", [("Train", "Test"), ("training", "TESTING"), ("TRAIN", "Dev")])
def test_splits_are_known_by_their_names_in_any_case(names: tuple[str, str]) -> None:
    train, other = names
    write_folder(f"pets/{train}", 10), write_folder(f"pets/{other}", 3), write_folder("pets/unlabelled", 2)
    assert describe(configured()).labels == ("ant", "bee", "cow")
    data = load(configured())
    part = "validation" if other == "Dev" else "test"
    assert _sizes(data) == {"train": 24, "validation": 6, "test": 6, part: 9}
    assert data.notes == ("1 folder is left out, next to those of the splits: unlabelled",)


def test_splits_without_training_pictures_are_not_taken_for_classes() -> None:
    write_folder("pets/val", 4), write_folder("pets/test", 4)
    with pytest.raises(RecipeError, match="pets/val holds folders of classes, as a split does, but pets has no folder"):
        describe(configured())
    write_folder("pets/seta", 4), write_folder("pets/setb", 4)
    for name in ("val", "test"):
        shutil.rmtree(f"pets/{name}")
    (note,) = image_folder.notes(configured())
    assert note.startswith("each class holds the same folders, ant, bee, cow: if those are the classes, rename")


def test_pictures_whose_content_was_not_fetched_are_named(pets: str) -> None:
    Path("pets/ant/0.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    Path("pets/bee", os.fsdecode(b"caf\xe9.png")).write_text("")
    with pytest.raises(RecipeError, match=r"pets/ant/0\.png: it is a pointer to a file that is not here") as caught:
        load(configured())
    assert "'pets/bee/caf\\udce9.png': cannot" in caught.value.message.encode().decode()


def test_nothing_heavy_is_needed_to_describe_pictures(pets: str) -> None:
    code = """
import sys
from edgepack.data.datasets import image_folder as data
config = data.Config(folder="pets")
data.describe(config), data.fingerprint(config), data.notes(config)
print(*{"torch", "numpy", "PIL"} & {*sys.modules})
"""
    assert python(code).out.strip() == ""
