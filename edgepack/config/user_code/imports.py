"""Find the files that a user's module imports, without running any of them.

    of("shop.nets").files          # shop/__init__.py, shop/nets.py, ../common/blocks.py, ...
    of("shop.nets").libraries      # {"timm": "1.0.3"}: installed packages that it imports, or what it imports

A name is searched for as the interpreter would: from the current folder, `sys.path` with what PYTHONPATH and .pth files
add, and the hooks that packages installed in development mode have. Of what is installed only the version counts.
"""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import invalidate_caches
from importlib.machinery import BuiltinImporter, FrozenImporter, ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from edgepack.config.user_code.installed import is_installed, is_standard, version_of
from edgepack.config.user_code.statements import Import, Statements, read

_OURS = "edgepack"  # its version is part of every key
_IN_KEYS = ("edgepack", "torch")
_NO_CODE = ("__pycache__", "node_modules", "site-packages", "dist-packages")


@dataclass(frozen=True)
class Place:
    """Location of a module: its file, and for a package the folders with its modules."""

    file: Path | None
    folders: tuple[str, ...] = ()


@dataclass(frozen=True)
class Imports:
    files: tuple[Path, ...]
    libraries: dict[str, str]


def find(name: str) -> Place | None:
    """Return the place of a module. Runs neither its code nor that of its parent packages."""
    invalidate_caches()  # a folder that was listed before may contain the file by now
    return _Search(_path()).place(name)


def of(name: str) -> Imports:
    """Return all imports of a module, and the rest of its package, whose names may be built at run time."""
    invalidate_caches()
    first: list[str] = []
    last: list[str] = []
    while True:
        walk = _Walk([*first, *_path(), *last])
        walk.follow(name)
        new = [folder for folder in walk.first if folder not in first], [each for each in walk.last if each not in last]
        if not any(new):
            return walk.imports()
        first, last = [*new[0], *first], [*last, *new[1]]


def _path() -> list[str]:
    """Return the absolute search path; entries that are no folder or archive are names that import hooks know."""
    whole = ((entry, os.path.normpath(Path.cwd() / entry)) for entry in sys.path)
    return [str(Path.cwd()), *(there if Path(there).exists() else entry for entry, there in whole)]


class _Search:
    """Finds modules in these folders and caches each result."""

    def __init__(self, path: list[str]) -> None:
        self.path = path
        self.known: dict[str, Place | None] = {}

    def place(self, name: str) -> Place | None:
        if name not in self.known:
            self.known[name] = self._found(name)
        return self.known[name]

    def _found(self, name: str) -> Place | None:
        package, _, last = name.rpartition(".")
        around = self.place(package) if package else None
        if package and not (around and around.folders):
            return None
        spec = _spec(name, last, [*around.folders] if around else self.path, inside=bool(around))
        return _place(spec, name, self.path) if spec else None


def _spec(name: str, last: str, path: list[str], *, inside: bool) -> ModuleSpec | None:
    """Return what the interpreter's finders give. PathFinder gets the last part of the name only: else it would look
    for the parent package in sys.modules, where it is not.
    """
    own: list[Any] = [BuiltinImporter, FrozenImporter]  # last: a user's file may have the name of a built-in module
    for finder in [each for each in sys.meta_path if each not in own] + own:
        try:
            if finder is PathFinder:
                spec = PathFinder.find_spec(last, path)
            else:
                spec = finder.find_spec(name, path if inside else None, None)
        except Exception:  # a third-party hook may raise anything
            spec = None
        if spec is not None:
            return spec
    return None


def _place(spec: ModuleSpec, name: str, path: list[str]) -> Place:
    folders = [*(spec.submodule_search_locations or ())]
    file = Path(spec.origin) if spec.origin and (spec.has_location or not folders) else None
    if len(folders) == 1 and is_installed(Path(folders[0])) and Path(folders[0]).is_symlink():
        real = Path(folders[0]).resolve()  # installed in development mode, as flit does
        folders, file = [str(real)], real / file.name if file else None
    elif file and is_installed(file) and file.is_symlink():
        file = file.resolve()
    if file and folders and read(file).spread:
        folders += [str(each) for entry in path if (each := Path(entry, *name.split("."))).is_dir()]
    return Place(file, tuple(dict.fromkeys(folders)))


