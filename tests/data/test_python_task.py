"""A task of your own: found, checked and named in errors before anything is trained."""

from pathlib import Path
from typing import Any

import pytest
import torch
from factories import edgepack, recipe, recipe_file

from edgepack.config import plugins
from edgepack.core.errors import ExitCode, StageError
from edgepack.core.metrics import METRICS
from edgepack.core.signature import Signature, TensorSpec
from edgepack.data.contract import Task
from edgepack.workflows.build.planning.keys import task_facts

CODE = """\
import edgepack
from edgepack.core.metrics import named
from pydantic import BaseModel, Field


class Counting(edgepack.Task):
    METRICS = {"count.error": edgepack.score("mean error of the count", edgepack.NUMBER, higher=False), **named("mae")}

    class Config(BaseModel):
        threshold: int = Field(default=1, ge=1)
        weights: tuple[float, ...] = (1.0, 2.0)

    def outputs(self):
        return (edgepack.TensorSpec(name="count", shape=(1,)),)

    def loss(self, outputs, targets):
        return (outputs[0][:, 0] - targets).abs().mean()

    def meter(self):
        return edgepack.Mean(dict.fromkeys(self.METRICS, lambda outputs, targets: (outputs[0][:, 0] - targets).abs()))

    def agreement(self, outputs, reference):
        return (abs(outputs[0] - reference[0]) <= self.config.threshold).mean(axis=1)
"""
SIGNATURE = Signature(inputs=(TensorSpec(name="input", shape=(1, 8, 8)),))
RECIPE: dict[str, Any] = {
    "task": {"python": "own_tasks:Counting", "threshold": 2},
    "model": {"python": "own_tasks:net"},
    "data": {"python": {"function": "own_tasks:load", "shape": [1, 8, 8]}},
    "stages": [{"train": {"epochs": 1}}],
    "budgets": {"count.error": {"max": 3, "max_rise": 0.5}},
}


@pytest.fixture(autouse=True)
def own_tasks() -> None:
    _write(CODE)


def _write(code: str) -> None:
    Path("own_tasks.py").write_text(f"{code}\n\ndef net(): ...\ndef load(): ...\n")


def _task(**settings: Any) -> Task:
    choice = plugins.choose("tasks", {"python": "own_tasks:Counting", **settings})
    made: Task = choice.module.task(choice.config, SIGNATURE)
    return made


def _checked(**parts: Any) -> str:
    recipe_file(**{**RECIPE, **parts})
    ran = edgepack("check", "tiny")
    return ran.err if ran.code == ExitCode.USAGE else f"exit code {ran.code}: {ran.out}"


def test_its_settings_stand_beside_its_name_and_defaults_are_written_out() -> None:
    made = recipe(**RECIPE)
    assert made.plain()["task"] == {"python": "own_tasks:Counting", "threshold": 2, "weights": [1.0, 2.0]}
    assert _task(threshold=3).config.threshold == 3 and _task(weights=(0.5,)).config.weights == (0.5,)
    again = recipe(**{**RECIPE, "task": made.plain()["task"]})
    assert again.plain() == made.plain()


def test_budgets_name_its_metrics_and_no_others() -> None:
    assert [budget.name for budget in recipe(**RECIPE).budgets] == ["count.error", "count.error.max_rise"]
    assert [*_task().metrics] == ["count.error", "mae"]
    error = _checked(budgets={"accuracy": "9 %"})
    assert "accuracy is a metric of " in error and "this recipe's task has mae, count.error" in error
    assert "unknown key 'min'" in _checked(budgets={"count.error": {"min": 1}})


def test_what_it_leaves_out_has_a_default() -> None:
    task, pair = _task(), (torch.tensor([[1.0], [3.0]]), torch.tensor([[1.0], [5.0]]))
    assert float(task.distill(pair[:1], pair[1:], 4.0)) == 2.0
    assert task.told((pair[0].numpy(),)) == ["count 1", "count 3"]
    assert task.problem(torch.zeros(3)) == "" and task.reading == "shapes"
    assert task.shown(0.5) == "0.5" and task.better(1.0) > task.better(2.0)


def test_its_code_is_in_the_key_of_every_step() -> None:
    first = task_facts(recipe(**RECIPE).task)
    assert first["task settings"]["threshold"] == 2 and len(first["task code"]) == 1
    assert "pydantic" in first["task versions"]
    assert task_facts(recipe(**RECIPE).task) == first
    Path("own_tasks.py").write_text(Path("own_tasks.py").read_text() + "# changed\n")
    assert task_facts(recipe(**RECIPE).task)["task code"] != first["task code"]
    assert "task code" not in task_facts(plugins.choose("tasks", "regression"))


