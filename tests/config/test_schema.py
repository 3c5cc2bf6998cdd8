"""The JSON schemas that editors use say what `check` says."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from factories import PROJECT, RECIPE, edgepack, recipe, recipe_file

from edgepack.config import plugins, schema
from edgepack.config.device import load_device
from edgepack.config.document import Document
from edgepack.config.recipe_reading import load_recipe
from edgepack.core.metrics import METRICS

SHIPPED = [*sorted((PROJECT / "recipes").glob("*.yaml"))]
TYPES: dict[str, Any] = {
    "object": dict,
    "array": (list, tuple),
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


def _fits(value: Any, rule: Any, whole: Any) -> bool:
    """The part of JSON schema that edgepack's schemas use; an unknown keyword fails the test."""
    if isinstance(rule, bool):
        return rule
    checks: dict[str, Callable[[Any], bool]] = {
        "$ref": lambda ref: _fits(value, whole["$defs"][ref.rpartition("/")[2]], whole),
        "anyOf": lambda rules: any(_fits(value, each, whole) for each in rules),
        "type": lambda kind: isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool)),
        "enum": lambda allowed: value in allowed,
        "const": lambda only: value == only,
        "minimum": lambda least: not isinstance(value, int | float) or value >= least,
        "maximum": lambda most: not isinstance(value, int | float) or value <= most,
        "exclusiveMinimum": lambda least: not isinstance(value, int | float) or value > least,
        "exclusiveMaximum": lambda most: not isinstance(value, int | float) or value < most,
        "pattern": lambda pattern: True,
        "minLength": lambda least: not isinstance(value, str) or len(value) >= least,
        "minProperties": lambda least: not isinstance(value, dict) or len(value) >= least,
        "minItems": lambda least: not isinstance(value, list | tuple) or len(value) >= least,
        "maxItems": lambda most: not isinstance(value, list | tuple) or len(value) <= most,
        "prefixItems": lambda rules: (
            not isinstance(value, list | tuple)
            or all(_fits(item, each, whole) for item, each in zip(value, rules, strict=False))
        ),
        "items": lambda each: not isinstance(value, list | tuple) or all(_fits(item, each, whole) for item in value),
        "required": lambda keys: not isinstance(value, dict) or {*keys} <= {*value},
        "properties": lambda known: (
            not isinstance(value, dict)
            or all(_fits(item, known[key], whole) for key, item in value.items() if key in known)
        ),
        "additionalProperties": lambda other: (
            not isinstance(value, dict)
            or all(_fits(item, other, whole) for key, item in value.items() if not _is_named(key, rule))
        ),
        "patternProperties": lambda patterns: True,  # which allow anything
    }
    silent = {"$schema", "$defs", "title", "description", "default", "examples"}
    return all(checks[keyword](argument) for keyword, argument in rule.items() if keyword not in silent)


def _is_named(key: str, rule: Any) -> bool:
    patterns = rule.get("patternProperties", {})
    return key in rule.get("properties", {}) or any(re.search(pattern, key) for pattern in patterns)


def _recipe_fits(**parts: Any) -> bool:
    rules = schema.recipe()
    return _fits({key: value for key, value in {**RECIPE, **parts}.items() if value is not None}, rules, rules)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_every_shipped_recipe_fits_as_written_and_resolved(file: Path) -> None:
    rules = schema.recipe()
    assert _fits(Document.read(file).data, rules, rules)
    assert _fits(load_recipe(file).plain(), rules, rules)


def test_every_shipped_device_fits() -> None:
    rules = schema.device()
    for file in (PROJECT / "devices").glob("*.yaml"):
        assert _fits(Document.read(file).data, rules, rules)
        assert _fits(load_device(file).plain(), rules, rules)


