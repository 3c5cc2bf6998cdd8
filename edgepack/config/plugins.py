"""A plugin is a module; its file name is its name in a recipe. There is no list to edit.

`load("stages", "prune")` imports `edgepack.compress.stages.prune`, a module, or a package whose helpers live inside it;
or what another installed package publishes under the entry point group `edgepack.stages`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from edgepack.config.document import KeyPath, Nested, unknown
from edgepack.core.errors import RecipeError

# Where the shipped ones of each kind stand, from the package.
FOLDERS = {
    "tasks": "data/tasks",
    "models": "models/sources",
    "datasets": "data/datasets",
    "stages": "compress/stages",
    "exporters": "export/formats",
    "runners": "measure/runners",
    "reports": "deliver/reports",
}
KINDS = tuple(FOLDERS)
_PACKAGE = Path(__file__).parent.parent


def names(kind: str) -> tuple[str, ...]:
    """Every plugin of a kind, shipped or installed, sorted."""
    return tuple(sorted({*_shipped(kind), *_installed(kind)}))


@cache
def load(kind: str, name: str) -> ModuleType:
    """The plugin's module. Raises RecipeError naming the closest plugin when there is none of that name."""
    if name in _shipped(kind):
        return _checked(kind, name, lambda: import_module(f"edgepack.{FOLDERS[kind].replace('/', '.')}.{name}"))
    if name in _installed(kind):
        return _checked(kind, name, _installed(kind)[name].load)
    raise RecipeError(unknown(_singular(kind), name, names(kind)))


# What a module must define to be a plugin of its kind; see each package's own page for what they mean.
_CONTRACTS = {
    "tasks": ("METRIC", "loss", "distill", "score", "decide"),
    "models": ("Config", "trained", "misfit", "build"),
    "datasets": ("Config", "describe", "fingerprint", "load"),
    "stages": ("TAKES", "GIVES", "VERSION", "Config", "run"),
    "exporters": ("RUNTIME", "SUFFIX", "VERSION", "Config", "export"),
    "runners": ("Config", "EVIDENCE", "NEAR", "connect"),
    "reports": (),
}


def _checked(kind: str, name: str, get: Callable[[], ModuleType]) -> ModuleType:
    """The module, or what is wrong with it: a mistake in somebody's plugin is not a bug in edgepack."""
    what = f"the {_singular(kind)} '{name}'"
    try:
        module = get()
    except (Exception, SystemExit) as error:
        where = f" ({error.filename}:{error.lineno})" if isinstance(error, SyntaxError) else ""
        raise RecipeError(
            f"{what} does not load: {type(error).__name__}: {error}{where}", "mend or remove it"
        ) from error
    if missing := [part for part in _CONTRACTS[kind] if not hasattr(module, part)]:
        message = f"{what} must define {', '.join(_CONTRACTS[kind])}: {', '.join(missing)} missing"
        raise RecipeError(message, f"{module.__file__}")
    return module


@cache
def _shipped(kind: str) -> frozenset[str]:
    folder = _PACKAGE / FOLDERS[kind]
    modules = [*folder.glob("*.py"), *(file.parent for file in folder.glob("*/__init__.py"))]
    return frozenset(each.stem for each in modules if not each.stem.startswith("_"))


@cache
def _installed(kind: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"edgepack.{kind}")}


def _singular(kind: str) -> str:
    return {"datasets": "data set"}.get(kind, kind.removesuffix("s"))


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A plugin and its checked configuration, as a recipe or device file names them.

    >>> choose("datasets", {"digits": {"size": 32}}).config.size
    32
    """

    kind: str
    name: str
    config: BaseModel

    @property
    def module(self) -> ModuleType:
        return load(self.kind, self.name)

    def plain(self) -> dict[str, Any]:
        """The configuration with every default, as JSON values: what keys are made of and resolved recipes show."""
        return self.config.model_dump(mode="json")


def choose(kind: str, value: object) -> Choice:
    """The plugin that `value` names: `name`, `{name: {key: value}}`, or for a model `{name: main value, key: value}`.

    Raises ValueError for an unknown plugin, and `Nested` for mistakes in its configuration.
    """
    name = name_of(kind, value)
    module = load(kind, name)
    inside: KeyPath = ()
    config: object = value
    if kind != "models":
        config, inside = (value[name] or {}, (name,)) if isinstance(value, dict) else ({}, ())
    try:
        return Choice(kind=kind, name=name, config=module.Config.model_validate(config))
    except ValidationError as error:
        raise Nested(error, module.Config, config, inside) from None


def name_of(kind: str, value: object) -> str:
    """The plugin that `value` names, whether its settings are right or not. Raises ValueError when there is none."""
    if isinstance(value, str) and kind != "models":
        keys: tuple[str, ...] = (value,)
    elif isinstance(value, dict) and value and (kind == "models" or len(value) == 1):
        keys = tuple(str(key) for key in value)
    else:
        raise ValueError(f"expected one {_singular(kind)} with its settings, one of: {', '.join(names(kind))}")
    found = [key for key in keys if key in _shipped(kind) or key in _installed(kind)]
    if not found:
        raise ValueError(unknown(_singular(kind), keys[0], names(kind)))
    if len(found) > 1:
        raise ValueError(f"one {_singular(kind)} only, got {' and '.join(found)}")
    return found[0]


def summary(module: ModuleType) -> str:
    """The first line of a plugin's docstring: what it does."""
    return (module.__doc__ or "").strip().splitlines()[0] if module.__doc__ else ""


def settings(module: ModuleType) -> list[tuple[str, str]]:
    """Each setting of a plugin with its default and what it means, for `edgepack stages`."""
    return [(name, _setting(field)) for name, field in module.Config.model_fields.items()]


def _setting(field: FieldInfo) -> str:
    if field.is_required():
        default = "required"
    elif isinstance(field.default, BaseModel):
        default = f"default {field.default.model_dump(mode='json')}"
    else:
        default = f"default {field.default}"
    return f"{field.description}; {default}" if field.description else default
