"""A folder of texts becomes a data set, and what is wrong with it is said before training."""

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import python, texts, tokenizer
from pydantic import ValidationError
from text_factories import rows_of, splits_of

from edgepack.core.errors import RecipeError
from edgepack.data.datasets import text_folder
from edgepack.data.splits import Data
from edgepack.data.texts import corpus
from edgepack.data.texts.tokenizer import encode, read


def _folder(folder: str = "news", **settings: Any) -> text_folder.Config:
    return text_folder.Config(folder=folder, **{"tokenizer": tokenizer(), "max_length": 12, **settings})


def test_a_folder_of_texts_is_described_for_models_and_apps() -> None:
    signature = text_folder.describe(_folder(texts()))
    assert [(spec.name, spec.shape, spec.dtype) for spec in signature.inputs] == [
        ("input_ids", (12,), "int64"),
        ("attention_mask", (12,), "int64"),
    ]
    assert signature.labels == ("money", "sport")
    assert (signature.preprocessing["kind"], signature.preprocessing["vocabulary"]) == ("text", 26)


def test_every_class_has_its_share_of_every_split_and_its_label() -> None:
    config = _folder(texts(count=20))
    data = text_folder.load(config)
    counts = {part: split.targets.bincount().tolist() for part, split in splits_of(data).items()}
    assert counts == {"train": [14, 14], "validation": [3, 3], "test": [3, 3]}
    bank = read(text_folder.attachments(config)["tokenizer.json"]).token_to_id("bank")
    for split in splits_of(data).values():
        ids, mask = split.head(len(split))
        assert ((ids == bank).any(1).long() == 1 - split.targets).all()
        assert (ids.dtype, mask.dtype, ids.shape) == (torch.int64, torch.int64, (len(split), 12))
        assert torch.equal(mask == 0, ids == 0)
    assert len({*data.train.targets[:8].tolist()}) > 1  # shuffled: calibration takes the first ones
    assert rows_of(data) == rows_of(text_folder.load(config))


def test_the_first_test_samples_come_with_their_texts() -> None:
    config = _folder(texts())
    data = text_folder.load(config)
    shipped = read(text_folder.attachments(config)["tokenizer.json"])
    assert len(data.examples) == 3
    again = encode(shipped, data.examples).inputs()
    for tensor, array in zip(data.test.head(3), again.values(), strict=True):
        assert (tensor.numpy() == array).all()


def test_splits_that_are_made_already_are_kept() -> None:
    for part, count, word in (("train", 6, "goal"), ("val", 3, "ball"), ("test", 2, "stock")):
        texts(f"news/{part}", count)
        for file in Path("news", part).rglob("*.txt"):
            file.write_text(f"{word} {file.read_text()}")
    data = text_folder.load(_folder(max_length=64))
    assert [len(split) for split in splits_of(data).values()] == [12, 6, 4]
    assert all(text.startswith("stock ") for text in data.examples)
    assert data.notes == ()


def test_files_without_an_ending_are_documents_and_others_are_left_alone() -> None:
    config = _folder(texts())
    before = text_folder.fingerprint(config)
    Path("news/sport/picture.png").write_bytes(b"\xff")
    Path("news/sport/.hidden").write_bytes(b"\xff")
    assert text_folder.fingerprint(config) == before
    Path("news/sport/one").write_text("another goal")
    assert sum(len(split) for split in splits_of(text_folder.load(config)).values()) == 21


def _distinct(data: Data) -> None:
    rows = [row for part in rows_of(data).values() for row in part]
    assert len({*rows}) == len(rows)


def test_a_text_that_stands_twice_is_kept_once() -> None:
    config = _folder(texts(count=20), max_length=24)
    for i in range(15):
        text = Path(f"news/sport/{i}.txt").read_text()
        Path(f"news/sport/again-{i}.txt").write_text(text.replace(" ", "\n ") if i % 2 else text)
    data = text_folder.load(config)
    _distinct(data)
    assert sum(len(split) for split in splits_of(data).values()) == 40
    assert data.notes == ("15 of 55 documents are copies of others: one of each is kept",)


