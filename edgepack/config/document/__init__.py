"""Parse YAML into frozen pydantic values, or report all mistakes: file, line, key path, allowed values.

Knows nothing of edgepack's own nouns. A `Document` is read once and then asked for its parts:

    document = Document.read(Path("recipes/x.yaml"))
    recipe = document.check(RecipeFile, document.data)
    document.raise_problems()
"""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from edgepack.core.errors import RecipeError

KeyPath = tuple[str | int, ...]
_LONG_LIST = 20  # names; a longer list would hide the suggestion
ASIDE = "x-"  # top-level keys with this prefix only hold values that others merge
_MERGE = "tag:yaml.org,2002:merge"  # tag of a plain <<
_MAX_NODES = 10_000  # more is not a recipe but an attack on the reader (aliases of aliases)
Model = TypeVar("Model", bound=BaseModel)


class Nested(ValueError):
    """Raised by a validator that checks part of its value with another model, so that each mistake keeps its line."""

    def __init__(self, error: ValidationError, model: type[BaseModel], value: object, path: KeyPath) -> None:
        super().__init__(str(error))
        self.error, self.model, self.value, self.path = error, model, value, path


@dataclass(frozen=True)
class Problem:
    """One mistake: where it is and what to write instead."""

    file: str
    line: int
    path: str
    message: str

    def __str__(self) -> str:
        at = f"\n  at {self.path}" if self.path else ""
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"==> {place}{at}\n  {self.message}"


