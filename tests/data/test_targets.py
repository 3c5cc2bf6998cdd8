"""Tables whose columns say numbers or tags, of texts, of pictures and of numbers."""

import csv as stdlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import edgepack, recipe_file, tokenizer
from picture_factories import write_folder

from edgepack.config.plugins import choose
from edgepack.core.errors import RecipeError
from edgepack.data.datasets import csv, image_csv
from edgepack.data.splits import Data, Split

FEATURES = ("a", "b")


def _table(header: Sequence[str], rows: Sequence[Sequence[object]], file: str = "rows.csv") -> str:
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    with Path(file).open("w", newline="", encoding="utf-8") as written:
        stdlib.writer(written).writerows([header, *rows])
    return file


def _numbers(header: Sequence[str] = ("a", "b", "age", "height"), rows: Any = None, **settings: Any) -> csv.Config:
    """Forty rows of which the second input is a hundred times the first."""
    known = [(i, 100 * i, i / 10, 1) for i in range(40)] if rows is None else rows
    file = _table(header, known)
    return csv.Config(**{"file": file, "features": FEATURES, "targets": ("age", "height"), **settings})


def _checked(data: Data, task: str, signature: Any) -> None:
    data.check(choose("tasks", task).module.task(choose("tasks", task).config, signature))


def test_numbers_are_scaled_by_the_training_rows_and_the_app_is_told() -> None:
    config = _numbers()
    signature, data = csv.describe(config), csv.load(config)
    assert signature.labels == ("age", "height") and signature.inputs[0].shape == (2,)
    assert [len(each) for each in (data.train, data.validation, data.test)] == [28, 6, 6]
    inputs = data.train.inputs[0]
    assert inputs.dtype == torch.float32
    assert torch.allclose(inputs.mean(0), torch.zeros(2), atol=1e-6)
    assert torch.allclose(inputs.std(0, correction=0), torch.ones(2), atol=1e-6)
    told = signature.preprocessing
    assert (told["kind"], told["columns"]) == ("numbers", ["a", "b"])
    mean, std = (torch.tensor(told["normalize"][name]) for name in ("mean", "std"))
    raw = data.test.inputs[0] * std + mean
    assert torch.allclose(raw[:, 0] / 10, data.test.targets[:, 0], atol=1e-4)
    assert torch.allclose(raw[:, 1], 100 * raw[:, 0], atol=1e-2)
    _checked(data, "regression", signature)


def test_a_column_of_equal_numbers_stays_finite() -> None:
    data = csv.load(_numbers(rows=[(i, 7, i, 1) for i in range(40)]))
    assert data.train.inputs[0][:, 1].tolist() == [0.0] * 28


def test_numbers_may_have_a_class_or_tags() -> None:
    classes = _numbers(("a", "b", "kind"), [(i, i % 7, "xy"[i % 2]) for i in range(40)], targets=(), label="kind")
    data = csv.load(classes)
    assert csv.describe(classes).labels == ("x", "y") and data.test.targets.tolist().count(0) == 3
    assert all(len(each) for each in (data.train, data.validation, data.test))
    tagged = [
        (i, i % 7, "; ".join(tag for n, tag in enumerate(("hot", "far", "new")) if i >> n & 1)) for i in range(40)
    ]
    tags = _numbers(("a", "b", "tags"), tagged, targets=(), tags="tags")
    data = csv.load(tags)
    assert csv.describe(tags).labels == ("far", "hot", "new")
    _checked(data, "multi_label_classification", csv.describe(tags))


def test_no_row_stands_in_two_splits_and_each_may_have_a_file() -> None:
    _table(("a", "b", "age"), [(i, 0, i) for i in (0, 1, 50)], "test.csv")
    rows = [(i, 0, i) for i in range(20)] + [(3, 0, 4)]
    config = _numbers(("a", "b", "age"), rows, targets=("age",), test_file="test.csv")
    data = csv.load(config)
    assert len(data.test) == 3 and len(data.train) + len(data.validation) == 18
    assert "3 rows have the numbers of another one: one of each is kept" in data.notes
    assert csv.fingerprint(config) != csv.fingerprint(config.model_copy(update={"targets": ("a",)}))


@pytest.mark.parametrize(
    ("header", "rows", "settings", "why"),
    [
        (
            ("a", "b", "age", "height"),
            [(1, 2, 3, 4), (1, "x", 3, 4)],
            {},
            "rows.csv:3: 'b' is 'x', which is not a finite",
        ),
        (("a", "b", "age", "height"), [(1, 2, "", 4)], {}, "rows.csv:2: 'age' is '', which is not a finite number"),
        (("a", "b", "age", "height"), [(1, 2, "nan", 4)], {}, "rows.csv:2: 'age' is 'nan'"),
        (
            ("a", "b", "age", "height"),
            [(1, 2, "1e39", 4)],
            {},
            "'1e39', which is not a number that float32 holds",
        ),
        (("a", "b", "age", "height"), [(-1e200, 2, 3, 4)], {}, "rows.csv:2: 'a' is '-1e+200', which is not a number"),
        (("a", "b", "age"), [(1, 2, 3)], {}, "rows.csv has no column 'height', its first row is 'a', 'b', 'age'"),
        (("a", "age", "height"), [(1, 2, 3)], {}, "rows.csv has no column 'b'"),
        (("a", "b", "age", "height"), [], {}, "rows.csv has no rows"),
        (("a", "b", "age", "height"), [(1, 2, 3, 4)], {}, "the data has 1 row, too few to be split"),
    ],
)
def test_what_cannot_be_used_is_named_with_file_and_row(
    header: Sequence[str], rows: Any, settings: Any, why: str
) -> None:
    with pytest.raises(RecipeError) as error:
        csv.describe(_numbers(header, rows, **settings))
    assert why in str(error.value)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({}, "texts need a tokenizer; for numbers name their columns: features: [...]"),
        ({"features": ["a"], "tokenizer": "words"}, "tokenizer is for texts, but inputs are numbers"),
        ({"features": ["a"], "windows": 2}, "windows is for texts, but inputs are numbers"),
        ({"features": ["a", "a"], "targets": ["age"]}, "the column 'a' is named twice"),
        ({"features": ["a", "age"], "targets": ["age"]}, "the column 'age' is named twice"),
        ({"features": ["a"], "targets": ["age"], "tags": "tags"}, "give targets or tags"),
        ({"features": ["a"], "targets": ["age", "age"]}, "the column 'age' is given twice"),
    ],
)
def test_settings_that_contradict_are_told_by_check(settings: Any, why: str) -> None:
    _numbers()
    recipe_file(task="regression", data={"csv": {"file": "rows.csv", **settings}})
    assert why in edgepack("check", "tiny").err


