"""Read a folder with one subfolder per class, or one without classes, and report what is skipped.

Hidden files and folders, and what systems and programs leave behind, are no data. Links are followed; one that leads
nowhere is an error, for nobody knows how much is missing.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from edgepack.core.errors import RecipeError
from edgepack.core.signature.labels import doubts, flaw
from edgepack.data.partition import same_classes, unreadable

_PARTS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
# Created by macOS, Windows, network drives and Python; names that begin with a dot are hidden anyway.
_LITTER = {
    *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
    *("@eadir", "#recycle", "#snapshot", "lost+found", "__pycache__"),
}

POINTERS = ("version https://git-lfs.github.com/spec/", "/annex/objects/")  # how pointers to large files begin
NOT_FETCHED = "it is a pointer to a file that is not here: fetch it (git lfs pull, git annex get)"

Files = dict[str, tuple[Path, ...]]  # the files of each class


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of sample: its name, and which files contain one."""

    noun: str
    example: str  # a class with a file in it
    known: str  # the endings, as text for people
    accepts: Callable[[str], bool]  # takes a file's ending in lower case
    advice: Callable[[str], str] = lambda ending: ""  # what makes an ending readable


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The files by split and class, sorted, the folder of each split, and notes on what was left out."""

    parts: dict[str, Files]
    folders: dict[str, Path]
    notes: tuple[str, ...]


@dataclass
class _Seen:
    """Counts what a walk met besides the files that it returned."""

    left_out: Counter[str] = field(default_factory=Counter)  # by ending
    broken: list[Path] = field(default_factory=list)  # links
    again: int = 0  # links to folders that were read already
    loose: int = 0  # files in no class
    no_files: int = 0  # pipes, sockets, devices with a matching name


def listed(root: Path, kind: Kind) -> Listing:
    """Return the files of a folder. Raises RecipeError for the first problem."""
    with _readable(root):
        there = root.is_dir()
    if not there:
        raise RecipeError(f"there is no folder '{root}'", "name the folder that holds a folder for each class")
    seen = _Seen()
    names = {root: _folders(root, kind, seen)}
    _refuse_broken(seen)  # a broken link to a split or class would be misread
    folders = _part_folders(root, names[root])
    names |= {folder: _folders(folder, kind, seen) for folder in folders.values() if folder != root}
    found = {part: _classes(folder, names[folder], kind, seen) for part, folder in folders.items()}
    _refuse_broken(seen)
    for part, classes in found.items():
        same_classes(f"of {root}", part, found["train"], classes)
    beside = [name for name in names[root] if root / name not in folders.values()] if len(names) > 1 else []
    return Listing(
        parts=found,
        folders=folders,
        notes=(*_notes(kind, seen, beside), *_doubts(folders["train"], found["train"]), *doubts(found["train"])),
    )


def listed_without_classes(root: Path, kind: Kind) -> Listing:
    """Return the files of a folder, however deep they are, each split as one class without a name: those of its folders
    train, validation and test, or all as train. Raises RecipeError for the first problem.
    """
    with _readable(root):
        there = root.is_dir()
    if not there:
        raise RecipeError(f"there is no folder '{root}'", f"name the folder that holds the {kind.noun}s")
    beside, seen = _Seen(), _Seen()
    names = _folders(root, kind, beside)
    folders = _splits(root, names)
    found = {part: {"": _files(folder, kind, seen)} for part, folder in folders.items()}
    _refuse_broken(seen)
    if root in folders.values():
        return Listing(parts=found, folders=folders, notes=tuple(_notes(kind, seen, ())))
    others = [name for name in names if root / name not in folders.values()]
    loose = [f"{counted(beside.loose, kind.noun)} left out, next to the folders of the splits"] if beside.loose else []
    return Listing(parts=found, folders=folders, notes=(*_notes(kind, seen, others), *loose))


def _splits(root: Path, names: Sequence[str]) -> dict[str, Path]:
    present = {part: _called(aliases, names) for part, aliases in _PARTS.items()}
    if not any(present.values()):
        return {"train": root}
    _refuse_two(root, present)
    if not present["train"]:
        part = next(found[0] for found in present.values() if found)
        raise RecipeError(
            f"{root} holds a folder {part}, but none to train on", f"move the others into {root / 'train'}"
        )
    return {part: root / found[0] for part, found in present.items() if found}


def shown(path: Path | str) -> str:
    """Return the path as it is if a terminal can print it, else as a literal."""
    text = str(path)
    return text if text.isprintable() else repr(text)


def _refuse_broken(seen: _Seen) -> None:
    if seen.broken:
        links = [f"{shown(link)} -> {shown(link.readlink())}" for link in seen.broken]
        advice = "fetch or mount their targets (git annex get, dvc pull), or remove them"
        raise unreadable(links, "link", "are broken" if len(links) > 1 else "is broken", advice)


def counted(count: int, noun: str) -> str:
    """
    >>> counted(1, "link"), counted(2, "link")
    ('1 link is', '2 links are')
    """
    return f"1 {noun} is" if count == 1 else f"{count} {noun}s are"


def _part_folders(root: Path, names: Sequence[str]) -> dict[str, Path]:
    """Return the folder of each split: a folder `train` with subfolders means that splits exist; else all is train."""
    present = {part: _called(aliases, names) for part, aliases in _PARTS.items()}
    if not any(_subfolders(root / name) for name in present["train"]):
        _refuse_parts(root, names, [name for part in ("validation", "test") for name in present[part]])
        return {"train": root}
    _refuse_two(root, present)
    return {part: root / found[0] for part, found in present.items() if found}


def _refuse_two(root: Path, present: Mapping[str, Sequence[str]]) -> None:
    """Raises RecipeError where two folders may be the same split."""
    for part, found in present.items():
        if len(found) > 1:
            first, second = (root / name for name in found[:2])
            raise RecipeError(f"both {first} and {second} may be the {part} split", "keep one of them, or rename it")


def _called(aliases: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the names that are one of the aliases, ignoring case, in the order of the aliases."""
    return [name for alias in aliases for name in names if name.casefold() == alias]