@pytest.mark.parametrize(
    "parts",
    [
        {"task": "image_clasification"},
        {"model": "resnet18"},
        {"model": {"torchvision": 18}},
        {"model": {"torchvision": "resnet18", "witdh": "50 %"}},
        {"data": "digit"},
        {"stages": [{"train": {"epoch": 1}}]},
        {"stages": ["prunne"]},
        {"stages": [{"train": {"epochs": 0}}]},
        {"export": []},
        {"export": ["onx"]},
        {"budgets": {"size": 600_000}},
        {"budgets": {"latency.p95": "2 ms"}},
        {"budgets": {"accuracy": {"max": "5 %"}}},
        {"budgets": {"size": {"max": "1 MB", "level": "warning"}}},
        {"budgets": {"size": {"max": {"limit": "1 MB", "levl": "warn"}}}},
        {"budgets": {"relative": {"size": {"max": "5 %"}}}},
        {"budgets": {"relative": "last"}},
        {"waivers": [{"budget": "size", "until": "2027-01-31"}]},
        {"waivers": {"budget": "size"}},
        {"budget": {}},
        {"edgepack": 2},
        {"device": None},
        {"stages": [{"distill": {"epochs": 3}}]},
    ],
)
def test_what_check_refuses_the_schema_refuses(parts: dict[str, Any]) -> None:
    assert _recipe_fits()
    assert not _recipe_fits(**parts)


@pytest.mark.parametrize(
    "budgets",
    [
        {"latency.p50": "2 ms"},
        {"latency.p50": {"max": "2 ms"}},
        {"latency": {"p50": "2 ms"}},
        {"latency": {"p50": {"max": "2 ms"}}},
        {"parity": {"min": "99 %"}, "parity.runtimes": "99 %"},
        {"parity": {"min": "99 %", "runtimes": "99 %"}},
        {"accuracy": {"max_drop": "1 %"}},
        {"accuracy.max_drop": "1 %"},
        {"accuracy": {"min": "95 %", "retain": {"limit": "98 %", "level": "warn"}, "level": "info"}},
        {"latency.p50": {"max": "2 ms", "onnx": "3 ms", "evidence": "estimated"}},
        {"latency": {"p50": {"executorch": {"max": "2 ms"}, "onnx": {"max": {"limit": "3 ms"}, "level": "warn"}}}},
        {"parity": {"cosine": 0.99, "difference": {"max": "0.5"}}},
        {"memory.arena": "64 kB", "delegation": {"executorch": "95 %"}},
        {"relative": {"baseline": "last", "latency.p50": "5 %", "size": {"max_increase": "2 %", "level": "warn"}}},
        {"relative": {"accuracy": {"max_decrease": "0.5 %"}, "latency": {"p90": {"onnx": "5 %"}}}},
        {},
    ],
)
def test_the_ways_to_write_a_budget_fit_both(budgets: dict[str, Any]) -> None:
    assert _recipe_fits(budgets=budgets)
    recipe(budgets=budgets)


def test_every_metric_and_every_plugin_is_in_the_schema() -> None:
    text = json.dumps(schema.recipe())
    named = [name for kind in ("stages", "models", "datasets", "exporters", "tasks") for name in plugins.names(kind)]
    assert all(f'"{name}"' in text for name in (*METRICS, *named))
    assert all(f'"{name}"' in json.dumps(schema.device()) for name in plugins.names("runners"))


@pytest.mark.parametrize("what", ["recipe", "device"])
def test_the_command_prints_json_for_an_editor(what: str) -> None:
    ran = edgepack("schema", what)
    assert ran.code == 0
    assert json.loads(ran.out)["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_keys_that_hold_what_others_merge_fit_both() -> None:
    rules = schema.recipe()
    text = recipe_file().read_text() + "x-base: &base {epochs: 1}\n"
    Path("whole.yaml").write_text(text)
    assert load_recipe("whole.yaml").stages
    assert _fits({**Document.read(Path("whole.yaml")).data, "x-base": {"epochs": 1}}, rules, rules)
    assert not _fits({**Document.read(Path("whole.yaml")).data, "y-base": {}}, rules, rules)
