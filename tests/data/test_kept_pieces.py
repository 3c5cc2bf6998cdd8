"""Pieces of a tokenizer that no text uses: which go, and what the rest of them and the model give then."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_factories import END, gguf_file, pieces, windows

from edgepack.config import plugins
from edgepack.core.errors import RecipeError
from edgepack.data.datasets import corpus
from edgepack.data.texts import kept_pieces, tokenizer, tokens
from edgepack.models.candidate import Candidate

COMMON, RARE = "the cat sat on the mat. " * 20, "thermodynamics of concatenation " * 20


def bpe() -> str:
    return tokens.trained(290, [COMMON, RARE]).json().decode()


def ids(content: str, text: str) -> list[int]:
    found: list[int] = tokenizer.read(content.encode()).encode(text, add_special_tokens=False).ids
    return found


def test_texts_keep_their_pieces_and_other_texts_can_still_be_written() -> None:
    whole = bpe()
    cut = kept_pieces.used(whole, [COMMON])
    assert len(cut.kept) < 290
    assert [cut.kept[id] for id in ids(cut.tokenizer, COMMON)] == ids(whole, COMMON)
    fewer = tokenizer.read(cut.tokenizer.encode())
    assert len(ids(cut.tokenizer, RARE)) > len(ids(whole, RARE))
    assert fewer.decode(ids(cut.tokenizer, f"{RARE}\N{SNOWMAN}")) == f"{RARE}\N{SNOWMAN}"
    assert fewer.token_to_id(tokens.END) == 0


def test_special_tokens_around_a_text_are_renumbered() -> None:
    made: dict[str, Any] = json.loads(bpe())
    last = max(made["model"]["vocab"].values()) + 1
    made["model"]["vocab"]["<s>"] = last
    made["added_tokens"].append({**made["added_tokens"][0], "id": last, "content": "<s>"})
    special = {"<s>": {"id": "<s>", "ids": [last], "tokens": ["<s>"]}}
    parts = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    template = {"type": "TemplateProcessing", "single": parts, "pair": [], "special_tokens": special}
    made["post_processor"] = {**template, "pair": [*parts, {"Sequence": {"id": "B", "type_id": 1}}]}
    cut = kept_pieces.used(json.dumps(made), [COMMON])
    found = tokenizer.read(cut.tokenizer.encode()).encode("the").ids
    assert found[0] == cut.kept.index(last) == len(cut.kept) - 1


def test_a_tokenizer_of_another_kind_is_refused() -> None:
    content = json.dumps({"model": {"type": "WordPiece", "vocab": {}}})
    with pytest.raises(RecipeError, match="BPE tokenizers only, not of WordPiece"):
        kept_pieces.used(content, [])


def test_a_model_loses_the_rows_and_gives_the_same_logits_for_what_is_left() -> None:
    Path("texts").mkdir()
    for i in range(40):
        Path("texts", f"{i}.txt").write_text(f"in {i} inns, bin in tin " * 3)
    file = gguf_file()
    signature = corpus.describe(corpus.Config(texts="texts", tokenizer=file, window=16, pieces="used"))
    about = signature.preprocessing
    assert (about["vocabulary"], about["end"], about["end_id"]) == (len(pieces()) - 2, END, 0)
    kept = torch.tensor(kept_pieces.unpacked(about["kept"]))
    assert {*pieces()} - {pieces()[i] for i in kept} == {"th", "the"}
    content = corpus.attachments(corpus.Config(texts="texts", tokenizer=file, pieces="used"))["tokenizer.json"]
    assert tokenizer.read(content).get_vocab_size() == about["vocabulary"]

    choice = plugins.choose("models", {"huggingface": file})
    shorter = windows(**about)
    assert choice.module.incompatibility(choice.config, shorter) == ""
    whole, cut = Candidate.start(choice, windows()).module, Candidate.start(choice, shorter).module
    given = torch.randint(0, len(kept), (2, 16), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(cut(given), whole(kept[given])[..., kept])


def test_pieces_of_a_tokenizer_that_is_trained_here_cannot_be_left_out() -> None:
    with pytest.raises(ValueError, match="has no other pieces: remove `pieces`"):
        corpus.Config(texts="texts", pieces="used")
