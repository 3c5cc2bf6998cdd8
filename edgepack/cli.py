"""The command line: parse, call, render, exit. Everything heavy is imported by the command that needs it."""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TextIO

import click

from edgepack import __version__, interrupts, openmp
from edgepack.errors import EdgepackError, ExitCode, RecipeError, most_decisive

if TYPE_CHECKING:
    from edgepack.bench import Bench, Pair
    from edgepack.config import Problem
    from edgepack.device import Device
    from edgepack.recipe import Recipe
    from edgepack.reports.console import Watcher
    from edgepack.store import Store

_EXIT_CODES = """
\b
Exit codes
  0  every budget met                     5  a stage or an export failed
  1  a budget failed                     70  a bug in edgepack
  2  bad recipe, device file or usage   130  interrupted
  3  inconclusive or not measured
  4  device or infrastructure           CI may retry 3 and 4, never 1.
"""


@click.group(epilog=_EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="edgepack")
def cli() -> None:
    """Compress a trained model for one device, prove it on the files you ship, and fail the build when it misses its
    budgets.

    \b
    edgepack check quickstart        is the recipe right?
    edgepack plan quickstart         what would a build do, and why?
    edgepack build quickstart        do it; the exit code is the verdict
    edgepack explain quickstart      what every stage cost and gained
    edgepack gate quickstart         judge it again, without building
    """


def _as_utf8(context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> tuple[str, ...]:
    """What was typed: a system that knows no UTF-8 gives its bytes one by one, and "250 µs" has such."""
    return tuple(text.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for text in texts)


_recipes = click.argument("recipes", nargs=-1, metavar="[RECIPE]...")
_device = click.option(
    "--device", metavar="ID", help="Build for this device instead; without RECIPE: every recipe of it."
)
_set = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    callback=_as_utf8,
    help="Change one value: budgets.size=400kB.",
)
_store = click.option(
    "--store", default=".edgepack/store", show_default=True, envvar="EDGEPACK_STORE", help="The cache."
)
_dist = click.option("--dist", default="dist", show_default=True, envvar="EDGEPACK_DIST", help="Where bundles go.")
_history = click.option(
    "--history", metavar="FILE", envvar="EDGEPACK_HISTORY", help="One line a build. Default: history.jsonl in --dist."
)


@cli.command()
@_recipes
@_device
@_set
@_dist
@_store
@_history
@click.option("--remeasure", is_flag=True, help="Take every measurement again, even of files that have not changed.")
@click.option("--json", "as_json", is_flag=True, help="Events as JSON lines instead of progress for people.")
def build(
    recipes: tuple[str, ...],
    device: str | None,
    overrides: tuple[str, ...],
    dist: str,
    store: str,
    history: str | None,
    remeasure: bool,
    as_json: bool,
) -> int:
    """Build recipes: run what is not done yet, measure the exported files, judge them, write the bundle.

    RECIPE is a file, or a name in recipes/; without one, every recipe there is built.
    """
    from edgepack.reports.console import watcher
    from edgepack.store import Store

    chosen = _load(recipes, device, overrides)
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
                _tell(f"{recipe.name}: {error}", screen.err)
                _annotate(error, screen.err if as_json else screen.out, Path(dist) / recipe.name)
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
    from edgepack.device import load_device
    from edgepack.pipeline import build, output_folder
    from edgepack.reports import github
    from edgepack.reports.console import JsonLines, show

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
@_recipes
@_device
@_set
def check(recipes: tuple[str, ...], device: str | None, overrides: tuple[str, ...]) -> None:
    """Check recipes and their devices, and report every mistake at once. Runs nothing."""
    from edgepack.device import load_device

    for recipe in _load(recipes, device, overrides):
        profile = load_device(recipe.device)
        stages = " -> ".join(stage.name for stage in recipe.stages)
        budgets = f"budgets: {len(recipe.budgets)}" if recipe.budgets else "no budget, so nothing will be judged"
        click.echo(f"{recipe.name}: fine ({stages}; {budgets}; for {profile.name})")
        for note in getattr(recipe.data.module, "notes", lambda config: ())(recipe.data.config):
            click.echo(f"  note: {note}")


