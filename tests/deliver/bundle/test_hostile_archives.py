"""A zip or folder that was made to do harm is refused before it is read."""

import os
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from factories import FORMS, as_folder, bundle_files, edgepack

from edgepack.core.errors import ExitCode, VerifyError
from edgepack.deliver.bundle import pack, verify

Files = dict[str, bytes]


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
    folder = as_folder(bundle_files())
    (own_place / "same").write_bytes((folder / "io/labels.txt").read_bytes())
    (folder / "io/labels.txt").unlink()
    (folder / "io/labels.txt").symlink_to(own_place / "same")
    with pytest.raises(VerifyError, match="is a link; a bundle holds regular files only"):
        verify(folder)


def test_what_is_no_file_in_a_folder_is_refused() -> None:
    folder = as_folder(bundle_files())
    os.mkfifo(folder / "io/pipe")
    with pytest.raises(VerifyError, match="'io/pipe' is not a regular file"):
        verify(folder)


@pytest.mark.parametrize("name", ["models/tiny.onnx", "manifest.json", "SHA256SUMS", "models/extra.onnx"])
def test_a_file_blown_up_to_a_terabyte_is_refused_unread(name: str) -> None:
    folder = as_folder(bundle_files())
    with (folder / name).open("ab") as file:
        file.truncate(2**40)
    tracemalloc.start()
    with pytest.raises(VerifyError):
        verify(folder)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 100 * 2**20


def test_the_folder_of_a_build_says_where_its_bundle_is() -> None:
    as_folder(bundle_files(), "dist/tiny/bundle")
    ran = edgepack("verify", "dist/tiny")
    assert ran.code == ExitCode.USAGE
    assert "dist/tiny is a build's output folder, not a bundle" in ran.err and "give dist/tiny/bundle" in ran.err
