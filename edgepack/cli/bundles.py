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
    "--public-key", type=click.Path(path_type=Path), metavar="FILE", help="Also check the signature with this key."
)
@signature_option
def verify(bundle: Path, public_key: Path | None, signature: Path | None) -> None:
    """Verify the files of a bundle, and optionally its signature.

    BUNDLE is a zip or its unpacked folder. Every byte is checked against the bundle's own manifest.
    """
    from edgepack.deliver.bundle import verify

    check_exists(bundle)
    if signature and not public_key:
        raise RecipeError("--signature needs --public-key", "add --public-key FILE")
    if public_key:
        from edgepack.deliver.signing import beside, check

        manifest = check(bundle, public_key, signature or beside(bundle))
    else:
        manifest = verify(bundle)
    signed = f", signed by {public_key}" if public_key else ""
    click.echo(f"OK: {len(manifest.files)} files verified, {manifest.name} for {manifest.device}{signed}")


@cli.command()
@bundle_argument
@click.option(
    "--key", required=True, type=click.Path(path_type=Path), metavar="FILE", help="The private key, a PEM file."
)
@signature_option
def sign(bundle: Path, key: Path, signature: Path | None) -> None:
    """Verify a bundle and sign it with your private key.

    The signature is written next to BUNDLE. Needs edgepack[sign]. The password of an encrypted key is read from
    EDGEPACK_KEY_PASSWORD.
    """
    from edgepack.deliver.signing import beside, sign

    check_exists(bundle)
    written = signature or beside(bundle)
    sign(bundle, key, written)
    _warn_of_verdict(bundle)
    click.echo(f"{bundle}: signed, signature in {written}")


def _warn_of_verdict(bundle: Path) -> None:
    """Warn when the build.json next to a signed bundle says that the bundle may not ship."""
    from edgepack.records.build import Build

    with suppress(EdgepackError):
        result = Build.read(bundle.resolve().parent / "build.json")
        if result.exit_code:
            tell(f"warning: the build of this bundle did not meet its budgets (exit code {result.exit_code})")


@cli.command()
@bundle_argument
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--deploy-only", is_flag=True, help="Write only what an app ships: models/, io/ and licences/.")
@click.option(
    "--runtime", default="", metavar="NAME", help="With --deploy-only: only files for this runtime (onnxruntime)."
)
def unpack(bundle: Path, target: Path, deploy_only: bool, runtime: str) -> None:
    """Verify a bundle and unpack it.

    TARGET is a folder, or a zip if the name ends in .zip. With --deploy-only the result is also a bundle, with the same
    content digest, that `verify` can check. With --runtime it holds the files that the budgets size.deploy and
    size.download count, and has its own digest.
    """
    from edgepack.core.units import SIZE
    from edgepack.deliver.bundle import unpack

    check_exists(bundle)
    if runtime and not deploy_only:
        raise RecipeError("--runtime needs --deploy-only", "add --deploy-only")
    manifest = unpack(bundle, target, deploy_only=deploy_only, runtime=runtime)
    size = SIZE.format(sum(each.bytes for each in manifest.files))
    click.echo(f"{target}: {len(manifest.files)} files, {size}, content {manifest.content_digest[:12]}")


@cli.command()
@bundle_argument
@click.option("--device", metavar="ID", help="Run on this device. Default: this computer, one thread.")
@click.option("--own-code", is_flag=True, help="Run the Python code of the bundle's own task, found on this computer.")
def selftest(bundle: Path, device: str | None, own_code: bool) -> None:
    """Run the bundle's self-test samples and compare outputs.

    Outputs are compared with those recorded at build time, as the task defines it; those of a task of your own as
    numbers, unless --own-code is given. Samples of text start from the raw text.
    """
    from edgepack.config.device import load_device
    from edgepack.workflows.selftest import run

    check_exists(bundle)
    answers, unread = 0, ""
    for answer in run(bundle, load_device(device) if device else None, own_code=own_code):
        answers, unread = answers + 1, answer.unread
        click.echo(f"{answer.file}  {answer.sample} -> {answer.label}")
    if unread:
        click.echo(f"only numbers were compared: {unread}")
    click.echo(f"OK: {answers} outputs match those recorded at build time")