@cli.command()
@_recipes
@_device
@_set
@_store
def plan(recipes: tuple[str, ...], device: str | None, overrides: tuple[str, ...], store: str) -> None:
    """Show every step of a build: cached, or why it would run. Runs nothing."""
    from edgepack.device import load_device
    from edgepack.plan import plan
    from edgepack.store import Store

    for recipe in _load(recipes, device, overrides):
        made = plan(recipe, load_device(recipe.device), Store(store))
        click.echo(f"{recipe.name} for {made.device.name}" + (": up to date" if made.up_to_date else ""))
        width = max(len(step.name) for step in made.steps)
        for step in made.steps:
            click.echo(
                f"  {step.name:{width}}  " + (f"cached {step.key[:6]}" if step.cached else f"run: {step.reason}")
            )


@cli.command()
@click.argument("recipe")
@_dist
@click.option("--size", is_flag=True, help="What is in the files instead: layers, types, operators, delegation, arena.")
def explain(recipe: str, dist: str, size: bool) -> None:
    """The ledger of the last build of RECIPE: what every stage cost and gained, and what it did to which layer."""
    from edgepack.recipe import load_recipe
    from edgepack.reports import _contents
    from edgepack.reports.console import ledger, show
    from edgepack.result import Build

    try:
        name = load_recipe(recipe).name
    except RecipeError:  # the recipe may have gone or changed since; what it built is still there
        name = Path(recipe).stem
    result = Build.read(Path(dist) / name / "build.json")
    if size:
        _contents.show(result, sys.stdout)
        return
    ledger(result, sys.stdout)
    if result.error:
        click.echo(f"the build did not finish: {result.error}")
    else:
        show(result, sys.stdout, str(Path(dist) / name))


_bundle = click.argument("bundle", type=click.Path(path_type=Path))
_signature = click.option(
    "--signature",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where the signature lies [default: BUNDLE.sig].",
)


@cli.command()
@click.argument("builds", nargs=-1, required=True, metavar="BUILD...")
@click.option("--recipe", metavar="RECIPE", help="Judge by the budgets and waivers of this recipe.")
@click.option("--baseline", metavar="BUILD", help="Hold relative budgets against this build or bundle.")
@click.option("--reports", type=click.Path(path_type=Path), metavar="DIR", help="Write reports to DIR/RECIPE/.")
@_set
@_dist
@_history
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
    from edgepack.rejudge import rejudge
    from edgepack.reports import github, report_again
    from edgepack.reports.console import show
    from edgepack.result import find_build

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
            _tell(str(error))
            _annotate(error, sys.stdout)
    return most_decisive(codes)


def _recipe_file(recipe: str) -> Path:
    from edgepack.recipe import find_recipe

    return find_recipe(recipe)


@cli.command()
@click.argument("before")
@click.argument("after")
@_dist
def compare(before: str, after: str, dist: str) -> int:
    """Show what changed from one build to another: figures, settings, versions; or why the two cannot be compared.

    Each is a build.json, the folder it lies in, or the name of a recipe that was built. Exit code 3 says that no figure
    can be compared.
    """
    from edgepack.compare import Comparison
    from edgepack.reports import _compare
    from edgepack.result import Build, find_build

    first, second = (Build.read(find_build(named, Path(dist))) for named in (before, after))
    comparison = Comparison(before=first, after=second)
    _compare.show(comparison, sys.stdout)
    return ExitCode.OK if comparison.comparable else ExitCode.INCONCLUSIVE


