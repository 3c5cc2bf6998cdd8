"""stages, schema, cache."""

from typing import Any

import click

from edgepack.cli.group import cli
from edgepack.cli.options import store_option
from edgepack.core.errors import RecipeError


@cli.command()
def stages() -> None:
    """List stages, models, data sets, exporters, tasks and trackers.

    With the settings of each and their defaults.
    """
    from edgepack.config import plugins

    for kind in ("stages", "models", "datasets", "exporters", "tasks", "trackers"):
        click.secho(kind, bold=True)
        for name in plugins.names(kind):
            try:
                module = plugins.load(kind, name)
            except RecipeError as error:
                click.echo(f"  {name:22} {error.message}")
                continue
            click.echo(f"  {name:22} {plugins.summary(module)}")
            for key, text in plugins.settings(module) if kind != "tasks" else ():
                click.echo(f"      {key:18} {text}")


@cli.command()
@click.argument("what", type=click.Choice(["recipe", "device"]))
def schema(what: str) -> None:
    """Print the JSON schema of recipe or device files.

    Editors and linters use it.
    """
    import json

    from edgepack.config import schema as schemas

    click.echo(json.dumps(schemas.recipe() if what == "recipe" else schemas.device(), indent=2))


@cli.group()
def cache() -> None:
    """List or clean up the cache of finished build steps."""


@cache.command("ls")
@store_option
def cache_ls(store: str) -> None:
    """List cached steps, most recently used first."""
    from datetime import datetime

    from edgepack.core.units import SIZE
    from edgepack.workflows.build.store import Store

    entries = Store(store).entries()
    for entry in entries:
        used = datetime.fromtimestamp(entry.used_at).strftime("%Y-%m-%d %H:%M")
        click.echo(
            f"{entry.key[:12]}  {entry.kind:11} {SIZE.format(entry.bytes):>9}  used {used}  {_what(entry.ingredients)}"
        )
    click.echo(f"{len(entries)} entries, {SIZE.format(sum(entry.bytes for entry in entries))} in {store}")


def _what(ingredients: dict[str, Any]) -> str:
    return str(ingredients.get("plugin", ""))


@cache.command("gc")
@store_option
@click.option(
    "--unused-days",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    help="Remove steps that were not used for N days.",
)
@click.option("--max-size", metavar="SIZE", help="Then remove the least recently used until the cache fits: 5GB.")
def cache_gc(store: str, unused_days: float, max_size: str | None) -> None:
    """Remove steps that were not used recently, and leftovers of killed builds."""
    from edgepack.core.units import SIZE
    from edgepack.workflows.build.store import Store

    try:
        limit = SIZE.parse(max_size) if max_size else None
    except ValueError as error:
        raise RecipeError(f"--max-size: {error}") from None
    gone = Store(store).collect(unused_days=unused_days, max_bytes=limit)
    click.echo(f"removed {len(gone)} entries, {SIZE.format(sum(entry.bytes for entry in gone))}")
