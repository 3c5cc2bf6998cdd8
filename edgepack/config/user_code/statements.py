"""Parse the imports of a Python file from its text, without running it.

read(Path("shop/nets.py")).imports     # (Import(level=1, module="blocks", names=("Block",)), ...)
"""

import ast
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_BY_NAME = {"import_module", "__import__", "find_spec", "run_module", "resolve_name"}  # functions given a module name
_LISTING = {"iter_modules", "walk_packages"}  # functions that find modules in folders
_SPREADING = {"extend_path", "declare_namespace"}  # functions that add folders to a package


@dataclass(frozen=True)
class Import:
    """`from ..blocks import Block` has the level 2, the module `blocks` and the names (`Block`,)."""

    level: int
    module: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Statements:
    """Imports found in a file. `packages` are those whose module name is built at run time:
    `import_module(f"zoo.{name}")`. `dynamic` means that some imports cannot be determined from the text, `spread` that
    the package has more folders; `first` and `last` are folders added to the start and the end of the search path.
    """

    imports: tuple[Import, ...] = ()
    packages: tuple[Import, ...] = ()
    dynamic: bool = False
    spread: bool = False
    first: tuple[str, ...] = ()
    last: tuple[str, ...] = ()


def read(file: Path) -> Statements:
    """Return the imports of a file; empty if it cannot be read or is not valid Python."""
    try:
        status = file.stat()
    except OSError:
        return Statements()
    return _read(file, status.st_mtime_ns, status.st_size)


@cache
def _read(file: Path, _changed: int, _size: int) -> Statements:
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, OSError, RecursionError):
        return Statements()
    nodes = [*ast.walk(tree)]
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    by_name = [node for node in calls if _called(node) in _BY_NAME and (node.args or node.keywords)]
    found = [_by_name(node) for node in by_name]
    written = _Folders(file, nodes)
    return Statements(
        imports=(*_statements(nodes), *(each for each, whole in found if each and whole)),
        packages=tuple(each for each, whole in found if each and not whole),
        dynamic=any(each is None for each, _ in found) or any(_called(node) in _LISTING for node in calls),
        spread=any(_called(node) in _SPREADING for node in calls),
        first=(*written.added(calls, "insert"), *written.assigned(nodes)),
        last=tuple(written.added(calls, "append", "extend", "addsitedir")),
    )