def test_a_text_of_the_test_split_is_not_trained_on() -> None:
    """Which split a document counts for is not the order of the folders' names: the test split stays whole."""
    for part, count in (("train", 8), ("test", 2)):
        texts(f"news/{part}", count)
    data = text_folder.load(_folder(max_length=24))
    _distinct(data)
    assert (len(data.train) + len(data.validation), len(data.test)) == (12, 4)


def test_a_split_that_only_repeats_another_is_refused() -> None:
    for part in ("train", "test"):
        texts(f"news/{part}", 4)
    with pytest.raises(RecipeError, match="'money' has 0 different documents, too few to be split") as caught:
        text_folder.load(_folder())
    assert caught.value.message.endswith("into train and validation: all 4 documents are in the test split too")
    texts("news/train", 8), texts("news/val", 2)
    with pytest.raises(RecipeError, match="the validation split has no document that other splits lack"):
        text_folder.load(_folder())


def test_a_text_under_two_labels_is_named() -> None:
    config = _folder(texts())
    Path("news/money/odd.txt").write_text(Path("news/sport/3.txt").read_text())
    with pytest.raises(RecipeError, match="one document has a copy with another label") as caught:
        text_folder.load(config)
    assert "news/sport/3.txt: 'sport', but the same text in news/money/odd.txt 'money'" in caught.value.message
    Path("news/money/odd-2.txt").write_text(Path("news/sport/4.txt").read_text())
    with pytest.raises(RecipeError, match="2 documents have copies with another label"):
        text_folder.load(config)


def test_copies_leave_enough_of_every_class_or_are_refused() -> None:
    config = _folder(texts())
    for i in range(10):
        Path(f"news/sport/{i}.txt").write_text("the same")
    with pytest.raises(RecipeError, match="'sport' has 1 different document, too few to be split into train"):
        text_folder.load(config)


def test_how_many_texts_are_cut_is_told() -> None:
    config = _folder(texts(), max_length=6)
    Path("news/sport/short.txt").write_text("won")
    assert text_folder.load(config).notes == ("20 of 21 documents have more than 6 tokens",)


def test_a_long_text_is_trained_on_in_several_windows_and_judged_by_its_first() -> None:
    folder = texts(count=10)
    for label, i in itertools.product(("sport", "money"), range(10)):
        Path(f"news/{label}/long-{i}.txt").write_text(" ".join(f"{i} {label} won {place}" for place in range(9)))
    one, three = (text_folder.load(_folder(folder, max_length=8, windows=windows)) for windows in (1, 3))
    assert (len(one.validation), len(one.test)) == (len(three.validation), len(three.test))
    known, further = ({tuple(row) for row in data.train.inputs[0].tolist()} for data in (one, three))
    assert known < further
    masks = three.train.inputs[1]
    assert int(masks.sum(1).min()) >= 4  # what would be mostly padding is no window
    assert text_folder.fingerprint(_folder(folder)) != text_folder.fingerprint(_folder(folder, windows=3))


def test_texts_that_are_the_same_once_they_are_cut_do_not_help_the_test_split() -> None:
    config = _folder(texts(), max_length=6)
    for i in range(10, 60):
        Path(f"news/sport/{i}.txt").write_text(f"goal won {i % 9} ball, and after that {i}")
    data = text_folder.load(config)
    rows = {part: {*rows} for part, rows in rows_of(data).items()}
    assert not rows["test"] & (rows["train"] | rows["validation"]) and not rows["validation"] & rows["train"]
    assert len(data.test) == 2 + 9
    assert "inputs are left out: after tokenizing" in data.notes[-1]


