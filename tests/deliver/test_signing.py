"""Signatures by a key of one's own: over the files, beside the bundle, checked by `verify`."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from factories import build, bundle_files, edgepack

from edgepack.core.errors import ExitCode
from edgepack.deliver.bundle import pack, unpack
from edgepack.deliver.signing import sign

openssl = shutil.which("openssl") or pytest.skip("openssl makes the keys", allow_module_level=True)


def _keys(name: str = "key", curve: str = "prime256v1") -> None:
    """`<name>.pem` and `<name>.pub`, as the documentation makes them."""
    _openssl("ecparam", "-name", curve, "-genkey", "-noout", "-out", f"{name}.pem")
    _openssl("ec", "-in", f"{name}.pem", "-pubout", "-out", f"{name}.pub")


def _openssl(*arguments: str) -> None:
    subprocess.run([openssl, *arguments], check=True, capture_output=True)


@pytest.fixture(autouse=True)
def signed() -> Path:
    """tiny.zip, signed by key.pem."""
    path = Path("tiny.zip")
    path.write_bytes(pack(bundle_files()))
    _keys()
    ran = edgepack("sign", "tiny.zip", "--key", "key.pem")
    assert (ran.code, ran.out) == (0, "tiny.zip: signed, signature in tiny.zip.sig\n"), ran.err
    return path


def test_who_signed_a_bundle_is_checked(signed: Path) -> None:
    ran = edgepack("verify", "tiny.zip", "--public-key", "key.pub")
    assert (ran.code, ran.out) == (0, "OK: 3 files verified, tiny for board, signed by key.pub\n")
    assert signed.read_bytes() == pack(bundle_files())
    unpack(signed, Path("unpacked"))
    ran = edgepack("verify", "unpacked", "--public-key", "key.pub", "--signature", "tiny.zip.sig")
    assert ran.code == 0, ran.err


@pytest.mark.parametrize(("here", "name"), [("unpacked", "."), ("unpacked/io", ".."), ("unpacked", "io/..")])
def test_the_folder_one_stands_in_is_signed_from_outside(
    signed: Path, here: str, name: str, own_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpack(signed, Path("unpacked"))
    monkeypatch.chdir(here)
    ran = edgepack("sign", name, "--key", str(own_place / "key.pem"))
    assert (ran.code, ran.out) == (0, f"{name}: signed, signature in {own_place / 'unpacked.sig'}\n"), ran.err
    ran = edgepack("verify", name, "--public-key", str(own_place / "key.pub"))
    assert ran.code == 0, ran.err


@pytest.mark.parametrize(("code", "said"), [(0, ""), (1, "did not meet its budgets (exit code 1)")])
def test_a_bundle_whose_build_did_not_pass_is_signed_with_a_warning(code: int, said: str) -> None:
    build(exit_code=code).save(Path("build.json"))
    ran = edgepack("sign", "tiny.zip", "--key", "key.pem")
    assert (ran.code, said in ran.err, bool(ran.err)) == (0, True, bool(code))


def test_the_tool_of_openssf_checks_it_too(signed: Path) -> None:
    from model_signing import verifying

    unpack(signed, Path("tiny"))
    verifying.Config().use_elliptic_key_verifier(public_key="key.pub").verify("tiny", "tiny.zip.sig")


def _another_bundle() -> None:
    Path("tiny.zip").write_bytes(pack(bundle_files(tiny=b"another")))


def _damaged_bundle() -> None:
    Path("tiny.zip").write_bytes(Path("tiny.zip").read_bytes()[:-1])


def _damaged_signature() -> None:
    text = Path("tiny.zip.sig").read_text()
    Path("tiny.zip.sig").write_text(text.replace('"sig":"', '"sig":"AAAA', 1).replace('"sig": "', '"sig": "AAAA', 1))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_another_bundle, "is not the signature of tiny.zip by key.pub"),
        (_damaged_bundle, "not a complete zip file"),
        (_damaged_signature, "is not the signature of tiny.zip by key.pub"),
        (lambda: Path("tiny.zip.sig").write_text("{}"), "is not the signature of tiny.zip by key.pub"),
        (lambda: Path("tiny.zip.sig").write_bytes(b"\xff"), "is not the signature of tiny.zip by key.pub"),
        (lambda: Path("tiny.zip.sig").unlink(), "tiny.zip is not signed: tiny.zip.sig not found"),
        (lambda: _keys("key"), "is not the signature of tiny.zip by key.pub"),
    ],
    ids=["bundle", "damaged", "signature", "empty", "bytes", "none", "key"],
)
def test_a_bundle_that_this_key_did_not_sign_is_refused(change: Callable[[], None], why: str) -> None:
    change()
    ran = edgepack("verify", "tiny.zip", "--public-key", "key.pub")
    assert (ran.code, ran.out) == (ExitCode.BUDGET, "")
    assert why in ran.err


def test_an_encrypted_key_and_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    _openssl("pkcs8", "-topk8", "-in", "key.pem", "-out", "locked.pem", "-passout", "pass:secret")
    monkeypatch.setenv("EDGEPACK_KEY_PASSWORD", "secret")
    assert edgepack("sign", "tiny.zip", "--key", "locked.pem").code == 0
    assert edgepack("verify", "tiny.zip", "--public-key", "key.pub").code == 0
    monkeypatch.setenv("EDGEPACK_KEY_PASSWORD", "wrong")
    ran = edgepack("sign", "tiny.zip", "--key", "locked.pem")
    assert ran.code == ExitCode.USAGE and "locked.pem is not a usable key" in ran.err


def test_what_is_no_key_is_said() -> None:
    _keys("odd", curve="secp256k1")
    Path("text.pem").write_text("no key")
    for command in (("sign", "tiny.zip", "--key"), ("verify", "tiny.zip", "--public-key")):
        for key in ("text.pem", "odd.pem", "none.pem"):
            ran = edgepack(*command, key)
            assert (ran.code, ran.out) == (ExitCode.USAGE, "")
            assert "is not a usable key" in ran.err or "cannot read the key none.pem" in ran.err


def test_a_damaged_bundle_is_not_signed() -> None:
    Path("tiny.zip.sig").unlink()
    _damaged_bundle()
    assert edgepack("sign", "tiny.zip", "--key", "key.pem").code == ExitCode.BUDGET
    assert not Path("tiny.zip.sig").exists()


def test_a_signature_that_cannot_be_written_is_said() -> None:
    ran = edgepack("sign", "tiny.zip", "--key", "key.pem", "--signature", "/proc/none/tiny.sig")
    assert ran.code == ExitCode.DEVICE and "cannot write" in ran.err


def test_a_signature_without_a_key_says_nothing() -> None:
    ran = edgepack("verify", "tiny.zip", "--signature", "tiny.zip.sig")
    assert ran.code == ExitCode.USAGE and "add --public-key FILE" in ran.err


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch, signed: Path) -> None:
    monkeypatch.setattr("edgepack.deliver.signing.find_spec", lambda name: None)
    for command in (("sign", "tiny.zip", "--key", "key.pem"), ("verify", "tiny.zip", "--public-key", "key.pub")):
        ran = edgepack(*command)
        assert ran.code == ExitCode.USAGE and 'pip install "edgepack[sign]"' in ran.err
    assert edgepack("verify", "tiny.zip").code == 0


def test_the_same_files_under_another_name_are_signed_alike(signed: Path) -> None:
    shutil.copy(signed, "renamed.zip")
    sign(Path("renamed.zip"), Path("key.pem"), Path("renamed.sig"))
    ran = edgepack("verify", "tiny.zip", "--public-key", "key.pub", "--signature", "renamed.sig")
    assert ran.code == 0, ran.err