class ConfigError(RecipeError):
    """All mistakes of one file."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


def unknown(kind: str, name: object, known: Iterable[str], meant: str = "") -> str:
    """Return the message for an unknown name; `meant` is the right one if that is known.


    >>> unknown("stage", "prunne", ["prune", "distill"])
    "unknown stage 'prunne': did you mean 'prune'? (allowed: distill, prune)"
    """
    names = sorted(known)
    close = [meant] if meant else difflib.get_close_matches(str(name), names, n=1)
    hint = f": did you mean '{close[0]}'?" if close else ""
    if close and len(names) > _LONG_LIST:
        return f"unknown {kind} '{name}'{hint}"
    return f"unknown {kind} '{name}'{hint} (allowed: {', '.join(names) or 'none'})"


def show_path(path: KeyPath) -> str:
    """
    >>> show_path(("stages", 2, "prune", "ratio"))
    'stages[2].prune.ratio'
    """
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".")


@dataclass
class Document:
    """The plain data of one YAML file, the line of each key, and the problems found so far."""

    file: str
    data: Any
    lines: dict[KeyPath, int]
    problems: list[Problem] = field(default_factory=list)
    _elsewhere: dict[KeyPath, str] = field(default_factory=dict)  # values given by a command-line option

    @classmethod
    def read(cls, path: Path) -> "Document":
        """Raises ConfigError when the file cannot be read, is empty or is not YAML."""
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise _fatal(path, 0, f"the file is not UTF-8 text ({error.reason} at byte {error.start})") from None
        except OSError as error:
            raise _fatal(path, 0, f"cannot read the file: {error.strerror or error}") from None
        return cls.parse(text, path)

    @classmethod
    def parse(cls, text: str, path: Path) -> "Document":
        from ruamel.yaml import YAML
        from ruamel.yaml.error import YAMLError

        yaml = YAML(typ="safe", pure=True)
        document = cls(file=shown(path), data=None, lines={})
        try:
            root = yaml.compose(text)
            if root is None:
                raise _fatal(path, 0, "the file is empty")
            document.data = _Reader(document, yaml.constructor).read(root, ())
        except YAMLError as error:
            raise _fatal(path, _line(error, text), f"this is not valid YAML: {_reason(error)}") from None
        except RecursionError:
            raise _fatal(path, 0, "nested too deeply: this is not a recipe or device file") from None
        if not isinstance(document.data, dict):
            raise _fatal(path, 1, "expected a mapping (key: value) at the top of the file")
        document.data = {key: value for key, value in document.data.items() if not key.startswith(ASIDE)}
        return document

    def came_from(self, option: str, path: KeyPath) -> None:
        """Note that the value at `path`, with all below it, came from this command-line option."""
        self._elsewhere[path] = option
        self.lines = {known: line for known, line in self.lines.items() if known[: len(path)] != path}

    def where(self, path: KeyPath) -> tuple[str, int]:
        """Return the file and line of the nearest key above `path`, or the option that gave the value and 0."""
        while path and path not in self.lines and path not in self._elsewhere:
            path = path[:-1]
        return (self._elsewhere[path], 0) if path in self._elsewhere else (self.file, self.lines.get(path, 1))

    def place(self, path: KeyPath) -> str:
        file, line = self.where(path)
        return f"{file}:{line}" if line else file

    def problem(self, path: KeyPath, message: str) -> None:
        self.problems.append(Problem(*self.where(path), show_path(path), message))

    def check(self, model: type[Model], value: object, path: KeyPath = ()) -> Model | None:
        """Return `value` as a `model`, or None after noting each mistake."""
        try:
            return model.model_validate(value)
        except ValidationError as error:
            self.note(error, model, value, path)
            return None

    def note(self, error: ValidationError, model: type[BaseModel], value: object, path: KeyPath) -> None:
        """Note one problem for each place that `error` names."""
        seen: set[KeyPath] = set()
        # What a validator says of a value comes before what other members of a union say of its type.
        found = sorted(error.errors(), key=lambda detail: detail["type"] != "value_error")
        details = [(_without_union_tags(each["loc"], value, each["type"] == "missing"), each) for each in found]
        places = [loc for loc, _ in details]
        for loc, detail in details:
            if any(len(other) > len(loc) and other[: len(loc)] == loc for other in places):
                continue  # another member of a union knows better what is wrong
            inner = detail.get("ctx", {}).get("error")
            if isinstance(inner, Nested):
                self.note(inner.error, inner.model, inner.value, path + loc + inner.path)
            elif loc not in seen and not _is_echo(detail):
                self.problem(path + loc, _explain(detail, model, loc))
            seen.add(loc)

    def raise_problems(self) -> None:
        if self.problems:
            raise ConfigError(sorted(self.problems, key=lambda each: (each.file != self.file, each.file, each.line)))


class _Reader:
    """Turns YAML nodes into dicts, tuples and scalars, noting the line of every key."""

    def __init__(self, document: Document, constructor: Any) -> None:
        self.document = document
        self.constructor = constructor
        self.nodes = 0

    def read(self, node: Any, path: KeyPath) -> Any:
        from ruamel.yaml.nodes import MappingNode, SequenceNode

        self._count()
        self.document.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, MappingNode):
            return self._mapping(node, path)
        if isinstance(node, SequenceNode):
            return tuple(self.read(item, (*path, i)) for i, item in enumerate(node.value))
        try:
            return self.constructor.construct_object(node)
        except Exception:
            self.document.problem(path, f"cannot read the value {node.value!r} (tag {node.tag})")
            return None

    def _mapping(self, node: Any, path: KeyPath) -> dict[str, Any]:
        pairs = self._pairs(node, path)
        self.document.lines.update({(*path, key): line.start_mark.line + 1 for key, (line, _) in pairs.items()})
        return {key: self.read(value, (*path, key)) for key, (_, value) in pairs.items()}

    def _pairs(self, node: Any, path: KeyPath) -> dict[str, tuple[Any, Any]]:
        """Return the key and value nodes of a mapping: its own, then those that it merges (`<<: *base`)."""
        pairs: dict[str, tuple[Any, Any]] = {}
        lines: dict[str, int] = {}
        merged: list[Any] = []
        for key_node, value_node in node.value:
            key, line = key_node.value, key_node.start_mark.line + 1
            if not isinstance(key, str):
                self.document.problem(path, "a key must be plain text, not a list or mapping")
            elif key in lines:
                self.document.lines.setdefault((*path, key), lines[key])
                self.document.problem((*path, key), f"the key '{key}' is given twice (line {line} too)")
            elif key_node.tag == _MERGE:
                lines[key], merged = line, self._bases(value_node, path)
            else:
                lines[key], pairs[key] = line, (key_node, value_node)
        for base in merged:
            self._count()
            for key, pair in self._pairs(base, path).items():
                self._count()
                pairs.setdefault(key, pair)
        return pairs

    def _bases(self, node: Any, path: KeyPath) -> list[Any]:
        from ruamel.yaml.nodes import MappingNode, SequenceNode

        bases = node.value if isinstance(node, SequenceNode) else [node]
        if all(isinstance(base, MappingNode) for base in bases):
            return list(bases)
        self.document.lines.setdefault((*path, "<<"), node.start_mark.line + 1)
        self.document.problem((*path, "<<"), "expected a mapping to merge, as <<: *base, or a list of such")
        return []

    def _count(self) -> None:
        self.nodes += 1
        if self.nodes > _MAX_NODES:
            raise _fatal(
                Path(self.document.file), 0, f"more than {_MAX_NODES} values: this is not a recipe or device file"
            )


def read_value(text: str) -> Any:
    """Return the value of a YAML scalar, list or mapping from the command line (`--set seed=3`)."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        value = YAML(typ="safe", pure=True).load(text)
        return _tuples(value)
    except YAMLError as error:
        raise RecipeError(f"--set: cannot read the value {text!r}: {_reason(error)}") from None
    except RecursionError:
        raise RecipeError(f"--set: cannot read the value {text!r}: nested too deeply") from None


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _reason(error: Exception) -> str:
    """Return the YAML reader's error in one line."""
    problem, context = getattr(error, "problem", None), getattr(error, "context", None)
    if problem and problem.startswith("but "):  # this is the second half of a sentence that starts in the context
        return f"{context}, {problem}"
    return problem or context or str(error).splitlines()[0]


