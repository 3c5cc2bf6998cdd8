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
@click.option("--device", default="host", show_default=True, metavar="ID", help="Device to benchmark on.")
@click.option(
    "--budget",
    "budgets",
    multiple=True,
    metavar="METRIC=LIMIT",
    callback=as_utf8,
    help="Also check this budget: latency.p50=2ms.",
)
@click.option(
    "--shape", "shapes", multiple=True, metavar="INPUT=N,N,...", help="Shape of an input with a dynamic shape."
)
@click.option("--json", "as_json", is_flag=True, help="Print measurements and raw samples as JSON.")
def bench(
    files: tuple[Path, ...], device: str, budgets: tuple[str, ...], shapes: tuple[str, ...], as_json: bool
) -> int:
    """Benchmark an exported model, or compare two by alternating runs.

    FILE is a .pte, .onnx or .ort. The outputs are checked first. Latency is measured in 7 fresh processes, and in up to
    21 if a budget or the ratio of two models is still undecided.
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
    """List device profiles and whether each device is available now."""
    if context.invoked_subcommand:
        return
    from edgepack.config.device import all_devices, load_device

    for id, file in sorted(all_devices().items()):
        try:
            device = load_device(file)
        except RecipeError as error:
            click.echo(f"{id:16} not usable:\n{error}")
            continue
        worth = device.evidence.get("time", "not timed")
        click.echo(f"{id:16} {device.name} ({device.runner.name}, {worth}): {_reachable(device)}")


@devices.command("calibrate")
@click.argument("device", default="host", metavar="[ID]")
def devices_calibrate(device: str) -> None:
    """Fit the latency estimates of a device: a few minutes.

    Benchmarks small networks and prints the `analytic` section for the device file. Its error is measured on networks
    left out of the fit.
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
    """Download what a device needs before its first use.

    For an emulated device: its system image and runtimes.
    """
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
    """Check this machine and say what to change.

    Checks versions, processor, disk and load.
    """
    from edgepack.workflows.doctor import checks

    bad = False
    for finding in checks(Path(store), Path(dist)):
        bad = bad or not finding.fine
        click.echo(f"{'ok ' if finding.fine else 'BAD'}  {finding.text}")
        if finding.advice:
            click.echo(f"     {finding.advice}")
    return ExitCode.DEVICE if bad else ExitCode.OK