@cli.command()
@click.argument("recipe", required=False)
@click.option("--device", metavar="ID", help="On this device alone.")
@click.option("--last", type=click.IntRange(min=1), default=20, show_default=True, help="So many builds.")
@_dist
@_history
def trend(recipe: str | None, device: str | None, last: int, dist: str, history: str | None) -> None:
    """Show the history of RECIPE, or of all: size, latency and accuracy of every build, and where they changed."""
    from edgepack.history import FILE, read
    from edgepack.reports import _trend

    past = Path(history) if history else Path(dist) / FILE
    lines, damaged = read(past)
    name = Path(recipe).stem if recipe and Path(recipe).suffix in (".yaml", ".yml") else recipe
    chosen = [line for line in lines if name in (None, line.recipe) and device in (None, line.device)]
    if not chosen:
        known = ", ".join(sorted({f"{line.recipe} on {line.device}" for line in lines})) or "none"
        raise RecipeError("the history has no such build", f"in {past}: {known}")
    _trend.show(chosen, sys.stdout, last)
    if damaged:
        _tell(f"{damaged} lines of {past} cannot be read, and are left out")


@cli.command()
@_bundle
@click.option(
    "--public-key", type=click.Path(path_type=Path), metavar="FILE", help="Check that this key has signed it, too."
)
@_signature
def verify(bundle: Path, public_key: Path | None, signature: Path | None) -> None:
    """Check that BUNDLE, a zip or its unpacked folder, is exactly what its manifest says, and who signed it."""
    from edgepack.bundle import verify

    _there(bundle)
    if signature and not public_key:
        raise RecipeError("--signature says nothing without the key", "give --public-key too")
    if public_key:
        from edgepack.bundle.signing import beside, check

        manifest = check(bundle, public_key, signature or beside(bundle))
    else:
        manifest = verify(bundle)
    signed = f", signed by {public_key}" if public_key else ""
    click.echo(f"{bundle}: whole, {len(manifest.files)} files, {manifest.name} for {manifest.device}{signed}")


@cli.command()
@_bundle
@click.option(
    "--key", required=True, type=click.Path(path_type=Path), metavar="FILE", help="The private key, a PEM file."
)
@_signature
def sign(bundle: Path, key: Path, signature: Path | None) -> None:
    """Sign BUNDLE, when it is whole, with a key of your own; the signature lies beside it.

    Needs the extra edgepack[sign]. The password of an encrypted key is taken from EDGEPACK_KEY_PASSWORD.
    """
    from edgepack.bundle.signing import beside, sign

    _there(bundle)
    written = signature or beside(bundle)
    sign(bundle, key, written)
    _warn_of_verdict(bundle)
    click.echo(f"{bundle}: signed, {written}")


def _warn_of_verdict(bundle: Path) -> None:
    """A signature says whose a bundle is; that it may not ship, only its build.json beside it says."""
    from edgepack.result import Build

    with suppress(EdgepackError):
        result = Build.read(bundle.resolve().parent / "build.json")
        if result.exit_code:
            _tell(f"it is signed, but its build ended with exit code {result.exit_code}: it did not meet its budgets")


@cli.command()
@_bundle
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--deploy-only", is_flag=True, help="Just what an app ships: models/, io/ and licences/.")
@click.option(
    "--runtime", default="", metavar="NAME", help="Of that, just what an app with this one runtime ships: onnxruntime."
)
def unpack(bundle: Path, target: Path, deploy_only: bool, runtime: str) -> None:
    """Check BUNDLE and write its files to TARGET, a folder, or a zip where it ends in .zip.

    What --deploy-only gives is a bundle too, that `verify` can check, of the same content digest. With --runtime its
    files are those that the budgets size.deploy and size.download count, and the digest is their own.
    """
    from edgepack.bundle import unpack
    from edgepack.units import SIZE

    _there(bundle)
    if runtime and not deploy_only:
        raise RecipeError("--runtime chooses among what an app ships", "give --deploy-only too")
    manifest = unpack(bundle, target, deploy_only=deploy_only, runtime=runtime)
    size = SIZE.format(sum(each.bytes for each in manifest.files))
    click.echo(f"{target}: {len(manifest.files)} files, {size}, content {manifest.content_digest[:12]}")