def test_a_tag_that_no_training_row_has_is_named() -> None:
    _table(("a", "b", "tags"), [(100, 1, "old")], "test.csv")
    config = _numbers(
        ("a", "b", "tags"), [(i, 0, "new") for i in range(9)], targets=(), tags="tags", test_file="test.csv"
    )
    with pytest.raises(RecipeError, match=r"test.csv has the tag 'old', which no training row has"):
        csv.load(config)


def test_texts_have_numbers_or_tags() -> None:
    rows = [(f"{i} the bank", i / 4, "money;old" if i % 2 else "") for i in range(20)]
    file = _table(("text", "stars", "tags"), rows)
    facts: dict[str, Any] = {"file": file, "tokenizer": tokenizer(), "max_length": 8}
    stars = csv.Config(**facts, targets=("stars",))
    data = csv.load(stars)
    assert csv.describe(stars).labels == ("stars",) and data.train.targets.shape == (14, 1)
    for text, value in zip(data.examples, data.test.targets[:, 0].tolist(), strict=True):
        assert float(text.split()[0]) / 4 == value
    _checked(data, "regression", csv.describe(stars))
    tags = csv.Config(**facts, tags="tags")
    data = csv.load(tags)
    assert csv.describe(tags).labels == ("money", "old")
    for text, row in zip(data.examples, data.test.targets.tolist(), strict=True):
        assert row == ([1.0, 1.0] if int(text.split()[0]) % 2 else [0.0, 0.0])
    assert len({csv.fingerprint(each) for each in (stars, tags)}) == 2


def test_a_text_with_two_numbers_is_named() -> None:
    rows = [*((f"{i} the bank", i) for i in range(20)), ("3  the bank", 9)]
    config = csv.Config(file=_table(("text", "stars"), rows), tokenizer=tokenizer(), max_length=8, targets=("stars",))
    with pytest.raises(RecipeError, match=r"rows.csv:22: \(9.0,\), but the same text in rows.csv:5 \(3.0,\)"):
        csv.load(config)


def _brightness(part: Split) -> torch.Tensor:
    return next(part.batches(len(part))).inputs[0].mean((1, 2, 3))


def test_pictures_have_numbers_or_tags() -> None:
    write_folder("pets")
    names = [*sorted(path.relative_to("pets") for path in Path("pets").glob("*/*"))]
    rows = [(name, i % 5, i, ",".join(["even", "three"][: i % 3])) for i, name in enumerate(names)]
    file = _table(("path", "age", "height", "tags"), rows, "pets/rows.csv")
    numbers = image_csv.Config(file=file, size=16, augment=False, targets=("height", "age"))
    data = image_csv.load(numbers)
    assert image_csv.describe(numbers).labels == ("height", "age")
    assert sum(len(each) for each in (data.train, data.validation, data.test)) == 30
    assert all(age == height % 5 for height, age in data.train.targets.tolist())
    light = {float(h): float(b) for h, b in zip(data.test.targets[:, 0], _brightness(data.test), strict=True)}
    again = image_csv.load(numbers)
    assert light == {float(h): float(b) for h, b in zip(again.test.targets[:, 0], _brightness(again.test), strict=True)}
    _checked(data, "regression", image_csv.describe(numbers))
    tags = image_csv.Config(file=file, size=16, augment=False, tags="tags", separator=",")
    assert image_csv.describe(tags).labels == ("even", "three")
    _checked(image_csv.load(tags), "multi_label_classification", image_csv.describe(tags))
    assert image_csv.fingerprint(tags) != image_csv.fingerprint(numbers)


def test_a_picture_that_is_listed_with_two_numbers_is_named() -> None:
    write_folder("pets")
    names = [*sorted(path.relative_to("pets") for path in Path("pets").glob("*/*"))]
    rows = [*((name, i) for i, name in enumerate(names)), (names[3], 99)]
    config = image_csv.Config(file=_table(("path", "age"), rows, "pets/rows.csv"), size=16, targets=("age",))
    with pytest.raises(RecipeError, match=r"is listed twice, with \(3.0,\) and \(99.0,\)"):
        image_csv.describe(config)
    same = Path("pets", names[3]).with_name("copy.png")
    same.write_bytes(Path("pets", names[3]).read_bytes())
    _table(("path", "age"), [*rows[:-1], (same.relative_to("pets"), 99)], "pets/rows.csv")
    data = image_csv.load(config)
    assert "have copies with another label" in " ".join(data.notes)
    assert 3.0 not in torch.cat([each.targets for each in (data.train, data.validation, data.test)])[:, 0].tolist()
