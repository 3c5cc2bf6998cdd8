"""Sign a bundle with the user's own key, and verify the signature next to it (OpenSSF model-signing).

    openssl ecparam -name prime256v1 -genkey -noout -out key.pem
    openssl ec -in key.pem -pubout -out key.pub

It is over the files, so that of a zip is that of its folder too, and `model_signing verify key` checks it as well.
Source: https://github.com/sigstore/model-transparency
"""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from edgepack.core.errors import RecipeError, VerifyError
from edgepack.core.files import disk_error, write_atomic
from edgepack.deliver.bundle.archive import swap
from edgepack.deliver.bundle.manifest import Manifest, read

if TYPE_CHECKING:
    from model_signing import hashing

PASSWORD = "EDGEPACK_KEY_PASSWORD"  # noqa: S105  (name of a variable: others can read a password on a command line)


def beside(bundle: Path) -> Path:
    """Return the default path of a bundle's signature: always next to the bundle, also for "." and ".."."""
    named = bundle.resolve() if bundle.name in ("", "..") else bundle
    return named.parent / f"{named.name}.sig"


def sign(bundle: Path, key: Path, signature: Path) -> Manifest:
    """Verify a bundle and write its signature.

    Raises VerifyError as `verify`, RecipeError if the key is not an elliptic curve key (P-256, P-384 or P-521) or the
    extra is not installed, and DeviceError if the signature cannot be written.
    """
    _installed()
    from model_signing import signing

    manifest, files = read(bundle)
    password: Any = os.environ.get(PASSWORD, "").encode() or None  # passed on by the library, which takes bytes there
    config = _with_key(lambda: signing.Config().use_elliptic_key_signer(private_key=key, password=password), key)
    config.set_hashing_config(_hashing())
    with TemporaryDirectory() as folder:
        made = Path(folder, "made.sig")
        config.sign(_laid_out(files, manifest, folder), made)
        try:
            write_atomic(signature, made.read_bytes())
        except OSError as error:
            raise disk_error(error, signature) from error
    return manifest


def check(bundle: Path, public_key: Path, signature: Path) -> Manifest:
    """Return the manifest of a valid bundle signed by this key. Raises VerifyError if it is not."""
    _installed()
    from model_signing import verifying

    manifest, files = read(bundle)
    config = _with_key(lambda: verifying.Config().use_elliptic_key_verifier(public_key=public_key), public_key)
    config.set_hashing_config(_hashing())
    if not signature.is_file():
        raise VerifyError(
            f"{bundle} is not signed: {signature} not found",
            "if the signature is in another file, add --signature FILE",
        )
    with TemporaryDirectory() as folder:
        try:
            config.verify(_laid_out(files, manifest, folder), signature)
        except Exception as error:  # the library has a different error for each problem of a signature
            why = str(error).strip() or type(error).__name__
            message = f"{signature} is not the signature of {bundle} by {public_key}: {why}"
            raise VerifyError(message, "do not ship it; if the bundle is yours, sign it again") from None
    return manifest


def _installed() -> None:
    if find_spec("model_signing") is None:
        raise RecipeError("the package model-signing is not installed", 'pip install "edgepack[sign]"')


def _with_key(use: Any, key: Path) -> Any:
    try:
        return use()
    except OSError as error:
        raise RecipeError(f"cannot read the key {key}: {error.strerror}") from None
    except Exception as error:  # cryptography raises many kinds
        advice = f"use a PEM file (P-256, P-384 or P-521); set {PASSWORD} to the password of an encrypted key"
        raise RecipeError(f"{key} is not a usable key: {str(error).splitlines()[0]}", advice) from None


def _hashing() -> "hashing.Config":
    from model_signing import hashing

    files = hashing.Config().use_file_serialization(max_workers=1)
    return files.set_ignored_paths(paths=[], ignore_git_paths=False)


def _laid_out(files: Mapping[str, bytes], manifest: Manifest, folder: str) -> Path:
    """Write the files to a folder of the bundle's name: the library reads folders only."""
    where = Path(folder, "bundle", manifest.name)
    where.parent.mkdir()
    swap(files, where)
    return where
