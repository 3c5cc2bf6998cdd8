"""devices, bench, doctor."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepack.cli.group import cli
from edgepack.cli.options import as_utf8, dist_option, store_option
from edgepack.cli.streams import Screen
from edgepack.core.errors import EdgepackError, ExitCode, RecipeError, most_decisive

if TYPE_CHECKING:
    from edgepack.config.device import Device
    from edgepack.workflows.bench import Bench, Pair


@cli.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE [FILE]", type=click.Path(path_type=Path))
@click.option("--device", default="host", show_default=True, metavar="ID", help="Where to time it.")
@click.option(
    "--budget",
    "budgets",
    multiple=True,
    metavar="METRIC=LIMIT",
    callback=as_utf8,
    help="Judge it too: latency.p50=2ms.",
)
@click.option(
    "--shape", "shapes", multiple=True, metavar="INPUT=N,N,...", help="Of an input whose shape the file leaves open."
)
@click.option("--json", "as_json", is_flag=True, help="The measurements with every sample as JSON.")
def bench(
    files: tuple[Path, ...], device: str, budgets: tuple[str, ...], shapes: tuple[str, ...], as_json: bool
) -> int:
    """Time FILE, a .pte, .onnx or .ort of anybody, on a device; or two in turns, for their ratio.

    Its answers are checked first. The sample is a fresh process: seven of them, or up to 21 where a budget or a ratio
    is not decided by then.
    """
    from edgepack.cli.views import bench as bench_view
    from edgepack.cli.views.progress import watcher
    from edgepack.config.device import load_device
    from edgepack.core.events import placed
    from edgepack.measure.input_shapes import read_shapes
    from edgepack.workflows import bench as benches

    if len(files) > 2 or (len(files) == 2 and budgets):
        raise RecipeError("give one file, or two without a budget", "edgepack bench A B")
    where, given, limits = load_device(device), read_shapes(shapes), benches.read_limits(budgets)
    watch = watcher(sys.stderr, as_json=False)
    emit = placed(watch, 1, 1, where.name)
    found: Bench | Pair
    try:
        if len(files) == 2:
            found = benches.pair(files[0], files[1], where, shapes=given, emit=emit)
        else:
            found = benches.bench(files[0], where, budgets=limits, shapes=given, emit=emit)
    finally:
        watch.close()
    if as_json:
        click.echo(found.model_dump_json(indent=1))
    else:
        bench_view.show(found, sys.stdout)
    return most_decisive(verdict.code for verdict in found.verdicts)


@cli.group(invoke_without_command=True)
@click.pass_context
def devices(context: click.Context) -> None:
    """List device profiles, and whether each can be used now."""
    if context.invoked_subcommand:
        return
    from edgepack.config.device import all_devices, load_device

    for id, file in sorted(all_devices().items()):
        try:
            device = load_device(file)
        except RecipeError as error:
            click.echo(f"{id:16} cannot be used:\n{error}")
            continue
        worth = device.evidence.get("time", "not timed")
        click.echo(f"{id:16} {device.name} ({device.runner.name}, {worth}): {_reachable(device)}")


@devices.command("calibrate")
@click.argument("device", default="host", metavar="[ID]")
def devices_calibrate(device: str) -> None:
    """Time small nets on a device and fit the figures that estimates are made with: a few minutes.

    Prints the `analytic` section of its profile. The error in it is that of nets which were left out of the fit.
    """
    from edgepack.cli.views.progress import watcher
    from edgepack.config.device import load_device
    from edgepack.core.events import placed
    from edgepack.workflows.calibrate import calibrated, section

    where = load_device(device)
    with Screen() as screen:
        screen.send_libraries_to(Path(os.devnull))
        watch = watcher(screen.err, as_json=False)
        try:
            found = calibrated(where, placed(watch, 1, 1, where.name))
        finally:
            watch.close()
        click.echo(section(found), nl=False, file=screen.out)


@devices.command("prepare")
@click.argument("id")
def devices_prepare(id: str) -> None:
    """Fetch what the device ID needs before it can be used: for an emulated one, its system and runtimes."""
    from edgepack.config.device import load_device

    device = load_device(id)
    prepare = device.runner.module.prepare
    if prepare is None:
        click.echo(f"{device.name} needs no preparation")
    else:
        prepare(device, click.echo)


def _reachable(device: "Device") -> str:
    from edgepack.measure.contract import connected

    try:
        with connected(device):
            return "ready"
    except EdgepackError as error:
        return error.message


@cli.command()
@store_option
@dist_option
def doctor(store: str, dist: str) -> int:
    """Check this machine: versions, processor, disk and load, and say what to change."""
    from edgepack.workflows.doctor import checks

    bad = False
    for finding in checks(Path(store), Path(dist)):
        bad = bad or not finding.fine
        click.echo(f"{'ok ' if finding.fine else 'BAD'}  {finding.text}")
        if finding.advice:
            click.echo(f"     {finding.advice}")
    return ExitCode.DEVICE if bad else ExitCode.OK
