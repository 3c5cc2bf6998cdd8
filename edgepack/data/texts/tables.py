"""Rows of CSV files, with the line on which each begins."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import Field

from edgepack.core.errors import RecipeError
from edgepack.core.frozen import Json
from edgepack.data.texts.corpus import LONGEST, Encoding, decoded, undecodable
from edgepack.data.texts.targets import TargetColumns

_COMMAS = "save the file with commas between columns"
_QUOTES = 'put a value with a comma, a quote or a line end in quotes, and double the quotes inside it: "so ""quoted"""'


class Tables(TargetColumns):
    """Settings of data sets that are listed in CSV files, one for all splits or one for each."""

    file: str = Field(
        description="file with the training rows, and with those of each split that has no file of its own"
    )
    validation_file: str | None = Field(default=None, description="file with the rows of this split")
    test_file: str | None = Field(default=None, description="file with the rows of this split")
    encoding: Encoding = Field(default="utf-8", description="encoding of the files")

    @property
    def files(self) -> dict[str, Path]:
        named = {"train": self.file, "validation": self.validation_file, "test": self.test_file}
        return {part: Path(name) for part, name in named.items() if name is not None}


def facts(config: Tables) -> Json:
    """Return what a fingerprint tells of the columns that say what is right."""
    if config.are_classes:
        return {"label": config.label}
    return {"targets": config.targets, "tags": config.tags, "separator": config.separator}


def rows(file: Path, columns: Sequence[str], encoding: str, hint: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the place of each row, such as "news.csv:17", and its values in these columns.

    The first row names the columns. Raises RecipeError naming a column that is not there, with `hint`, or a bad row.
    """
    (_, header), *lines = _lines(file, encoding) or [(1, [])]
    if lacking := [column for column in columns if column not in header]:
        raise RecipeError(
            f"{file} has no column {lacking[0]!r}, its first row is {', '.join(map(repr, header)) or 'empty'}",
            _COMMAS if len(header) == 1 and {*header[0]} & {*";\t|"} else hint,
        )
    if twice := [column for column in columns if header.count(column) > 1]:
        raise RecipeError(f"{file} has the column {twice[0]!r} twice", "rename one of the two")
    for line, row in lines:
        if len(row) != len(header):
            raise RecipeError(f"{file}:{line}: the row has {len(row)} values for {len(header)} columns", _QUOTES)
        values = dict(zip(header, row, strict=True))
        yield f"{file}:{line}", [values[column] for column in columns]


def check_there(file: Path) -> None:
    if not file.is_file():
        raise RecipeError(f"there is no file '{file}'", "paths are relative to the folder that edgepack runs in")


def _lines(file: Path, encoding: str) -> list[tuple[int, list[str]]]:
    """Return each row that is not blank, with the line on which it begins."""
    check_there(file)
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