@cli.command()
@_bundle
@click.option("--device", metavar="ID", help="Run them on this device; default: this computer, one thread.")
def selftest(bundle: Path, device: str | None) -> None:
    """Run the samples in BUNDLE through its files, texts from the raw text on, and compare with when it was built."""
    from edgepack.device import load_device
    from edgepack.selftest import run

    _there(bundle)
    answers = 0
    for answer in run(bundle, load_device(device) if device else None):
        answers += 1
        click.echo(f"{answer.file}  {answer.sample} -> {answer.label}")
    click.echo(f"{bundle}: {answers} answers, all as when it was built")


def _there(bundle: Path) -> None:
    if not bundle.exists():
        raise RecipeError(f"there is no {bundle}", "give the .zip that a build wrote, or the folder it was unpacked to")
    if not (bundle / "manifest.json").exists() and (bundle / "bundle/manifest.json").exists():
        raise RecipeError(f"{bundle} is what a build wrote, not the bundle", f"give {bundle / 'bundle'}, or the .zip")


@cli.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE [FILE]", type=click.Path(path_type=Path))
@click.option("--device", default="host", show_default=True, metavar="ID", help="Where to time it.")
@click.option(
    "--budget",
    "budgets",
    multiple=True,
    metavar="METRIC=LIMIT",
    callback=_as_utf8,
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
    from edgepack import bench as benches
    from edgepack.device import load_device
    from edgepack.events import placed
    from edgepack.reports import _bench
    from edgepack.reports.console import watcher
    from edgepack.shapes import read_shapes

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
        _bench.show(found, sys.stdout)
    return most_decisive(verdict.code for verdict in found.verdicts)


@cli.group(invoke_without_command=True)
@click.pass_context
def devices(context: click.Context) -> None:
    """List device profiles, and whether each can be used now."""
    if context.invoked_subcommand:
        return
    from edgepack.device import all_devices, load_device

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
    from edgepack.calibrate import calibrated, section
    from edgepack.device import load_device
    from edgepack.events import placed
    from edgepack.reports.console import watcher

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
    from edgepack.device import load_device

    device = load_device(id)
    prepare = getattr(device.runner.module, "prepare", None)
    if prepare is None:
        click.echo(f"{device.name} needs no preparation")
    else:
        prepare(device, click.echo)


def _reachable(device: "Device") -> str:
    from edgepack.runners import connected

    try:
        with connected(device):
            return "ready"
    except EdgepackError as error:
        return error.message


@cli.command()
def stages() -> None:
    """List what a recipe can name: stages and their settings, models, data sets, exporters, tasks."""
    from edgepack import plugins

    for kind in ("stages", "models", "datasets", "exporters", "tasks"):
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
    """Print the JSON schema of a recipe or device file, for editors and linters."""
    import json

    from edgepack import schema as schemas

    click.echo(json.dumps(schemas.recipe() if what == "recipe" else schemas.device(), indent=2))


@cli.group()
def cache() -> None:
    """Look into the store of built steps, or clear it."""


@cache.command("ls")
@_store
def cache_ls(store: str) -> None:
    """List what is stored, the last used first."""
    from datetime import datetime

    from edgepack.store import Store
    from edgepack.units import SIZE

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
@_store
@click.option(
    "--unused-days",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    help="Remove what was not used for so long.",
)
@click.option("--max-size", metavar="SIZE", help="Then remove the least used until the store is this small: 5GB.")
def cache_gc(store: str, unused_days: float, max_size: str | None) -> None:
    """Remove what was not used lately, and what killed builds left behind."""
    from edgepack.store import Store
    from edgepack.units import SIZE

    try:
        limit = SIZE.parse(max_size) if max_size else None
    except ValueError as error:
        raise RecipeError(f"--max-size: {error}") from None
    gone = Store(store).collect(unused_days=unused_days, max_bytes=limit)
    click.echo(f"removed {len(gone)} entries, {SIZE.format(sum(entry.bytes for entry in gone))}")


@cli.command()
@_store
@_dist
def doctor(store: str, dist: str) -> int:
    """Check this machine: versions, processor, disk and load, and say what to change."""
    from edgepack.doctor import checks

    bad = False
    for finding in checks(Path(store), Path(dist)):
        bad = bad or not finding.fine
        click.echo(f"{'ok ' if finding.fine else 'BAD'}  {finding.text}")
        if finding.advice:
            click.echo(f"     {finding.advice}")
    return ExitCode.DEVICE if bad else ExitCode.OK


def _load(recipes: tuple[str, ...], device: str | None, overrides: tuple[str, ...]) -> "list[Recipe]":
    """The recipes named, or all there are, or all of a device; every mistake in every one of them at once."""
    from edgepack.config import ConfigError
    from edgepack.device import load_device
    from edgepack.recipe import all_recipes, load_recipe

    found = recipes or tuple(str(file) for file in all_recipes())
    if not found:
        raise RecipeError("no recipe: name a YAML file, or put one into the folder recipes/")
    loaded: list[Recipe] = []
    problems: list[Problem] = []
    for recipe in found:
        try:
            loaded.append(load_recipe(recipe, overrides=overrides, device=device if recipes else None))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))  # recipes share devices
    names = [recipe.name for recipe in loaded]
    if twice := {name for name in names if names.count(name) > 1}:
        raise RecipeError(f"several recipes are named {', '.join(sorted(twice))}", "their bundles would share a folder")
    chosen = [recipe for recipe in loaded if recipes or device in (None, Path(recipe.device).stem)]
    if not chosen and device:
        load_device(device)  # says so when there is no such device
        raise RecipeError(
            f"no recipe in recipes/ is for the device '{device}'", f"edgepack build RECIPE --device {device}"
        )
    return chosen


