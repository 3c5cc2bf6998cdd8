"""What a release ships: the same bytes every time, and nothing wrong with it goes unnoticed."""

import json
import os
import random
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from factories import build, bundle_files, edgepack, measurement, python, runtime, sealed, with_sums

from edgepack.core.errors import ExitCode, VerifyError
from edgepack.core.files import digest
from edgepack.deliver.bundle import Manifest, pack, unpack, verify
from edgepack.workflows.build.measurements import deployed

Files = dict[str, bytes]


def _zip(files: Files, name: str = "tiny.zip") -> Path:
    path = Path(name)
    path.write_bytes(pack(files))
    return path


def _folder(files: Files, name: str = "bundle") -> Path:
    for path, content in files.items():
        target = Path(name, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return Path(name)


FORMS = pytest.mark.parametrize("form", [_zip, _folder], ids=["zip", "folder"])


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
    with zipfile.ZipFile(_zip(files)) as archive:
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
    path = str(_zip(bundle_files()))
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
    folder, whole = _folder(bundle_files()), bundle_files()[file]
    for position in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[position] ^= 0x01
        (folder / file).write_bytes(damaged)
        with pytest.raises(VerifyError):
            verify(folder)


def test_verify_imports_no_torch_and_little_else() -> None:
    path = _zip(bundle_files())
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
    ran = edgepack("verify", str(_zip(sealed({"io/a": b"x"}, schema="edgepack.bundle/2"))))
    assert (ran.code, ran.out) == (ExitCode.USAGE, "")
    assert "schema 'edgepack.bundle/2', this edgepack reads 'edgepack.bundle/1'" in ran.err
    assert "a newer edgepack wrote it: update edgepack" in ran.err


def test_everything_wrong_is_named_at_once() -> None:
    files = {**_without(bundle_files(), "io/labels.txt"), "models/tiny.onnx": b"x", "more": b""}
    with pytest.raises(VerifyError) as caught:
        verify(_zip(files))
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
        verify(_zip(sealed({"io/labels.txt": b"x", name: b"x"})))


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
        verify(_zip(sealed(_without(files, "manifest.json", "SHA256SUMS"), files=twice)))


@pytest.mark.parametrize("names", [("io/e\u0301", "io/\u00e9"), ("Manifest.json",), ("sha256sums",)])
def test_names_that_are_one_on_other_systems_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(VerifyError, match="twice"):
        verify(_zip(sealed({"io/labels.txt": b"x", **dict.fromkeys(names, b"x")})))


@pytest.mark.parametrize("bytes_", [2**40, 2**62, 10**30])
def test_a_manifest_that_names_more_bytes_than_there_is_memory(bytes_: int) -> None:
    folder = _folder(bundle_files())
    told = json.loads((folder / "manifest.json").read_text())
    told["files"][0]["bytes"] = bytes_
    (folder / "manifest.json").write_text(json.dumps(told))
    with pytest.raises(VerifyError, match="changed: "):
        verify(folder)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_with_the_same_name_twice_is_refused(own_place: Path) -> None:
    with zipfile.ZipFile("twice.zip", "w") as archive:
        for content in (b"good", b"evil"):
            archive.writestr("models/tiny.onnx", content)
    with pytest.raises(VerifyError, match=r"'models/tiny\.onnx' occurs twice"):
        verify(Path("twice.zip"))


@pytest.mark.parametrize(
    "change",
    [
        lambda packed: packed[: len(packed) // 2],
        lambda packed: packed[:-1],
        lambda packed: b"",
        lambda packed: b"not a zip",
        lambda packed: packed + b"\0",
        lambda packed: b"#!/bin/sh\n" + packed,
        lambda packed: packed[:-2] + b"\x05\0hello",
        lambda packed: packed + packed,
    ],
    ids=["half", "cut", "empty", "text", "tail", "head", "comment", "double"],
)
def test_a_zip_that_edgepack_did_not_write_is_refused(change: Callable[[bytes], bytes], own_place: Path) -> None:
    Path("tiny.zip").write_bytes(change(pack(bundle_files())))
    with pytest.raises(VerifyError):
        verify(Path("tiny.zip"))
    ran = edgepack("verify", "tiny.zip")
    assert (ran.code, ran.out) == (ExitCode.BUDGET, "")


def test_a_zip_packed_again_by_another_program_is_refused(own_place: Path) -> None:
    with zipfile.ZipFile("again.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in sorted(bundle_files().items()):
            archive.writestr(path, content)
    with pytest.raises(VerifyError, match="not packed by edgepack"):
        verify(Path("again.zip"))


def test_a_zip_that_says_it_holds_gigabytes_is_refused_unread(own_place: Path) -> None:
    packed = bytearray(pack({"a": b"x", "b": b"x"}))
    start = 0
    while (start := packed.find(b"PK\x01\x02", start)) >= 0:
        packed[start + 24 : start + 28] = struct.pack("<I", 0xFFFFFFF0)
        start += 4
    Path("bomb.zip").write_bytes(packed)
    with pytest.raises(VerifyError, match="larger than declared"):
        verify(Path("bomb.zip"))


def test_a_zip_whose_files_overlap_is_refused_unread() -> None:
    """Every file holds all that follow it: a small zip that would take the square of its size."""
    names = [f"io/{n:04}" for n in range(100)]
    locals_ = [struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 33, 0, 0, 0, 7, 0) + name.encode() for name in names]
    length = sum(map(len, locals_))
    central, at = b"", 0
    for name, local in zip(names, locals_, strict=True):
        at += len(local)
        facts = (b"PK\1\2", 20, 20, 0, 0, 0, 33, 0, length - at, length - at, 7, 0, 0, 0, 0, 0, at - len(local))
        central += struct.pack("<4s6H3L5H2L", *facts) + name.encode()
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, len(names), len(names), len(central), length, 0)
    Path("bomb.zip").write_bytes(b"".join(locals_) + central + end)
    with pytest.raises(VerifyError, match="larger than declared"):
        verify(Path("bomb.zip"))


def test_a_zip_that_grows_when_unpacked_is_refused_before_it_does(own_place: Path) -> None:
    size = 64 * 2**20
    with zipfile.ZipFile("bomb.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("models/tiny.onnx", bytes(size))
    tracemalloc.start()
    with pytest.raises(VerifyError):
        verify(Path("bomb.zip"))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < size / 4


@pytest.mark.parametrize("end", [b"", b"PK\5\6" + bytes(18), b"whole"], ids=["nothing", "end", "bundle"])
def test_a_zip_blown_up_to_a_terabyte_is_refused_unread(end: bytes) -> None:
    with Path("bomb.zip").open("wb") as file:
        file.seek(2**40)
        file.write(pack(bundle_files()) if end == b"whole" else end)
        file.truncate()
    tracemalloc.start()
    ran = edgepack("verify", "bomb.zip")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (ran.code, ran.out) == (ExitCode.BUDGET, "")
    assert "not a complete zip file" in ran.err and most < 100 * 2**20


@pytest.mark.parametrize(("directory", "start"), [(0xFFFFFFFF, 0), (0, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF)])
def test_a_directory_that_says_it_has_gigabytes_is_refused_unread(directory: int, start: int) -> None:
    packed = bytearray(pack(bundle_files()))
    packed[-10:-2] = struct.pack("<2L", directory, start)
    Path("bomb.zip").write_bytes(packed)
    with pytest.raises(VerifyError, match="its end is not where the file says"):
        verify(Path("bomb.zip"))


def test_bytes_that_belong_to_no_file_of_a_zip_are_refused_unread() -> None:
    """Four gigabytes of nothing before an honest directory."""
    packed = pack(bundle_files())
    start = struct.unpack("<L", packed[-6:-2])[0]
    gap = 0xFFFF0000 - start
    end = packed[-22:-6] + struct.pack("<L", start + gap) + packed[-2:]
    with Path("bomb.zip").open("wb") as file:
        file.write(packed[:start])
        file.seek(start + gap)
        file.write(packed[start:-22] + end)
    tracemalloc.start()
    with pytest.raises(VerifyError, match="not packed by edgepack, or was changed later"):
        verify(Path("bomb.zip"))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 100 * 2**20


def test_what_is_no_plain_file_is_not_waited_for() -> None:
    os.mkfifo("pipe.zip")
    for path in ("pipe.zip", "/dev/zero"):
        ran = edgepack("verify", path)
        assert (ran.code, ran.out) == (ExitCode.BUDGET, "")
        assert f"{path} is not a regular file" in ran.err


@FORMS
def test_a_bundle_larger_than_the_memory_is_no_bug(
    form: Callable[[Files], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> bytes:
        raise MemoryError

    path = form(bundle_files())
    monkeypatch.setattr("edgepack.deliver.bundle.archive.os", SimpleNamespace(walk=os.walk, fstat=full))
    ran = edgepack("verify", str(path))
    assert (ran.code, ran.out) == (ExitCode.BUDGET, "")
    assert "is larger than the memory of this computer" in ran.err


def test_a_link_in_a_folder_is_refused(own_place: Path) -> None:
    folder = _folder(bundle_files())
    (own_place / "same").write_bytes((folder / "io/labels.txt").read_bytes())
    (folder / "io/labels.txt").unlink()
    (folder / "io/labels.txt").symlink_to(own_place / "same")
    with pytest.raises(VerifyError, match="is a link; a bundle holds regular files only"):
        verify(folder)


def test_what_is_no_file_in_a_folder_is_refused() -> None:
    folder = _folder(bundle_files())
    os.mkfifo(folder / "io/pipe")
    with pytest.raises(VerifyError, match="'io/pipe' is not a regular file"):
        verify(folder)


@pytest.mark.parametrize("name", ["models/tiny.onnx", "manifest.json", "SHA256SUMS", "models/extra.onnx"])
def test_a_file_blown_up_to_a_terabyte_is_refused_unread(name: str) -> None:
    folder = _folder(bundle_files())
    with (folder / name).open("ab") as file:
        file.truncate(2**40)
    tracemalloc.start()
    with pytest.raises(VerifyError):
        verify(folder)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 100 * 2**20


def test_the_folder_of_a_build_says_where_its_bundle_is() -> None:
    _folder(bundle_files(), "dist/tiny/bundle")
    ran = edgepack("verify", "dist/tiny")
    assert ran.code == ExitCode.USAGE
    assert "dist/tiny is a build's output folder, not a bundle" in ran.err and "give dist/tiny/bundle" in ran.err


@FORMS
@pytest.mark.parametrize("target", ["app/assets", "app.zip"])
def test_what_an_app_ships_is_a_bundle_of_its_own(form: Callable[[Files], Path], target: str) -> None:
    whole = verify(form(bundle_files()))
    ran = edgepack("unpack", str(form(bundle_files())), target, "--deploy-only")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == f"{target}: 2 files, 73 B, content {whole.content_digest[:12]}\n"
    shipped = verify(Path(target))
    assert [each.path for each in shipped.files] == ["io/labels.txt", "models/tiny.onnx"]
    assert shipped.deploy_only and shipped.content_digest == whole.content_digest


def _for_two_runtimes() -> Files:
    named = {"onnxruntime": ("models/tiny.onnx", "onnx"), "executorch": ("models/tiny.pte", "executorch")}
    contents = {
        "models/tiny.onnx": b"onnx",
        "models/tiny.pte": b"pte",
        "io/labels.txt": b"a\n",
        "licences/README.md": b"x",
    }
    return sealed({**contents, "selftest/cases.json": b"{}"}, runtimes={k: runtime(*v) for k, v in named.items()})


@pytest.mark.parametrize(("name", "file"), [("onnxruntime", "models/tiny.onnx"), ("executorch", "models/tiny.pte")])
def test_what_an_app_with_one_runtime_ships_is_what_its_budget_counts(name: str, file: str) -> None:
    files = _for_two_runtimes()
    ran = edgepack("unpack", str(_zip(files)), "app", "--deploy-only", "--runtime", name)
    assert (ran.code, ran.err) == (0, "")
    shipped = verify(Path("app"))
    assert [*shipped.runtimes] == [name] and shipped.deploy_only
    beside = {path: files[path] for path in ("io/labels.txt", "licences/README.md")}
    assert {each.path for each in shipped.files} == {file, *beside}
    label = shipped.runtimes[name].format
    weighed = build(measurements=(measurement("size", len(files[file]), artifact=label),))
    counted = deployed(weighed, beside, {label: 0})[0]
    assert (counted.metric, counted.value) == ("size.deploy", sum(each.bytes for each in shipped.files))


def test_a_runtime_that_a_bundle_has_no_file_for_is_said() -> None:
    path = str(_zip(_for_two_runtimes()))
    ran = edgepack("unpack", path, "app", "--deploy-only", "--runtime", "tflite")
    assert (ran.code, ran.out) == (ExitCode.USAGE, "")
    assert "no file for the runtime 'tflite'" in ran.err and "it has files for: executorch, onnxruntime" in ran.err
    ran = edgepack("unpack", path, "app", "--runtime", "executorch")
    assert ran.code == ExitCode.USAGE and "add --deploy-only" in ran.err
    assert not Path("app").exists()


def test_a_bundle_is_unpacked_and_takes_the_place_of_another(own_place: Path) -> None:
    unpack(_zip(bundle_files()), Path("app/bundle"))
    assert verify(Path("app/bundle")) == verify(Path("tiny.zip"))
    unpack(_zip(bundle_files(other=b"other")), Path("app/bundle"))
    assert Path("app/bundle/models/other.onnx").read_bytes() == b"other"
    assert not Path("app/bundle/models/tiny.onnx").exists()
    assert [path.name for path in Path("app").iterdir()] == ["bundle"]


@pytest.mark.parametrize("name", [".app.old", ".app.new"])
def test_folders_beside_the_target_stay_whatever_they_are_called(name: str) -> None:
    Path(name).mkdir()
    Path(name, "letter.txt").write_text("mine")
    for model in (b"one", b"other"):
        unpack(_zip(bundle_files(tiny=model)), Path("app"))
        assert Path("app/models/tiny.onnx").read_bytes() == model
    assert Path(name, "letter.txt").read_text() == "mine"
    assert {path.name for path in Path.cwd().iterdir() if path.name.startswith(".")} == {name}
    assert Path("app").stat().st_mode == Path(name).stat().st_mode


def test_what_was_there_stays_when_it_cannot_be_replaced(own_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpack(_zip(bundle_files()), Path("app"))
    before, rename = verify(Path("app")), Path.replace

    def fails(path: Path, target: Path) -> Path:
        if target.name == "app" and path.name == "new":
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", fails)
    ran = edgepack("unpack", str(_zip(bundle_files(other=b"other"))), "app")
    assert ran.code == ExitCode.DEVICE and "No space left" in ran.err
    assert verify(Path("app")) == before
    assert not [path for path in own_place.iterdir() if path.name.startswith(".")]


def test_nothing_of_anybodys_is_overwritten(own_place: Path) -> None:
    path = _zip(bundle_files())
    for target in ("mine", "half", "tiny.zip", "mine/letter.txt"):
        Path("mine").mkdir(exist_ok=True)
        Path("mine/letter.txt").write_text("mine")
        _folder(bundle_files(), "half")
        Path("half/letter.txt").write_text("mine")
        ran = edgepack("unpack", str(path), target)
        assert (ran.code, ran.out) == (ExitCode.USAGE, "")
        assert "and is not a bundle" in ran.err or "is the folder of the bundle itself" in ran.err
    assert Path("mine/letter.txt").read_text() == Path("half/letter.txt").read_text() == "mine"
    assert edgepack("unpack", "half", "half/inside").code == ExitCode.BUDGET  # it is no bundle any more
    unpack(path, Path("whole"))
    assert edgepack("unpack", "whole", "whole/inside").code == ExitCode.USAGE
    assert verify(Path("whole"))


def test_a_place_that_cannot_be_written_is_said() -> None:
    Path("file").write_text("in the way")
    for target in ("file/bundle", "/proc/none/bundle", "/proc/none/bundle.zip"):
        ran = edgepack("unpack", str(_zip(bundle_files())), target)
        assert (ran.code, ran.out) == (ExitCode.DEVICE, "")
        assert "cannot write" in ran.err and "choose another target" in ran.err


def test_a_bundle_that_is_not_there_or_cannot_be_read(own_place: Path) -> None:
    assert edgepack("verify", "nothing.zip").code == ExitCode.USAGE
    Path("loop").symlink_to("loop")
    assert edgepack("verify", "loop").code in (ExitCode.USAGE, ExitCode.BUDGET)


def test_no_damage_is_unpacked(own_place: Path) -> None:
    """A thousand zips, each damaged in several ways at once: refused, and nothing is written."""
    whole, path, chance = pack(bundle_files()), Path("tiny.zip"), random.Random(0)
    before = sorted(own_place.rglob("*"))
    for _ in range(1000):
        damaged = bytearray(whole)
        for _ in range(chance.randrange(1, 6)):
            start, length = chance.randrange(len(damaged) + 1), chance.choice((1, 2, 4, 30, 200))
            match chance.randrange(4):
                case 0:
                    damaged[start : start + length] = chance.randbytes(length)
                case 1:
                    del damaged[start : start + length]
                case 2:
                    damaged[start:start] = chance.randbytes(length)
                case _:
                    damaged[start : start + length] = damaged[:length]
        path.write_bytes(damaged)
        if bytes(damaged) != whole:
            with pytest.raises(VerifyError):
                unpack(path, Path("out/bundle"))
    path.unlink()
    assert sorted(own_place.rglob("*")) == before


def _mutants(value: Any) -> list[Any]:
    """`value` with each of its parts replaced by something odd, one at a time."""
    odd: list[Any] = [None, 5, -1, "x", "", [], {}, [[]], {"path": 1}, 1e400, True, "\ud800", "a\0b", "é" * 300]
    if isinstance(value, dict):
        changed = [{**value, key: mutant} for key in value for mutant in _mutants(value[key])]
        return odd + changed + [{k: v for k, v in value.items() if k != key} for key in value]
    if isinstance(value, list):
        return odd + [[*value[:i], mutant, *value[i + 1 :]] for i in range(len(value)) for mutant in _mutants(value[i])]
    return odd


def test_no_manifest_crashes_or_writes_elsewhere(own_place: Path) -> None:
    """Every part of a manifest replaced by something odd, in a zip otherwise right; then a thousand times two parts."""
    files, chance = bundle_files(), random.Random(0)
    whole = json.loads(files["manifest.json"])
    once = _mutants(whole)
    twice = [chance.choice(_mutants(chance.choice(once))) for _ in range(1000)]
    for mutant in (*once, *twice):
        path = _zip(with_sums({**files, "manifest.json": json.dumps(mutant).encode()}))
        try:
            manifest = unpack(path, Path("out/bundle"))
        except VerifyError as error:
            str(error).encode()
        else:
            assert _same_files(manifest, whole), mutant
    assert {path.name for path in own_place.iterdir()} <= {"devices", "recipes", "tiny.zip", "out"}
    assert not Path("out").exists() or [path.name for path in Path("out").iterdir()] == ["bundle"]


def _same_files(manifest: Manifest, whole: dict[str, Any]) -> bool:
    """What may change unnoticed is what a bundle says of itself, never what it holds and which of that ships."""
    kept = {"schema", "runtimes", "deploy_only", "files", "content_digest"}
    told = manifest.model_dump(mode="json", by_alias=True)
    return {key: told[key] for key in kept} == {key: whole[key] for key in kept}


def test_a_message_can_be_printed_whatever_a_manifest_says(own_place: Path) -> None:
    listed = [{"path": "\ud800\x1b[2J", "bytes": 1, "sha256": "0" * 64, "role": "deploy"}]
    path = _zip(sealed({"io/labels.txt": b"x"}, files=listed))
    with pytest.raises(VerifyError) as caught:
        verify(path)
    str(caught.value).encode()
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("key", ["\x1b[2J", "\n::stop-commands::x", "\u2028x", "\ud800"])
def test_a_key_of_a_manifest_commands_neither_terminal_nor_ci(key: str) -> None:
    files = bundle_files()
    told = json.loads(files["manifest.json"])
    odd_runtime = {**runtime(), "version": key}
    for mutant in (
        {**told, key: 1},
        {**told, "source": {**told["source"], key: 1}},
        {**told, "runtimes": {key: runtime()}},
        {**told, "runtimes": {key: {key: 1}}},
        {**told, "runtimes": {"onnxruntime": odd_runtime}},
    ):
        path = _zip(with_sums({**files, "manifest.json": json.dumps(mutant).encode()}))
        ran = edgepack("verify", str(path))
        assert (ran.code, ran.out) == (ExitCode.BUDGET, "")
        assert key not in ran.err and len(ran.err.splitlines()) <= 2
