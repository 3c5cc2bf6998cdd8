"""Text to model: a folder of .txt files, a .txt, .csv or .jsonl file, or BBC News (2,225 articles, extra bbc-news).

Documents are divided among the splits first, so that no document is in two of them, and become windows of tokens
then: by the tokenizer of a model, or by one that is made of the training texts.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from edgepack.core.errors import RecipeError
from edgepack.core.files import digest, digests
from edgepack.core.frozen import Frozen
from edgepack.core.provenance import versions
from edgepack.core.signature import Signature, TensorSpec
from edgepack.core.units import Share
from edgepack.data.contract import Loading
from edgepack.data.datasets import _articles
from edgepack.data.folders import shown
from edgepack.data.partition import possible, unreadable
from edgepack.data.splits import EXAMPLES, PARTS, Data, Split
from edgepack.data.texts import kept_pieces, tables, tokenizer, tokens
from edgepack.data.texts.corpus import Encoding, decoded, undecodable

if TYPE_CHECKING:
    from edgepack.data.texts.tokens import Pieces

LICENCE = "that of the texts; of BBC News: copyright of the BBC, for research that is not commercial"
KEEPS = True
_VERSION = 2  # bump when the same files would give other windows
_BBC = "bbc-news"
_DOCUMENTS = {"text", "encoding", "validation", "test"}  # settings that say which documents are for training
_AT_ONCE = 32_000_000  # bytes of logits of the samples that are run at once


class Config(Frozen):
    texts: str = Field(
        description=f"a folder with .txt files, a .txt, .csv or .jsonl file, or {_BBC} (with the extra bbc-news)"
    )
    text: str = Field(default="text", description="column of a .csv file, or key of each line of a .jsonl file")
    tokenizer: str | None = Field(
        default=None,
        description="a folder with tokenizer.json, owner/name of the hub, or a .gguf file; default: one is trained",
    )
    vocabulary: int = Field(
        default=4096, ge=300, le=200_000, description="tokens of the tokenizer that is trained on the training texts"
    )
    pieces: Literal["all", "used"] = Field(
        default="all",
        description="used: leave out pieces of the tokenizer that no training text needs, and their rows in the model; "
        "rare words have more pieces then",
    )
    window: int = Field(default=128, ge=2, le=32_768, description="tokens that the model reads at once")
    encoding: Encoding = Field(default="utf-8", description="encoding of files without a byte order mark")
    validation: Share = Field(default=0.1, description="fraction of the documents for this split")
    test: Share = Field(default=0.1, description="fraction of the documents for this split")

    @model_validator(mode="after")
    def _possible(self) -> "Config":
        possible(self.validation, self.test, "documents")
        if self.tokenizer is not None and "vocabulary" in self.model_fields_set:
            raise ValueError("vocabulary is for a tokenizer that is trained here: remove it, or the tokenizer")
        if self.tokenizer is None and self.pieces == "used":
            raise ValueError("a tokenizer that is trained here has no other pieces: remove `pieces`")
        return self


def describe(config: Config) -> Signature:
    """Raises RecipeError if the texts are not there, or the tokenizer cannot be used."""
    _files(config)
    pieces = _named(config)
    steps = {
        "kind": "tokens",
        "tokenizer": tokenizer.FILE,
        "vocabulary": pieces.vocabulary if pieces else config.vocabulary,
        "window": config.window,
        "end": pieces.tokenizer.id_to_token(pieces.end) if pieces else tokens.END,
        **({"end_id": pieces.end, "words": pieces.words} if pieces else {}),
        **({"kept": kept_pieces.packed(pieces.kept)} if pieces and pieces.kept else {}),
    }
    return Signature(inputs=(TensorSpec(name="input_ids", shape=(config.window,), dtype="int64"),), preprocessing=steps)


def fingerprint(config: Config) -> str:
    found = _digests(config)
    pieces = _named(config)
    settings = config.model_dump(mode="json", exclude={"texts", "tokenizer"})
    made_by = digest(pieces.json().decode()) if pieces else ""
    facts = {"files": found, "tokenizer": made_by, "config": settings, "versions": versions("tokenizers")}
    return digest({**facts, "version": _VERSION})


def _digests(config: Config) -> dict[str, str]:
    return digests({_place(config, file): file for file in _files(config)}, of=config.texts)


def attachments(config: Config) -> dict[str, bytes]:
    """Return the tokenizer, for the app. One that is trained here is trained again: the texts are the same."""
    return {tokenizer.FILE: (_named(config) or _trained(config, _parts(config)["train"])).json()}


def load(config: Config, loading: Loading | None = None) -> Data:
    """Return windows that are read from files on disk. Raises RecipeError naming texts that cannot be read, and a split
    that has too little text.
    """
    loading = loading or Loading()
    parts = _parts(config)

    def fill(folder: Path) -> None:
        pieces = _named(config) or _trained(config, parts["train"])
        for done, part in enumerate(PARTS):
            loading.progress("tokenizing", done, len(PARTS))
            with (folder / f"{part}.bin").open("wb") as file:
                tokens.write(file, pieces, parts[part])

    kept = loading.kept("tokens", {"made_of": fingerprint(config)}, fill)
    large = config.window * int(describe(config).preprocessing["vocabulary"]) * 4
    splits = {part: _split(kept / f"{part}.bin", config, part, max(1, _AT_ONCE // large)) for part in PARTS}
    train, validation, test = (splits[part] for part in PARTS)
    return Data(train=train, validation=validation, test=test, notes=tuple(_notes(config, kept, parts)))


def _split(file: Path, config: Config, part: str, most: int) -> Split:
    import torch

    windows = tokens.Windows(file, config.window)
    if len(windows) < (2 if part == "train" else EXAMPLES):
        message = f"the {part} split has {len(windows)} windows of {config.window} tokens, too few"
        raise RecipeError(message, "use more text, or a shorter window")
    none = torch.zeros(len(windows), dtype=torch.int64)  # targets are read with the windows
    return Split(targets=none, samples=windows, labelled=True, most=most)


def _notes(config: Config, kept: Path, parts: dict[str, list[str]]) -> Iterator[str]:
    counts = {part: (kept / f"{part}.bin").stat().st_size // 8 for part in PARTS}
    whole = " and ".join(
        f"{len(parts[part]):,} documents of {counts[part]:,} tokens for {part}" for part in ("train", "test")
    )
    yield f"{whole}, in windows of {config.window} tokens"
    if (pieces := _named(config)) and pieces.whole:
        left = f"{pieces.vocabulary:,} of {pieces.whole.vocabulary:,} pieces of the tokenizer are kept"
        yield f"{left}: compare bits_per_byte, not perplexity, with a model that has them all"


def _named(config: Config) -> "Pieces | None":
    if config.tokenizer is None:
        return None
    whole = tokens.of_model(config.tokenizer)
    if config.pieces == "all":
        return whole
    texts = {"files": _digests(config), "config": config.model_dump(mode="json", include=_DOCUMENTS)}
    return tokens.used(whole, texts, lambda: _parts(config)["train"])


def _trained(config: Config, documents: Sequence[str]) -> "Pieces":
    return tokens.trained(config.vocabulary, documents)


def _parts(config: Config) -> dict[str, list[str]]:
    """Return the documents of each split, in an order that depends on nothing but the texts."""
    different = {" ".join(text.split()): text for text in _documents(config)}  # copies may differ in spaces
    found = sorted((text for words, text in different.items() if words), key=digest)
    validation, test = (max(1, round(len(found) * share)) for share in (config.validation, config.test))
    if len(found) < validation + test + 1:
        message = f"{config.texts} has {len(found)} different documents, too few for three splits"
        raise RecipeError(message, "no document is in two splits: divide the text into more files or rows")
    ends = validation, validation + test
    return {"validation": found[: ends[0]], "test": found[ends[0] : ends[1]], "train": found[ends[1] :]}


def _documents(config: Config) -> Iterator[str]:
    files = _files(config)
    if config.texts == _BBC:
        yield from map(_articles.read, files)
    elif files[0].suffix == ".csv":
        yield from (text for _, (text,) in tables.rows(files[0], (config.text,), config.encoding, _COLUMN))
    elif files[0].suffix == ".jsonl":
        yield from _lines(files[0], config)
    else:
        yield from _whole(files, config)


_COLUMN = "name the column: data: {corpus: {texts: ..., text: COLUMN}}"


def _whole(files: Sequence[Path], config: Config) -> Iterator[str]:
    """Yield the text of each file; a single one has a document a paragraph, between blank lines."""
    odd, found = [], []
    for file in files:
        try:
            found.append(decoded(file, config.encoding))
        except UnicodeError as error:
            odd.append(f"{shown(file)}: {undecodable(error, config.encoding)}")
    if odd:
        raise unreadable(odd, "text", "cannot be read", "convert them, or set their encoding, such as latin-1")
    yield from found if len(files) > 1 else re.split(r"\n\s*\n", found[0])


def _lines(file: Path, config: Config) -> Iterator[str]:
    try:
        lines = decoded(file, config.encoding).splitlines()
    except UnicodeError as error:
        raise RecipeError(f"{file}: {undecodable(error, config.encoding)}", "set its encoding") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _text(line, f"{file}:{number}", config.text)


def _text(line: str, place: str, key: str) -> str:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{place} is not JSON: {error}", "each line is an object of its own") from error
    text = row.get(key) if isinstance(row, dict) else None
    if not isinstance(text, str):
        has = ", ".join(map(repr, row)) if isinstance(row, dict) else type(row).__name__
        raise RecipeError(f"{place} has no text {key!r}, it has {has or 'nothing'}", "name the key: text: KEY")
    return text


def _place(config: Config, file: Path) -> str:
    root = Path(config.texts)
    return file.relative_to(root).as_posix() if root.is_dir() else "/".join(file.parts[-2:])


def _files(config: Config) -> list[Path]:
    if config.texts == _BBC:
        return [file for files in _articles.articles().values() for file in files]
    path = Path(config.texts)
    if path.is_dir():
        found = sorted(file for file in path.rglob("*.txt") if file.is_file())
        if not found:
            raise RecipeError(f"there is no .txt file in {path}", "a folder has one document a file")
        return found
    tables.check_there(path)
    if path.suffix not in (".txt", ".csv", ".jsonl"):
        raise RecipeError(f"{path} is no .txt, .csv or .jsonl file", "convert it to one of these")
    return [path]
