"""Your own pictures listed in CSV files: one row per picture, with its path, and its label, numbers or tags.

labels.csv, from which the splits are drawn, or a file for each split; the first row names the columns.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
from edgepack.data.texts.targets import Target, check_known

KEEPS = True


class Config(Settings, Tables):
    folder: str | None = Field(
        default=None, description="folder that paths are relative to; default: the one that holds the file"
    )
    path: str = Field(default="path", description="column with the path of the picture")


@dataclass(frozen=True)
class _Listed:
    """The pictures of each split by class, the names of what is right, and what it is unless it is a class."""

    parts: dict[str, Files]
    labels: list[str]
    targets: dict[Encoded, Target]


def describe(config: Config) -> Signature:
    """Read every row, since the labels are there. Raises RecipeError for rows that cannot be used, and their places."""
    return collection.describe(config, _listed(config).labels)


def notes(config: Config) -> tuple[str, ...]:
    """Return warnings about the labels. Reads every row."""
    return tuple(doubts(_listed(config).labels))


def fingerprint(config: Config) -> str:
    """Return a digest of the rows and the contents of all pictures; where they are does not matter."""
    listed = _listed(config)
    shas = _digests(config, listed.parts)
    rows = {
        part: {label: [shas[file] for file in files] for label, files in classes.items()}
        for part, classes in listed.parts.items()
    }
    right = {shas[file]: target for file, target in listed.targets.items()}
    facts = {"targets": right, "names": listed.labels} if right else {}
    names = {Path(file.name).suffix.lower(): "" for file in shas}  # they tell which libraries read them
    own = {*Config.model_fields} - {*Settings.model_fields}
    return collection.fingerprint(config, names, own, rows=rows, **facts)


def load(config: Config, loading: Loading | None = None) -> Data:
    listed = _listed(config)
    shas = _digests(config, listed.parts)
    told = tuple(doubts(listed.labels))
    how = loading or Loading()
    return collection.load(config, listed.parts, shas, told, how, targets=listed.targets, names=listed.labels)


def _digests(config: Config, parts: dict[str, Files]) -> dict[Encoded, str]:
    """Return the sha256 of every picture."""
    files = {str(file): file for each in parts.values() for same in each.values() for file in same}
    found = digests(files, of=" ".join(str(file.absolute()) for file in config.files.values()))
    return {Path(name): sha for name, sha in found.items()}


def _listed(config: Config) -> _Listed:
    """Return the pictures in the order of rows. Raises RecipeError for the first problem."""
    found = {part: _rows(file, config) for part, file in config.files.items()}
    labels = config.labels(right for _, right in found["train"])
    if not found["train"] or (config.are_classes and len(labels) < 2):
        what = f"one label only, {labels[0]!r}" if found["train"] else "no rows"
        raise RecipeError(f"{config.file} has {what}: a classifier needs at least two classes")
    classes = labels if config.are_classes else [""]
    parts = {part: _by_class(rows, config.are_classes) for part, rows in found.items()}
    for part, members in parts.items():
        same_classes(f"in {config.files[part]}", part, classes, members)
        if not config.are_classes:
            check_known(config.files[part], [right for _, right in found[part]], labels)
    enough({label: len(files) for label, files in parts["train"].items()}, missing(found, config.shares), "picture")
    return _Listed(
        parts={part: {label: members[label] for label in classes} for part, members in parts.items()},
        labels=labels,
        targets={} if config.are_classes else _targets(found.values()),
    )


def _by_class(rows: Iterable[tuple[Path, Target]], are_classes: bool) -> Files:
    found: dict[str, list[Path]] = {}
    for picture, right in rows:
        found.setdefault(str(right) if are_classes else "", []).append(picture)
    return {label: tuple(files) for label, files in found.items()}


def _targets(parts: Iterable[Sequence[tuple[Path, Target]]]) -> dict[Encoded, Target]:
    """Raises RecipeError for a picture that is listed twice, with different targets."""
    found: dict[Encoded, Target] = {}
    for picture, right in (row for rows in parts for row in rows):
        if found.setdefault(picture, right) != right:
            raise RecipeError(f"{shown(picture)} is listed twice, with {found[picture]} and {right}", "remove one row")
    return found


def _rows(file: Path, config: Config) -> list[tuple[Path, Target]]:
    root = Path(config.folder) if config.folder is not None else file.parent
    hint = f"name the columns: data: {{image_csv: {{file: {file}, path: ..., label: ...}}}}"
    found, problems = [], []
    for place, (name, *right) in tables.rows(file, (config.path, *config.of_target), config.encoding, hint):
        picture = root / name.strip()
        if why := _flaw(picture, name):
            problems.append(f"{place}: {why}")
        found.append((picture, config.target(place, right)))
    if problems:
        raise unreadable(problems, "row", "cannot be used", f"fix or remove them; paths are relative to {shown(root)}")
    return found


def _flaw(picture: Path, name: str) -> str:
    """Return why a path is none of a picture, or ""."""
    if not name.strip():
        return "the path is empty"
    if not picture.is_file():
        return f"there is no file {shown(picture)}"
    ending = picture.suffix.lower()
    return "" if reads(ending) else f"{shown(picture)} is no picture that can be read ({needed(ending) or 'unknown'})"