class Screen:
    """The user's own output and error streams, kept apart from what libraries print while a build runs."""

    def __init__(self) -> None:
        self.out, self.err = sys.stdout, sys.stderr
        self._kept: tuple[int, ...] = ()

    def __enter__(self) -> "Screen":
        try:
            self._kept = tuple(os.dup(stream.fileno()) for stream in (sys.stdout, sys.stderr))
        except (OSError, AttributeError, ValueError):  # captured in memory, as tests do: there is nothing to keep apart
            return self
        out, err = self._kept
        self.out, self.err = _unheeding(os.dup(out), "utf-8"), _unheeding(os.dup(err), "utf-8", counts=False)
        return self

    def send_libraries_to(self, log: Path) -> None:
        """From now on whatever writes to file descriptors 1 and 2 writes to this file."""
        if self._kept:
            target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            for fd in (1, 2):
                os.dup2(target, fd)
            os.close(target)

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is not None and self._kept and not isinstance(error, SystemExit):
            sys.excepthook(type(error), error, error.__traceback__)  # into the log
        try:
            for stream in {self.out, self.err, sys.stdout, sys.stderr}:
                stream.flush()
        finally:
            for fd, copy in zip((1, 2), self._kept, strict=False):
                os.dup2(copy, fd)
                os.close(copy)


class _Unheeding(io.FileIO):
    """A file that forgets what nobody reads any more, as in `edgepack gate x | head -1`: the verdict stands.

    A broken pipe would end the command before its exit code is known: rich and click both leave the program for it. So
    would a full disk, and a build would take it for that of its store: what could not be written is told at the end.
    """

    lost: ClassVar[list[OSError]] = []  # of what was meant for the standard output
    counts = True

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            return memoryview(data).nbytes
        except OSError as error:
            if self.counts:
                self.lost.append(error)
            return memoryview(data).nbytes


