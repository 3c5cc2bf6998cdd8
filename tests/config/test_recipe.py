"""What to build: parts found, units resolved, overrides applied, and nothing left to defaults."""

import json
from pathlib import Path
from typing import Any

import pytest
from factories import PROJECT, budget, recipe, recipe_file, recipe_text
from pydantic import BaseModel
from text_factories import described

from edgepack.compress.stages import quantize
from edgepack.config import plugins, recipe_reading
from edgepack.config.device import load_device
from edgepack.config.document import ConfigError
from edgepack.config.recipe import Recipe
from edgepack.config.recipe_reading import all_recipes, find_recipe, load_recipe
from edgepack.core.errors import RecipeError
from edgepack.core.metrics import METRICS, OF_EVERY_FILE
from edgepack.deliver.bundle.rendering import as_yaml
from edgepack.workflows.build.planning.planner import plan
from edgepack.workflows.build.store import Store


def _setting(of: Recipe, stage: int, *names: str) -> Any:
    value: Any = of.stages[stage].config
    for name in names:
        value = getattr(value, name)
    return value


def test_every_part_is_found_and_every_value_is_in_its_unit() -> None:
    found = recipe(budgets={"size": "600 kB"})
    assert (found.name, found.task.name, found.device, found.seed) == ("tiny", "image_classification", "host", 0)
    assert [stage.name for stage in found.stages] == ["train", "distill", "prune", "factorize", "quantize"]
    assert [exporter.name for exporter in found.exporters] == ["executorch", "onnx"]
    assert _setting(found, 2, "ratio") == 0.5
    assert found.budgets == (budget("size", "600 kB", place="recipes/tiny.yaml:9"),)


def test_what_a_recipe_states_of_its_model_goes_into_the_resolved_one() -> None:
    Path("LICENSE").write_text("the text")
    stated = recipe(version="1.2.0-rc.1+b", licence="mit or apache-2.0", licence_file="LICENSE")
    assert (stated.version, stated.licence, stated.licence_file) == ("1.2.0-rc.1+b", "MIT OR Apache-2.0", "LICENSE")
    assert stated.plain()["licence"] == "MIT OR Apache-2.0"
    assert not {"version", "licence", "licence_file"} & {*recipe().plain()}
    Path("recipes/again.yaml").write_bytes(as_yaml(stated.plain()))
    assert load_recipe("again").plain() == stated.plain()


@pytest.mark.parametrize(
    ("budgets", "expected"),
    [
        ({"latency.p50": "2 ms"}, [("latency.p50", "max", 2)]),
        ({"latency": {"p50": "2 ms", "p90": "3 ms"}}, [("latency.p50", "max", 2), ("latency.p90", "max", 3)]),
        ({"latency.p50": {"max": "2 ms"}}, [("latency.p50", "max", 2)]),
        ({"latency": {"p50": {"max": "2 ms"}}}, [("latency.p50", "max", 2)]),
        ({"accuracy": "95 %"}, [("accuracy", "min", 0.95)]),
        ({"accuracy": {"min": "95 %", "max_drop": "1 %"}}, [("accuracy", "min", 0.95), ("accuracy", "max_drop", 0.01)]),
        (
            {"parity": {"min": "99 %"}, "parity.runtimes": "98 %"},
            [("parity", "min", 0.99), ("parity.runtimes", "min", 0.98)],
        ),
        ({"parity": {"min": "99 %", "runtimes": "98 %"}}, [("parity", "min", 0.99), ("parity.runtimes", "min", 0.98)]),
        ({"size": {"max": "1 MiB"}}, [("size", "max", 2**20)]),
        ({}, []),
        (None, []),
    ],
)
def test_the_ways_to_write_a_budget(budgets: Any, expected: list[tuple[str, str, float]]) -> None:
    found = recipe(budgets=budgets).budgets
    assert [(each.metric, each.bound, each.limit) for each in found] == expected


