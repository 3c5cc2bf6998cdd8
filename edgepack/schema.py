"""The JSON schemas of recipe and device files, made from the very models that check them."""

from typing import Any

from pydantic import BaseModel

from edgepack import budgets, plugins
from edgepack.config import ASIDE
from edgepack.device import DeviceFile
from edgepack.recipe import RecipeFile

_DRAFT = "https://json-schema.org/draft/2020-12/schema"


def recipe() -> dict[str, Any]:
    schema = RecipeFile.model_json_schema()
    properties = schema["properties"]
    properties["task"] = {"enum": list(plugins.names("tasks"))}
    properties["model"] = {"anyOf": [_config("models", name) for name in plugins.names("models")]}
    properties["data"] = _one_of("datasets")
    properties["stages"] = {"type": "array", "items": _one_of("stages")}
    properties["export"] = {"type": "array", "items": _one_of("exporters"), "minItems": 1}
    properties["budgets"] = budgets.schema(plugins.names("exporters"))
    properties["waivers"] = {"type": "array", "items": _inlined(budgets.Waiver.model_json_schema())}
    return {"$schema": _DRAFT, "title": "edgepack recipe", **schema, **_aside()}


def device() -> dict[str, Any]:
    schema = DeviceFile.model_json_schema()
    schema["properties"]["runner"] = _one_of("runners")
    return {"$schema": _DRAFT, "title": "edgepack device profile", **schema, **_aside()}


def _aside() -> dict[str, Any]:
    """Keys that only hold what others merge."""
    return {"patternProperties": {f"^{ASIDE}": {}}}


def _one_of(kind: str) -> dict[str, Any]:
    """A plugin by its name alone, or as {name: settings}."""
    named = [
        {"type": "object", "properties": {name: _config(kind, name)}, "required": [name], "additionalProperties": False}
        for name in plugins.names(kind)
    ]
    return {"anyOf": [{"enum": list(plugins.names(kind))}, *named]}


def _config(kind: str, name: str) -> dict[str, Any]:
    module = plugins.load(kind, name)
    config: type[BaseModel] = module.Config
    return _inlined({**config.model_json_schema(), "description": plugins.summary(module)})


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with its local definitions put in place: it is about to become part of another."""
    definitions = schema.pop("$defs", {})

    def resolve(node: Any) -> Any:
        if isinstance(node, dict):
            if "$ref" in node:
                return resolve(definitions[node["$ref"].rpartition("/")[2]])
            return {key: resolve(value) for key, value in node.items()}
        return [resolve(item) for item in node] if isinstance(node, list) else node

    result: dict[str, Any] = resolve(schema)
    return result
