"""CSV files become data sets, and what is wrong with them is said before training."""

import csv as stdlib
from pathlib import Path
from typing import Any

import pytest
from factories import tokenizer
from text_factories import splits_of

from edgepack.core.errors import RecipeError
from edgepack.data.datasets import csv

WIDE = "".join(f"{i},{'a' if i % 2 else 'b'}\n" for i in range(20))


def _csv(content: str | bytes = f"text,label\n{WIDE}", file: str = "news.csv", **settings: Any) -> csv.Config:
    Path(file).write_bytes(content.encode() if isinstance(content, str) else content)
    return csv.Config(file=file, **{"tokenizer": tokenizer(), "max_length": 8, **settings})


def test_rows_become_documents_labelled_by_a_column() -> None:
    config = _csv(
        "id,label,text\n" + "".join(f'{i},{"money" if i % 2 else "sport"},"{i}, ""so""\nbank"\n' for i in range(20))
    )
    assert csv.describe(config).labels == ("money", "sport")
    data = csv.load(config)
    assert sum(len(split) for split in splits_of(data).values()) == 20
    for text, target in zip(data.examples, data.test.targets.tolist(), strict=False):
        number, _, rest = text.partition(",")
        assert (rest, int(number) % 2) == (' "so"\nbank', 1 - target)


def test_each_split_may_have_a_file_and_columns_other_names() -> None:
    for part, word, count in (("train", "goal", 9), ("validation", "ball", 4), ("test", "stock", 2)):
        rows = [[f"{word} {i} {topic}", topic] for i in range(count) for topic in ("won", "fell")]
        with Path(f"{part}.csv").open("w", newline="", encoding="utf-8-sig") as file:
            stdlib.writer(file).writerows([["review", "stars"], *rows])
    config = csv.Config(
        file="train.csv",
        validation_file="validation.csv",
        test_file="test.csv",
        text="review",
        label="stars",
        tokenizer=tokenizer(),
        max_length=8,
    )
    data = csv.load(config)
    assert [len(split) for split in splits_of(data).values()] == [18, 8, 4]
    assert all(text.startswith("stock ") for text in data.examples)
    partly = config.model_copy(update={"test_file": None})
    assert [len(split) for split in splits_of(csv.load(partly)).values()] == [16, 8, 2]
    assert csv.fingerprint(partly) != csv.fingerprint(config)


def test_labels_that_are_numbers_are_in_their_order() -> None:
    config = _csv("text,label\n" + "".join(f"{i},{i % 11}\n" for i in range(44)))
    assert csv.describe(config).labels == tuple(str(i) for i in range(11))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "news.csv has no column 'text', its first row is empty"),
        ("body,label\nx,y\n", "news.csv has no column 'text', its first row is 'body', 'label'"),
        ("text,topic\nx,y\n", "news.csv has no column 'label'"),
        ("text;label\nx;y\n", r"first row is 'text;label'\n.*commas between columns"),
        ("text,label,text\nx,y,z\n", "news.csv has the column 'text' twice"),
        ("text,label\n", "news.csv has no rows"),
        ("text,label\nx,a\ny,a\n", "news.csv has one label only, 'a'"),
        (f"text,label\n{WIDE}x,\n", "news.csv:22: the label is empty"),
        (f'text,label\n{WIDE}x,"a\nb"\n', r"news.csv:22: 'a\\nb' is not a valid label"),
        (f"text,label\n{WIDE}\nx,a,b\n", "news.csv:23: the row has 3 values for 2 columns"),
        (f"text,label\n{WIDE}x\n", "news.csv:22: the row has 1 values for 2 columns"),
        (
            f'text,label\n"two\nlines",a\n{WIDE}"x,a\ny,b\n',
            "news.csv:24: the row cannot be read: unexpected end of data",
        ),
        (f'text,label\n{WIDE}"x"y,a\n', "news.csv:22: the row cannot be read: ',' expected after '\"'"),
        (f'text,label\n{WIDE}"{"x" * 1_000_001}",a\n', "news.csv:22: .* field larger than field limit"),
        (f'text,label\n{WIDE}" ",a\n', "one document cannot be used:\n  news.csv:22: it is empty"),
        (f"text,label\n{WIDE}x,c\n", "the class 'c' has 1 document, too few to be split"),
        (b"text,label\ncaf\xe9,a\n", r"news.csv: it is not utf-8 \(byte 0xe9 at position 14\)"),
    ],
)
def test_files_that_cannot_be_read_are_refused_when_checked(content: str | bytes, why: str) -> None:
    before = stdlib.field_size_limit()
    with pytest.raises(RecipeError, match=why):
        csv.describe(_csv(content))
    assert stdlib.field_size_limit() == before


def test_files_that_do_not_belong_together_are_refused() -> None:
    _csv(f"text,label\n{WIDE}x,c\n", file="test.csv")
    with pytest.raises(RecipeError, match=r"the test split in test\.csv has the class 'c', which train lacks"):
        csv.describe(_csv(test_file="test.csv"))
    with pytest.raises(RecipeError, match=r"there is no file 'no\.csv'"):
        csv.fingerprint(_csv(validation_file="no.csv"))


def test_the_standard_library_has_its_csv() -> None:
    assert stdlib.reader(["a,b"]).__next__() == ["a", "b"]
