"""A label from any source stands on one line of io/labels.txt, however an app reads lines."""

import json
import re
from pathlib import Path

import pytest
from bundle_factories import bundle, text_files
from factories import edgepack, texts, tokenizer
from pydantic import ValidationError

from edgepack.core.errors import RecipeError, VerifyError
from edgepack.core.signature import Signature, TensorSpec, labels
from edgepack.data.datasets import csv, python, text_folder
from edgepack.deliver.bundle import verify
from edgepack.workflows import selftest

ODD = {
    **{f"a{end}b": "a line end" for end in "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"},
    **{"a\0b": "a control character (U+0000)", "a\tb": "a control character (U+0009)", "cat\x1b[31m": "U+001B"},
    **{
        "\ue000": "a character of private use (U+E000)",
        "a\ufffe": "no character (U+FFFE)",
        "a\U0001ffff": "no character",
    },
    **{"\U000e0080": "no character (U+E0080)", "\u2065a": "no character (U+2065)"},
    "caf\udce9": "bytes that are not UTF-8",
    "\ufffdcaf": "REPLACEMENT CHARACTER",
    **{"\ufeffcat": "U+FEFF", "a\u202eb": "RIGHT-TO-LEFT OVERRIDE", "a\u00a0b": "NO-BREAK SPACE", "\u200b": "U+200B"},
    **{"": "it is empty", "  ": "it is blank", "\u200d": "it is blank"},
    **{" cat": "begins or ends with a blank", "cat ": "begins or ends with a blank"},
}
FINE = (
    "T-shirt/top",
    "crème brûlée",
    "犬",
    "👨‍👩‍👧",
    "می‌روم",
    "#1",
    "A",
    "a",
    "two words",
    "0",
    "null",
    "🏴‍☠️",
    "\U0001fae8",
    "\U0001faef",
)


def _signature(*names: str) -> Signature:
    return Signature(inputs=(TensorSpec(name="input", shape=(2,)),), labels=names)


@pytest.mark.parametrize(("label", "why"), ODD.items(), ids=ascii)
def test_what_an_app_would_misread_is_no_label_whoever_gives_it(label: str, why: str) -> None:
    assert why in labels.flaw(label)
    with pytest.raises(RecipeError, match="is not a valid label: ") as caught:
        _signature("dog", label)
    caught.value.message.encode()  # it can be printed
    with pytest.raises(ValidationError, match="is not a valid label: "):
        python.Config(function="a:b", shape=(2,), labels=("dog", label))


def test_labels_are_read_the_same_by_lines_in_every_language() -> None:
    text = labels.lines(_signature(*FINE).labels).decode()
    assert text.splitlines() == [*FINE]  # Python
    assert re.split("\r\n|\n|\r", text) == [*FINE, ""]  # Kotlin and Java
    assert re.split("[\n-\r\x85\u2028\u2029]", text) == [*FINE, ""]  # Swift
    assert labels.read(text.encode()) == [*FINE]


@pytest.mark.parametrize(("one", "other"), [("caf\u00e9", "cafe\u0301"), ("ab", "a\u200cb"), ("a", "a")], ids=ascii)
def test_labels_that_nobody_can_tell_apart_are_refused(one: str, other: str) -> None:
    with pytest.raises(RecipeError, match=r"two labels look the same, '[ -~]+' and '[ -~]+'|'a' is given twice"):
        _signature(one, "dog", other)


@pytest.mark.parametrize("content", [b"a\r\nb\r\n", b"a\nb", b"\xff\n", b"a\n\nb\n", b"a\fb\n", b" a\nb\n", b"a\na\n"])
def test_a_file_that_is_not_a_label_on_each_line_is_not_read(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        labels.read(content)


def _outputs(count: int) -> bytes:
    signature = json.loads(text_files()["io/signature.json"])
    return json.dumps({**signature, "outputs": [{"name": "logits", "shape": [1, count], "dtype": "float32"}]}).encode()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"mo\nney\nsport\n", "3 labels for 2 outputs: io/labels.txt"),
        (b"sport\n", "1 labels for 2 outputs: io/labels.txt"),
        (b"mo\x0bney\nsport\n", "io/labels.txt must have one label per line"),
    ],
)
def test_a_bundle_of_other_labels_than_outputs_is_not_whole(content: bytes, why: str) -> None:
    verify(bundle(text_files(**{"io/signature.json": _outputs(2)})))
    with pytest.raises(VerifyError, match=why):
        verify(bundle(text_files(**{"io/signature.json": _outputs(2), "io/labels.txt": content})))


