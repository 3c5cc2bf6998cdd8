"""Read columns of tables: labels when data is described, pictures and texts when they are used."""

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from edgepack.core.errors import RecipeError
from edgepack.core.frozen import Json
from edgepack.core.provenance import versions
from edgepack.data.contract import Loading
from edgepack.data.datasets.huggingface.config import Config
from edgepack.data.datasets.huggingface.locating import Tables, library, quiet, readable
from edgepack.data.folders import shown

_BATCH = 10_000  # labels


class Indexed(Protocol):
    def __getitem__(self, index: int) -> Any: ...


@dataclass(eq=False)
class Rows:
    """The rows of a split, file after file; `values` of their picture or text are set before one is read."""

    part: str
    values: Indexed = ()
    files: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)  # the first row of each file

    def begins(self, row: int, file: Path) -> None:
        self.files.append(shown(file))
        self.starts.append(row)

    def place(self, row: int) -> str:
        """Return file and row, counted from 1."""
        at = bisect_right(self.starts, row) - 1
        return f"{self.files[at]}, row {row - self.starts[at] + 1}"


@dataclass(frozen=True, eq=False, slots=True)
class Row:
    """A row as a sample; see pictures/encoded.py."""

    rows: Rows
    index: int

    @property
    def name(self) -> str:
        return ""

    def __str__(self) -> str:
        return self.rows.place(self.index)

    def read(self) -> bytes:
        value = self.rows.values[self.index]
        if isinstance(value, dict):
            value = value["bytes"]
        if value is None:
            raise ValueError("its value is missing, or a path instead of bytes")
        found: bytes = value.encode() if isinstance(value, str) else value
        return found


@dataclass(frozen=True)
class Column:
    """Values of the one column of a table that is mapped into memory."""

    table: Any  # a datasets.Dataset that gives Arrow tables

    def __getitem__(self, index: int) -> Any:
        return self.table[index].column(0)[0].as_py()


def labels(where: Tables, part: str, config: Config) -> Iterator[tuple[Path, Iterator[object], Sequence[str] | None]]:
    """Yield each file of a split, the value of each row's label, and the names of labels if the file has them.

    Raises RecipeError for a column that is not there, or holds something else.
    """
    for file in where.parts[part]:
        with readable(file):
            schema, batches = _columns(file, where.format, (config.label,))
        _check(file, schema, config)
        yield file, _values(file, batches), _names(schema, config.label)


def _values(file: Path, batches: Iterator[Any]) -> Iterator[object]:
    with readable(file):
        for batch in batches:
            yield from batch.column(0).to_pylist()


def _check(file: Path, schema: Any, config: Config) -> None:
    import pyarrow as pa

    for column in (config.column, config.label):
        if column not in schema.names:
            given = ", ".join(map(repr, schema.names))
            raise RecipeError(
                f"{shown(file)} has no column {column!r}, its columns are {given}", "name image or text, and label"
            )
    kind = schema.field(config.label).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_integer(kind) or _is_text(kind) or pa.types.is_null(kind)):
        why = ": an empty value makes numbers of a csv file such" if pa.types.is_floating(kind) else ""
        message = f"{shown(file)}: the column {config.label!r} holds {kind}, and labels are texts or whole numbers"
        raise RecipeError(f"{message}{why}", "convert it, or name another column: label: ...")
    _check_samples(file, schema.field(config.column).type, config)