def _unheeding(fd: int, encoding: str, errors: str = "strict", *, lines: bool = False, counts: bool = True) -> TextIO:
    file = _Unheeding(fd, "w", closefd=False)
    file.counts = counts
    return io.TextIOWrapper(io.BufferedWriter(file), encoding, errors, line_buffering=lines)


def _of(stream: Any, *, counts: bool) -> TextIO:
    """The standard stream so, where it is a file; one in memory, as in tests, breaks no pipe."""
    if stream is None:  # closed from the start: `edgepack gate x >&-`
        return Path(os.devnull).open("w", encoding="utf-8")
    try:
        errors = stream.errors if stream.encoding.lower() == "utf-8" else "backslashreplace"  # of µs in ASCII
        return _unheeding(stream.fileno(), stream.encoding, errors, lines=stream.line_buffering, counts=counts)
    except (OSError, AttributeError, ValueError):
        return stream  # type: ignore[no-any-return]


@contextmanager
def _unheeding_streams() -> Iterator[None]:
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _of(sys.stdout, counts=True), _of(sys.stderr, counts=False)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        sys.stdout, sys.stderr = before


def main() -> NoReturn:
    """Run the command line. Every failure is one of the exit codes; a traceback is shown for none of them."""
    interrupts.install()
    openmp.wait_asleep()
    _Unheeding.lost.clear()
    with _unheeding_streams():
        code = _run()
        interrupts.close()
    sys.exit(most_decisive([code, _full(_Unheeding.lost[0])]) if _Unheeding.lost else code)


def _run() -> int:
    try:
        code = cli.main(prog_name="edgepack", standalone_mode=False)
        interrupts.check()
    except BaseException as error:
        return _failed(error)
    return code if isinstance(code, int) else ExitCode.OK


def _failed(error: BaseException) -> int:
    """Say why the command failed; gives the exit code of that."""
    if interrupts.behind(error) or isinstance(error, click.Abort):
        interrupts.heard()
        _tell("interrupted; what was done is kept, the same command goes on from there")
        return ExitCode.INTERRUPTED
    try:
        raise error
    except click.ClickException as error:
        with suppress(OSError):
            error.show()
        code = ExitCode.USAGE
    except EdgepackError as error:
        _tell(str(error))
        _annotate(error, sys.stdout)
        code = error.code
    except OSError as error:
        code = _full(error) if error.errno == errno.ENOSPC else _bug(error)
    except MemoryError:
        _tell("this command ran out of memory\n  close other programs, or use a computer with more")
        code = ExitCode.DEVICE
    except (Exception, SystemExit) as error:  # no command ends the program itself: whatever does is no verdict
        code = _bug(error)
    return code


def _full(error: OSError) -> ExitCode:
    why = "there is no space left for it" if error.errno == errno.ENOSPC else error.strerror
    _tell(f"not all that this command writes could be written: {why}\n  make room, or send its output elsewhere")
    return ExitCode.DEVICE


def _bug(error: BaseException) -> ExitCode:
    import tempfile
    import traceback

    where = "this command"
    with suppress(OSError), tempfile.NamedTemporaryFile("w", prefix="edgepack-", suffix=".log", delete=False) as log:
        log.write("".join(traceback.format_exception(error)))
        where = log.name
    _tell(f"this is a bug in edgepack: {type(error).__name__}: {error}\n  please report it with {where}")
    return ExitCode.BUG


def _annotate(error: EdgepackError, stream: TextIO, folder: Path | None = None) -> None:
    """Show an error beside the files of a pull request, where this is a job of GitHub Actions."""
    if os.environ.get("GITHUB_ACTIONS") == "true":
        from edgepack.reports import github

        with suppress(OSError):
            github.tell_failure(error, stream, folder)


def _tell(text: str, stream: TextIO | None = None) -> None:
    """Say something on the error stream; that nobody reads it changes no exit code."""
    with suppress(OSError):
        click.echo(text, file=stream or sys.stderr)
