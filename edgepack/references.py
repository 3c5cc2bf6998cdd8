"""A user's own function, named in a recipe as "module:function": found without running it, and imported when needed.

    source("shop.data:load")            -> the file shop/data.py
    sources("shop.data:load")           -> that, and what of the user's code it imports
    resolve("shop.data:load")           -> the function

The current folder is searched first, as `python -m` does. No code of the user runs before `resolve`.
"""

import ast
import importlib.util
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module, invalidate_caches
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from edgepack.config import unknown
from edgepack.errors import RecipeError


def source(reference: str) -> Path:
    """The file of the module. Raises ValueError when there is none, or it is no Python source."""
    module = reference.partition(":")[0]
    top, *rest = module.split(".")
    invalidate_caches()  # a folder that was listed before may hold the file by now
    spec = PathFinder.find_spec(top, [str(Path.cwd()), *sys.path]) or _installed(top)
    # Submodules are looked up as files: to ask the import system for a.b would run the code of a.
    found = _below([Path(folder) for folder in spec.submodule_search_locations or ()], rest) if spec and rest else None
    if spec and not rest and spec.origin:
        found = Path(spec.origin)
    if found is None:
        expected = "/".join((top, *rest))
        raise ValueError(f"there is no module '{module}': neither {expected}.py in this folder nor an installed one")
    if found.suffix != ".py":
        raise ValueError(f"the module '{module}' is no Python file, but {found.name}")
    return found


def sources(reference: str) -> tuple[Path, ...]:
    """The module's file, the rest of its package, and what of this folder these import, and so on: a change in any of
    them may change what the function gives. Installed libraries that it imports are not followed.
    """
    own = source(reference)
    found, todo, seen = {own}, [reference.partition(":")[0].partition(".")[0]], set()
    if not own.is_relative_to(Path.cwd()):
        found.update(file for folder in own.parents if folder.name == todo[0] for file in folder.rglob("*.py"))
    while todo:
        top = todo.pop()
        if top in seen:
            continue
        seen.add(top)
        files = [*Path.cwd().glob(f"{top}.py"), *Path.cwd().glob(f"{top}/**/*.py")]
        found.update(files)
        todo += [name for file in files for name in _imported(file)]
    return tuple(sorted(found))


def _imported(file: Path) -> set[str]:
    """The top names of the modules that a file imports; none where it is no valid Python."""
    try:
        nodes = [*ast.walk(ast.parse(file.read_bytes()))]
    except (SyntaxError, ValueError):
        return set()
    whole = {alias.name.partition(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    parts = {node.module.partition(".")[0] for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return whole | parts


def resolve(reference: str) -> Callable[..., Any]:
    """The function itself. Raises RecipeError when its module does not load: a user's mistake is no bug of edgepack."""
    module, _, name = reference.partition(":")
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, folder)
    try:
        found = getattr(import_module(module), name)
    except (Exception, SystemExit) as error:
        raise RecipeError(
            f"'{reference}' does not load: {type(error).__name__}: {error}", f"python -c 'import {module}' shows where"
        ) from error
    if not callable(found):
        raise RecipeError(f"'{reference}' is no function, but {type(found).__name__}")
    function: Callable[..., Any] = found
    return function


def _exists(reference: str) -> str:
    module, _, name = reference.partition(":")
    if not name.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise ValueError(f'expected "module:function", for example "shop.data:load", got {reference!r}')
    file = source(reference)
    names = _names(file, file.stat().st_mtime_ns)
    if name not in names and not {"*", "__getattr__"} & names:
        public = [known for known in names if not known.startswith("_")]
        raise ValueError(unknown(f"function of {module}", name, public))
    return reference


Reference = Annotated[str, AfterValidator(_exists)]


def _installed(top: str) -> ModuleSpec | None:
    """A module that only an import hook knows, as editable installs have them."""
    try:
        return importlib.util.find_spec(top)
    except ValueError:  # a module without a spec, such as __main__
        return None


def _below(folders: list[Path], parts: list[str]) -> Path | None:
    *packages, last = parts
    places = [folder.joinpath(*packages) for folder in folders]
    files = [file for place in places for file in (place / last / "__init__.py", place / f"{last}.py")]
    return next((file for file in files if file.is_file()), None)


@cache
def _names(file: Path, _changed: int) -> frozenset[str]:
    """What a module defines at its top level; "*" stands for what it may import without naming it."""
    try:
        return frozenset(_defined(ast.parse(file.read_bytes(), str(file))))
    except SyntaxError as error:
        raise ValueError(f"{file.name} is not valid Python: {error.msg} (line {error.lineno})") from None


def _defined(node: ast.AST) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name.partition(".")[0] for alias in node.names}
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return {node.id}
    return {name for child in ast.iter_child_nodes(node) for name in _defined(child)}
