"""Your own texts in CSV files: one row per document, with a text column and a label column.

news.csv, from which the splits are drawn, or a file for each split; the first row names the columns.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pydantic import Field

from edgepack.core.errors import RecipeError
from edgepack.core.files import digests
from edgepack.core.signature import Signature
from edgepack.core.signature.labels import doubts
from edgepack.data.partition import enough, missing, same_classes
from edgepack.data.splits import Data
from edgepack.data.texts import corpus, tables
from edgepack.data.texts.corpus import Document, Settings, attachments
from edgepack.data.texts.tables import Tables

__all__ = ["Config", "attachments", "describe", "fingerprint", "load", "notes"]

_VERSION = 2  # bump when the same files would give other documents

Rows = dict[str, list[Document]]  # by part that has a file


class Config(Settings, Tables):
    text: str = Field(default="text", description="column with the text")


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
        tables.check_there(file)
    columns = {"text": config.text, "label": config.label, "encoding": config.encoding, "version": _VERSION}
    return corpus.fingerprint(config, digests(files, of=" ".join(map(str, files.values()))), **columns)


def load(config: Config) -> Data:
    rows = _rows(config)
    data = corpus.load(config, rows, _labels(rows))
    return replace(data, notes=(*doubts(_labels(rows)), *data.notes))


def _labels(rows: Rows) -> list[str]:
    return tables.ordered({each.label for each in rows["train"]})


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
    hint = f"name the columns: data: {{csv: {{file: {file}, text: ..., label: ...}}}}"
    for place, (text, label) in tables.rows(file, (config.text, config.label), config.encoding, hint):
        yield Document(text=text, label=tables.label(place, label), place=place)