@pytest.mark.parametrize(
    ("task", "why"),
    [
        ("python", "at task.python\n  the key 'python' is missing"),
        ({"python": "own_tasks"}, 'expected "module:function"'),
        ({"python": "no_tasks:Counting"}, "there is no module 'no_tasks'"),
        ({"python": "own_tasks:Conting"}, "unknown function of own_tasks 'Conting': did you mean 'Counting'?"),
        ({"python": "own_tasks:net"}, "'own_tasks:net' is not a class that extends edgepack.Task"),
        ({"python": "own_tasks:Counting", "threshold": 0}, "threshold: Input should be greater than or equal to 1"),
        ({"python": "own_tasks:Counting", "regression": {}}, "one task only, got python and regression"),
        ({"regression": {}, "loss": "huber"}, "expected one task with its settings"),
    ],
)
def test_a_reference_or_setting_that_will_not_do_is_named(task: Any, why: str) -> None:
    error = _checked(task=task, budgets=None)
    assert "recipes/tiny.yaml:2" in error and why in error


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("    def loss", "    def lost", "'own_tasks:Counting' must define loss"),
        ("METRICS =", "METRIX =", "'own_tasks:Counting' must define METRICS"),
        ('{"count.error"', '{"accuracy"', "'accuracy' is edgepack's name for another metric, fraction of test samples"),
        ('{"count.error"', '{"size"', "'size' is edgepack's name for another metric, bytes of the exported file"),
        ('{"count.error"', '{"latency"', "'latency' is a group of edgepack's budgets, such as latency.p50"),
        ('{"count.error"', '{"Count Error"', "'Count Error' cannot be written in a budget"),
        ('{"count.error"', '{"count.max"', "'count.max' cannot be written in a budget"),
        ('**named("mae")', '"mae": "maes"', "'maes' is neither edgepack.score(...) nor a metric of a task (accuracy,"),
        ("class Config(BaseModel)", "class Config", "Config of Counting is not a subclass of pydantic.BaseModel"),
        ("class Config(BaseModel)", "class Settings(BaseModel)", "no class Config, so it takes no settings: threshold"),
        (
            "import edgepack\n",
            "import edgepack\nimport edgpack\n",
            "'own_tasks:Counting' does not load: ModuleNotFound",
        ),
        ('name="count"', 'name="a count"', "outputs of 'own_tasks:Counting' are wrong: 'a count' is no name"),
        ("shape=(1,)),)", 'shape=(1,), dtype="int64"),)', "are wrong: they are float32, not int64"),
        ("shape=(1,)),)", "shape=(1,)),) * 2", "are wrong: two have the same name: count, count"),
        ("shape=(1,)),)", "shape=(1,)),)[:0]", "are wrong: there are none"),
        ("shape=(1,)),)", "shape=(0,)),)", "are wrong: count has the shape [0]"),
        ('name="count"', 'name="input"', "are wrong: two have the same name: input, input"),
        ('(edgepack.TensorSpec(name="count", shape=(1,)),)', '("count",)', "['count'] are not each a TensorSpec"),
        ("METRICS = {", 'METRICS = "mae"\n    OTHERS = {', "METRICS of Counting is 'mae'"),
        ("METRICS = {", "METRICS = 5\n    OTHERS = {", "METRICS of Counting is 5"),
        ('(edgepack.TensorSpec(name="count"', '(TensorSpec(name="count"', "failed: NameError: name 'TensorSpec'"),
        (
            "    def outputs",
            '    reading = "values"\n\n    def outputs',
            "so it must be one output with one number a label",
        ),
        ("    def outputs", '    reading = "label"\n\n    def outputs', "the output's name must be logits, not count"),
    ],
)
def test_what_the_class_lacks_or_does_wrong_is_told_by_check(old: str, new: str, why: str) -> None:
    assert CODE.count(old) >= 1
    _write(CODE.replace(old, new))
    error = _checked(budgets=None)
    assert "at task\n" in error and why in error


def test_names_of_edgepacks_metrics_may_be_used_with_their_meaning() -> None:
    _write(CODE.replace("METRICS = {", 'METRICS = ("mae", "rmse")\n    OTHERS = {'))
    assert [*_task().metrics.items()] == [("mae", METRICS["mae"]), ("rmse", METRICS["rmse"])]


def test_a_metric_that_the_meter_lacks_is_told() -> None:
    _write(CODE.replace("dict.fromkeys(self.METRICS, ", 'dict.fromkeys(("count.error",), '))
    task = _task()
    meter = task.meter()
    meter.update((torch.zeros(2, 1),), torch.ones(2))
    with pytest.raises(StageError, match=r"compute\(\) of the task's meter gives count.error, not mae"):
        task.scores(meter)


@pytest.mark.parametrize(
    ("computed", "why"),
    [
        ("float('nan')", "count.error is nan, which cannot be compared"),
        ("torch.ones(2)", r"gives tensor\(\[1., 1.\]\) for count.error, which is not a number"),
        ("None", "gives None for count.error, which is not a number"),
    ],
)
def test_a_metric_that_is_no_finite_number_is_told(computed: str, why: str) -> None:
    meter = f"type('Own', (), {{'compute': lambda self: {{'count.error': {computed}, 'mae': 1.0}}}})()"
    _write(f"import torch\n{CODE}".replace("edgepack.Mean(", f"{meter} or ("))
    with pytest.raises(StageError, match=why):
        _task().scores(_task().meter())


def test_two_tasks_may_mean_different_things_by_a_name() -> None:
    recipe(**RECIPE)
    Path("other_tasks.py").write_text(CODE.replace("edgepack.NUMBER, higher=False", "edgepack.SHARE"))
    budgets = recipe(
        **{**RECIPE, "task": {"python": "other_tasks:Counting"}, "budgets": {"count.error": "90 %"}}
    ).budgets
    assert [(budget.bound, budget.limit) for budget in budgets] == [("min", 0.9)]
    assert recipe(**RECIPE).budgets[0].bound == "max"


def test_a_setting_that_its_config_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown setting of Counting 'treshold': did you mean 'threshold'"):
        _task(treshold=3)


def test_a_setting_may_have_the_names_that_pydantic_takes() -> None:
    aliased = "threshold: int = Field(default=1, ge=1, validation_alias=AliasChoices('threshold', 'within'))"
    code = CODE.replace("threshold: int = Field(default=1, ge=1)", aliased)
    _write(code.replace("import BaseModel", "import AliasChoices, BaseModel"))
    assert _task(within=3).config.threshold == 3


def test_a_mean_of_a_mean_is_refused() -> None:
    _write(CODE.replace("targets).abs()))", "targets).abs().mean()))"))
    meter = _task().meter()
    with pytest.raises(StageError, match=r"values of shape \[\] of 4 samples"):
        meter.update((torch.zeros(4, 1),), torch.ones(4))
