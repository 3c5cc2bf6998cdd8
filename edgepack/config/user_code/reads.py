"""Record what a user's function reads besides files in its key: when that changes, its result is out of date.

    with watched(covered) as read:
        make()
    read()               # ["weights/init.npz", "parts/", "$WIDTH"]: a file, the names in a folder, a variable
    now(read())          # {"weights/init.npz": "9f31c2...", ...}: digests of what these are now

The names are kept in the store by what the function is made of, and the next plan's keys hold what they are now.

Python tells what it opens, whoever asks; what libraries open in code of their own is seen of torch and safetensors, and
not of others, as OpenCV, nor of other processes: such files have to be named in a recipe's `files`.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, KeysView
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, wraps
from importlib import import_module
from importlib.util import source_from_cache
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import edgepack
from edgepack.config.user_code.installed import is_installed, is_standard
from edgepack.core.files import digest, digests
from edgepack.core.provenance import SECRET

_PACKAGE = Path(edgepack.__file__).parent
_SYSTEM = tuple(map(Path, ("/proc", "/sys", "/dev", "/usr/share/zoneinfo")))
_MADE_ANEW = os.O_WRONLY | os.O_TRUNC | os.O_EXCL  # files opened so are written anew: old content is not read
_LISTED = ("os.listdir", "os.scandir")
_OUTPUTS = ("dist", "__pycache__")
# Functions that read a file in native code, which no audit event reports.
_UNSEEN = (
    ("torch", "from_file"),
    ("torch.jit", "load"),
    ("torch.export", "load"),
    ("safetensors", "safe_open"),
)
_watching: "list[_Opened]" = []


class _Opened:
    """Absolute paths that were opened or listed, and names of environment variables, in the order of first use."""

    def __init__(self) -> None:
        self.read: dict[str, None] = {}
        self.listed: dict[str, None] = {}
        self.variables: dict[str, None] = {}
        self.written: set[str] = set()  # paths, and variables that were set

    def note(self, path: str, flags: int = os.O_RDONLY) -> None:
        if flags & _MADE_ANEW:
            self.written.add(_whole(path))
        else:
            self.read.setdefault(_whole(path))

    def names(self, known: set[Path]) -> list[str]:
        files = dict.fromkeys(_source(Path(path)) for path in self.read if path not in self.written)
        own = [file for file in files if file.resolve() not in known and _counts(file) and not _is_searched(file)]
        folders = [Path(path) for path in self.listed]
        listed = [f"{_name(folder)}/" for folder in folders if _counts(folder) and not _is_output(folder)]
        return [
            *map(_name, own),
            *listed,
            *(f"${name}" for name in self.variables if not (name in self.written or SECRET.search(name))),
        ]


def _whole(path: str) -> str:
    return os.path.normpath(os.path.join(os.getcwd(), path))  # noqa: PTH118, PTH109  (a Path costs ten times as much)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching:
        return
    with suppress(Exception):  # the file has no name, or one that is not text
        if event == "open":
            _note(arguments[0], arguments[2])
        elif event == "sqlite3.connect":
            _note(os.fsdecode(arguments[0]).removeprefix("file:").partition("?")[0])
        elif event in _LISTED and _is_input(folder := _whole(os.fsdecode(arguments[0] or ".")), sys._getframe(1)):
            for each in _watching:
                each.listed.setdefault(folder)


def _is_input(folder: str, frame: FrameType | None) -> bool:
    """Return whether a folder is listed as data, and not in search of modules and packages."""
    while frame and _is_standard(file := frame.f_code.co_filename):
        if "importlib" in file:
            return False
        frame = frame.f_back
    return folder not in map(_whole, sys.path) or bool(frame and _is_users(frame.f_code.co_filename))


@cache
def _is_standard(file: str) -> bool:
    return file.startswith("<frozen") or is_standard(Path(file))


def _note(path: Any, flags: int = os.O_RDONLY) -> None:
    name = os.fsdecode(path)
    for each in _watching:
        each.note(name, flags)


@cache
def _install() -> None:
    """Install the audit hook once: it can never be removed."""
    sys.addaudithook(_hook)


class _Variables(os._Environ[str]):
    """The environment, which notes the variables that a user's code reads by name."""

    def __init__(self, true: "os._Environ[str]") -> None:
        super().__init__(true._data, true.encodekey, true.decodekey, true.encodevalue, true.decodevalue)  # type: ignore[attr-defined]
        self._copied: set[str] = set()

    def __getitem__(self, key: str) -> str:
        if key in self._copied:  # dict(os.environ) reads the keys, and then each of them
            self._copied.discard(key)
        else:
            self._asked(key, sys._getframe(1))
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self._asked(key, sys._getframe(1))
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self._asked(key, sys._getframe(1))
        return super().__contains__(key)

    def __setitem__(self, key: str, value: str) -> None:
        for each in _watching:
            each.written.add(key)
        super().__setitem__(key, value)

    def keys(self) -> KeysView[str]:
        self._copied = {*self}
        return super().keys()

    def _asked(self, key: object, frame: FrameType | None) -> None:
        if frame and frame.f_code.co_name == "getenv":
            frame = frame.f_back
        if _watching and isinstance(key, str) and frame and _is_users(frame.f_code.co_filename):
            for each in _watching:
                each.variables.setdefault(key)


