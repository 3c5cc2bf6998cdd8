"""What an app ships of a bundle, and a bundle unpacked: nothing of anybody is overwritten, no damage is unpacked."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from factories import (
    FORMS,
    as_folder,
    as_zip,
    build,
    bundle_files,
    edgepack,
    measurement,
    runtime,
    sealed,
    with_sums,
)

from edgepack.core.errors import ExitCode, VerifyError
from edgepack.deliver.bundle import Manifest, pack, unpack, verify
from edgepack.workflows.build.measurements import deployed

Files = dict[str, bytes]


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
    ran = edgepack("unpack", str(as_zip(files)), "app", "--deploy-only", "--runtime", name)
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
    path = str(as_zip(_for_two_runtimes()))
    ran = edgepack("unpack", path, "app", "--deploy-only", "--runtime", "tflite")
    assert (ran.code, ran.out) == (ExitCode.USAGE, "")
    assert "no file for the runtime 'tflite'" in ran.err and "it has files for: executorch, onnxruntime" in ran.err
    ran = edgepack("unpack", path, "app", "--runtime", "executorch")
    assert ran.code == ExitCode.USAGE and "add --deploy-only" in ran.err
    assert not Path("app").exists()


def test_a_bundle_is_unpacked_and_takes_the_place_of_another(own_place: Path) -> None:
    unpack(as_zip(bundle_files()), Path("app/bundle"))
    assert verify(Path("app/bundle")) == verify(Path("tiny.zip"))
    unpack(as_zip(bundle_files(other=b"other")), Path("app/bundle"))
    assert Path("app/bundle/models/other.onnx").read_bytes() == b"other"
    assert not Path("app/bundle/models/tiny.onnx").exists()
    assert [path.name for path in Path("app").iterdir()] == ["bundle"]


@pytest.mark.parametrize("name", [".app.old", ".app.new"])
def test_folders_beside_the_target_stay_whatever_they_are_called(name: str) -> None:
    Path(name).mkdir()
    Path(name, "letter.txt").write_text("mine")
    for model in (b"one", b"other"):
        unpack(as_zip(bundle_files(tiny=model)), Path("app"))
        assert Path("app/models/tiny.onnx").read_bytes() == model
    assert Path(name, "letter.txt").read_text() == "mine"
    assert {path.name for path in Path.cwd().iterdir() if path.name.startswith(".")} == {name}
    assert Path("app").stat().st_mode == Path(name).stat().st_mode


def test_what_was_there_stays_when_it_cannot_be_replaced(own_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpack(as_zip(bundle_files()), Path("app"))
    before, rename = verify(Path("app")), Path.replace

    def fails(path: Path, target: Path) -> Path:
        if target.name == "app" and path.name == "new":
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", fails)
    ran = edgepack("unpack", str(as_zip(bundle_files(other=b"other"))), "app")
    assert ran.code == ExitCode.DEVICE and "No space left" in ran.err
    assert verify(Path("app")) == before
    assert not [path for path in own_place.iterdir() if path.name.startswith(".")]


def test_nothing_of_anybodys_is_overwritten(own_place: Path) -> None:
    path = as_zip(bundle_files())
    for target in ("mine", "half", "tiny.zip", "mine/letter.txt"):
        Path("mine").mkdir(exist_ok=True)
        Path("mine/letter.txt").write_text("mine")
        as_folder(bundle_files(), "half")
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
        ran = edgepack("unpack", str(as_zip(bundle_files())), target)
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
        path = as_zip(with_sums({**files, "manifest.json": json.dumps(mutant).encode()}))
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
    facts = manifest.model_dump(mode="json", by_alias=True)
    return {key: facts[key] for key in kept} == {key: whole[key] for key in kept}


def test_a_message_can_be_printed_whatever_a_manifest_says(own_place: Path) -> None:
    listed = [{"path": "\ud800\x1b[2J", "bytes": 1, "sha256": "0" * 64, "role": "deploy"}]
    path = as_zip(sealed({"io/labels.txt": b"x"}, files=listed))
    with pytest.raises(VerifyError) as caught:
        verify(path)
    str(caught.value).encode()
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("key", ["\x1b[2J", "\n::stop-commands::x", "\u2028x", "\ud800"])
def test_a_key_of_a_manifest_commands_neither_terminal_nor_ci(key: str) -> None:
    files = bundle_files()
    manifest = json.loads(files["manifest.json"])
    odd_runtime = {**runtime(), "version": key}
    for mutant in (
        {**manifest, key: 1},
        {**manifest, "source": {**manifest["source"], key: 1}},
        {**manifest, "runtimes": {key: runtime()}},
        {**manifest, "runtimes": {key: {key: 1}}},
        {**manifest, "runtimes": {"onnxruntime": odd_runtime}},
    ):
        path = as_zip(with_sums({**files, "manifest.json": json.dumps(mutant).encode()}))
        ran = edgepack("verify", str(path))
        assert (ran.code, ran.out) == (ExitCode.BUDGET, "")
        assert key not in ran.err and len(ran.err.splitlines()) <= 2
