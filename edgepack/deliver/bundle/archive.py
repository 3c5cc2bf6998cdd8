"""Pack a bundle as a zip or folder in a reproducible way, and read it as untrusted input.

A zip must be, byte for byte what `pack` makes of its files, so nothing can hide in it. A folder holds plain files only.
"""

import io
import os
import shutil
import struct
import unicodedata
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from tempfile import mkdtemp
from typing import BinaryIO

from edgepack.core.errors import VerifyError

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest date a zip can hold
MANIFEST, SUMS = "manifest.json", "SHA256SUMS"
_MOST = 16 * 2**20  # bytes of either, or of a zip's directory: a manipulated bundle is not read beyond this
_END = struct.Struct("<4s4H2LH")  # end of a zip without a comment; holds length and offset of its directory
_HEADS = 30 + 46  # bytes per member, without its name (twice) and content

Files = dict[str, bytes]  # path inside the bundle -> content


def pack(files: Mapping[str, bytes]) -> bytes:
    """Return a zip that depends only on file names and contents: sorted, stored, one date, one mode."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(files):
            info = zipfile.ZipInfo(path, date_time=_EPOCH)
            info.create_system = 3
            info.external_attr = 0o644 << 16
            archive.writestr(info, files[path])
    return buffer.getvalue()


def swap(files: Mapping[str, bytes], folder: Path) -> None:
    """Make `folder` contain exactly these files; an app's build never sees half of them.

    Writes to a temporary folder next to it. One rename moves the old content away, another moves the new one in.
    """
    aside = Path(mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))  # a unique name
    fresh, old = aside / "new", aside / "old"
    try:
        for path, content in files.items():
            target = fresh / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        if folder.exists():
            folder.replace(old)
        fresh.replace(folder)
    finally:
        if old.exists() and not folder.exists():
            old.replace(folder)  # if that fails too, it stays in `aside`: nothing is lost
        shutil.rmtree(aside, ignore_errors=True)


def safe(name: str) -> bool:
    """Return whether a file of this name stays inside the bundle and keeps its name on every system."""
    path = PurePosixPath(name)
    plain = bool(name) and name.isprintable() and not {*"\\:"} & {*name}
    plain = plain and not any(part.endswith((".", " ")) for part in path.parts)  # Windows drops those
    return plain and not path.is_absolute() and ".." not in path.parts and str(path) == name != "."


def clash(names: Sequence[str]) -> str:
    """Return a name that some systems cannot tell from another in the same folder, or ""."""
    seen: set[str] = set()
    for name in names:
        if _alike(name) in seen:
            return name
        seen.add(_alike(name))
    return next((name for name in names if {_alike(str(above)) for above in PurePosixPath(name).parents} & seen), "")


def _alike(name: str) -> str:
    """Return the name as file systems that ignore case, or compose accents, see it."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def read_folder(folder: Path, sizes: Callable[[bytes], Mapping[str, int]]) -> Files:
    """Return the files of a folder; of each at most one byte more than the size that `sizes` finds in the manifest.

    Of files not in the manifest one byte is read: their presence is already an error.
    """
    found = dict(_plain_files(folder))
    limits = {MANIFEST: _MOST, SUMS: _MOST}
    if MANIFEST in found:
        limits |= sizes(_beginning(found[MANIFEST], _MOST))
    return {name: _beginning(path, limits.get(name, 0)) for name, path in found.items()}


def _plain_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield all files. Raises VerifyError for links, devices and other non-regular or unreadable files."""

    def refuse(error: OSError) -> None:
        raise VerifyError(f"cannot read {error.filename}: {error.strerror}")

    for above, folders, files in os.walk(folder, onerror=refuse):
        for path in sorted(Path(above, name) for name in (*folders, *files)):
            name = path.relative_to(folder).as_posix()
            if path.is_symlink():
                raise VerifyError(f"{folder}: {name!r} is a link; a bundle holds regular files only")
            if path.is_file():
                yield name, path
            elif not path.is_dir():
                raise VerifyError(f"{folder}: {name!r} is not a regular file")


def _beginning(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(min(limit, os.fstat(file.fileno()).st_size) + 1)  # allocates that much at once
    except OSError as error:
        raise VerifyError(f"cannot read {path}: {error.strerror}") from None
    except MemoryError:
        raise _too_large(path) from None


def read_zip(path: Path) -> Files:
    """Return the files of a zip packed by edgepack. Raises VerifyError for any other, before anything is unpacked."""
    if path.exists() and not path.is_file():  # a pipe would block, and a device has no end
        raise VerifyError(f"{path} is not a regular file", "give the .zip that a build wrote, or its unpacked folder")
    try:
        with path.open("rb") as file:
            return _unzipped(path, file)
    except OSError as error:
        raise VerifyError(f"cannot read {path}: {error.strerror}") from None
    except MemoryError:
        raise _too_large(path) from None


def _unzipped(path: Path, file: BinaryIO) -> Files:
    try:
        length = os.fstat(file.fileno()).st_size
        _refuse_blown_up(file, length)
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            _refuse_tricks(path, members, length)
            files = {member.filename: archive.read(member) for member in members}
    except (VerifyError, OSError, MemoryError):
        raise
    except Exception as error:  # zipfile raises many kinds for broken files
        raise VerifyError(f"{path} is not a complete zip file: {error}", "copy or build it again") from None
    file.seek(0)
    if pack(files) != file.read(length + 1):
        raise VerifyError(_CHANGED.format(path))
    return files


_CHANGED = "{} was not packed by edgepack, or was changed later"


def _too_large(path: Path) -> VerifyError:
    return VerifyError(f"{path} is larger than the memory of this computer", "use a computer with more memory")


def _refuse_blown_up(file: BinaryIO, length: int) -> None:
    """Raises BadZipFile for a wrong directory size: zipfile would trust it and read up to a terabyte."""
    file.seek(max(0, length - _END.size))
    end = file.read(_END.size)
    if len(end) < _END.size or end[:4] != b"PK\5\6":
        raise zipfile.BadZipFile("its end is missing")
    *_, directory, start, _ = _END.unpack(end)
    if directory > _MOST or start + directory + _END.size != length:
        raise zipfile.BadZipFile("its end is not where the file says")


def _refuse_tricks(path: Path, members: Sequence[zipfile.ZipInfo], length: int) -> None:
    if sum(member.file_size for member in members) > length:  # also if files overlap
        raise VerifyError(f"{path} was not packed by edgepack: unpacked it is larger than declared")
    seen: set[str] = set()
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED:
            raise VerifyError(
                f"{path} was not packed by edgepack: unpacked {member.filename!r} is larger than declared"
            )
        if not safe(member.filename):
            raise VerifyError(f"{path}: {member.filename!r} would be written outside the bundle's folder")
        if member.filename in seen:
            raise VerifyError(f"{path}: {member.filename!r} occurs twice")
        seen.add(member.filename)
    if length != _END.size + sum(_HEADS + 2 * len(each.filename.encode()) + each.file_size for each in members):
        raise VerifyError(_CHANGED.format(path))  # before all of it is read