def test_every_metric_can_have_a_budget() -> None:
    limits = {
        name: metric.quantity.exact(metric.quantity.parse(metric.quantity.example.split('"')[1]))
        for name, metric in METRICS.items()
        if name in OF_EVERY_FILE or name in ("accuracy", "accuracy.top5")
    }
    assert [each.metric for each in recipe(budgets=limits).budgets] == list(limits)


def test_a_metric_of_another_task_is_refused_with_those_of_this_one() -> None:
    with pytest.raises(ConfigError, match=r"rmse is a metric of regression; .* has accuracy, accuracy.top5"):
        recipe(budgets={"rmse": "3"})


@pytest.mark.parametrize(
    ("override", "stage", "path", "value"),
    [
        ("stages.train.epochs=3", 0, ("epochs",), 3),
        ("stages.0.epochs=3", 0, ("train",), None),
        ("stages.0.train.epochs=3", 0, ("epochs",), 3),
        ("stages.prune.ratio=30 %", 2, ("ratio",), 0.3),
        ("stages.prune.recover.epochs=5", 2, ("recover", "epochs"), 5),
        ("stages.prune.recover={epochs: 4, batch_size: 8}", 2, ("recover", "batch_size"), 8),
        ("stages.factorize.layers=[fc, conv1]", 3, ("layers",), ("fc", "conv1")),
        ("stages.distill.student.width=25 %", 1, ("student", "config", "width"), 0.25),
    ],
)
def test_set_changes_one_value_of_a_stage(override: str, stage: int, path: tuple[str, ...], value: object) -> None:
    if value is None:  # a stage is a mapping of its name: its number alone is not enough
        with pytest.raises(ConfigError):
            recipe(overrides=[override])
        return
    assert _setting(recipe(overrides=[override]), stage, *path) == value


def test_set_reaches_every_part_and_the_last_one_wins() -> None:
    changed = recipe(
        overrides=[
            "seed=3",
            "seed=4",
            "name=other",
            "budgets.size=1 MB",
            "budgets.latency.p50=5 ms",
            "budgets.memory.peak=64 MB",
            "budgets.accuracy.min=90 %",
            "export.onnx.opset=19",
            "data.digits.size=16",
            "model.width=50 %",
        ]
    )
    limits = {each.name: each.limit for each in changed.budgets}
    assert (changed.seed, changed.name) == (4, "other")
    assert limits == {"size": 1e6, "latency.p50": 5, "accuracy": 0.9, "accuracy.max_drop": 0.01, "memory.peak": 64e6}
    assert changed.exporters[1].plain()["opset"] == 19
    assert changed.data.plain() == {"size": 16, "augment": False}
    assert changed.model.plain()["width"] == "50 %"


def test_set_replaces_a_whole_list() -> None:
    changed = recipe(overrides=["stages=[train, {quantize: {epochs: 0}}]", "export=[onnx]"])
    assert [stage.name for stage in changed.stages] == ["train", "quantize"]
    assert [exporter.name for exporter in changed.exporters] == ["onnx"]


def test_a_budget_knows_where_its_limit_is_written() -> None:
    places = {each.name: each.place for each in recipe(overrides=["budgets.size=1 MB"]).budgets}
    assert places["size"] == "--set"
    assert places["latency.p50"] == "recipes/tiny.yaml:9"


def test_set_leaves_the_file_alone() -> None:
    path = recipe_file()
    load_recipe(path, overrides=["seed=7"])
    assert path.read_text() == recipe_text()


@pytest.mark.parametrize("written", [json.dumps, lambda value: as_yaml(value).decode()], ids=["json", "yaml"])
@pytest.mark.parametrize("source", [None, *sorted((PROJECT / "recipes").glob("*.yaml"))], ids=str)
def test_the_resolved_recipe_is_the_same_recipe(written: Any, source: Path | None, own_place: Path) -> None:
    first = load_recipe(source, overrides=["budgets.latency.p90=1.2345 ms"]) if source else recipe()
    Path("resolved.yaml").write_text(written(first.plain()))
    again = load_recipe("resolved.yaml")
    assert again.plain() == first.plain()
    assert [(each.name, each.limit) for each in again.budgets] == [(each.name, each.limit) for each in first.budgets]
    where, store = load_device("host"), Store("store")
    assert [step.key for step in plan(again, where, store).steps] == [
        step.key for step in plan(first, where, store).steps
    ]


