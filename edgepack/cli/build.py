"""build, check, plan, explain."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepack.cli.group import cli
from edgepack.cli.options import (
    device_option,
    dist_option,
    history_option,
    load_recipes,
    recipes_argument,
    set_option,
    store_option,
)
from edgepack.cli.streams import Screen, annotate, tell
from edgepack.core.errors import EdgepackError, most_decisive
from edgepack.core.process import interrupts

if TYPE_CHECKING:
    from edgepack.cli.views.progress import Watcher
    from edgepack.config.recipe import Recipe
    from edgepack.workflows.build.store import Store


@cli.command()
@recipes_argument
@device_option
@set_option
@dist_option
@store_option
@history_option
@click.option(
    "--track", "trackers", multiple=True, metavar="TRACKER", help="Log to this experiment tracker too: mlflow."
)
@click.option("--remeasure", is_flag=True, help="Measure every file again, also files that did not change.")
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON lines instead of readable progress.")
def build(
    recipes: tuple[str, ...],
    device: str | None,
    overrides: tuple[str, ...],
    dist: str,
    store: str,
    history: str | None,
    trackers: tuple[str, ...],
    remeasure: bool,
    as_json: bool,
) -> int:
    """Build recipes: compress, export, measure, judge, bundle.

    Only steps that are not cached run. RECIPE is a YAML file or the name of a recipe in recipes/. Default: every recipe
    in recipes/.
    """
    from edgepack.cli.views.progress import watcher
    from edgepack.workflows.build.store import Store

    chosen = load_recipes(recipes, device, overrides, trackers)
    codes = []
    with Screen() as screen:
        for recipe in chosen:
            interrupts.check()
            watch = watcher(screen.out, as_json=as_json)
            try:
                codes.append(_build_one(recipe, Path(dist), Store(store), history, remeasure, watch, screen))
            except EdgepackError as error:
                codes.append(error.code)
                watch.close()
                tell(f"{recipe.name}: {error}", screen.err)
                annotate(error, screen.err if as_json else screen.out, Path(dist) / recipe.name)
            finally:
                watch.close()
    return most_decisive(codes)


def _build_one(
    recipe: "Recipe",
    dist: Path,
    store: "Store",
    history: str | None,
    remeasure: bool,
    watch: "Watcher",
    screen: "Screen",
) -> int:
    from edgepack.cli.views import github
    from edgepack.cli.views.progress import JsonLines
    from edgepack.cli.views.verdicts import show
    from edgepack.config.device import load_device
    from edgepack.workflows.build.output import output_folder
    from edgepack.workflows.build.pipeline import build

    device = load_device(recipe.device)
    folder = output_folder(dist, recipe)
    screen.send_libraries_to(folder / "build.log")
    result = build(recipe, device, store, dist=dist, emit=watch, remeasure=remeasure, record=history)
    watch.close()
    if not isinstance(watch, JsonLines):
        show(result, screen.out, str(folder))
    with suppress(OSError):
        github.tell(result, screen.err if isinstance(watch, JsonLines) else screen.out)
    return result.exit_code or 0


@cli.command()
@recipes_argument
@device_option
@set_option
def check(recipes: tuple[str, ...], device: str | None, overrides: tuple[str, ...]) -> None:
    """Validate recipes and device files, and report all mistakes.

    Runs nothing.
    """
    from edgepack.core.files.unchanged import one_look

    with one_look():
        _check(load_recipes(recipes, device, overrides))


def _check(recipes: Sequence["Recipe"]) -> None:
    from edgepack.config.device import load_device

    for recipe in recipes:
        profile = load_device(recipe.device)
        stages = " -> ".join(stage.name for stage in recipe.stages)
        budgets = f"budgets: {len(recipe.budgets)}" if recipe.budgets else "no budgets: the build checks no limit"
        click.echo(f"{recipe.name}: OK ({stages}; {budgets}; device: {profile.name})")
        remarks = (f"{each.name}: {said}" for each in recipe.stages for said in each.module.remarks(each.config))
        for note in (*recipe.data.module.notes(recipe.data.config), *remarks):
            click.echo(f"  note: {note}")


@cli.command()
@recipes_argument
@device_option
@set_option
@store_option
def plan(recipes: tuple[str, ...], device: str | None, overrides: tuple[str, ...], store: str) -> None:
    """List the steps of a build: cached, or to run and why.

    Runs nothing.
    """
    from edgepack.config.device import load_device
    from edgepack.core.files.unchanged import one_look
    from edgepack.workflows.build.planning.planner import plan
    from edgepack.workflows.build.store import Store

    with one_look():
        planned = [
            (recipe, plan(recipe, load_device(recipe.device), Store(store)))
            for recipe in load_recipes(recipes, device, overrides)
        ]
    for recipe, made in planned:
        click.echo(f"{recipe.name} for {made.recipe.profile.name}" + (": up to date" if made.up_to_date else ""))
        width = max(len(step.name) for step in made.steps)
        for step in made.steps:
            click.echo(
                f"  {step.name:{width}}  " + (f"cached {step.key[:6]}" if step.cached else f"run: {step.reason}")
            )


@cli.command()
@click.argument("build")
@dist_option
@click.option(
    "--size", is_flag=True, help="Show instead what the files hold: layers, types, operators, delegation, arena."
)
def explain(build: str, dist: str, size: bool) -> None:
    """Show what each stage of the last build cost and gained.

    With notes on what each stage did to which layer. BUILD is a recipe that was built, or the folder of a build.
    """
    from edgepack.cli.views import file_contents
    from edgepack.cli.views.verdicts import ledger, show
    from edgepack.records.build import Build, find_build

    file = find_build(build, Path(dist))
    result = Build.read(file)
    if size:
        file_contents.show(result, sys.stdout)
        return
    ledger(result, sys.stdout)
    if result.error:
        click.echo(f"the build did not finish: {result.error}")
    else:
        show(result, sys.stdout, str(file.parent))
