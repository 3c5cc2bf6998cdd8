"""CSV files that list pictures become data sets, and what is wrong with them is said before training."""

import csv as stdlib
from pathlib import Path
from typing import Any

import pytest
import torch
from picture_factories import COLORS, check_colors, stored, write_folder, write_picture

from edgepack.core.errors import RecipeError
from edgepack.data.datasets import image_csv, image_folder

NAMES = (*COLORS,)


def _list(file: str, rows: list[list[str]], header: tuple[str, ...] = ("path", "label")) -> None:
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    with Path(file).open("w", newline="", encoding="utf-8") as written:
        stdlib.writer(written).writerows([header, *rows])


def _config(file: str = "pets/labels.csv", **settings: Any) -> image_csv.Config:
    return image_csv.Config(file=file, **{"size": 16, **settings})


@pytest.fixture
def pets() -> list[list[str]]:
    """Ten pictures of each class in pets/, and rows that list them."""
    write_folder("pets")
    return [[f"{name}/{i}.{'jpg' if i % 2 else 'png'}", name] for i in range(10) for name in NAMES]


def test_rows_become_pictures_labelled_by_a_column(pets: list[list[str]]) -> None:
    _list("pets/labels.csv", pets)
    assert image_csv.describe(_config()).labels == NAMES
    data = image_csv.load(_config())
    assert [len(split) for split in (data.train, data.validation, data.test)] == [18, 6, 6]
    check_colors(data)


def test_the_samples_are_those_of_a_folder_with_the_same_pictures(pets: list[list[str]]) -> None:
    _list("pets/labels.csv", sorted(pets))
    listed = image_csv.load(_config())
    walked = image_folder.load(image_folder.Config(folder="pets", size=16))
    for one, other in ((listed.train, walked.train), (listed.test, walked.test)):
        assert torch.equal(stored(one), stored(other)) and torch.equal(one.targets, other.targets)


def test_each_split_may_have_a_file_and_columns_other_names(pets: list[list[str]]) -> None:
    header = ("image", "kind")
    _list("lists/train.csv", pets[:15], header)
    _list("lists/validation.csv", pets[15:21], header)
    _list("lists/test.csv", pets[21:], header)
    files = {"validation_file": "lists/validation.csv", "test_file": "lists/test.csv"}
    config = _config("lists/train.csv", **files, folder="pets", path="image", label="kind")
    data = image_csv.load(config)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [15, 6, 9]
    check_colors(data)


def test_the_fingerprint_is_that_of_pictures_and_labels_wherever_they_are(pets: list[list[str]]) -> None:
    _list("pets/labels.csv", pets)
    before = image_csv.fingerprint(_config())
    Path("pets").rename("elsewhere")
    assert image_csv.fingerprint(_config("elsewhere/labels.csv")) == before
    assert image_csv.fingerprint(_config("elsewhere/labels.csv", cache="none")) == before
    _list("elsewhere/labels.csv", [*pets[:-1], [pets[-1][0], "ant"]])
    relabelled = image_csv.fingerprint(_config("elsewhere/labels.csv"))
    write_picture("elsewhere/ant/0.png", (1, 2, 3))
    assert len({before, relabelled, image_csv.fingerprint(_config("elsewhere/labels.csv"))}) == 3


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([["gone.png", "ant"]], r"one row cannot be used:\n  pets/labels.csv:32: there is no file pets/gone.png"),
        ([["", "ant"]], "pets/labels.csv:32: the path is empty"),
        ([["labels.csv", "ant"]], "pets/labels.csv:32: pets/labels.csv is no picture that can be read"),
        ([["ant/0.png", " "]], "pets/labels.csv:32: the label is empty"),
        ([["ant/0.png", "dog"]], "the class 'dog' has 1 picture, too few to be split"),
        ([["ant/0.png"]], "pets/labels.csv:32: the row has 1 values for 2 columns"),
    ],
)
def test_rows_that_cannot_be_used_are_named(rows: list[list[str]], why: str, pets: list[list[str]]) -> None:
    _list("pets/labels.csv", [*pets, *rows])
    with pytest.raises(RecipeError, match=why):
        image_csv.describe(_config())


def test_a_column_that_is_not_there_is_named(pets: list[list[str]]) -> None:
    _list("pets/labels.csv", pets, ("file", "label"))
    with pytest.raises(RecipeError, match="has no column 'path', its first row is 'file', 'label'") as caught:
        image_csv.describe(_config())
    assert "image_csv" in caught.value.hint


def test_a_picture_that_cannot_be_read_is_named(pets: list[list[str]]) -> None:
    _list("pets/labels.csv", pets)
    Path("pets/bee/1.jpg").write_bytes(Path("pets/bee/1.jpg").read_bytes()[:200])
    with pytest.raises(RecipeError, match=r"one picture cannot be read:\n  pets/bee/1.jpg: "):
        image_csv.load(_config())