@cache
def _is_users(file: str) -> bool:
    path = Path(file)
    return path.is_file() and not (is_installed(path) or path.is_relative_to(_PACKAGE))


@contextmanager
def watched(covered: Iterable[Path]) -> Iterator[Callable[[], list[str]]]:
    """Record reads inside the block; gives a function that returns their names, without the files in `covered`."""
    _install()
    opened = _Opened()
    known = {path.resolve() for path in covered}
    with ExitStack() as stack:
        if not _watching:
            stack.enter_context(_replaced(os, "environ", _Variables(os.environ)))
            for module, name in _UNSEEN:
                if reader := getattr(import_module(module), name, None):
                    for where in _having(reader, name):  # transformers imports safe_open under its own name too
                        stack.enter_context(_replaced(where, name, _noting(reader)))
        _watching.append(opened)
        try:
            yield lambda: opened.names(known)
        finally:
            _watching.remove(opened)


def _having(value: object, name: str) -> list[ModuleType]:
    """Return the modules in which `name` refers to this value."""
    return [module for module in [*sys.modules.values()] if getattr(module, "__dict__", {}).get(name) is value]


@contextmanager
def _replaced(module: ModuleType, name: str, value: object) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def _noting(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function, wrapped to note its first argument if that is a path."""

    @wraps(function, updated=())
    def noting(*arguments: Any, **options: Any) -> Any:
        first = next(iter((*arguments, *options.values())), None)
        if isinstance(first, str | bytes | os.PathLike):
            _note(first)
        return function(*arguments, **options)

    return noting


def now(names: Iterable[str], of: str) -> dict[str, str]:
    """Return current digests by name, "" for what is missing; for `of`, see `digests`."""
    names = [*names]
    files = {name: Path(name) for name in names if Path(name).is_file()}
    found = digests(files, of=of) if files else {}
    return {name: found.get(name) or _digest(name) for name in names}


def _digest(name: str) -> str:
    if name.startswith("$"):
        value = os.environ.get(name[1:])
        return "" if value is None else digest(value)
    if not name.endswith("/"):
        return ""
    try:
        inside = sorted(each.name for each in Path(name).iterdir())
    except OSError:
        return ""
    return digest([each for each in inside if not each.startswith(".") and each not in _OUTPUTS])


def _name(path: Path) -> str:
    """Return the path relative to the current folder if possible, so that a store can move with its project."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _source(file: Path) -> Path:
    """Return the source file of compiled Python; other files unchanged."""
    if file.suffix != ".pyc":
        return file
    try:
        return Path(source_from_cache(str(file)))
    except ValueError:
        return file


def _counts(path: Path) -> bool:
    """Return whether a path may change on its own: installed packages have a version, which is part of the key."""
    fixed = is_installed(path) or path.is_relative_to(_PACKAGE)
    return not (fixed or any(path.is_relative_to(each) for each in _SYSTEM))


def _is_searched(file: Path) -> bool:
    """Return whether it is a folder or an entry of sys.path, and no file."""
    return not file.is_file() and (file.is_dir() or str(file) in map(_whole, sys.path))


def _is_output(folder: Path) -> bool:
    """Return whether builds or hidden tools write to this folder: its listing changes each time."""
    here = Path.cwd()
    inside = folder.relative_to(here).parts if folder.is_relative_to(here) else ()
    return any(part.startswith(".") or part in _OUTPUTS for part in inside)


def describe(names: list[str]) -> str:
    """
    >>> describe(["/data/a.npz"])
    'reads /data/a.npz, which is not named in `files`: when that changes, the next build makes it again'
    """
    if len(names) == 1:
        return f"reads {names[0]}, which is not named in `files`: when that changes, the next build makes it again"
    many = f"reads {len(names)} things that are not named in `files`, as {names[0]}"
    return f"{many}: when one changes, the next build makes it again"
