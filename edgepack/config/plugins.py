"""A plugin is a module; its file name is its name in a recipe. There is no list to edit.

`load("stages", "prune")` imports `edgepack.compress.stages.prune`, a module, or a package whose helpers live inside it;
or what another installed package publishes under the entry point group `edgepack.stages`.

What a plugin must define, and the default of all that it may, stands in the contract.py of its kind: the class `Stage`
of compress/contract.py. A plugin that was loaded has everything that is named there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from inspect import get_annotations, isfunction
from pathlib import Path
from types import MethodType, ModuleType
from typing import Any, get_args

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core.core_schema import CoreSchema, no_info_after_validator_function

from edgepack.config.document import KeyPath, Nested, unknown
from edgepack.core.errors import RecipeError

# Folders of the shipped plugins of each kind, relative to the package.
FOLDERS = {
    "tasks": "data/tasks",
    "models": "models/sources",
    "datasets": "data/datasets",
    "stages": "compress/stages",
    "importances": "compress/stages/prune/importances",
    "quantizers": "compress/stages/quantize/quantizers",
    "exporters": "export/formats",
    "backends": "export/formats/executorch/backends",
    "runners": "measure/runners",
    "reports": "deliver/reports",
    "trackers": "deliver/trackers",
}
KINDS = tuple(FOLDERS)
# Class in the contract.py of each kind; the nearest contract.py above its folder counts.
_CONTRACTS = {
    "tasks": "TaskPlugin",
    "models": "ModelSource",
    "datasets": "Dataset",
    "stages": "Stage",
    "importances": "Importance",
    "quantizers": "Quantizer",
    "exporters": "Exporter",
    "backends": "Backend",
    "runners": "Runner",
    "reports": "Report",
    "trackers": "Tracker",
}
_BESIDE = ("models", "tasks")  # kinds with plugins whose settings stand beside their name
DEFAULT_QUANTIZER = "xnnpack"  # for files whose exporter names no other
_PACKAGE = Path(__file__).parent.parent


def names(kind: str) -> tuple[str, ...]:
    """Return the names of all plugins of a kind, shipped or installed, sorted."""
    return tuple(sorted({*_shipped(kind), *_installed(kind)}))


@cache
def load(kind: str, name: str) -> ModuleType:
    """Return the plugin's module, completed with the defaults of everything that it leaves out.

    Raises RecipeError that names the closest plugin if none has this name, or says what is wrong with a plugin that
    does not load or lacks required parts: a mistake in a user's plugin is not a bug in edgepack.
    """
    if name in _shipped(kind):
        module = _imported(kind, name, lambda: import_module(f"edgepack.{FOLDERS[kind].replace('/', '.')}.{name}"))
    elif name in _installed(kind):
        module = _imported(kind, name, _installed(kind)[name].load)
    else:
        raise RecipeError(unknown(_singular(kind), name, names(kind)))
    asked = contract(kind)
    _check(kind, name, module, asked)
    for part, default in asked.defaults.items():
        if not hasattr(module, part):
            # The plugin is passed as `self`: by default an exporter's `suffix` returns its own SUFFIX.
            setattr(module, part, MethodType(default, module) if part in asked.functions else default)
    return module


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What modules of one kind must define, and the defaults of the optional parts, as stated in the class `page`.

    `functions` are the callable parts of both; `config` is the base class of their Config, if they have one.
    """

    page: type
    required: tuple[str, ...]
    defaults: dict[str, Any]
    functions: tuple[str, ...]
    config: type[BaseModel] | None


@cache
def contract(kind: str) -> Contract:
    """Return the contract of a kind, read from its class: parts that are abstract or only annotated are required.

    >>> contract("exporters").defaults["LIBRARIES"]
    ()
    """
    # Imported by name, since its folder is above this one.
    folder = next(each for each in Path(FOLDERS[kind]).parents if (_PACKAGE / each / "contract.py").exists())
    page = getattr(import_module(".".join(("edgepack", *folder.parts, "contract"))), _CONTRACTS[kind])
    types, values = get_annotations(page), vars(page)
    parts = [part for part in {**types, **values} if not part.startswith("_")]
    required = tuple(part for part in parts if part not in values or part in page.__abstractmethods__)
    return Contract(
        page=page,
        required=required,
        defaults={part: values[part] for part in parts if part not in required},
        functions=tuple(part for part in parts if isfunction(values.get(part))),
        config=get_args(types["Config"])[0] if "Config" in types else None,
    )


def _imported(kind: str, name: str, get: Callable[[], ModuleType]) -> ModuleType:
    try:
        return get()
    except (Exception, SystemExit) as error:
        where = f" ({error.filename}:{error.lineno})" if isinstance(error, SyntaxError) else ""
        raise RecipeError(
            f"the {_singular(kind)} '{name}' does not load: {type(error).__name__}: {error}{where}", "fix or remove it"
        ) from error