def _line(error: Exception, text: str) -> int:
    mark, position = getattr(error, "problem_mark", None), getattr(error, "position", None)
    if mark is not None:
        return int(mark.line) + 1
    return text.count("\n", 0, position) + 1 if isinstance(position, int) else 0


def shown(path: Path) -> str:
    """Return the path relative to the current folder if it lies below it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _fatal(path: Path, line: int, message: str) -> ConfigError:
    return ConfigError([Problem(shown(path), line, "", message)])


_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "string": "text",
    "bool": "true or false",
    "tuple": "a list",
    "list": "a list",
    "dict": "a mapping (key: value)",
    "model": "a mapping (key: value)",
}


def _is_echo(detail: ErrorDetails) -> bool:
    """Return whether a list is too short only because pydantic left out its wrong items, which are reported anyway."""
    return detail["type"] == "too_short" and len(detail["input"]) >= detail.get("ctx", {})["min_length"]


def _explain(detail: ErrorDetails, model: type[BaseModel], loc: KeyPath) -> str:
    """Return a pydantic error in words for people who write YAML."""
    kind, given, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        owner = _model_at(model, loc[:-1])
        renamed = getattr(owner, "RENAMED", {}).get(loc[-1], "")
        return unknown("key", loc[-1], owner.model_fields if owner else (), renamed)
    if kind == "missing":
        return f"the key '{loc[-1]}' is missing"
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        allowed = _literals(context["expected"])
        return f"expected {allowed[0]}, got {given!r}" if len(allowed) == 1 else unknown("value", given, allowed)
    base = kind.removesuffix("_type").removesuffix("_parsing")
    if base in _EXPECTED and base != kind:
        quotes = ": put it in quotes" if base == "string" and isinstance(given, int | float | date) else ""
        return f"expected {_EXPECTED[base]}, got {_show(given)}{quotes}"
    if kind in ("too_short", "too_long"):
        bound = f"at least {context['min_length']}" if kind == "too_short" else f"at most {context['max_length']}"
        return f"expected {bound} items, got {len(given)}"
    return f"{detail['msg'].removeprefix('Input ')}, got {_show(given)}"


def _show(value: object) -> str:
    if isinstance(value, dict | tuple):
        return "a mapping" if isinstance(value, dict) else "a list"
    return "nothing" if value is None else repr(value)


def _literals(expected: str) -> list[str]:
    return [part.strip().strip("'") for part in expected.replace(" or ", ",").split(",") if part.strip()]


def _without_union_tags(loc: tuple[str | int, ...], value: object, missing: bool) -> KeyPath:
    """Return the path without the names of union members that pydantic adds ("int", "literal['all']"); `missing` if it
    ends with a key that is not there.
    """
    path: list[str | int] = []
    for i, part in enumerate(loc):
        inside = isinstance(value, dict) or (isinstance(value, tuple) and isinstance(part, int) and part < len(value))
        if not inside:
            break
        path.append(part)
        if isinstance(value, dict):
            if part not in value and not (missing and i == len(loc) - 1):
                path.pop()  # the name of a member, whose keys follow
                continue
            value = value.get(part)
        elif isinstance(value, tuple) and isinstance(part, int):
            value = value[part]
    return tuple(path)


def _model_at(model: type[BaseModel], loc: KeyPath) -> type[BaseModel] | None:
    current: type[BaseModel] | None = model
    for part in loc:
        if isinstance(part, int):
            continue
        info = current.model_fields.get(part) if current else None
        current = _model_in(info.annotation) if info else None
    return current


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, UnionType, tuple):
        return next((found for part in get_args(annotation) if (found := _model_in(part))), None)
    return None
