"""Pictures or texts in tables: a folder of the library datasets, parquet, jsonl or csv files, or one of the hub.

A picture column holds encoded pictures, as an Image feature stores them; a text column holds texts. Splits have their
usual names, in folders or files, or are drawn. No code of a data set runs.
"""

from edgepack.core.files import digest, digests, made_once
from edgepack.core.frozen import Json
from edgepack.core.provenance import versions
from edgepack.core.signature import Signature
from edgepack.core.signature.labels import doubts
from edgepack.data.contract import Loading
from edgepack.data.datasets import _labelled as labelled
from edgepack.data.datasets._labelled import Found, attachments
from edgepack.data.datasets.huggingface import tables
from edgepack.data.datasets.huggingface.config import Config
from edgepack.data.datasets.huggingface.locating import Tables, located
from edgepack.data.pictures.encoded import Encoded
from edgepack.data.splits import Data

__all__ = ["Config", "attachments", "describe", "fingerprint", "load", "notes"]

KEEPS = True
_PARSERS = "datasets", "pyarrow"  # packages whose versions may read other values from the same text
_VERSION = 2  # bump when the same files would give other samples


def describe(config: Config) -> Signature:
    """Read the column of labels, if it has changed since. Raises RecipeError naming files, rows and columns."""
    return labelled.describe(config, labelled.check_facts(config, _facts(config), config.path))


def notes(config: Config) -> tuple[str, ...]:
    return tuple(doubts(_facts(config)["labels"]))


def fingerprint(config: Config) -> str:
    """Return a digest of the contents of the files; where they are, and at which commit, does not matter. That of json
    and csv files covers the versions of the packages that parse them.
    """
    found = located(config)
    shas = {part: [*each.values()] for part, each in _digests(found).items()}
    parsers = {"parsers": versions(*_PARSERS)} if found.format in ("json", "csv") else {}
    return labelled.fingerprint(config, shas, columns=[config.column, config.label], version=_VERSION, **parsers)


def load(config: Config, loading: Loading | None = None) -> Data:
    loading = loading or Loading()
    where = located(config)
    found = _scanned(config, where)
    labelled.check_facts(config, found.facts(), config.path)
    shas = _digests(where)
    by_part = tables.values(where, config, {part: [*each.values()] for part, each in shas.items()}, loading)
    ids: dict[Encoded, str] = {}
    for part, samples in found.samples.items():
        made_of = digest([*shas[part].values()])
        for row, _ in samples:
            assert isinstance(row, tables.Row)
            row.rows.values = by_part[part]
            ids[row] = f"{made_of} {config.column} {row.index}"
    return labelled.load(config, found, ids, tuple(doubts(found.labels)), loading)


def _facts(config: Config) -> Json:
    where = located(config)
    made_of = {
        "files": _digests(where),
        "columns": [config.column, config.label, config.has_texts],
        "labels": config.labels,
        "versions": versions(*_PARSERS),
        "version": _VERSION,
    }
    return made_once("labels", made_of, lambda: _scanned(config, where).facts())


def _scanned(config: Config, where: Tables) -> Found:
    """Read all labels. Raises RecipeError for a column that is not there, or holds something else."""
    found = Found(samples={part: [] for part in where.parts}, problems=[], names=config.labels)
    for part in where.parts:
        rows = tables.Rows(part)
        index = 0
        for file, labels, names in tables.labels(where, part, config):
            known = config.labels or names
            found.names = found.names or known
            rows.begins(index, file)
            for value in labels:
                found.add(part, tables.Row(rows, index), value, known)
                index += 1
    return found


def _digests(where: Tables) -> dict[str, dict[str, str]]:
    """Return the sha256 of every file by split."""
    names = {str(file): file for files in where.parts.values() for file in files}
    shas = digests(names, of=f"{where.root.resolve()} {sorted(where.parts)}")
    return {part: {str(file): shas[str(file)] for file in files} for part, files in where.parts.items()}