def test_texts_that_are_all_the_same_once_they_are_cut_are_refused() -> None:
    config = _folder(texts(), max_length=3)
    for i in range(10):
        Path(f"news/sport/{i}.txt").write_text(f"goal number {i}")
    with pytest.raises(RecipeError, match="nothing is left for the class 'sport' in training"):
        text_folder.load(config)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "news/sport/new.txt: it is empty"),
        (b"x" * 1_000_001, "news/sport/new.txt: it has 1000001 bytes, more than 1000000"),
    ],
)
def test_files_that_will_not_do_are_refused_unread(content: bytes, why: str) -> None:
    config = _folder(texts())
    Path("news/sport/new.txt").write_bytes(content)
    with pytest.raises(RecipeError, match=f"one document cannot be used:\n  {why}"):
        text_folder.describe(config)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b" \n\t", "cannot be used:\n  news/sport/new.txt: it is empty"),
        (b"caf\xe9 ", r"cannot be read:\n  news/sport/new.txt: it is not utf-8 \(byte 0xe9 at position 3\)"),
    ],
)
def test_texts_that_will_not_do_are_named(content: bytes, why: str) -> None:
    config = _folder(texts())
    Path("news/sport/new.txt").write_bytes(content)
    with pytest.raises(RecipeError, match=f"one document {why}"):
        text_folder.load(config)


def test_of_many_bad_texts_the_first_are_named() -> None:
    config = _folder(texts())
    for i in range(7):
        Path(f"news/sport/{i}.txt").write_bytes(b"\xff")
    with pytest.raises(RecipeError, match="7 documents cannot be read") as caught:
        text_folder.load(config)
    assert caught.value.message.endswith("and 2 more")
    assert "encoding: latin-1" in caught.value.hint


def _two_left() -> None:
    for i in range(8):
        Path(f"news/sport/{i}.txt").unlink()


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda: Path("news/empty").mkdir(), "there is no document in news/empty"),
        (lambda: Path("news").rename("old"), "there is no folder 'news'"),
        (lambda: Path("news/sport").rename("sport"), "news holds one class only, 'money'"),
        (
            _two_left,
            "the class 'sport' has 2 documents, too few",
        ),
    ],
)
def test_folders_that_will_not_do_are_refused(spoil: Callable[[], Any], why: str) -> None:
    config = _folder(texts())
    spoil()
    with pytest.raises(RecipeError, match=why):
        text_folder.describe(config)


def test_another_encoding_can_be_named_and_a_byte_order_mark_is_no_text() -> None:
    config = _folder(texts(), encoding="latin-1")
    Path("news/sport/new.txt").write_bytes(b"caf\xe9 ")
    text_folder.load(config)
    assert text_folder.fingerprint(config) != text_folder.fingerprint(_folder())
    Path("mark.txt").write_bytes("the bank".encode("utf-8-sig"))
    assert corpus.decoded(Path("mark.txt"), "utf-8") == "the bank"


def test_mixed_encodings_are_refused_or_replaced_and_counted() -> None:
    folder = texts()
    Path("news/sport/new.txt").write_bytes(b"the caf\xe9 won")
    Path("news/sport/other.txt").write_bytes(b"the team\x92s goal")
    with pytest.raises(
        RecipeError, match=r"2 documents cannot be read:\n  news/sport/new\.txt: it is not utf-8"
    ) as caught:
        text_folder.load(_folder(folder))
    assert "encoding_errors: replace" in caught.value.hint
    config = _folder(folder, encoding_errors="replace", test="70 %")
    data = text_folder.load(config)
    assert sum(len(split) for split in splits_of(data).values()) == 22
    note = "2 documents are not utf-8, such as news/sport/new.txt: unreadable bytes are replaced by U+FFFD"
    assert data.notes == (note,)
    assert text_folder.fingerprint(config) != text_folder.fingerprint(_folder(folder, test="70 %"))
    assert text_folder.load(_folder(texts("clean"), encoding_errors="replace")).notes == ()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_says_the_encoding(encoding: str) -> None:
    Path("mark.txt").write_bytes("the café won".encode(encoding))
    for named in ("utf-8", "cp1252", "utf-16"):
        assert corpus.decoded(Path("mark.txt"), named) == "the café won"
    with pytest.raises(UnicodeError):
        Path("mark.txt").write_bytes("x".encode(encoding) + b"\xff")
        corpus.decoded(Path("mark.txt"), "utf-8")


