"""What a release ships: the same bytes every time, and nothing wrong with it goes unnoticed."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from factories import (
    FORMS,
    as_folder,
    as_zip,
    bundle_files,
    edgepack,
    python,
    runtime,
    sealed,
    with_sums,
)

from edgepack.core.errors import ExitCode, VerifyError
from edgepack.core.files import digest
from edgepack.deliver.bundle import pack, verify

Files = dict[str, bytes]


def _with_role(files: Files, role: str) -> Files:
    """The model as a file that does not ship, every hash put right."""
    listed = json.loads(files["manifest.json"])["files"]
    changed = [{**each, "role": role} if each["path"].startswith("models/") else each for each in listed]
    kept = [[each["path"], each["sha256"]] for each in changed if each["role"] == "deploy"]
    return sealed(_without(files, "manifest.json", "SHA256SUMS"), files=changed, content_digest=digest(kept))


def _without(files: Files, *paths: str) -> Files:
    return {path: content for path, content in files.items() if path not in paths}


def test_packing_depends_on_names_and_contents_only(monkeypatch: pytest.MonkeyPatch) -> None:
    files = bundle_files()
    first = pack(files)
    monkeypatch.setattr("time.time", lambda: 2e9)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    assert pack(dict(reversed(files.items()))) == first
    assert pack({**files, "io/labels.txt": b"other"}) != first


def test_any_unzip_program_finds_plain_stored_files() -> None:
    files = bundle_files()
    with zipfile.ZipFile(as_zip(files)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == sorted(files)
        for member in archive.infolist():
            assert (member.compress_type, member.external_attr >> 16) == (zipfile.ZIP_STORED, 0o644)
            assert archive.read(member) == files[member.filename]


@FORMS
def test_a_whole_bundle_gives_its_manifest(form: Callable[[Files], Path]) -> None:
    manifest = verify(form(bundle_files()))
    assert (manifest.name, manifest.device) == ("tiny", "board")
    assert [each.path for each in manifest.files] == ["io/labels.txt", "models/tiny.onnx", "selftest/cases.json"]


def test_verify_says_what_a_person_wants_to_know() -> None:
    path = str(as_zip(bundle_files()))
    ran = edgepack("verify", path)
    assert (ran.code, ran.out) == (0, "OK: 3 files verified, tiny for board\n")


def test_every_flipped_byte_of_a_zip_is_noticed() -> None:
    whole, path = pack(bundle_files()), Path("tiny.zip")
    for position in range(0, len(whole), 3):
        for mask in (0x01, 0xFF):
            damaged = bytearray(whole)
            damaged[position] ^= mask
            path.write_bytes(damaged)
            with pytest.raises(VerifyError):
                verify(path)


@pytest.mark.parametrize("file", sorted(bundle_files()))
def test_every_flipped_byte_of_a_file_in_a_folder_is_noticed(file: str) -> None:
    folder, whole = as_folder(bundle_files()), bundle_files()[file]
    for position in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[position] ^= 0x01
        (folder / file).write_bytes(damaged)
        with pytest.raises(VerifyError):
            verify(folder)


def test_verify_imports_no_torch_and_little_else() -> None:
    path = as_zip(bundle_files())
    code = (
        "import sys; from edgepack.cli.main import main; sys.argv = ['edgepack', 'verify', sys.argv[1]]\ntry: main()\n"
    )
    ran = python(code + "finally: print(*sys.modules)", str(path))
    loaded = {name.partition(".")[0] for name in ran.out.split()}
    assert "pydantic" in loaded
    assert not {"torch", "numpy", "onnxruntime", "jinja2", "ruamel", "model_signing", "rich"} & loaded


@FORMS
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda files: {**files, "models/extra.onnx": b"x"}, "not in the manifest: models/extra.onnx"),
        (lambda files: {**files, ".hidden": b""}, "not in the manifest: .hidden"),
        (lambda files: _without(files, "io/labels.txt"), "missing: io/labels.txt"),
        (lambda files: {**files, "io/labels.txt": b"zero\none"}, "changed: io/labels.txt"),
        (
            lambda files: {**_without(files, "io/labels.txt"), "io/names.txt": files["io/labels.txt"]},
            "missing: io/labels.txt\n  not in the manifest: io/names.txt",
        ),
        (lambda files: _without(files, "manifest.json"), "manifest.json not found"),
        (lambda files: _without(files, "SHA256SUMS"), "missing: SHA256SUMS"),
        (lambda files: {**files, "SHA256SUMS": files["SHA256SUMS"] + b"\n"}, "changed: SHA256SUMS"),
        (lambda files: {**files, "manifest.json": files["manifest.json"] + b" "}, "changed: SHA256SUMS"),
        (lambda files: with_sums({**files, "manifest.json": b"{"}), "manifest.json does not describe a bundle"),
        (lambda files: with_sums({**files, "manifest.json": b"\xff"}), "manifest.json does not describe a bundle"),
        (
            lambda files: sealed({"a/b": b"x"}, schema="edgepack.bundle/9"),
            "the manifest has schema 'edgepack.bundle/9'",
        ),
        (lambda files: sealed({"a/b": b"x"}, content_digest="0" * 64), "changed: the content digest"),
        (lambda files: sealed({"a/b": b"x"}, files=[]), "not in the manifest: a/b"),
        (lambda files: {}, "manifest.json not found"),
        (lambda files: sealed({"io/a": b"x", "io/A": b"x"}), "names 'io/a' twice, or as a file and a folder"),
        (
            lambda files: sealed({"io/a": b"x"}, runtimes={"onnxruntime": runtime("io/no.onnx")}),
            "nothing for 'onnxruntime' to load",
        ),
        (lambda files: sealed({"io/a": b"x", "selftest/a": b"x"}, deploy_only=True), "that an app does not ship"),
        (lambda files: _with_role(files, "build"), "not a build file: models/tiny.onnx"),
        (lambda files: sealed({"io/a": b"x"}, name="\x1b[2J"), "manifest.json does not describe a bundle: name"),
    ],
)
def test_what_is_wrong_is_named(
    change: Callable[[Files], Files], message: str, form: Callable[[Files], Path], own_place: Path
) -> None:
    (own_place / "bundle").mkdir()
    with pytest.raises(VerifyError) as caught:
        verify(form(change(bundle_files())))
    assert message in str(caught.value)


def test_a_manifest_of_a_newer_schema_says_what_to_do() -> None:
    ran = edgepack("verify", str(as_zip(sealed({"io/a": b"x"}, schema="edgepack.bundle/2"))))
    assert (ran.code, ran.out) == (ExitCode.USAGE, "")
    assert "schema 'edgepack.bundle/2', this edgepack reads 'edgepack.bundle/1'" in ran.err
    assert "a newer edgepack wrote it: update edgepack" in ran.err


def test_everything_wrong_is_named_at_once() -> None:
    files = {**_without(bundle_files(), "io/labels.txt"), "models/tiny.onnx": b"x", "more": b""}
    with pytest.raises(VerifyError) as caught:
        verify(as_zip(files))
    assert all(text in str(caught.value) for text in ("missing: io/", "changed: models/", "not in the manifest: more"))


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "/etc/evil",
        "a/../../evil",
        "..\\evil",
        "C:\\evil",
        "C:/evil",
        "a//../b",
        "a//b",
        "./a",
        "a/",
        ".",
        "",
        "a.",
        "a /b",
    ],
)
def test_a_name_that_leaves_the_folder_is_refused(name: str) -> None:
    with pytest.raises(VerifyError):
        verify(as_zip(sealed({"io/labels.txt": b"x", name: b"x"})))


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/../../evil"])
@FORMS
def test_a_manifest_that_points_outside_is_refused(name: str, form: Callable[[Files], Path], own_place: Path) -> None:
    (own_place.parent / "evil").write_bytes(b"x")
    listed = [{"path": name, "bytes": 1, "sha256": "0" * 64, "role": "deploy"}]
    with pytest.raises(VerifyError, match="the manifest names a file outside the bundle"):
        verify(form(sealed({"io/labels.txt": b"x"}, files=listed)))


def test_a_file_listed_twice_is_refused() -> None:
    files = bundle_files()
    listed = json.loads(files["manifest.json"])["files"]
    twice = [{**listed[0], "sha256": "0" * 64}, *listed]
    with pytest.raises(VerifyError):
        verify(as_zip(sealed(_without(files, "manifest.json", "SHA256SUMS"), files=twice)))


@pytest.mark.parametrize("names", [("io/e\u0301", "io/\u00e9"), ("Manifest.json",), ("sha256sums",)])
def test_names_that_are_one_on_other_systems_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(VerifyError, match="twice"):
        verify(as_zip(sealed({"io/labels.txt": b"x", **dict.fromkeys(names, b"x")})))


@pytest.mark.parametrize("bytes_", [2**40, 2**62, 10**30])
def test_a_manifest_that_names_more_bytes_than_there_is_memory(bytes_: int) -> None:
    folder = as_folder(bundle_files())
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][0]["bytes"] = bytes_
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(VerifyError, match="changed: "):
        verify(folder)
