"""Which files of the project a user's function reads that no key covers: when those change, nothing is built again.

    with watched(covered) as unnamed:
        make()
    unnamed()            # "reads weights/init.npz, which is not named in `files`: when it changes, ...", or ""

What is opened by Python is seen; what a library opens in code of its own is not, as safetensors and OpenCV do.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import source_from_cache
from pathlib import Path
from typing import Any

import edgepack
from edgepack.libraries import is_installed
from edgepack.plugins import Choice

_PACKAGE = Path(edgepack.__file__).parent
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_watching: "list[_Opened]" = []


class _Opened:
    """The paths that were opened, absolute, each with whether it was named from the current folder."""

    def __init__(self) -> None:
        self.read: dict[str, bool] = {}
        self.written: set[str] = set()

    def note(self, path: str, flags: int) -> None:
        whole = os.path.normpath(os.path.join(os.getcwd(), path))  # noqa: PTH118, PTH109  (a Path costs ten times as much)
        if flags & _WRITES:
            self.written.add(whole)
        else:
            self.read.setdefault(whole, not os.path.isabs(path))  # noqa: PTH117


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _watching:
        with suppress(Exception):  # of a file that has no name, or none that is text
            path = os.fsdecode(arguments[0])
            for each in _watching:
                each.note(path, arguments[2])


@cache
def _install() -> None:
    """Once: nothing can take an audit hook away again."""
    sys.addaudithook(_hook)


@contextmanager
def watched(covered: Iterable[Path]) -> Iterator[Callable[[], str]]:
    """A function that tells what was read meanwhile besides the files in `covered`, which a key depends on."""
    _install()
    opened = _Opened()
    known = {path.resolve() for path in covered}
    folders = [Path.cwd(), *{path.parent for path in known if path.suffix == ".py"}]
    _watching.append(opened)
    try:
        yield lambda: _told(_unnamed(opened, known, folders))
    finally:
        _watching.remove(opened)


@contextmanager
def warned(choice: Choice, whose: str, warn: Callable[[str], None]) -> Iterator[None]:
    """Warn of what a plugin that runs a user's code reads meanwhile besides its `files`."""
    if not getattr(choice.module, "FOREIGN", False):
        yield
        return
    with watched(choice.module.files(choice.config)) as unnamed:
        yield
    if told := unnamed():
        warn(f"{whose} {told}")


def _unnamed(opened: _Opened, known: set[Path], folders: list[Path]) -> list[Path]:
    found = dict.fromkeys(
        file
        for path, relative in opened.read.items()
        if path not in opened.written
        and (file := _source(Path(path))).is_file()
        and file.resolve() not in known
        and _counts(file, folders, relative)
    )
    return [*found]


def _source(file: Path) -> Path:
    """Of compiled Python its source."""
    if file.suffix != ".pyc":
        return file
    try:
        return Path(source_from_cache(str(file)))
    except ValueError:
        return file


def _counts(file: Path, folders: list[Path], relative: bool) -> bool:
    """Whether it is one of the project's: not installed, nor hidden, nor what edgepack wrote.

    Of Python's sources all others are: what the key covers is left out before, so that it is told what was missed.
    """
    if file.suffix == ".py" and not (is_installed(file) or file.is_relative_to(_PACKAGE)):
        return True
    around = [folder for folder in folders if file.is_relative_to(folder)]
    if not around and not relative:
        return False
    inside = file.relative_to(around[0]).parts if around else file.parts[-2:]
    hidden = any(part.startswith(".") for part in inside)
    environment = Path(sys.prefix)
    foreign = file.is_relative_to(environment) and not any(environment in [each, *each.parents] for each in folders)
    ours = file.is_relative_to(_PACKAGE) or (bool(around) and inside[0] == "dist" and around[0] == folders[0])
    return not (hidden or foreign or ours or is_installed(file))


def _told(files: list[Path]) -> str:
    """
    >>> _told([Path("/data/a.npz")])
    'reads /data/a.npz, which is not named in `files`: when it changes, nothing is built again'
    """
    if not files:
        return ""
    here = Path.cwd()
    first = files[0].relative_to(here) if files[0].is_relative_to(here) else files[0]
    if len(files) == 1:
        return f"reads {first}, which is not named in `files`: when it changes, nothing is built again"
    return (
        f"reads {len(files)} files that are not named in `files`, as {first}: when they change, nothing is built again"
    )