class _Walk(_Search):
    """Follows the imports of files. `first` and `last` are folders that these files add to the path."""

    def __init__(self, path: list[str]) -> None:
        super().__init__(path)
        self.files: dict[str, Path] = {}  # by module name
        self.libraries: dict[str, str] = {}
        self.first: list[str] = []
        self.last: list[str] = []
        self._todo: list[str] = []
        self._seen: set[str] = set()
        self._reached = True

    def imports(self) -> Imports:
        """Return the files ordered by module name, so that their location does not matter."""
        return Imports(tuple(dict.fromkeys(file for _, file in sorted(self.files.items()))), self.libraries)

    def follow(self, name: str) -> None:
        """Follow the imports first; then add the rest of the package by content only: it may never be imported, so what
        it imports need not be installed.
        """
        self._add(name)
        self._visit_all()
        self._reached = False
        self._add_all(name.partition(".")[0])
        self._visit_all()

    def _visit_all(self) -> None:
        while self._todo:
            self._visit(self._todo.pop())

    def _add(self, name: str) -> None:
        """Add a module and its parent packages, which are imported before it."""
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            if (module := ".".join(parts[:end])) not in self._seen:
                self._seen.add(module)
                self._todo.append(module)

    def _visit(self, name: str) -> None:
        place = self.place(name) if name.partition(".")[0] != _OURS else None
        if place is None or place.file is None:
            return
        if not place.file.is_file():  # in an archive, or built into Python
            archive = next((folder for folder in place.file.parents if folder.is_file()), None)
            if archive and not is_installed(archive):
                self.files[name] = archive
        elif self._is_own(place.file):
            self.files[name] = place.file
            if place.file.suffix == ".py":
                self._read(name, place, read(place.file))

    def _is_own(self, file: Path) -> bool:
        if not is_installed(file):
            return True
        if is_standard(file):
            return False
        library = version_of(file)
        if self._reached and library and library[0] not in _IN_KEYS:
            self.libraries.update([library])
        return library is None

    def _read(self, name: str, place: Place, found: Statements) -> None:
        package = name if place.folders else name.rpartition(".")[0]
        for each in found.imports:
            self._import(each, package)
        for each in found.packages:
            self._add_all(_absolute(each, package))
        if found.dynamic and package:
            self._add_all(package.partition(".")[0])
        self.first += found.first
        self.last += found.last

    def _import(self, each: Import, package: str) -> None:
        module = _absolute(each, package)
        if not module:
            return
        self._add(module)
        for name in each.names:
            for inner in self._modules(module) if name == "*" else (name,):
                self._add(f"{module}.{inner}")

    def _modules(self, package: str) -> Iterator[str]:
        """Yield the modules in a user's package: `from package import *` may import any of them."""
        place = self.place(package)
        for folder in place.folders if place else ():
            if not is_installed(Path(folder)):
                yield from (file.stem for file in sorted(Path(folder).glob("*.py")))
                yield from (file.parent.name for file in sorted(Path(folder).glob("*/__init__.py")))

    def _add_all(self, package: str) -> None:
        """Add every module of a user's package."""
        place = self.place(package) if package and package != _OURS else None
        for folder in place.folders if place else ():
            if not is_installed(Path(folder)):
                for file in _code(Path(folder)):
                    parts = file.relative_to(folder).with_suffix("").parts
                    self._add(".".join((package, *(part for part in parts if part != "__init__"))))


def _absolute(each: Import, package: str) -> str:
    """Return the full name of a module imported from within a package, or ""."""
    if not each.level:
        return each.module
    parts = package.split(".")
    around = parts[: len(parts) - each.level + 1] if package and each.level <= len(parts) else []
    return ".".join([*around, each.module] if each.module else around) if around else ""


def _code(folder: Path) -> Iterator[Path]:
    """Yield the Python files in a folder and below, except hidden ones."""
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _NO_CODE)
        yield from (Path(here, name) for name in sorted(files) if name.endswith(".py"))
