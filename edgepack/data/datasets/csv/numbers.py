"""Rows of CSV files with numbers as inputs, float32 [features], scaled by means and deviations of the training rows."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import fsum, sqrt
from typing import TYPE_CHECKING

from edgepack.core.errors import RecipeError
from edgepack.core.files import digest, digests
from edgepack.core.signature import Signature, TensorSpec
from edgepack.core.signature.labels import doubts
from edgepack.data.datasets.csv.config import Config
from edgepack.data.partition import drawn, enough, missing, same_classes
from edgepack.data.splits import Data, Split
from edgepack.data.texts import tables
from edgepack.data.texts.targets import Target, as_tensor, check_known, number

if TYPE_CHECKING:
    from torch import Tensor

_VERSION = 1  # bump when the same files would give other samples
_PARTS = ("test", "validation", "train")  # of equal rows the one in the first of these is kept


@dataclass(frozen=True)
class _Row:
    features: tuple[float, ...]
    right: Target

    @property
    def stratum(self) -> str:
        return self.right if isinstance(self.right, str) else ""


@dataclass(frozen=True)
class _Rows:
    parts: Mapping[str, Sequence[_Row]]
    labels: Sequence[str]
    copies: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]  # 1 for a column in which all rows have the same number


def describe(config: Config) -> Signature:
    rows = _rows(config)
    steps = {
        "kind": "numbers",
        "columns": list(config.features),
        "normalize": {"mean": list(rows.mean), "std": list(rows.deviation)},
    }
    inputs = (TensorSpec(name="input", shape=(len(config.features),)),)
    return Signature(inputs=inputs, labels=tuple(rows.labels), preprocessing=steps)


def notes(config: Config) -> tuple[str, ...]:
    return tuple(_notes(_rows(config)))


def _notes(rows: _Rows) -> Iterator[str]:
    yield from doubts(rows.labels)
    if rows.copies:
        yield f"{rows.copies} rows have the numbers of another one: one of each is kept"


def fingerprint(config: Config) -> str:
    for file in config.files.values():
        tables.check_there(file)
    found = digests(config.files, of=" ".join(map(str, config.files.values())))
    read = {"features": config.features, "encoding": config.encoding, "shares": config.shares, "version": _VERSION}
    return digest({"files": found, **read, **tables.facts(config)})


def attachments(config: Config) -> dict[str, bytes]:
    return {}


def load(config: Config) -> Data:
    rows = _rows(config)
    test, validation, train = (_split(rows, part) for part in _PARTS)
    return Data(train=train, validation=validation, test=test, notes=tuple(_notes(rows)))


def _split(rows: _Rows, part: str) -> Split:
    import torch

    known = rows.parts[part]
    inputs = torch.tensor([each.features for each in known], dtype=torch.float64)
    targets: Tensor = as_tensor([each.right for each in known], rows.labels)
    mean, deviation = (torch.tensor(each, dtype=torch.float64) for each in (rows.mean, rows.deviation))
    return Split(inputs=(((inputs - mean) / deviation).float(),), targets=targets)


def _rows(config: Config) -> _Rows:
    """Return the rows of every split. Raises RecipeError for the first that cannot be used."""
    stamps = tuple(file.stat().st_mtime_ns if file.is_file() else 0 for file in config.files.values())
    return _read(config, stamps)


@cache
def _read(config: Config, _changed: tuple[int, ...]) -> _Rows:
    given = {part: [*_of_file(config, part)] for part in config.files}
    if not given["train"]:
        raise RecipeError(f"{config.file} has no rows")
    labels = config.labels(each.right for each in given["train"])
    for part, rows in given.items():
        if config.are_classes:
            same_classes(f"in {config.files[part]}", part, labels, {each.stratum for each in rows})
        else:
            check_known(config.files[part], [each.right for each in rows], labels)
    kept = _deduplicated(given)
    enough(Counter(each.stratum for each in kept["train"]), missing(kept, config.shares), "row")
    parts = _drawn(kept, missing(kept, config.shares), labels)
    columns = [*zip(*(each.features for each in parts["train"]), strict=True)]
    means = tuple(fsum(column) / len(column) for column in columns)
    return _Rows(
        parts=parts,
        labels=labels,
        copies=sum(map(len, given.values())) - sum(map(len, parts.values())),
        mean=means,
        deviation=tuple(_deviation(column, mean) for column, mean in zip(columns, means, strict=True)),
    )


def _of_file(config: Config, part: str) -> Iterator[_Row]:
    file = config.files[part]
    count = len(config.features)
    hint = f"name the columns: data: {{csv: {{file: {file}, features: [...], targets: [...]}}}}"
    for place, values in tables.rows(file, (*config.features, *config.of_target), config.encoding, hint):
        named = zip(config.features, values[:count], strict=True)
        features = tuple(number(place, column, text) for column, text in named)
        yield _Row(features, config.target(place, values[count:]))


def _deduplicated(given: Mapping[str, Sequence[_Row]]) -> dict[str, list[_Row]]:
    seen: set[tuple[float, ...]] = set()
    kept: dict[str, list[_Row]] = {}
    for part in (part for part in _PARTS if part in given):
        kept[part] = []
        for each in given[part]:
            if each.features not in seen:
                kept[part].append(each)
            seen.add(each.features)
        if not kept[part]:
            raise RecipeError(f"the {part} split has no row that other splits lack")
    return kept


def _drawn(
    kept: Mapping[str, Sequence[_Row]], shares: Mapping[str, float], labels: Sequence[str]
) -> dict[str, list[_Row]]:
    """Return every part shuffled; those without a file are drawn from the training rows."""
    parts: dict[str, list[_Row]] = {}
    for part, rows in kept.items():
        strata = [labels.index(each.stratum) if each.stratum else 0 for each in rows]
        chosen = drawn(strata, shares if part == "train" else {})
        parts |= {part if name == "train" else name: [rows[place] for place in at] for name, at in chosen.items()}
    return parts


def _deviation(column: Sequence[float], mean: float) -> float:
    return sqrt(fsum((each - mean) ** 2 for each in column) / len(column)) or 1.0
