"""The JSON schemas of recipe and device files, made from the very models that check them."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from edgepack.config import budgets, plugins
from edgepack.config.budgets import LAST, OPTIONS, RELATIVE
from edgepack.config.device import DeviceFile
from edgepack.config.document import ASIDE
from edgepack.config.recipe import Cuts, RecipeFile
from edgepack.core.metrics import METRICS, quantity_of
from edgepack.core.units import NUMBER


def budgets_schema(formats: Iterable[str]) -> dict[str, Any]:
    """Return the JSON schema of `budgets` for a recipe that may export any of `formats`."""
    absolute, relative = _group(formats, relative=False), _group(formats, relative=True)
    baseline = {"type": "string", "description": "'last' passing build, a build.json, or a bundle", "default": LAST}
    relative["properties"]["baseline"] = baseline
    absolute["properties"][RELATIVE] = relative
    return absolute


def _group(formats: Iterable[str], *, relative: bool) -> dict[str, Any]:
    formats = tuple(formats)
    properties: dict[str, Any] = {name: {"anyOf": _metric_schema(name, formats, relative)} for name in METRICS}
    for name in METRICS:  # alternative spellings: `accuracy.max_drop: 1 %` and `latency: {p50: 2 ms}`
        group, _, inner = name.rpartition(".")
        if group in METRICS:
            properties[group]["anyOf"][-1]["properties"][inner] = properties[name]
        elif group:
            whole = {"type": "object", "properties": {}, "additionalProperties": False}
            properties.setdefault(group, whole)["properties"][inner] = properties[name]
        for bound in METRICS[name].bounds_of(relative):
            properties.setdefault(f"{name}.{bound}", {"anyOf": _bound_schema(name, bound)})
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _metric_schema(name: str, formats: tuple[str, ...], relative: bool) -> list[dict[str, Any]]:
    """Return the schema of a limit, or of a mapping with bounds, settings, and exporters with the same inside."""
    bounds = {bound: {"anyOf": _bound_schema(name, bound)} for bound in METRICS[name].bounds_of(relative)}
    options = {key: {"enum": list(allowed)} for key, allowed in OPTIONS.items()}
    inside = {"type": "object", "properties": {**bounds, **options}, "additionalProperties": False}
    limit = _limit_schema(name, next(iter(bounds)))
    own = {format: {"anyOf": [*limit, inside]} for format in formats}
    return [*limit, {**inside, "properties": {**bounds, **options, **own}}]


def _bound_schema(name: str, bound: str) -> list[dict[str, Any]]:
    limit = _limit_schema(name, bound)
    options = {key: {"enum": list(allowed)} for key, allowed in OPTIONS.items()}
    inside = {"limit": {"anyOf": limit}, **options}
    return [*limit, {"type": "object", "properties": inside, "required": ["limit"], "additionalProperties": False}]


def _limit_schema(name: str, bound: str) -> list[dict[str, Any]]:
    quantity = quantity_of(name, bound)
    description = {"description": f"{METRICS[name].meaning}; {quantity.name}, as {quantity.example}"}
    return [{"type": kind, **description} for kind in (("number", "string") if quantity is NUMBER else ("string",))]


_DRAFT = "https://json-schema.org/draft/2020-12/schema"


def recipe() -> dict[str, Any]:
    schema = RecipeFile.model_json_schema()
    properties = schema["properties"]
    properties["task"] = _one_of("tasks")
    properties["model"] = {"anyOf": [_config("models", name) for name in plugins.names("models")]}
    properties["data"] = _one_of("datasets", _inlined(Cuts.model_json_schema())["properties"])
    properties["stages"] = {"type": "array", "items": _one_of("stages")}
    properties["export"] = {"type": "array", "items": _one_of("exporters"), "minItems": 1}
    properties["trackers"] = {"type": "array", "items": _one_of("trackers")}
    properties["budgets"] = budgets_schema(plugins.names("exporters"))
    properties["waivers"] = {"type": "array", "items": _inlined(budgets.Waiver.model_json_schema())}
    return {"$schema": _DRAFT, "title": "edgepack recipe", **schema, **_aside()}


def device() -> dict[str, Any]:
    schema = DeviceFile.model_json_schema()
    schema["properties"]["runner"] = _one_of("runners")
    return {"$schema": _DRAFT, "title": "edgepack device profile", **schema, **_aside()}


def _aside() -> dict[str, Any]:
    """Return the schema of keys that only hold values for merging."""
    return {"patternProperties": {f"^{ASIDE}": {}}}


def _one_of(kind: str, beside: Mapping[str, Any] = {}) -> dict[str, Any]:
    """Return the schema of a plugin: its name alone, or {name: settings}, with keys that may stand `beside` it."""
    named = [
        _config(kind, name)
        if plugins.takes_beside(kind, name)
        else {
            "type": "object",
            "properties": {name: _config(kind, name), **beside},
            "required": [name],
            "additionalProperties": False,
        }
        for name in plugins.names(kind)
    ]
    return {"anyOf": [{"enum": list(plugins.names(kind))}, *named]}


def _config(kind: str, name: str) -> dict[str, Any]:
    module = plugins.load(kind, name)
    config: type[BaseModel] = module.Config
    return _inlined({**config.model_json_schema(), "description": plugins.summary(module)})


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema with its local definitions inlined, since it becomes part of another schema."""
    definitions = schema.pop("$defs", {})

    def resolve(node: Any) -> Any:
        if isinstance(node, dict):
            if "$ref" in node:
                return resolve(definitions[node["$ref"].rpartition("/")[2]])
            return {key: resolve(value) for key, value in node.items()}
        return [resolve(item) for item in node] if isinstance(node, list) else node

    result: dict[str, Any] = resolve(schema)
    return result
