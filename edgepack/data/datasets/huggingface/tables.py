"""Read columns of tables: labels when data is described, pictures and texts when they are used."""

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol

from edgepack.core.errors import RecipeError
from edgepack.core.frozen import Json
from edgepack.core.provenance import versions
from edgepack.data.contract import Loading
from edgepack.data.datasets.huggingface.config import Config
from edgepack.data.datasets.huggingface.locating import Tables, library, quiet, readable
from edgepack.data.folders import shown

if TYPE_CHECKING:
    import numpy

    Numbers = numpy.typing.NDArray[numpy.int64]

_BATCH = 10_000  # labels
_ROWS = 64  # pictures
_BUFFER = 2**20  # bytes that are read of a file at once


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
        if value is None:
            raise ValueError("its value is missing, or a path instead of bytes")
        found: bytes = value.encode() if isinstance(value, str) else value
        return found


@dataclass(frozen=True, eq=False)
class Column:
    """Encoded pictures in Arrow files: where each begins, and how long it is, -1 for none.

    They are read from there, not through a mapped file, which counts as memory of this process for as long as the
    system keeps it.
    """

    files: Sequence[Path]
    file: "Numbers"  # number of the file
    start: "Numbers"  # byte
    size: "Numbers"

    def __getitem__(self, row: int) -> bytes | None:
        size = int(self.size[row])
        if size < 0:
            return None
        with self.files[self.file[row]].open("rb") as file:
            file.seek(int(self.start[row]))
            content: bytes = file.read(size)
        if len(content) < size:
            raise ValueError("the file is shorter than it was")
        return content


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
    import pyarrow as pa

    whole = _arrow(pa.memory_map(str(file)).read_buffer()) if format == "arrow" else _parsed(file, format)
    there = [name for name in names if name in whole.schema.names]
    return whole.schema, iter(whole.select(there).to_batches(_BATCH))


def _arrow(content: Any) -> Any:
    """Return the table in the buffer of an Arrow file: a stream, as the library writes it, or a file."""
    import pyarrow as pa

    try:
        return pa.ipc.open_stream(content).read_all()
    except pa.ArrowInvalid:
        return pa.ipc.open_file(content).read_all()


def _parsed(file: Path, format: str) -> Any:
    """Return the table of a json or csv file, as the library reads it; it holds no pictures, so it fits into memory."""
    more = {"sep": "\t"} if file.suffix.lower() == ".tsv" else {}
    with TemporaryDirectory() as cache_dir, quiet():
        made = library().load_dataset(
            format, data_files=escape(str(file)), split="train", cache_dir=cache_dir, keep_in_memory=True, **more
        )
        return made.data.table.combine_chunks()


def values(where: Tables, config: Config, shas: Json, loading: Loading) -> dict[str, Indexed]:
    """Return the picture or text of each row, by split. Pictures are read when they are asked for."""
    if config.has_texts:
        return {part: _texts(where, part, config.column) for part in where.parts}
    stored = where.parts if where.format == "arrow" else _converted(where, config.column, shas, loading)
    return {part: _column(files, config.column) for part, files in stored.items()}


def _column(files: Sequence[Path], name: str) -> Column:
    import numpy

    found: list[list[Any]] = [[], [], []]
    for number, file in enumerate(files):
        with readable(file):
            for starts, sizes in _places(file, name):
                for each, more in zip(found, (numpy.full(len(sizes), number), starts, sizes), strict=True):
                    each.append(more)
    return Column(files, *(numpy.concatenate([numpy.empty(0, numpy.int64), *each]) for each in found))


def _places(file: Path, name: str) -> Iterator[tuple["Numbers", "Numbers"]]:
    """Yield where the values of a column begin in an Arrow file, and their sizes, from the addresses of their buffers
    in the mapped file.
    """
    import numpy
    import pyarrow as pa

    whole = pa.memory_map(str(file)).read_buffer()
    for chunk in filter(len, _arrow(whole).column(name).chunks):
        values = chunk.field("bytes") if pa.types.is_struct(chunk.type) else chunk
        _, offsets, content = values.buffers()
        width = numpy.int64 if pa.types.is_large_binary(values.type) else numpy.int32
        bounds: Numbers = numpy.frombuffer(offsets, width)[values.offset :][: len(values) + 1].astype(numpy.int64)
        begins = content.address - whole.address if content is not None else 0
        if not 0 <= begins <= whole.size:
            raise ValueError("it is compressed: write it without compression")
        there = (chunk.is_valid().to_numpy(zero_copy_only=False)) & values.is_valid().to_numpy(zero_copy_only=False)
        sizes: Numbers = numpy.where(there, numpy.diff(bounds), -1)
        yield begins + bounds[:-1], sizes


def _texts(where: Tables, part: str, column: str) -> list[object]:
    found: list[object] = []
    for file in where.parts[part]:
        with readable(file):
            found += _values(file, _columns(file, where.format, (column,))[1])
    return found


def _converted(where: Tables, column: str, shas: Json, loading: Loading) -> dict[str, tuple[Path, ...]]:
    """Return Arrow files with the pictures of parquet files, which cannot be read row by row."""
    count = sum(map(len, where.parts.values()))

    def fill(folder: Path) -> None:
        done = 0
        for part, files in where.parts.items():
            for number, file in enumerate(files):
                with readable(file):
                    _convert(file, folder / f"{part}-{number}.arrow", column)
                done += 1
                loading.progress("converting tables", done, count)

    folder = loading.kept(
        "tables", {"files": shas, "column": column, "versions": versions("pyarrow"), "version": 1}, fill
    )
    return {part: tuple(folder / f"{part}-{i}.arrow" for i in range(len(files))) for part, files in where.parts.items()}


def _convert(file: Path, to: Path, column: str) -> None:
    """Copy a column, a few rows at a time: a row group, and so what is read ahead, may be larger than the memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False)
    schema = pa.schema([table.schema_arrow.field(column)])
    with pa.OSFile(str(to), "wb") as written, pa.ipc.new_stream(written, schema) as stream:
        for batch in table.iter_batches(_ROWS, columns=[column]):
            stream.write_batch(batch)