@pytest.mark.parametrize("content", [b"mo\nney\nsport\n", b"sport\n", None])
def test_a_self_test_holds_the_labels_against_what_the_file_answers(content: bytes | None) -> None:
    files = {name: each for name, each in text_files(**{"io/labels.txt": content}).items() if each is not None}
    with pytest.raises(VerifyError, match=r"values, which does not match selftest/ and io/|labels for 2 outputs"):
        list(selftest.run(bundle(files)))


@pytest.mark.parametrize("name", [b"caf\xe9", b"a\nb", b"tea "])
def test_a_folder_that_gives_no_label_is_named_when_it_is_checked(name: bytes) -> None:
    folder = Path("news", name.decode("utf-8", "surrogateescape"))
    Path(texts(), "sport").rename(folder)
    lines = Path("recipes/bbc-minilm-int8.yaml").read_text().splitlines()
    data = f"data: {{text_folder: {{folder: news, tokenizer: {tokenizer()}}}}}"
    changed = [data if line.startswith("data:") else line for line in lines]
    Path("recipe.yaml").write_text("\n".join(changed))
    ran = edgepack("check", "recipe.yaml")
    assert (ran.code, ran.out) == (2, "")
    assert f"the folder {str(folder)!r} is not a valid label: it " in ran.err
    assert "rename it" in ran.err


def test_labels_that_differ_in_case_alone_are_told() -> None:
    folder = texts()
    for i in range(10):
        Path(folder, "Sport").mkdir(exist_ok=True)
        Path(folder, "Sport", f"{i}.txt").write_text(f"another {i}")
    notes = ("the labels 'Sport' and 'sport' differ in case alone",)
    config = text_folder.Config(folder=folder, tokenizer=tokenizer(), max_length=8)
    assert text_folder.notes(config) == text_folder.load(config).notes[:1] == notes
    Path("news.csv").write_text("text,label\n" + "".join(f"{i},{('Yes', 'yes')[i % 2]}\n" for i in range(20)))
    rows = csv.Config(file="news.csv", tokenizer="words", max_length=8)
    assert csv.notes(rows) == csv.load(rows).notes[:1] == ("the labels 'Yes' and 'yes' differ in case alone",)


def test_which_order_labels_that_are_numbers_stand_in_is_told() -> None:
    """Folders as torchvision's ImageFolder sorts them, rows as those count who write numbers."""
    for i in range(1, 12):
        for j in range(4):
            Path("news", str(i)).mkdir(parents=True, exist_ok=True)
            Path("news", str(i), f"{j}.txt").write_text(f"number {j} of {i}")
    folder = text_folder.Config(folder="news", tokenizer=tokenizer())
    assert text_folder.describe(folder).labels[:4] == ("1", "10", "11", "2")
    assert text_folder.notes(folder) == (
        "the labels are numbers in the order of their text, not of their values: 1, 10, 11, 2 and 7 more",
    )
    Path("news.csv").write_text("text,label\n" + "".join(f"text {i},{i % 11 + 1}\n" for i in range(44)))
    rows = csv.Config(file="news.csv", tokenizer="words")
    assert csv.describe(rows).labels[:4] == ("1", "2", "3", "4")
    assert csv.notes(rows) == (
        "the labels are numbers in the order of their values, not of their text: 1, 2, 3, 4 and 7 more",
    )


@pytest.mark.parametrize("named", [["0", "1", "2"], ["01", "02", "10"], ["1", "10", "2", "other"], []])
def test_of_numbers_in_one_order_nothing_is_told(named: list[str]) -> None:
    assert list(labels.doubts(named)) == []


def test_a_class_that_two_splits_write_otherwise_is_named() -> None:
    texts("news/train"), texts("news/test", 3)
    Path("news/test/sport").rename("news/test/Sport")
    with pytest.raises(RecipeError, match="the test split of news has the class 'sport' as 'Sport'"):
        text_folder.describe(text_folder.Config(folder="news", tokenizer=tokenizer()))
