"""The layout of the package: which folder may import which, no file in a circle, no folder or file too large to survey.

Imports inside functions and for type checkers count as well: they are dependencies of those who read the code.
"""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from factories import PROJECT

from edgepack.config.plugins import FOLDERS

PACKAGE = PROJECT / "edgepack"
# Each folder with those it stands on directly; it may import these, and all that they stand on.
STANDS_ON = {
    "core": (),
    "config": ("core",),
    "records": ("config",),
    "data": ("config",),
    "models": ("data",),
    "compress": ("models", "records"),
    "export": ("models", "records"),
    "measure": ("compress", "export"),
    "judge": ("records",),
    "deliver": ("records",),
    "workflows": ("measure", "judge", "deliver"),
    "cli": ("workflows",),
}
LARGEST_FOLDER, LONGEST_FILE = 12, 400  # entries, lines


def _modules() -> dict[str, Path]:
    files = {file.relative_to(PROJECT).with_suffix(""): file for file in PACKAGE.rglob("*.py")}
    return {".".join(name.parts).removesuffix(".__init__"): file for name, file in files.items()}


def _imported(file: Path, known: dict[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in known else str(node.module) for name in names)


MODULES = _modules()


@cache  # not while tests are collected, which each process does, but by the first test that asks
def _imports() -> dict[str, set[str]]:
    """What each module imports of the others; not the package itself, which holds the public names and the version."""
    return {name: {*_imported(file, MODULES)} - {name, "edgepack"} for name, file in MODULES.items() if "." in name}


def _allowed(folder: str) -> set[str]:
    return {folder}.union(*(_allowed(below) for below in STANDS_ON[folder]))


def _folder(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("folder", STANDS_ON)
def test_a_folder_imports_only_what_it_stands_on(folder: str) -> None:
    upwards = [
        f"{name} imports {other}"
        for name, others in _imports().items()
        for other in sorted(others)
        if _folder(name) == folder and _folder(other) not in _allowed(folder)
    ]
    assert upwards == []


def test_no_files_import_each_other_in_a_circle() -> None:
    try:
        TopologicalSorter(_imports()).prepare()
    except CycleError as circle:
        pytest.fail(" -> ".join(circle.args[1]))


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_plugin_imports_no_other_of_its_kind(kind: str) -> None:
    folder = f"edgepack.{FOLDERS[kind].replace('/', '.')}."

    def plugin(module: str) -> str:
        name = module.removeprefix(folder).partition(".")[0]
        return name if module.startswith(folder) and not name.startswith("_") else ""

    crossing = [
        f"{name} imports {other}"
        for name, others in _imports().items()
        for other in others
        if plugin(name) and plugin(other) and plugin(name) != plugin(other)
    ]
    assert crossing == []


def test_the_root_holds_folders_and_nothing_else() -> None:
    inside = {each.name for each in PACKAGE.iterdir()} - {"__pycache__"}
    assert inside == {*STANDS_ON, "__init__.py", "__main__.py"}


def test_no_folder_and_no_file_is_too_large_to_survey() -> None:
    folders = [PACKAGE, *(each for each in PACKAGE.rglob("*") if each.is_dir() and each.name != "__pycache__")]
    inside = {folder: {each.name for each in folder.iterdir()} - {"__pycache__"} for folder in folders[1:]}
    plugins = {PACKAGE / folder for folder in FOLDERS.values()}  # lists, which grow with what edgepack can do
    large = [folder for folder, entries in inside.items() if len(entries) > LARGEST_FOLDER and folder not in plugins]
    assert [*map(str, large)] == []
    lines = {name: file.read_text(encoding="utf-8").count("\n") for name, file in MODULES.items()}
    assert [name for name, count in lines.items() if count > LONGEST_FILE] == []
