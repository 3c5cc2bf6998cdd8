"""verify, sign, unpack, selftest."""

from contextlib import suppress
from pathlib import Path

import click

from edgepack.cli.group import cli
from edgepack.cli.options import bundle_argument, check_exists, signature_option
from edgepack.cli.streams import tell
from edgepack.core.errors import EdgepackError, RecipeError


@cli.command()
@bundle_argument
@click.option(
    "--public-key", type=click.Path(path_type=Path), metavar="FILE", help="Check that this key has signed it, too."
)
@signature_option
def verify(bundle: Path, public_key: Path | None, signature: Path | None) -> None:
    """Check that BUNDLE, a zip or its unpacked folder, is exactly what its manifest says, and who signed it."""
    from edgepack.deliver.bundle import verify

    check_exists(bundle)
    if signature and not public_key:
        raise RecipeError("--signature says nothing without the key", "give --public-key too")
    if public_key:
        from edgepack.deliver.signing import beside, check

        manifest = check(bundle, public_key, signature or beside(bundle))
    else:
        manifest = verify(bundle)
    signed = f", signed by {public_key}" if public_key else ""
    click.echo(f"{bundle}: whole, {len(manifest.files)} files, {manifest.name} for {manifest.device}{signed}")


@cli.command()
@bundle_argument
@click.option(
    "--key", required=True, type=click.Path(path_type=Path), metavar="FILE", help="The private key, a PEM file."
)
@signature_option
def sign(bundle: Path, key: Path, signature: Path | None) -> None:
    """Sign BUNDLE, when it is whole, with a key of your own; the signature lies beside it.

    Needs the extra edgepack[sign]. The password of an encrypted key is taken from EDGEPACK_KEY_PASSWORD.
    """
    from edgepack.deliver.signing import beside, sign

    check_exists(bundle)
    written = signature or beside(bundle)
    sign(bundle, key, written)
    _warn_of_verdict(bundle)
    click.echo(f"{bundle}: signed, {written}")


def _warn_of_verdict(bundle: Path) -> None:
    """A signature says whose a bundle is; that it may not ship, only its build.json beside it says."""
    from edgepack.records.build import Build

    with suppress(EdgepackError):
        result = Build.read(bundle.resolve().parent / "build.json")
        if result.exit_code:
            tell(f"it is signed, but its build ended with exit code {result.exit_code}: it did not meet its budgets")


@cli.command()
@bundle_argument
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
    from edgepack.core.units import SIZE
    from edgepack.deliver.bundle import unpack

    check_exists(bundle)
    if runtime and not deploy_only:
        raise RecipeError("--runtime chooses among what an app ships", "give --deploy-only too")
    manifest = unpack(bundle, target, deploy_only=deploy_only, runtime=runtime)
    size = SIZE.format(sum(each.bytes for each in manifest.files))
    click.echo(f"{target}: {len(manifest.files)} files, {size}, content {manifest.content_digest[:12]}")


@cli.command()
@bundle_argument
@click.option("--device", metavar="ID", help="Run them on this device; default: this computer, one thread.")
def selftest(bundle: Path, device: str | None) -> None:
    """Run the samples in BUNDLE through its files, texts from the raw text on, and compare with when it was built."""
    from edgepack.config.device import load_device
    from edgepack.workflows.selftest import run

    check_exists(bundle)
    answers = 0
    for answer in run(bundle, load_device(device) if device else None):
        answers += 1
        click.echo(f"{answer.file}  {answer.sample} -> {answer.label}")
    click.echo(f"{bundle}: {answers} answers, all as when it was built")