def test_litter_is_no_text_links_are_followed_and_what_is_left_out_is_counted() -> None:
    texts("news/Train"), texts("news/TEST", 3), texts("more", 1)
    for part, word in (("Train", "goal"), ("TEST", "ball")):
        for file in Path("news", part).rglob("*.txt"):
            file.write_text(f"{word} {file.read_text()}")
    for name in ("sport/.ipynb_checkpoints/1.txt", "__MACOSX/sport/._1.txt", "sport/@eaDir/1.txt"):
        Path("news/Train", name).parent.mkdir(parents=True)
        Path("news/Train", name).write_text("left behind")
    Path("more/sport/0.txt").rename("more/sport/ZERO.TXT").write_text("another goal")
    Path("news/Train/sport/linked").symlink_to("../../../more/sport")
    Path("news/Train/sport/loop").symlink_to("..")
    for name in ("news.csv", "notes.md", "sport.MD"):
        Path("news/Train/sport", name).write_text("no document")
    config = _folder(max_length=64)
    data = text_folder.load(config)
    assert [len(split) for split in splits_of(data).values()] == [17, 4, 6]
    notes = (
        "3 files are left out by ending: .md 2, .csv 1",
        "1 link is not followed: the target is already read",
    )
    assert data.notes == text_folder.notes(config) == notes


@pytest.mark.parametrize(
    "begin", ["version https://git-lfs.github.com/spec/v1\noid sha256:0", "/annex/objects/SHA256-s1"]
)
def test_what_stands_for_a_text_that_was_not_fetched_is_no_text(begin: str) -> None:
    config = _folder(texts())
    Path("news/sport/1.txt").write_text(begin)
    with pytest.raises(RecipeError, match=r"news/sport/1\.txt: it is a pointer to a file that is not here: fetch it"):
        text_folder.load(config)
    Path("news/sport/1.txt").unlink()
    Path("news/sport/1.txt").symlink_to("/annex/objects/1")
    with pytest.raises(RecipeError, match=r"one link is broken:\n  news/sport/1\.txt -> /annex"):
        text_folder.describe(config)


@pytest.mark.parametrize(
    "settings",
    [
        {"encoding_errors": "ignore"},
        {"encoding": "utf-99"},
        {"encoding": "undefined"},
        {"encoding": "base64"},
        {"max_length": 0},
        {"validation": "0 %"},
        {"validation": "60 %", "test": "40 %"},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        _folder(**settings)


def test_the_fingerprint_is_that_of_texts_and_tokenizer() -> None:
    config = _folder(texts())
    before = text_folder.fingerprint(config)
    Path("news").rename("elsewhere"), Path("words").rename("pieces")
    os.utime("elsewhere/sport/1.txt", (1, 1))
    moved = text_folder.Config(folder="elsewhere", tokenizer="pieces", max_length=12)
    assert text_folder.fingerprint(moved) == before
    changes: list[dict[str, Any]] = [{"max_length": 13}, {"test": 0.3}]
    found = {text_folder.fingerprint(moved.model_copy(update=change)) for change in changes}
    content = Path("pieces/tokenizer.json").read_text()
    Path("pieces/tokenizer.json").write_text(content.replace('"goal"', '"toal"'))
    found.add(text_folder.fingerprint(moved))
    Path("pieces/tokenizer.json").write_text(content)
    Path("elsewhere/sport/1.txt").write_text("another")
    found.add(text_folder.fingerprint(moved))
    assert len({before, *found}) == 5


def test_nothing_heavy_is_needed_to_describe_texts() -> None:
    texts(), tokenizer()
    code = """
import sys
from edgepack.data.datasets import text_folder as data
config = data.Config(folder="news", tokenizer="words", max_length=8)
data.describe(config), data.fingerprint(config), data.attachments(config)
print(*{"torch", "numpy", "transformers", "huggingface_hub"} & {*sys.modules})
"""
    assert python(code).out.strip() == ""
