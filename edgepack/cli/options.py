"""Arguments and options that several commands share."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepack.core.errors import RecipeError

if TYPE_CHECKING:
    from edgepack.config.document import Problem
    from edgepack.config.recipe import Recipe


def as_utf8(context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> tuple[str, ...]:
    """Decode arguments such as "250 µs", which a system without UTF-8 passes byte by byte."""
    return tuple(text.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for text in texts)


recipes_argument = click.argument("recipes", nargs=-1, metavar="[RECIPE]...")
device_option = click.option(
    "--device", metavar="ID", help="Use this device instead. Without RECIPE: all recipes for this device."
)
set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    callback=as_utf8,
    help="Override one value: budgets.size=400kB.",
)
store_option = click.option(
    "--store", default=".edgepack/store", show_default=True, envvar="EDGEPACK_STORE", help="Folder of the cache."
)
dist_option = click.option(
    "--dist", default="dist", show_default=True, envvar="EDGEPACK_DIST", help="Folder of build outputs."
)
history_option = click.option(
    "--history",
    metavar="FILE",
    envvar="EDGEPACK_HISTORY",
    help="History file, one line per build. Default: history.jsonl in --dist.",
)

bundle_argument = click.argument("bundle", type=click.Path(path_type=Path))
signature_option = click.option(
    "--signature",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Signature file [default: BUNDLE.sig].",
)


def check_exists(bundle: Path) -> None:
    if not bundle.exists():
        raise RecipeError(f"{bundle} not found", "give the .zip that a build wrote, or its unpacked folder")
    if not (bundle / "manifest.json").exists() and (bundle / "bundle/manifest.json").exists():
        raise RecipeError(f"{bundle} is a build's output folder, not a bundle", f"give {bundle / 'bundle'} or the .zip")


def load_recipes(
    recipes: tuple[str, ...], device: str | None, overrides: tuple[str, ...], trackers: tuple[str, ...] = ()
) -> "list[Recipe]":
    """Load the named recipes, or all, or all for a device. Raises ConfigError with every mistake in all of them."""
    from edgepack.config.device import load_device
    from edgepack.config.document import ConfigError
    from edgepack.config.recipe_reading import all_recipes, load_recipe

    found = recipes or tuple(str(file) for file in all_recipes())
    if not found:
        raise RecipeError("no recipe found", "name a YAML file, or put one into the folder recipes/")
    loaded: list[Recipe] = []
    problems: list[Problem] = []
    for recipe in found:
        try:
            asked = device if recipes else None
            loaded.append(load_recipe(recipe, overrides=overrides, device=asked, trackers=trackers))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))  # recipes share devices
    names = [recipe.name for recipe in loaded]
    if twice := {name for name in names if names.count(name) > 1}:
        raise RecipeError(
            f"several recipes are named {', '.join(sorted(twice))}", "rename one: both would write to the same folder"
        )
    chosen = [recipe for recipe in loaded if recipes or device in (None, Path(recipe.device).stem)]
    if not chosen and device:
        load_device(device)  # raises an error if there is no such device
        raise RecipeError(
            f"no recipe in recipes/ is for the device '{device}'", f"name one: edgepack build RECIPE --device {device}"
        )
    return chosen
