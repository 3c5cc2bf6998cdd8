"""Your own texts in CSV files: one row per document, with a text column and a label column.

news.csv, from which the splits are drawn, or a file for each split; the first row names the columns.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pydantic import Field

from edgepack.core.errors import RecipeError
from edgepack.core.files import digests
from edgepack.core.signature import Signature
from edgepack.core.signature.labels import doubts, flaw
from edgepack.data.partition import enough, missing, same_classes
from edgepack.data.splits import Data
from edgepack.data.texts import corpus
from edgepack.data.texts.corpus import LONGEST, Document, Encoding, Settings, attachments, decoded, undecodable

__all__ = ["Config", "attachments", "describe", "fingerprint", "load", "notes"]

_VERSION = 2  # bump when the same files would give other documents

Rows = dict[str, list[Document]]  # by part that has a file


class Config(Settings):
    file: str = Field(
        description="file with the training rows, and with those of each split that has no file of its own"
    )
    validation_file: str | None = Field(default=None, description="file with the rows of this split")
    test_file: str | None = Field(default=None, description="file with the rows of this split")
    text: str = Field(default="text", description="column with the text")
    label: str = Field(default="label", description="column with the class")
    encoding: Encoding = Field(default="utf-8", description="encoding of the files")

    @property
    def files(self) -> dict[str, Path]:
        named = {"train": self.file, "validation": self.validation_file, "test": self.test_file}
        return {part: Path(name) for part, name in named.items() if name is not None}


def describe(config: Config) -> Signature:
    """Read every row, since the labels are there. Raises RecipeError for all problems of rows and tokenizer."""
    rows = _rows(config)
    corpus.refuse(rows)
    return corpus.describe(config, _labels(rows))


def notes(config: Config) -> tuple[str, ...]:
    """Return warnings about the labels. Reads every row."""
    return tuple(doubts(_labels(_rows(config))))


def fingerprint(config: Config) -> str:
    """Return a digest of the files' contents and how they are read; their paths do not matter."""
    files = config.files
    for file in files.values():
        _there(file)
    columns = {"text": config.text, "label": config.label, "encoding": config.encoding, "version": _VERSION}
    return corpus.fingerprint(config, digests(files, of=" ".join(map(str, files.values()))), **columns)


def load(config: Config) -> Data:
    rows = _rows(config)
    data = corpus.load(config, rows, _labels(rows))
    return replace(data, notes=(*doubts(_labels(rows)), *data.notes))


def _labels(rows: Rows) -> list[str]:
    """Return the labels sorted; if all are numbers, by value, the usual order in trained models."""
    found = {each.label for each in rows["train"]}
    return sorted(found, key=int) if all(label.isdecimal() for label in found) else sorted(found)


def _rows(config: Config) -> Rows:
    rows = {part: list(_documents(file, config)) for part, file in config.files.items()}
    labels = _labels(rows)
    if len(labels) < 2:
        found = f"one label only, {labels[0]!r}" if labels else "no rows"
        raise RecipeError(f"{config.file} has {found}: a classifier needs at least two classes")
    for part, documents in rows.items():
        same_classes(f"in {config.files[part]}", part, labels, {each.label for each in documents})
    enough(Counter(each.label for each in rows["train"]), missing(rows, config.shares), "document")
    return rows


def _documents(file: Path, config: Config) -> Iterator[Document]:
    (_, header), *lines = _lines(file, config.encoding) or [(1, [])]
    if lacking := [column for column in (config.text, config.label) if column not in header]:
        raise RecipeError(
            f"{file} has no column {lacking[0]!r}, its first row is {', '.join(map(repr, header)) or 'empty'}",
            _COMMAS if len(header) == 1 and {*header[0]} & {*";\t|"} else _named(file),
        )
    if twice := [column for column in (config.text, config.label) if header.count(column) > 1]:
        raise RecipeError(f"{file} has the column {twice[0]!r} twice", "rename one of the two")
    for line, row in lines:
        if len(row) != len(header):
            raise RecipeError(f"{file}:{line}: the row has {len(row)} values for {len(header)} columns", _QUOTES)
        values = dict(zip(header, row, strict=True))
        label = values[config.label].strip()
        if why := flaw(label):
            raise RecipeError(
                f"{file}:{line}: {f'{label!r} is not a valid label: {why}' if label else 'the label is empty'}"
            )
        yield Document(text=values[config.text], label=label, place=f"{file}:{line}")


def _named(file: Path) -> str:
    return f"name the columns: data: {{csv: {{file: {file}, text: ..., label: ...}}}}"


_COMMAS = "save the file with commas between columns"
_QUOTES = 'put a value with a comma, a quote or a line end in quotes, and double the quotes inside it: "so ""quoted"""'


def _lines(file: Path, encoding: str) -> list[tuple[int, list[str]]]:
    """Return each row that is not blank, with the line on which it begins."""
    _there(file)
    try:
        text = decoded(file, encoding)
    except UnicodeError as error:
        raise RecipeError(f"{file}: {undecodable(error, encoding)}", "convert it, or name its encoding") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    before, line, rows = csv.field_size_limit(LONGEST), 1, []
    try:
        for row in reader:
            rows.append((line, row))
            line = reader.line_num + 1
    except csv.Error as error:
        raise RecipeError(f"{file}:{line}: the row cannot be read: {error}", _QUOTES) from error
    finally:
        csv.field_size_limit(before)
    return [(line, row) for line, row in rows if row]


def _there(file: Path) -> None:
    if not file.is_file():
        raise RecipeError(f"there is no file '{file}'", "paths are relative to the folder that edgepack runs in")
