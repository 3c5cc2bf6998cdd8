"""A user's own function, named in a recipe as "module:function": found without running it, and imported when needed.

    source("shop.data:load")            -> the file shop/data.py
    sources("shop.data:load")           -> that, and what of the user's code it imports
    libraries("shop.data:load")         -> {"pandas": "2.2.3"}: installed packages that these import
    named(["data/*.npz"])               -> {"data/a.npz": Path("data/a.npz"), ...}
    resolve("shop.data:load")           -> the function

The current folder is searched first, as `python -m` does. No code of the user runs before `resolve`.
"""

import ast
import json
import sys
from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from edgepack.config.document import unknown
from edgepack.config.user_code import imports
from edgepack.core.errors import RecipeError
from edgepack.core.process.libraries import declare_operators


def source(reference: str) -> Path:
    """Return the file of the module. Raises ValueError if there is none, or it is no Python source."""
    module = reference.partition(":")[0]
    place = imports.find(module)
    if place is None or place.file is None:
        expected = module.replace(".", "/")
        raise ValueError(f"there is no module '{module}': neither {expected}.py in this folder nor an installed one")
    if place.file.suffix != ".py":
        raise ValueError(f"the module '{module}' is not a Python file but {place.file.name}")
    return place.file


def sources(reference: str) -> tuple[Path, ...]:
    """Return the module's file, the rest of its package, and all of the user's files that these import, directly or
    not. A change in any of them may change the function's result. Imports of installed packages are not followed.
    """
    return imports.of(reference.partition(":")[0]).files


def libraries(reference: str) -> dict[str, str]:
    """Return the versions of installed packages that these files import."""
    return imports.of(reference.partition(":")[0]).libraries


def named(patterns: Iterable[str]) -> dict[str, Path]:
    """Return the files that match patterns such as "data/*.npz". Raises RecipeError for a pattern without a match."""
    found: dict[str, Path] = {}
    for pattern in patterns:
        here, inside = (Path("/"), pattern[1:]) if pattern.startswith("/") else (Path(), pattern)
        matches = [path for path in sorted(here.glob(inside or ".")) if path.is_file()]
        if not matches:
            raise RecipeError(f"no file matches {pattern!r}", "paths are relative to the folder that edgepack runs in")
        found |= {str(path): path for path in matches}
    return found


def resolve(reference: str) -> Callable[..., Any]:
    """Return the function. Raises RecipeError if its module does not load: that is no bug of edgepack."""
    module, _, name = reference.partition(":")
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, folder)
    declare_operators()  # a user's module may import torchvision
    try:
        found = getattr(import_module(module), name)
    except (Exception, SystemExit) as error:
        raise RecipeError(
            f"'{reference}' does not load: {type(error).__name__}: {error}", f"python -c 'import {module}' shows where"
        ) from error
    if not callable(found):
        raise RecipeError(f"'{reference}' is not a function but {type(found).__name__}")
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


def _as_json(args: dict[str, Any]) -> dict[str, Any]:
    """Convert arguments to what a saved recipe or candidate will have: lists, not tuples."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(args, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"arguments are numbers, texts, lists and mappings: {error}") from None
    return plain


Arguments = Annotated[dict[str, Any], AfterValidator(_as_json)]


def _found(patterns: tuple[str, ...]) -> tuple[str, ...]:
    try:
        named(patterns)
    except RecipeError as error:
        raise ValueError(str(error)) from None
    return patterns


Files = Annotated[tuple[str, ...], AfterValidator(_found)]  # patterns that each match a file


@cache
def _names(file: Path, _changed: int) -> frozenset[str]:
    """Return the names that a module defines at its top level; "*" means it may import names without listing them."""
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
