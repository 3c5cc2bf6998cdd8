"""A tokenizer is fixed to one length, says what its special tokens are, and gives what transformers gives."""

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
from factories import tokenizer as words

from edgepack.core.errors import RecipeError
from edgepack.data import hub
from edgepack.data.texts import tokenizer
from edgepack.data.texts.tokenizer import encode, load, read

MINILM = "all-MiniLM-L6-v2"
TEXTS = [
    "The Bank of England has left interest rates unchanged.",
    "Ünïcode, £15.8m & 日本語 — emoji 🎉\n\nand\ttabs",
    "[SEP] [PAD] in the text itself",
    "word " * 500,
    "",
]


@pytest.mark.parametrize("length", [3, 16, 128, 512])
def test_a_file_that_ships_gives_what_transformers_gives(length: int) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(hub.folder(MINILM, hub.TOKENIZER)))
    expected = theirs(TEXTS, padding="max_length", truncation=True, max_length=length, return_tensors="np")
    inputs = encode(read(load(MINILM, length).json()), TEXTS).inputs()
    for name, array in inputs.items():
        assert (array.dtype, array.shape) == (numpy.int64, (len(TEXTS), length))
        assert (array == expected[name]).all()


def test_cut_and_padded_texts_are_counted_and_masked() -> None:
    fixed = load(words(), 6)
    encoded = encode(fixed.tokenizer, ["The bank", "the team won the match", "the the the the"])
    pad, unk, cls, sep = range(4)
    assert encoded.ids[0].tolist()[:1] == [cls] and encoded.ids[0].tolist()[3:] == [sep, pad, pad]
    assert encoded.mask.tolist() == [[1, 1, 1, 1, 0, 0], [1] * 6, [1] * 6]
    assert encoded.cut == 1
    assert unk in encode(fixed.tokenizer, ["zebra"]).ids[0]


def test_more_texts_than_one_batch_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = load(words(), 6)
    whole = encode(fixed.tokenizer, ["bank", "ball", "goal", "won", "fell"])
    monkeypatch.setattr("edgepack.data.texts.tokenizer._BATCH", 2)
    again = encode(fixed.tokenizer, ["bank", "ball", "goal", "won", "fell"])
    assert (whole.ids == again.ids).all() and len({*whole.ids[:, 1].tolist()}) == 5


def test_an_app_and_a_model_are_told_all_they_need() -> None:
    fixed = load(MINILM, 128)
    assert fixed.preprocessing() == {
        "words": tokenizer.words(fixed.tokenizer),
        "kind": "text",
        "tokenizer": "tokenizer.json",
        "vocabulary": 30522,
        "max_length": 128,
        "truncation": "right",
        "padding": "right",
        "special_tokens": {
            "pad": {"token": "[PAD]", "id": 0},
            "unk": {"token": "[UNK]", "id": 100},
            "cls": {"token": "[CLS]", "id": 101},
            "sep": {"token": "[SEP]", "id": 102},
            "mask": {"token": "[MASK]", "id": 103},
        },
    }


def test_special_tokens_are_those_that_its_settings_name() -> None:
    settings: dict[str, Any] = {
        "pad_token": {"content": "[SEP]", "special": True},
        "bos_token": "[CLS]",
        "eos_token": None,
        "unk_token": 5,
    }
    special = load(words(**settings), 8).special_tokens
    assert {role: special[role]["token"] for role in special} == {
        "pad": "[SEP]",
        "unk": "[UNK]",
        "cls": "[CLS]",
        "sep": "[SEP]",
        "bos": "[CLS]",
    }
    assert all(isinstance(each["id"], int) for each in special.values())


def test_the_vocabulary_reaches_to_the_highest_id() -> None:
    """Ids may have gaps: a table of as many rows as there are tokens would be too short."""
    folder = words()
    content = json.loads(Path(folder, "tokenizer.json").read_text())
    content["model"]["vocab"]["far"] = 99
    Path(folder, "tokenizer.json").write_text(json.dumps(content))
    assert load(folder, 8).vocabulary == 100


def test_cutting_and_padding_that_a_file_came_with_make_no_difference() -> None:
    folder = words()
    before = load(folder, 8).json()
    Path(folder, "tokenizer.json").write_bytes(load(folder, 12).json())
    assert load(folder, 8).json() == before


def test_without_a_padding_token_there_is_no_fixed_length() -> None:
    folder = words("plain", special=("[UNK]", "[CLS]", "[SEP]"))
    with pytest.raises(RecipeError, match="the tokenizer 'plain' has no padding token") as caught:
        load(folder, 8)
    assert "add_special_tokens" in caught.value.hint
    words("plain", special=("[UNK]", "[CLS]", "[SEP]"), pad_token="[NOT IN ITS VOCABULARY]")
    with pytest.raises(RecipeError, match="no padding token"):
        load(folder, 8)


@pytest.mark.parametrize(
    ("length", "why"),
    [(1, "adds 2 special tokens"), (2, "adds 2 special tokens"), (21, "allows at most 20 tokens")],
)
def test_lengths_that_cannot_be_are_refused(length: int, why: str) -> None:
    with pytest.raises(RecipeError, match=f"max_length is {length}, but the tokenizer {why}"):
        load(words(model_max_length=20), length)


@pytest.mark.parametrize("most", [20, 1e30, None, "many"])
def test_lengths_that_can_be_are_taken(most: Any) -> None:
    assert load(words(model_max_length=most), 20).max_length == 20


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"model": {"type": "WordPiece"}}', b"\xff\xfe", b"{" * 200])
def test_a_damaged_tokenizer_is_named(content: bytes) -> None:
    Path(words(), "tokenizer.json").write_bytes(content)
    with pytest.raises(RecipeError, match=r"words/tokenizer\.json is not a tokenizer: "):
        load("words", 8)


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 100_000])
def test_damaged_settings_are_named(content: bytes) -> None:
    Path(words(), "tokenizer_config.json").write_bytes(content)
    with pytest.raises(RecipeError, match=r"words/tokenizer_config\.json cannot be read as JSON"):
        load("words", 8)