def _refuse_parts(root: Path, names: Sequence[str], parts: Sequence[str]) -> None:
    """Raises RecipeError for split folders without a train folder, which would be taken for classes."""
    for part in parts:
        inside = _subfolders(root / part)
        if len(inside) > 1 and ({*inside} <= {*names} or {*names} == {*parts}):
            raise RecipeError(
                f"{root / part} holds folders of classes, as a split does, but {root} has no folder train with them",
                f"move the classes to train on into {root / 'train'}",
            )


def _classes(folder: Path, names: Sequence[str], kind: Kind, seen: _Seen) -> Files:
    if not names:
        raise RecipeError(
            f"{folder} holds no folders: each class needs one with its {kind.noun}s",
            f"for example {folder}/{kind.example}",
        )
    for name in names:
        if why := flaw(name):
            raise RecipeError(f"the folder {str(folder / name)!r} is not a valid label: {why}", "rename it")
    if len(names) == 1:
        inside = folder / names[0]
        raise RecipeError(
            f"{folder} holds one class only, {names[0]!r}: a classifier needs at least two",
            f"if the classes are in it, name the folder {inside}" if len(_subfolders(inside)) > 1 else "",
        )
    return {name: _files(folder / name, kind, seen) for name in names}


def _files(folder: Path, kind: Kind, seen: _Seen) -> tuple[Path, ...]:
    before, broken = seen.left_out.copy(), len(seen.broken)
    above = (*folder.resolve().parents, *folder.absolute().parents)  # they differ if the class itself is a link
    files = tuple(sorted(_walked(folder, kind, seen, {*map(_identity, above)})))
    if not files and len(seen.broken) == broken:
        others = seen.left_out - before
        there = f", but {_endings(kind, others)}" if others else ""
        raise RecipeError(f"there is no {kind.noun} in {folder}{there}", f"known are {kind.known}")
    return files


def _walked(folder: Path, kind: Kind, seen: _Seen, been: set[tuple[int, int]]) -> Iterator[Path]:
    """Yield every file of the kind below a folder. Link targets are read once; links to a parent folder are skipped."""
    if (here := _identity(folder)) in been:
        seen.again += 1
        return
    been.add(here)
    for entry in _entries(folder):
        ending = _ending(entry.name)
        if _is_folder(entry):
            yield from _walked(folder / entry.name, kind, seen, been)
        elif _is_broken(entry, kind):
            seen.broken.append(folder / entry.name)
        elif kind.accepts(ending) and entry.is_file():
            yield folder / entry.name
        elif kind.accepts(ending):
            seen.no_files += 1
        else:
            seen.left_out[ending] += 1


