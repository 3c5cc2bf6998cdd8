"""The limits of a recipe: the ways to write them, and that what is written out means the same."""

import re
from pathlib import Path
from typing import Any

import pytest
from factories import PROJECT, budget, recipe

from edgepack.config.budget_reading import read_budgets, read_waivers
from edgepack.config.budgets import Budget, binding, plain, strictest
from edgepack.config.document import Document
from edgepack.config.schema import budgets_schema
from edgepack.core.metrics import METRICS

FORMATS = ("executorch", "onnx")
README = (PROJECT / "README.md").read_text()


def read(budgets: Any) -> tuple[Budget, ...]:
    document = Document(file="recipe.yaml", data={"budgets": budgets}, lines={})
    found = read_budgets(document, budgets, FORMATS)
    document.raise_problems()
    return found


def held(label: str, budgets: Any) -> dict[str, float]:
    found = read(budgets)
    return {each.name: each.limit for each in found if each.about(label, found)}


@pytest.mark.parametrize(
    ("written", "executorch", "onnx"),
    [
        ({"latency.p50": "2 ms"}, 2, 2),
        ({"latency.p50": {"max": "2 ms", "onnx": "3 ms"}}, 2, 3),
        ({"latency.p50": {"max": "2 ms", "onnx": {"max": "3 ms"}}}, 2, 3),
        ({"latency": {"p50": {"executorch": "1 ms", "onnx": "3 ms"}}}, 1, 3),
        ({"latency.p50": {"onnx": "3 ms"}}, None, 3),
        ({"relative": {"latency.p50": {"max_increase": "5 %", "onnx": "9 %"}}}, 0.05, 0.09),
    ],
)
def test_a_file_may_have_a_limit_of_its_own(written: Any, executorch: float | None, onnx: float | None) -> None:
    for label, limit in (("executorch", executorch), ("onnx", onnx)):
        assert [*held(label, written).values()] == ([] if limit is None else [limit])


def test_an_own_limit_replaces_that_bound_alone() -> None:
    written = {"accuracy": {"min": "95 %", "max_drop": "1 %", "onnx": {"min": "90 %"}}}
    assert held("onnx", written) == {"accuracy": 0.9, "accuracy.max_drop": 0.01}
    assert held("executorch", written) == {"accuracy": 0.95, "accuracy.max_drop": 0.01}


def test_what_one_format_alone_tells_is_asked_of_no_other() -> None:
    assert held("executorch", {"memory.arena": "64 kB"}) == {"memory.arena": 64e3}
    assert held("onnx", {"memory.arena": "64 kB", "delegation": "90 %"}) == {}


def test_settings_hold_for_what_is_inside() -> None:
    found = read(
        {
            "accuracy": {"level": "warn", "min": "95 %", "max_drop": {"limit": "1 %", "level": "info"}},
            "latency.p50": {"evidence": "estimated", "max": "2 ms", "onnx": {"max": "3 ms", "evidence": "emulated"}},
            "size": "1 MB",
        }
    )
    assert [(each.name, each.level) for each in found if each.metric != "latency.p50"] == [
        ("accuracy", "warn"),
        ("accuracy.max_drop", "info"),
        ("size", "error"),
    ]
    assert [each.evidence for each in found if each.metric == "latency.p50"] == ["estimated", "emulated"]


@pytest.mark.parametrize(
    ("metric", "wanted", "accepted"),
    [
        ("latency.p50", None, ["measured"]),
        ("memory.peak", None, ["measured"]),
        ("latency.p50", "emulated", ["measured", "emulated"]),
        ("latency.p50", "estimated", ["measured", "emulated", "estimated"]),
        ("accuracy", None, ["measured", "emulated", "estimated"]),
        ("accuracy", "measured", ["measured"]),
        ("size", None, ["measured", "emulated", "estimated"]),
    ],
)
def test_a_budget_accepts_evidence_as_good_as_it_wants(metric: str, wanted: Any, accepted: list[str]) -> None:
    example = "1 %" if metric == "accuracy" else "1 ms" if metric.startswith("latency") else "1 kB"
    found = budget(metric, example, evidence=wanted)
    assert [each for each in ("measured", "emulated", "estimated") if found.accepts(each)] == accepted


WRITTEN: list[dict[str, Any]] = [
    {"size": "600 kB", "accuracy": {"min": "95 %", "max_drop": "1 %", "retain": "98 %"}},
    {"latency.p50": {"max": "2 ms", "onnx": "3 ms", "level": "warn"}, "parity": {"cosine": 0.999, "difference": 0.5}},
    {"latency": {"p99": {"executorch": {"max": "2 ms", "evidence": "estimated"}}}},
    {"relative": {"latency.p50": "5 %", "size": {"onnx": "2 %", "level": "info"}, "accuracy": {"max_decrease": "1 %"}}},
    {"relative": {"baseline": "recipes/quickstart.yaml", "parity": {"cosine": {"max_decrease": 0.001}}}},
]


@pytest.mark.parametrize("written", WRITTEN)
def test_what_is_written_out_means_the_same(written: dict[str, Any]) -> None:
    first = read(written)
    assert first
    again = read(plain(first))
    assert [vars(each) | {"place": ""} for each in again] == [vars(each) | {"place": ""} for each in first]
    assert plain(again) == plain(first)


def test_a_resolved_recipe_has_its_waivers() -> None:
    waivers = [{"budget": "size", "until": "2027-01-31", "reason": "issue 12", "runtime": "onnx"}]
    first = recipe(budgets={"size": "1 kB"}, waivers=waivers)
    assert first.plain()["waivers"] == waivers
    assert recipe(**{key: first.plain()[key] for key in ("budgets", "waivers")}).waivers == first.waivers


def test_stages_go_by_the_strictest_limit_that_can_fail_a_build() -> None:
    found = read(
        {
            "size": {"max": "3 MB", "onnx": "2 MB", "executorch": {"max": "1 MB", "level": "warn"}},
            "relative": {"size": "1 %"},
        }
    )
    assert strictest(found, "size", "max") == 2e6
    assert strictest(found, "accuracy", "max_drop") is None
    assert len(binding(found, ["size"])) == 2


def test_the_budgets_of_the_readme_are_read_as_they_stand() -> None:
    text = next(block for block in re.findall(r"```yaml\n(.*?)```", README, re.S) if "\nwaivers:" in block)
    document = Document.parse(text, Path("README.md"))
    found = read_budgets(document, document.data["budgets"], FORMATS)
    waivers = read_waivers(document, document.data["waivers"], found, FORMATS)
    document.raise_problems()
    assert (len(found), len(waivers)) == (9, 1)


def test_the_schema_names_every_metric_and_bound() -> None:
    found = budgets_schema(FORMATS)["properties"]
    assert {*METRICS} <= {*found}
    assert {*METRICS} | {"baseline"} <= {*found["relative"]["properties"]}
    for name, metric in METRICS.items():
        inside = found[name]["anyOf"][-1]["properties"]
        assert {*metric.bounds, "level", "evidence", *FORMATS} <= {*inside}
