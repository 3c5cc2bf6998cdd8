"""gate, compare, trend."""

import sys
from contextlib import suppress
from pathlib import Path

import click

from edgepack.cli.group import cli
from edgepack.cli.options import dist_option, history_option, set_option
from edgepack.cli.streams import annotate, tell
from edgepack.core.errors import EdgepackError, ExitCode, RecipeError, most_decisive


@cli.command()
@click.argument("builds", nargs=-1, required=True, metavar="BUILD...")
@click.option("--recipe", metavar="RECIPE", help="Judge by the budgets and waivers of this recipe.")
@click.option("--baseline", metavar="BUILD", help="Hold relative budgets against this build or bundle.")
@click.option("--reports", type=click.Path(path_type=Path), metavar="DIR", help="Write reports to DIR/RECIPE/.")
@set_option
@dist_option
@history_option
def gate(
    builds: tuple[str, ...],
    recipe: str | None,
    baseline: str | None,
    reports: Path | None,
    overrides: tuple[str, ...],
    dist: str,
    history: str | None,
) -> int:
    """Judge builds again from what they recorded, as of today; no model is run, and the exit code is the verdict.

    BUILD is a build.json, the folder it lies in, or the name of a recipe that was built. It is judged by the budgets it
    was built with, or those of --recipe, and against what it recorded of its baseline unless --baseline or --history
    says otherwise. The reports beside it stay as they are; --reports writes others.
    """
    from edgepack.cli.views import github
    from edgepack.cli.views.verdicts import show
    from edgepack.deliver.contract import report_again
    from edgepack.records.build import find_build
    from edgepack.workflows.rejudge import rejudge

    codes: list[int] = []
    limits, past = _recipe_file(recipe) if recipe else None, Path(history) if history else None
    for named in builds:
        try:
            path = find_build(named, Path(dist))
            result = rejudge(path, history=past, recipe=limits, overrides=overrides, against=baseline)
            codes.append(result.exit_code or 0)
            written = str(report_again(result, reports, path)) if reports else ""
            show(result, sys.stdout, written, bundle=False)
            with suppress(OSError):
                github.tell(result, sys.stdout)
        except EdgepackError as error:
            codes.append(error.code)
            tell(str(error))
            annotate(error, sys.stdout)
    return most_decisive(codes)


def _recipe_file(recipe: str) -> Path:
    from edgepack.config.recipe_reading import find_recipe

    return find_recipe(recipe)


@cli.command()
@click.argument("before")
@click.argument("after")
@dist_option
def compare(before: str, after: str, dist: str) -> int:
    """Show what changed from one build to another: figures, settings, versions; or why the two cannot be compared.

    Each is a build.json, the folder it lies in, or the name of a recipe that was built. Exit code 3 says that no figure
    can be compared.
    """
    from edgepack.cli.views import compare as compare_view
    from edgepack.judge.compare import Comparison
    from edgepack.records.build import Build, find_build

    first, second = (Build.read(find_build(named, Path(dist))) for named in (before, after))
    comparison = Comparison(before=first, after=second)
    compare_view.show(comparison, sys.stdout)
    return ExitCode.OK if comparison.comparable else ExitCode.INCONCLUSIVE


@cli.command()
@click.argument("recipe", required=False)
@click.option("--device", metavar="ID", help="On this device alone.")
@click.option("--last", type=click.IntRange(min=1), default=20, show_default=True, help="So many builds.")
@dist_option
@history_option
def trend(recipe: str | None, device: str | None, last: int, dist: str, history: str | None) -> None:
    """Show the history of RECIPE, or of all: size, latency and accuracy of every build, and where they changed."""
    from edgepack.cli.views import trend as trend_view
    from edgepack.judge.history import FILE, read

    past = Path(history) if history else Path(dist) / FILE
    lines, damaged = read(past)
    name = Path(recipe).stem if recipe and Path(recipe).suffix in (".yaml", ".yml") else recipe
    chosen = [line for line in lines if name in (None, line.recipe) and device in (None, line.device)]
    if not chosen:
        known = ", ".join(sorted({f"{line.recipe} on {line.device}" for line in lines})) or "none"
        raise RecipeError("the history has no such build", f"in {past}: {known}")
    trend_view.show(chosen, sys.stdout, last)
    if damaged:
        tell(f"{damaged} lines of {past} cannot be read, and are left out")
