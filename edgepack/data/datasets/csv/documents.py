"""Rows of CSV files with a text."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from edgepack.core.errors import RecipeError
from edgepack.core.files import digests
from edgepack.core.signature import Signature
from edgepack.core.signature.labels import doubts
from edgepack.data.datasets.csv.config import Config
from edgepack.data.partition import enough, missing, same_classes
from edgepack.data.splits import Data
from edgepack.data.texts import corpus, tables
from edgepack.data.texts.corpus import Document, attachments
from edgepack.data.texts.targets import check_known

__all__ = ["attachments", "describe", "fingerprint", "load", "notes"]

_VERSION = 2  # bump when the same files would give other documents

Rows = dict[str, list[Document]]  # by part that has a file


def describe(config: Config) -> Signature:
    rows = _rows(config)
    corpus.refuse(rows)
    return corpus.describe(config, _labels(config, rows))


def notes(config: Config) -> tuple[str, ...]:
    return tuple(doubts(_labels(config, _rows(config))))


def fingerprint(config: Config) -> str:
    files = config.files
    for file in files.values():
        tables.check_there(file)
    columns = {"text": config.text, "encoding": config.encoding, "version": _VERSION, **tables.facts(config)}
    return corpus.fingerprint(config, digests(files, of=" ".join(map(str, files.values()))), **columns)


def load(config: Config) -> Data:
    rows = _rows(config)
    labels = _labels(config, rows)
    data = corpus.load(config, rows, labels)
    return replace(data, notes=(*doubts(labels), *data.notes))


def _labels(config: Config, rows: Rows) -> list[str]:
    return config.labels(each.right for each in rows["train"])


def _rows(config: Config) -> Rows:
    rows = {part: list(_documents(file, config)) for part, file in config.files.items()}
    labels = _labels(config, rows)
    if not rows["train"] or (config.are_classes and len(labels) < 2):
        found = f"one label only, {labels[0]!r}" if rows["train"] else "no rows"
        raise RecipeError(f"{config.file} has {found}: a classifier needs at least two classes")
    for part, documents in rows.items():
        if config.are_classes:
            same_classes(f"in {config.files[part]}", part, labels, {each.label for each in documents})
        check_known(config.files[part], [each.right for each in documents if each.target is not None], labels)
    enough(Counter(each.label for each in rows["train"]), missing(rows, config.shares), "document")
    return rows


def _documents(file: Path, config: Config) -> Iterator[Document]:
    hint = f"name the columns: data: {{csv: {{file: {file}, text: ..., label: ...}}}}"
    for place, (text, *right) in tables.rows(file, (config.text, *config.of_target), config.encoding, hint):
        found = config.target(place, right)
        if isinstance(found, str):
            yield Document(text=text, label=found, place=place)
        else:
            yield Document(text=text, label="", target=found, place=place)
