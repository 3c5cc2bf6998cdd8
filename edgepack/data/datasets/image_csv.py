"""Your own pictures listed in CSV files: one row per picture, with its path and its label.

labels.csv, from which the splits are drawn, or a file for each split; the first row names the columns.
"""

from pathlib import Path

from pydantic import Field

from edgepack.core.errors import RecipeError
from edgepack.core.files import digests
from edgepack.core.signature import Signature
from edgepack.core.signature.labels import doubts
from edgepack.data.contract import Loading
from edgepack.data.folders import Files, shown
from edgepack.data.partition import enough, missing, same_classes, unreadable
from edgepack.data.pictures import collection
from edgepack.data.pictures.collection import Settings
from edgepack.data.pictures.decoding import needed, reads
from edgepack.data.pictures.encoded import Encoded
from edgepack.data.splits import Data
from edgepack.data.texts import tables
from edgepack.data.texts.tables import Tables

KEEPS = True


class Config(Settings, Tables):
    folder: str | None = Field(
        default=None, description="folder that paths are relative to; default: the one that holds the file"
    )
    path: str = Field(default="path", description="column with the path of the picture")


def describe(config: Config) -> Signature:
    """Read every row, since the labels are there. Raises RecipeError for rows that cannot be used, and their places."""
    return collection.describe(config, _parts(config)["train"])


def notes(config: Config) -> tuple[str, ...]:
    """Return warnings about the labels. Reads every row."""
    return tuple(doubts(_parts(config)["train"]))


def fingerprint(config: Config) -> str:
    """Return a digest of the rows and the contents of all pictures; where they are does not matter."""
    parts = _parts(config)
    shas = _digests(config, parts)
    rows = {
        part: {label: [shas[file] for file in files] for label, files in classes.items()}
        for part, classes in parts.items()
    }
    names = {Path(file.name).suffix.lower(): "" for file in shas}  # they tell which libraries read them
    return collection.fingerprint(config, names, {*Config.model_fields} - {*Settings.model_fields}, rows=rows)


def load(config: Config, loading: Loading | None = None) -> Data:
    parts = _parts(config)
    shas = _digests(config, parts)
    return collection.load(config, parts, shas, tuple(doubts(parts["train"])), loading or Loading())


def _digests(config: Config, parts: dict[str, Files]) -> dict[Encoded, str]:
    """Return the sha256 of every picture."""
    files = {str(file): file for each in parts.values() for same in each.values() for file in same}
    found = digests(files, of=" ".join(str(file.absolute()) for file in config.files.values()))
    return {Path(name): sha for name, sha in found.items()}


def _parts(config: Config) -> dict[str, Files]:
    """Return the files of each class by split, in the order of rows. Raises RecipeError for the first problem."""
    found = {part: _rows(file, config) for part, file in config.files.items()}
    labels = tables.ordered({*found["train"]})
    if len(labels) < 2:
        what = f"one label only, {labels[0]!r}" if labels else "no rows"
        raise RecipeError(f"{config.file} has {what}: a classifier needs at least two classes")
    for part, classes in found.items():
        same_classes(f"in {config.files[part]}", part, labels, classes)
    counts = {label: len(files) for label, files in found["train"].items()}
    enough(counts, missing(found, config.shares), "picture")
    return {part: {label: classes[label] for label in labels} for part, classes in found.items()}


def _rows(file: Path, config: Config) -> Files:
    root = Path(config.folder) if config.folder is not None else file.parent
    hint = f"name the columns: data: {{image_csv: {{file: {file}, path: ..., label: ...}}}}"
    found: dict[str, list[Path]] = {}
    problems = []
    for place, (name, label) in tables.rows(file, (config.path, config.label), config.encoding, hint):
        picture = root / name.strip()
        if why := _flaw(picture, name):
            problems.append(f"{place}: {why}")
        found.setdefault(tables.label(place, label), []).append(picture)
    if problems:
        raise unreadable(problems, "row", "cannot be used", f"fix or remove them; paths are relative to {shown(root)}")
    return {label: tuple(files) for label, files in found.items()}


def _flaw(picture: Path, name: str) -> str:
    """Return why a path is none of a picture, or ""."""
    if not name.strip():
        return "the path is empty"
    if not picture.is_file():
        return f"there is no file {shown(picture)}"
    ending = picture.suffix.lower()
    return "" if reads(ending) else f"{shown(picture)} is no picture that can be read ({needed(ending) or 'unknown'})"