def test_trackers_and_computing_change_neither_keys_nor_the_resolved_recipe() -> None:
    plainly, tracked = (
        recipe(),
        recipe(trackers=["tensorboard", {"wandb": {"mode": "offline"}}], compute={"workers": 3}),
    )
    assert [tracker.name for tracker in tracked.trackers] == ["tensorboard", "wandb"]
    assert tracked.plain() == plainly.plain()
    keys = [[step.key for step in plan(each, load_device("host"), Store("store")).steps] for each in (plainly, tracked)]
    assert keys[0] == keys[1]


def test_trackers_can_be_added_to_those_of_a_recipe() -> None:
    path = recipe_file(trackers=[{"tensorboard": {"folder": "logs"}}])
    found = load_recipe(path, trackers=["wandb", "tensorboard", "wandb"]).trackers
    assert [tracker.name for tracker in found] == ["tensorboard", "wandb"]
    assert found[0].config.folder == "logs"
    with pytest.raises(ConfigError, match=r"==> --track\n  at trackers\[1\]\n  unknown tracker 'wnadb'"):
        load_recipe(path, trackers=["wnadb"])
    with pytest.raises(ConfigError, match="trackers"):
        load_recipe(recipe_file(trackers="tensorboard"), trackers=["wandb"])


def test_a_resolved_recipe_leaves_nothing_to_defaults() -> None:
    whole = recipe(stages=["train", "quantize"]).plain()
    assert whole["stages"][1]["quantize"].keys() == {*quantize.Config.model_fields}
    assert whole["model"]["width"] == "100 %"


def test_a_recipe_is_named_by_its_file_or_by_its_place_in_recipes() -> None:
    path = recipe_file("mine")
    assert find_recipe("mine") == find_recipe(path) == path
    assert path in all_recipes()
    with pytest.raises(RecipeError, match="unknown recipe 'mien': did you mean 'mine'"):
        find_recipe("mien")


def test_another_device_can_be_asked_for(own_place: Path) -> None:
    (own_place / "devices" / "board.yaml").write_text("edgepack: 1\nname: board\nrunner: host\n")
    assert load_recipe(recipe_file(), device="board").device == "board"


def test_a_recipe_cannot_be_changed() -> None:
    found = recipe()
    with pytest.raises(AttributeError):
        found.seed = 1  # type: ignore[misc]
    config: BaseModel = found.stages[0].config
    with pytest.raises(ValueError):
        config.epochs = 1  # type: ignore[attr-defined]


def test_a_bound_may_be_written_with_a_dot() -> None:
    changed = load_recipe("quickstart", overrides=["budgets={accuracy.min: 90 %, accuracy.max_drop: 2 %, size: 1 MB}"])
    assert {each.name: each.limit for each in changed.budgets} == {
        "accuracy": 0.9,
        "accuracy.max_drop": 0.02,
        "size": 1e6,
    }


def test_the_model_at_work_is_the_last_that_a_stage_named() -> None:
    """A student of another kind takes the place of the model; what a stage derives is of the same kind."""
    bert = plugins.choose("models", {"huggingface": described(), "weights": None})
    student = {"distill": {"student": {"torchvision": "mobilenet_v3_small"}}}
    stages = [
        plugins.choose("stages", stage) for stage in ({"prune": {"layers": 1}}, student, {"prune": {"ratio": "5 %"}})
    ]
    places = list(recipe_reading._places(load_device("host"), bert, stages, ()))
    assert [(place.encoder, place.later) for place in places] == [
        (True, ("distill", "prune")),
        (True, ("prune",)),
        (False, ()),
    ]