def _check_samples(file: Path, kind: Any, config: Config) -> None:
    import pyarrow as pa

    wrong = f"{shown(file)}: the column {config.column!r} holds {kind}"
    if config.has_texts and not _is_text(kind):
        raise RecipeError(f"{wrong}, and no texts", "name the column with the text: text: ...")
    names = [kind.field(i).name for i in range(kind.num_fields)] if pa.types.is_struct(kind) else []
    if not (config.has_texts or pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or "bytes" in names):
        advice = (
            "pictures in files of their own are listed by image_csv"
            if _is_text(kind)
            else "name the column: image: ..."
        )
        raise RecipeError(f"{wrong}, and no encoded pictures", advice)


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _names(schema: Any, column: str) -> list[str] | None:
    """Return the names of the labels 0, 1, ..., which the library stores in a table's metadata."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in features[column]["names"]]
    except (KeyError, TypeError, ValueError):
        return None


def _columns(file: Path, format: str, names: tuple[str, ...]) -> tuple[Any, Iterator[Any]]:
    """Return the schema of a file, and batches of those of these columns that it has."""
    library()
    if format == "parquet":
        import pyarrow.parquet as pq

        table = pq.ParquetFile(file, memory_map=True)
        there = [name for name in names if name in table.schema_arrow.names]
        return table.schema_arrow, table.iter_batches(_BATCH, columns=there)
    whole = _arrow(file) if format == "arrow" else _parsed(file, format)
    there = [name for name in names if name in whole.schema.names]
    return whole.schema, iter(whole.select(there).to_batches(_BATCH))


def _arrow(file: Path) -> Any:
    """Return the table of an Arrow file, mapped into memory: a stream, as the library writes it, or a file."""
    import pyarrow as pa

    with pa.memory_map(str(file)) as source:
        try:
            return pa.ipc.open_stream(source).read_all()
        except pa.ArrowInvalid:
            source.seek(0)
            return pa.ipc.open_file(source).read_all()


def _parsed(file: Path, format: str) -> Any:
    """Return the table of a json or csv file, as the library reads it; it holds no pictures, so it fits into memory."""
    more = {"sep": "\t"} if file.suffix.lower() == ".tsv" else {}
    with TemporaryDirectory() as cache_dir, quiet():
        made = library().load_dataset(
            format, data_files=str(file), split="train", cache_dir=cache_dir, keep_in_memory=True, **more
        )
        return made.data.table.combine_chunks()


def values(where: Tables, config: Config, shas: Json, loading: Loading) -> dict[str, Indexed]:
    """Return the picture or text of each row, by split. Pictures are mapped into memory, and read when asked for."""
    if config.has_texts:
        return {part: _texts(where, part, config.column) for part in where.parts}
    datasets = library()
    mapped = where.parts if where.format == "arrow" else _converted(where, config.column, shas, loading)
    found: dict[str, Indexed] = {}
    for part, files in mapped.items():
        with readable(files[0]):
            tables = [datasets.Dataset.from_file(str(file)).select_columns([config.column]) for file in files]
            found[part] = Column(datasets.concatenate_datasets(tables).with_format("arrow"))
    return found


def _texts(where: Tables, part: str, column: str) -> list[object]:
    found: list[object] = []
    for file in where.parts[part]:
        with readable(file):
            found += _values(file, _columns(file, where.format, (column,))[1])
    return found


def _converted(where: Tables, column: str, shas: Json, loading: Loading) -> dict[str, tuple[Path, ...]]:
    """Return Arrow files with the pictures: other formats cannot be read row by row."""

    def fill(folder: Path) -> None:
        files = {part: [*map(str, files)] for part, files in where.parts.items()}
        loading.progress("converting tables", 0, 1)
        with readable(where.root), quiet():
            made = library().load_dataset(where.format, data_files=files, cache_dir=str(folder), columns=[column])
        index = {
            part: [str(Path(each["filename"]).relative_to(folder)) for each in table.cache_files]
            for part, table in made.items()
        }
        for lock in folder.rglob("*.lock"):
            lock.unlink()
        (folder / "tables.json").write_text(json.dumps(index))

    folder = loading.kept(
        "tables", {"files": shas, "column": column, "versions": versions("datasets", "pyarrow")}, fill
    )
    index = json.loads((folder / "tables.json").read_text())
    return {part: tuple(folder / each for each in files) for part, files in index.items()}