def _folders(folder: Path, kind: Kind, seen: _Seen) -> list[str]:
    """Return the folders for classes or splits; files of the kind next to them are counted: they have no class."""
    names = []
    for entry in _entries(folder):
        if _is_folder(entry):
            names.append(entry.name)
        elif _is_broken(entry, kind):
            seen.broken.append(folder / entry.name)
        else:
            seen.loose += kind.accepts(_ending(entry.name))
    return names


def _subfolders(folder: Path) -> list[str]:
    return [entry.name for entry in _entries(folder) if _is_folder(entry)]


def _entries(folder: Path) -> list["os.DirEntry[str]"]:
    """Return the entries of a folder, sorted, without hidden ones. Raises RecipeError if it cannot be read."""
    with _readable(folder), os.scandir(folder) as entries:
        there = [entry for entry in entries if not _is_hidden(entry.name)]
    return sorted(there, key=lambda entry: entry.name)


@contextmanager
def _readable(path: Path | str) -> Iterator[None]:
    """Raises RecipeError if a path, or the target of its link, cannot be read inside the block."""
    try:
        yield
    except OSError as error:
        raise RecipeError(f"cannot read {shown(path)}: {error.strerror}") from error


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _LITTER


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """Return whether it is a folder; only links need a disk access, since there may be a million files."""
    if not entry.is_symlink():
        return entry.is_dir(follow_symlinks=False)
    with _readable(entry.path):
        return Path(entry.path).is_dir()


def _is_broken(entry: "os.DirEntry[str]", kind: Kind) -> bool:
    """Return whether it is a broken link whose name could be that of a folder or of a file of the kind."""
    if not entry.is_symlink():
        return False
    with _readable(entry.path):
        if Path(entry.path).exists():
            return False
    ending = _ending(entry.name)
    return not ending or kind.accepts(ending)


def _identity(folder: Path) -> tuple[int, int]:
    """Return an identity that is the same for all links to a folder."""
    with _readable(folder):
        status = folder.stat()
    return status.st_dev, status.st_ino


def _ending(name: str) -> str:
    stem, _, ending = name.rpartition(".")  # like Path.suffix, but faster
    return f".{ending.lower()}" if stem and ending else ""


def _notes(kind: Kind, seen: _Seen, beside: Sequence[str]) -> Iterator[str]:
    if count := seen.left_out.total():
        yield f"{counted(count, 'file')} left out by ending: {_endings(kind, seen.left_out)}"
    if seen.no_files:
        yield f"{counted(seen.no_files, 'thing')} left out: named like a {kind.noun}, but not a file (a pipe, a socket)"
    if seen.loose:
        yield f"{counted(seen.loose, kind.noun)} left out: not in the folder of a class"
    if seen.again:
        yield f"{counted(seen.again, 'link')} not followed: the target is already read"
    if beside:
        yield f"{counted(len(beside), 'folder')} left out, next to those of the splits: {', '.join(map(shown, beside))}"


def _endings(kind: Kind, endings: Counter[str]) -> str:
    """Return endings with their counts: ".heic 12 (needs pillow-heif), .txt 3, without an ending 1"."""
    sorted_ = sorted(endings.items(), key=lambda item: (-item[1], item[0]))
    entries = ((ending, count, kind.advice(ending)) for ending, count in sorted_)
    return ", ".join(
        f"{shown(ending) or 'without an ending'} {count}{f' ({advice})' if advice else ''}"
        for ending, count, advice in entries
    )


def _doubts(folder: Path, classes: Files) -> Iterator[str]:
    """Yield a warning if all classes hold the same subfolders: they may be splits with unknown names."""
    direct = len(folder.parts) + 2
    if any(len(file.parts) == direct for files in classes.values() for file in files):
        return
    inside = {tuple(_subfolders(folder / name)) for name in classes}
    same = next(iter(inside)) if len(inside) == 1 else ()
    if len(same) > 1:
        reason = f"each class holds the same folders, {', '.join(map(shown, same))}"
        yield f"{reason}: if those are the classes, rename the folders above them to train, validation and test"
