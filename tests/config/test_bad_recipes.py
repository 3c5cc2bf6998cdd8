"""Every mistake that a recipe or device file can hold: exit code 2 and exactly the message beside it, no traceback.

`bad_recipes/<situation>.yaml` is the recipe, `bad_recipes/<situation>.txt` the command and what it prints, in which
{devices} and {runners} are all that there are. The same for device profiles in `bad_devices/`.
"""

import shutil
from pathlib import Path

import pytest
from factories import edgepack, transcript

from edgepack.config import plugins
from edgepack.config.device import all_devices

HERE = Path(__file__).parent
RECIPES = sorted((HERE / "bad_recipes").glob("*.yaml"))
DEVICES = sorted((HERE / "bad_devices").glob("*.yaml"))


def _says_what_it_should(file: Path) -> None:
    arguments, message = transcript(file.with_suffix(".txt"))
    ran = edgepack(*arguments)
    there = {"{devices}": sorted(all_devices()), **{f"{{{kind}}}": plugins.names(kind) for kind in plugins.KINDS}}
    for word, names in there.items():
        message = message.replace(word, ", ".join(names))
    assert ran.err == message
    assert (ran.code, ran.out) == (2, "")


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_bad_recipe(file: Path) -> None:
    shutil.copy(file, file.name)
    shutil.copytree(HERE / "bad_recipes" / "encoder", "encoder")  # the config.json of a tiny BERT
    _says_what_it_should(file)


@pytest.mark.parametrize("file", DEVICES, ids=lambda file: file.stem)
def test_bad_device(file: Path) -> None:
    shutil.copy(file, Path("devices", file.name))
    _says_what_it_should(file)


@pytest.mark.parametrize("folder", ["bad_recipes", "bad_devices"])
def test_every_situation_has_a_file_and_its_message(folder: str) -> None:
    stems = {suffix: {file.stem for file in (HERE / folder).glob(f"*{suffix}")} for suffix in (".yaml", ".txt")}
    assert stems[".yaml"] == stems[".txt"]
    assert len(stems[".txt"]) > 15


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("nothing.yaml", "No such file or directory"),
        ("nothing", "unknown recipe 'nothing'"),
        ("recipes", "Is a directory"),
    ],
)
def test_a_recipe_that_cannot_be_read(path: str, why: str) -> None:
    ran = edgepack("check", path)
    assert ran.code == 2
    assert why in ran.err
    assert "Traceback" not in ran.err


def test_the_mistakes_of_several_recipes_are_reported_together() -> None:
    for name in ("key_unknown", "unit_missing"):
        shutil.copy(HERE / "bad_recipes" / f"{name}.yaml", Path("recipes"))
    ran = edgepack("check")
    assert ran.code == 2
    assert "recipes/key_unknown.yaml:9" in ran.err
    assert "recipes/unit_missing.yaml:10" in ran.err


def test_the_mistakes_of_a_recipe_and_its_device_are_reported_together() -> None:
    shutil.copy(HERE / "bad_recipes" / "unit_missing.yaml", "recipe.yaml")
    shutil.copy(HERE / "bad_devices" / "unknown_runner.yaml", Path("devices", "board.yaml"))
    ran = edgepack("check", "recipe.yaml", "--device", "board")
    assert ran.code == 2
    assert "recipe.yaml:10" in ran.err
    assert "devices/board.yaml:3" in ran.err
