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
@click.option("--recipe", metavar="RECIPE", help="Use the budgets and waivers of this recipe.")
@click.option("--baseline", metavar="BUILD", help="Baseline of relative budgets: a build or a bundle.")
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
    """Check the budgets of finished builds again, without building.

    No model is run; the exit code is the verdict. BUILD is a build.json, its folder, or the name of a recipe that was
    built. Default budgets are those of the build, and the default baseline is the one it recorded; --recipe, --baseline
    and --history name others. Waivers count as of today. Existing reports are not changed; --reports writes new ones.
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
    """Compare two builds: figures, settings and versions.
    BEFORE and AFTER are each a build.json, its folder, or the name of a recipe that was built. Exit code 3: no figure
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
@click.option("--device", metavar="ID", help="Only builds for this device.")
@click.option(
    "--last",
    type=click.IntRange(min=1),
    metavar="N",
    default=20,
    show_default=True,
    help="Show the N most recent builds.",
)
@dist_option
@history_option
def trend(recipe: str | None, device: str | None, last: int, dist: str, history: str | None) -> None:
    """Show size, latency and accuracy of past builds.

    Of RECIPE, or of all recipes, with what changed between builds.
    """
    from edgepack.cli.views import trend as trend_view
    from edgepack.judge.history import FILE, read

    past = Path(history) if history else Path(dist) / FILE
    lines, damaged = read(past)
    name = Path(recipe).stem if recipe and Path(recipe).suffix in (".yaml", ".yml") else recipe
    chosen = [line for line in lines if name in (None, line.recipe) and device in (None, line.device)]
    if not chosen:
        known = ", ".join(sorted({f"{line.recipe} on {line.device}" for line in lines})) or "none"
        raise RecipeError("no matching build in the history", f"{past} has: {known}")
    trend_view.show(chosen, sys.stdout, last)
    if damaged:
        tell(f"warning: unreadable lines in {past}: {damaged}")
