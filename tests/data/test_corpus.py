"""Text as windows of tokens: no document in two splits, every byte accounted for, and a clear word for bad input."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tokenizers import Tokenizer

from edgepack.core.errors import RecipeError
from edgepack.data.datasets import corpus
from edgepack.data.datasets.corpus import Config
from edgepack.data.texts import tokens

WORDS = ["the", "a", "boat", "river", "sails", "over", "under", "slowly", "quickly", "\N{EURO SIGN}5", "d\u00e9j\u00e0"]


def document(number: int) -> str:
    return " ".join(WORDS[(number * 7 + place * (number % 5 + 1)) % len(WORDS)] for place in range(60)) + f" {number}."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(60):
        (texts / f"{number}.txt").write_text(document(number), encoding="utf-8")
    return texts


def config(texts: Path, **settings: Any) -> Config:
    return Config(**{"texts": str(texts), "vocabulary": 300, "window": 16, **settings})


def texts_of(data: Any, part: str, reader: Tokenizer) -> set[str]:
    split = getattr(data, part)
    ids = torch.cat([batch.inputs[0].flatten() for batch in split.batches(64)])
    return set(reader.decode(ids.tolist(), skip_special_tokens=False).split(tokens.END))


def test_no_document_is_in_two_splits(folder: Path) -> None:
    made = config(folder)
    data = corpus.load(made)
    reader = Tokenizer.from_str(corpus.attachments(made)["tokenizer.json"].decode())
    found = {part: {text for text in texts_of(data, part, reader) if text.endswith(".")} for part in ("train", "test")}
    assert len(found["train"]) > 40 and not found["train"] & found["test"]
    assert found["train"] <= {document(number) for number in range(60)}


def test_targets_are_the_tokens_and_their_bytes(folder: Path) -> None:
    batch = next(corpus.load(config(folder)).train.batches(8, seed=0))
    assert batch.inputs[0].shape == (8, 16) and batch.targets.shape == (8, 16, 2)
    assert torch.equal(batch.inputs[0], batch.targets[..., 0])
    assert 1 < batch.targets[..., 1].float().mean() < 20


def test_the_bytes_of_all_tokens_add_up_to_the_text(tmp_path: Path, folder: Path) -> None:
    documents = [document(number) for number in range(60)]
    pieces = tokens.trained(300, documents)
    with (tmp_path / "tokens.bin").open("wb") as file:
        count = tokens.write(file, pieces, documents)
    rows = tokens.Windows(tmp_path / "tokens.bin", count).read(torch.tensor([0]), None)[1][0]
    assert int(rows[:, 1].sum()) == sum(len(text.encode()) for text in documents)
    assert int((rows[:, 0] == pieces.end).sum()) == len(documents)


def test_the_same_texts_give_the_same_windows_in_any_folder(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "moved"
    folder.rename(other)
    first = corpus.load(config(other)).train
    rows = [json.dumps({"body": document(number)}) for number in reversed(range(60))]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    second = corpus.load(config(tmp_path / "rows.jsonl", text="body")).train
    assert torch.equal(*(next(split.batches(4)).inputs[0] for split in (first, second)))


def test_a_table_and_a_single_text_are_read(tmp_path: Path) -> None:
    rows = "".join(f'{number},"{document(number)}"\n' for number in range(60))
    (tmp_path / "rows.csv").write_text(f"number,text\n{rows}", encoding="utf-8")
    (tmp_path / "whole.txt").write_text("\n\n".join(map(document, range(60))), encoding="utf-8")
    csv, txt = (corpus.load(config(tmp_path / name)).test for name in ("rows.csv", "whole.txt"))
    assert torch.equal(csv.head(2)[0], txt.head(2)[0])


def test_copies_that_differ_in_spaces_are_one_document(tmp_path: Path) -> None:
    texts = [document(number) for number in range(60)]
    (tmp_path / "whole.txt").write_text("\n\n".join([*texts, texts[3].replace(" ", "  ")]), encoding="utf-8")
    (tmp_path / "lines.txt").write_bytes("\r\n\r\n".join(texts).encode())
    found = [[each.split() for each in parts] for name in ("whole", "lines") for parts in _parts(tmp_path, name)]
    assert [len(each) for each in found] == [6, 6, 48] * 2


def _parts(folder: Path, name: str) -> list[list[str]]:
    return [*corpus._parts(config(folder / f"{name}.txt")).values()]


def test_samples_are_run_together_as_far_as_their_logits_fit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert corpus.load(config(folder)).train.at_once == 256
    monkeypatch.setattr(corpus, "_AT_ONCE", 5 * 16 * 300 * 4)
    assert corpus.load(config(folder)).train.at_once == 5


def test_problems_are_told(folder: Path, tmp_path: Path) -> None:
    def told(problem: str, texts: Path | str, **settings: Any) -> None:
        with pytest.raises(RecipeError, match=problem):
            corpus.load(config(Path(texts), **settings))

    told("no file 'nowhere'", "nowhere")
    (tmp_path / "empty").mkdir()
    told("no .txt file in", tmp_path / "empty")
    (tmp_path / "x.pdf").write_text("text")
    told("no .txt, .csv or .jsonl file", tmp_path / "x.pdf")
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n{"txet": "b"}')
    told("x.jsonl:2 has no text 'text', it has 'txet'", tmp_path / "x.jsonl")
    (tmp_path / "y.jsonl").write_text("{")
    told("y.jsonl:1 is not JSON", tmp_path / "y.jsonl")
    (tmp_path / "few.txt").write_text("one\n\ntwo")
    told("2 different documents, too few", tmp_path / "few.txt")
    told("give [0-9,]+ different pieces, not 9,000", folder, vocabulary=9000)
    told("the train split has 0 windows of 9000 tokens", folder, window=9000)
    (folder / "0.txt").write_bytes(b"caf\xe9")
    told("1.*text.*cannot be read|one text cannot be read", folder)


def test_settings_that_exclude_each_other_are_refused(folder: Path) -> None:
    with pytest.raises(ValidationError, match="vocabulary is for a tokenizer that is trained here"):
        Config(texts=str(folder), tokenizer="models/gpt2", vocabulary=500)
    with pytest.raises(ValidationError, match="above 0 %"):
        config(folder, test="0 %")


def test_a_tokenizer_of_a_model_is_used_and_told(folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "tokenizer.json").write_bytes(tokens.trained(320, map(document, range(60))).json())
    (own / "tokenizer_config.json").write_text(json.dumps({"eos_token": tokens.END}))
    made = Config(texts=str(folder), tokenizer=str(own), window=16)
    signature = corpus.describe(made)
    assert signature.preprocessing["vocabulary"] == 320 and signature.preprocessing["end"] == tokens.END
    assert corpus.fingerprint(made) != corpus.fingerprint(config(folder))
    (own / "tokenizer_config.json").write_text("{}")
    text = (own / "tokenizer.json").read_text().replace(tokens.END, "<|odd|>")
    (own / "tokenizer.json").write_text(text)
    with pytest.raises(RecipeError, match="no token that ends a text"):
        corpus.describe(made)