def _statements(nodes: list[ast.AST]) -> Iterator[Import]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (Import(0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield Import(node.level, node.module or "", tuple(alias.name for alias in node.names))


def _called(node: ast.Call) -> str:
    """Return the last part of the function's name: `import_module` of `importlib.import_module(...)`."""
    function = node.func
    return (
        function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""
    )


def _by_name(node: ast.Call) -> tuple[Import | None, bool]:
    """Return what a call imports, and whether that is the whole name or only its package; None if unknown.

    >>> _by_name(ast.parse("import_module(f'zoo.nets.{name}')", mode="eval").body)
    (Import(level=0, module='zoo.nets', names=()), False)
    """
    given = node.args[0] if node.args else node.keywords[0].value
    if isinstance(given, ast.Constant) and isinstance(given.value, str):
        return _dotted(given.value), True
    package = _beginning(given).rpartition(".")[0]
    return (_dotted(package), False) if package.strip(".") else (None, False)


def _dotted(name: str) -> Import:
    module = name.lstrip(".")
    return Import(len(name) - len(module), module)


def _beginning(node: ast.expr) -> str:
    """Return the constant beginning of a text that is built at run time, or ""."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr) and node.values:
        return _beginning(node.values[0])
    if isinstance(node, ast.BinOp):  # "zoo." + name, "zoo.%s" % name
        return _beginning(node.left).partition("%")[0]
    if isinstance(node, ast.Call) and _called(node) == "format" and isinstance(node.func, ast.Attribute):
        return _beginning(node.func.value).partition("{")[0]
    return ""


class _Folders:
    """Finds the folders that a file adds to `sys.path`, as far as its text shows them."""

    def __init__(self, file: Path, nodes: list[ast.AST]) -> None:
        self.file = file
        self.values = {
            target.id: node.value
            for node in nodes
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }

    def added(self, calls: list[ast.Call], *how: str) -> Iterator[str]:
        for node in calls:
            if _called(node) in how and node.args and _of_sys_path(node.func):
                given = node.args[-1]
                for item in given.elts if isinstance(given, ast.List | ast.Tuple) else [given]:
                    with suppress(ValueError, TypeError, IndexError, RecursionError):
                        yield str(self.value(item).resolve())

    def assigned(self, nodes: list[ast.AST]) -> Iterator[str]:
        """Yield the folders of `sys.path += [...]`, `sys.path[:0] = [...]` and `sys.path = [...] + sys.path`."""
        for node in nodes:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            if isinstance(node, ast.Assign | ast.AugAssign) and any(_is_sys_path(target) for target in targets):
                lists = [each for each in ast.walk(node.value) if isinstance(each, ast.List | ast.Tuple)]
                for item in (item for each in lists for item in each.elts):
                    with suppress(ValueError, TypeError, IndexError, RecursionError):
                        yield str(self.value(item).resolve())

    def value(self, node: ast.expr) -> Path:
        """Return the path that an expression gives. Raises ValueError if it must be run to know."""
        match node:
            case ast.Constant(value=str(text)):
                return Path(text)
            case ast.Name(id="__file__"):
                return self.file
            case ast.Name(id=name) if name in self.values:
                return self.value(self.values[name])
            case ast.Call():
                return self.result(node)
        return self.part(node)

    def part(self, node: ast.expr) -> Path:
        match node:
            case ast.Attribute(attr="pardir"):
                return Path("..")
            case ast.Attribute(attr="parent", value=inner):
                return self.value(inner).parent
            case ast.Subscript(value=ast.Attribute(attr="parents", value=inner), slice=ast.Constant(value=int(above))):
                return self.value(inner).parents[above]
            case ast.BinOp(left=left, op=ast.Div(), right=right):
                return self.value(left) / self.value(right)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return Path(f"{self.value(left)}{self.value(right)}")
        raise ValueError("its value cannot be determined")

    def result(self, node: ast.Call) -> Path:
        """Return the result of a function of os.path or a method of a path."""
        given = [self.value(each) for each in node.args]
        if isinstance(node.func, ast.Attribute) and _called(node) in _METHODS:
            given = [self.value(node.func.value), *given]
        act = _FUNCTIONS.get(_called(node))
        if act is None or (not given and act != Path.cwd):
            raise ValueError("its value cannot be determined")
        return act(*given)


_METHODS = ("resolve", "absolute", "joinpath", "as_posix")
_FUNCTIONS: dict[str, Callable[..., Path]] = {
    **dict.fromkeys(("getcwd", "cwd"), Path.cwd),
    **dict.fromkeys(("abspath", "realpath", "normpath", "resolve", "absolute"), Path.resolve),
    **dict.fromkeys(("join", "joinpath", "Path", "PurePath", "str", "fspath", "as_posix"), Path),
    "dirname": lambda path: path.parent,
    "expanduser": Path.expanduser,
}


def _is_sys_path(target: ast.expr | None) -> bool:
    """Return whether this is `sys.path`, or a slice of it."""
    if isinstance(target, ast.Subscript):
        target = target.value
    return isinstance(target, ast.Attribute) and target.attr == "path" and ast.unparse(target.value) == "sys"


def _of_sys_path(function: ast.expr) -> bool:
    """Return whether this is a method of `sys.path` (also imported under another name), or `site.addsitedir`."""
    if isinstance(function, ast.Name):
        return function.id == "addsitedir"
    owner = function.value if isinstance(function, ast.Attribute) else None
    name = owner.attr if isinstance(owner, ast.Attribute) else owner.id if isinstance(owner, ast.Name) else ""
    return name in ("path", "site")