def _check(kind: str, name: str, module: ModuleType, asked: Contract) -> None:
    what = f"the {_singular(kind)} '{name}'"
    if missing := [part for part in asked.required if not hasattr(module, part)]:
        message = f"{what} must define {', '.join(asked.required)}: {', '.join(missing)} missing"
        raise RecipeError(message, f"{module.__file__}")
    if odd := [part for part in asked.functions if hasattr(module, part) and not callable(getattr(module, part))]:
        raise RecipeError(f"{what} must define these as functions: {', '.join(odd)}", f"{module.__file__}")
    if asked.config and not (isinstance(module.Config, type) and issubclass(module.Config, asked.config)):
        base = f"{asked.config.__module__}.{asked.config.__qualname__}"
        raise RecipeError(f"{what}: Config must be a subclass of {base}", f"{module.__file__}")


@cache
def _shipped(kind: str) -> frozenset[str]:
    folder = _PACKAGE / FOLDERS[kind]
    modules = [*folder.glob("*.py"), *(file.parent for file in folder.glob("*/__init__.py"))]
    return frozenset(each.stem for each in modules if not each.stem.startswith("_"))


@cache
def _installed(kind: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in _entry_points().select(group=f"edgepack.{kind}")}


@cache
def _entry_points() -> Any:
    """Return those of all installed packages, which takes long: each is opened. Python 3.12 gives them another type."""
    return entry_points()


def _singular(kind: str) -> str:
    return {"datasets": "data set"}.get(kind, kind.removesuffix("s"))


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A plugin with its checked configuration, as named in a recipe or device file.

    >>> choose("datasets", {"digits": {"size": 32}}).config.size
    32
    """

    kind: str
    name: str
    config: Any  # an instance of the plugin's Config

    @property
    def module(self) -> ModuleType:
        return load(self.kind, self.name)

    def written(self) -> Any:
        """Return it as a recipe writes it, with all defaults."""
        settings = self.plain()
        if takes_beside(self.kind, self.name):
            return settings
        return {self.name: settings} if settings else self.name

    def plain(self) -> dict[str, Any]:
        """Return the configuration with all defaults as JSON values, used in keys and in resolved recipes."""
        values: dict[str, Any] = self.config.model_dump(mode="json")
        return values


def choose(kind: str, value: object) -> Choice:
    """Return the plugin in `value`: `name`, `{name: {key: value}}`, or for a model, and for a task whose Config has a
    field of its name, `{name: main value, key: value}`.

    Raises ValueError for an unknown plugin, and `Nested` for mistakes in its configuration.
    """
    name = name_of(kind, value)
    module = load(kind, name)
    config, inside = _settings(kind, name, value)
    try:
        return Choice(kind=kind, name=name, config=module.Config.model_validate(config))
    except ValidationError as error:
        raise Nested(error, module.Config, config, inside) from None


def _settings(kind: str, name: str, value: object) -> tuple[object, KeyPath]:
    """Return the settings in `value`, and where they stand in it."""
    if not isinstance(value, dict):
        return {}, ()
    if takes_beside(kind, name):
        return value, ()
    if len(value) > 1:
        raise ValueError(_expected(kind))
    return value[name] or {}, (name,)


def takes_beside(kind: str, name: str) -> bool:
    """Return whether a plugin's settings stand beside its name, not inside."""
    return kind in _BESIDE and name in load(kind, name).Config.model_fields


def _expected(kind: str) -> str:
    return f"expected one {_singular(kind)} with its settings, one of: {', '.join(names(kind))}"


def name_of(kind: str, value: object) -> str:
    """Return the name of the plugin in `value`; its settings are not checked. Raises ValueError if there is none."""
    if isinstance(value, str) and kind != "models":
        keys: tuple[str, ...] = (value,)
    elif isinstance(value, dict) and value and (kind in _BESIDE or len(value) == 1):
        keys = tuple(str(key) for key in value)
    else:
        raise ValueError(_expected(kind))
    found = [key for key in keys if key in names(kind)]
    if not found:
        raise ValueError(unknown(_singular(kind), keys[0], names(kind)))
    if len(found) > 1:
        raise ValueError(f"one {_singular(kind)} only, got {' and '.join(found)}")
    return found[0]


@dataclass(frozen=True)
class Named:
    """Marks a setting that names a plugin: `backend: Annotated[str, Named("backends")] = "xnnpack"`."""

    kind: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_after_validator_function(self._known, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "enum": [*names(self.kind)]}

    def _known(self, name: str) -> str:
        if name not in names(self.kind):
            raise ValueError(unknown("value", name, names(self.kind)))
        return name


def summary(module: ModuleType) -> str:
    """Return the first line of a plugin's docstring."""
    return (module.__doc__ or "").strip().splitlines()[0] if module.__doc__ else ""


def settings(module: ModuleType) -> list[tuple[str, str]]:
    """Return each setting of a plugin with its meaning and default, for `edgepack stages`."""
    return [(name, _setting(field)) for name, field in module.Config.model_fields.items()]


def _setting(field: FieldInfo) -> str:
    if field.is_required():
        default = "required"
    elif isinstance(field.default, BaseModel):
        default = f"default {field.default.model_dump(mode='json')}"
    else:
        default = f"default {field.default}"
    return f"{field.description}; {default}" if field.description else default
