"""Find the tables of each split, in a folder, among files, or on the hub."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgepack.core.errors import EdgepackError, RecipeError, install, reason
from edgepack.core.files import file_digest, made_once
from edgepack.core.frozen import Json
from edgepack.core.provenance import versions
from edgepack.data import hub
from edgepack.data.datasets.huggingface.config import ENDINGS, Config
from edgepack.data.folders import shown
from edgepack.data.hub import HUB_NAME

_KNOWN = "parquet, json, jsonl, csv and arrow"
_ABOUT = "README.md"  # says which files are which split
_SETTINGS = ".huggingface.yaml"  # may say so instead
_VERSION = 2  # bump when the same folder would give other files
_SAVED = ("dataset_dict.json", "state.json")  # what save_to_disk writes
_ALIASES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


@dataclass(frozen=True, kw_only=True)
class Tables:
    """The files of each split, in order, all of one format: parquet, json, csv, or arrow."""

    root: Path
    format: str
    parts: Mapping[str, tuple[Path, ...]]


def located(config: Config) -> Tables:
    """Return the files of each split that is used. Raises RecipeError if there are none."""
    found = _located(config)
    named = config.splits or _usual(found.parts, config)
    if unknown := [name for name in named.values() if name not in found.parts]:
        there = ", ".join(found.parts)
        raise RecipeError(f"{config.path} has no split {unknown[0]!r}", f"it has: {there}; name them in splits")
    return Tables(root=found.root, format=found.format, parts={part: found.parts[name] for part, name in named.items()})


def _usual(splits: Mapping[str, object], config: Config) -> dict[str, str]:
    named = {part: next((name for name in names if name in splits), "") for part, names in _ALIASES.items()}
    if not named["train"]:
        advice = f"say which to train on: splits: {{train: {next(iter(splits))}}}"
        raise RecipeError(f"{config.path} has no split named train, but {', '.join(splits)}", advice)
    return {part: name for part, name in named.items() if name}


def _located(config: Config) -> Tables:
    """Return the files of all splits, by the names that the data set gives them."""
    if config.revision is not None:
        return _in_folder(hub.data_folder(config.path, config.revision, (*config.files, _ABOUT)), config.name)
    path = Path(config.path)
    if path.is_dir():
        return _in_folder(path, config.name)
    files = (path,) if path.is_file() else tuple(each for each in sorted(path.parent.glob(path.name)) if each.is_file())
    if files:
        return Tables(root=path.parent, format=_format(files), parts={"train": files})
    if HUB_NAME.fullmatch(config.path) and not path.parent.is_dir():
        advice = "for a data set of the hub give the commit too: revision: ..., 40 hexadecimal digits"
        raise RecipeError(f"there is no folder {config.path!r}", advice)
    raise RecipeError(
        f"there is no folder or file {config.path!r}", "paths are relative to the folder that edgepack runs in"
    )


def _format(files: Sequence[Path]) -> str:
    formats = {ENDINGS.get(file.suffix.lower(), "") for file in files}
    if len(formats) > 1 or "" in formats:
        odd = next((file for file in files if file.suffix.lower() not in ENDINGS), files[0])
        raise RecipeError(f"{shown(odd)} is no table that can be read", f"known are {_KNOWN}, one of them at a time")
    return formats.pop()


def _in_folder(folder: Path, name: str | None) -> Tables:
    if any((folder / each).is_file() for each in _SAVED):
        return _saved(folder)
    made_of = {
        "folder": str(folder.resolve()),
        "files": sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()),
        "about": [file_digest(about) for about in (folder / _ABOUT, folder / _SETTINGS) if about.is_file()],
        "name": name,
        "versions": versions("datasets"),
        "version": _VERSION,
    }
    found = made_once("tables", made_of, lambda: _resolved(folder, name))
    parts = {split: tuple(folder / each for each in files) for split, files in found["parts"].items()}
    return Tables(root=folder, format=found["format"], parts=parts)


def _resolved(folder: Path, name: str | None) -> Json:
    """Return the files of each split, by their names and what README.md says, as the library finds them."""
    datasets = library()
    root = folder.resolve()
    try:
        for file in _named(folder):  # before the library follows an address
            _check_inside(file, folder)
        with TemporaryDirectory() as cache_dir, quiet():
            builder = datasets.load_dataset_builder(str(root), name=name, cache_dir=cache_dir)
            found = {str(split): [*map(str, files)] for split, files in (builder.config.data_files or {}).items()}
    except EdgepackError:
        raise
    except Exception as error:  # the library raises many kinds
        advice = f"known are files of {_KNOWN}, and what save_to_disk writes"
        raise RecipeError(f"no tables are found in {shown(folder)}: {reason(error)}", advice) from error
    files = {split: tuple(Path(each) for each in each_split) for split, each_split in found.items()}
    format = _format([file for each in files.values() for file in each])
    return {"format": format, "parts": {split: [*_relative(each, root)] for split, each in files.items()}}


def _relative(files: Sequence[Path], root: Path) -> Iterator[str]:
    for file in files:
        name = str(file.relative_to(root)) if file.is_relative_to(root) else str(file)
        _check_inside(name, root)
        yield name


def _check_inside(name: str, folder: Path) -> None:
    """Raises RecipeError for a name, or a pattern, that leads out of a folder. Links may: the hub's cache has them."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or "://" in name or "::" in name:
        advice = "only files inside the data set's folder are read: copy it there, and give its path from there"
        raise RecipeError(f"the data set {shown(folder)} names {name!r}, which is outside of its folder", advice)


