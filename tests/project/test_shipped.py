"""Everything that edgepack ships to be built is right, as a user would find it."""

from pathlib import Path

import pytest
from factories import PROJECT, edgepack

from edgepack.config.device import load_device
from edgepack.config.recipe_reading import load_recipe
from edgepack.workflows.build.planning.planner import plan
from edgepack.workflows.build.store import Store

RECIPES = sorted((PROJECT / "recipes").glob("*.yaml"))
DEVICES = sorted((PROJECT / "devices").glob("*.yaml"))
EVERY_RECIPE = pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
EVERY_DEVICE = pytest.mark.parametrize("file", DEVICES, ids=lambda file: file.stem)


def test_there_is_something_to_build_and_somewhere_to_run_it() -> None:
    assert "quickstart" in {file.stem for file in RECIPES}
    assert "host" in {file.stem for file in DEVICES}


@EVERY_RECIPE
def test_a_recipe_checks_and_plans_for_its_device(file: Path) -> None:
    checked = edgepack("check", file.stem)
    assert (checked.code, checked.err) == (0, "")
    planned = edgepack("plan", file.stem, "--store", "store")
    assert (planned.code, planned.err) == (0, "")
    recipe = load_recipe(file)
    assert len(planned.out.splitlines()) == 1 + len(plan(recipe, load_device(recipe.device), Store("store")).steps)


@EVERY_RECIPE
def test_a_recipe_says_what_it_is_and_has_budgets(file: Path) -> None:
    recipe = load_recipe(file)
    assert file.read_text().startswith("# ")
    first = next(iter(recipe.task.module.metrics(recipe.task.config)))
    assert {"size", first} <= {budget.metric for budget in recipe.budgets}
    assert recipe.name == file.stem


@EVERY_DEVICE
def test_a_device_loads_and_says_what_it_is(file: Path) -> None:
    assert load_device(file).id == file.stem
    assert file.read_text().startswith("# ")


def test_every_device_has_a_recipe() -> None:
    """`make DEVICE`, which `make help` lists, builds those that name it."""
    assert {file.stem for file in DEVICES} <= {load_recipe(file).device for file in RECIPES}


@EVERY_RECIPE
@pytest.mark.parametrize("device", [file.stem for file in DEVICES])
def test_every_recipe_can_be_asked_for_on_every_device(file: Path, device: str) -> None:
    ran = edgepack("check", file.stem, "--device", device)
    assert (ran.code, ran.err) == (0, "")


def test_the_devices_are_listed() -> None:
    ran = edgepack("devices")
    assert ran.code == 0
    assert {line.split()[0] for line in ran.out.splitlines()} == {file.stem for file in DEVICES}


def test_a_wheel_carries_the_device_profiles() -> None:
    assert '"devices" = "edgepack/devices"' in (PROJECT / "pyproject.toml").read_text()