def _named(folder: Path) -> Iterator[str]:
    """Yield the names, or patterns, of files and folders that a data set gives to its splits."""
    from huggingface_hub.repocard import metadata_load
    from ruamel.yaml import YAML

    about, settings = folder / _ABOUT, folder / _SETTINGS
    try:
        known = [metadata_load(about)] if about.is_file() else []
        known += [YAML(typ="safe").load(settings)] if settings.is_file() else []
        configs = [config for each in known if each for config in each.get("configs") or ()]
        named = [(config.get("data_files"), config.get("data_dir")) for config in configs]
    except Exception as error:  # whatever a file may hold that others wrote
        raise RecipeError(f"cannot read the settings of {shown(folder)}: {reason(error)}") from error
    for values in named:
        for value in values:
            yield from _texts(value)


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


def _saved(folder: Path) -> Tables:
    """Return the files that save_to_disk wrote."""
    try:
        whole = folder / _SAVED[0]
        splits = json.loads(whole.read_text())["splits"] if whole.is_file() else ["train"]
        for split in splits:
            _check_inside(str(split), folder)
        parts = {str(split): tuple(_listed(folder / str(split) if whole.is_file() else folder)) for split in splits}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(
            f"{shown(folder)} is not what save_to_disk writes: {reason(error)}", "save it again"
        ) from error
    return Tables(root=folder, format="arrow", parts=parts)


def _listed(folder: Path) -> Iterator[Path]:
    for each in json.loads((folder / _SAVED[1]).read_text())["_data_files"]:
        file = folder / Path(each["filename"]).name
        if not file.is_file():
            raise RecipeError(f"there is no file {shown(file)}, which state.json names", "copy the folder whole")
        yield file


@contextmanager
def readable(file: Path) -> Iterator[None]:
    """Raises RecipeError for a file that the library cannot read."""
    try:
        yield
    except (EdgepackError, MemoryError):
        raise
    except Exception as error:  # each format fails in its own way
        cause = error.__cause__ or error
        raise RecipeError(
            f"{shown(file)} cannot be read: {reason(cause)}", "is it whole? fetch or write it again"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the library's messages and progress bars from the terminal."""
    logger = logging.getLogger("datasets")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


@cache
def library() -> Any:
    """Return the module datasets. Raises RecipeError if it is not installed."""
    if find_spec("datasets") is None:
        raise RecipeError(
            "the data set 'huggingface' needs the package datasets, which is not installed",
            install("huggingface-data"),
        )
    import datasets

    datasets.disable_progress_bars()
    return datasets
