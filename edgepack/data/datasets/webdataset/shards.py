"""Find shards, and where their samples lie in them.

Only headers are read to index one. Only regular files count; nothing is unpacked.
"""

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import BinaryIO

from edgepack.core.errors import RecipeError
from edgepack.data.contract import Loading
from edgepack.data.folders import shown

_VERSION = 2  # bump when the same shard would give another index
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST = 100_000  # shards that a name may stand for
# The key of a sample and the ending of a file, as the library splits names: at the first dot of the last part.
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")
_META = re.compile(r"__[^/]*__(/|\.|$)")  # what is no sample, by the library's convention
_END = bytes(2 * tarfile.BLOCKSIZE)  # how an archive ends
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_CUT_OFF = ("unexpected end of data", "empty header", "truncated header")  # as tarfile says it
_AGAIN = "copy or write it again"


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a shard as a sample; see pictures/encoded.py."""

    shard: Path
    name: str
    start: int  # byte of the shard
    size: int

    def __str__(self) -> str:
        return place(self.shard, self.name)

    def read(self) -> bytes:
        with self.shard.open("rb") as file:
            return self.within(file)

    def within(self, file: BinaryIO) -> bytes:
        """Return its content, given the open shard."""
        file.seek(self.start)
        content = file.read(self.size)
        if len(content) < self.size:
            raise ValueError("the shard is shorter than it was")
        return content


@dataclass(frozen=True, kw_only=True)
class Index:
    """Where the files of each sample lie: {key: {ending: (start, size)}}.

    `twice` are names that more than one file has, and `others` is the number of members that are no files of samples.
    """

    samples: dict[str, dict[str, tuple[int, int]]]
    twice: list[str]
    others: int


def place(shard: Path, name: str) -> str:
    return f"{shown(shard)}: {shown(name)}"


def named(names: str) -> tuple[Path, ...]:
    """Return the shards of such a name, with ranges and lists in braces, or a pattern. Raises RecipeError.

    >>> [str(shard) for shard in expanded("a-{08..10}.tar")]
    ['a-08.tar', 'a-09.tar', 'a-10.tar']
    """
    found: list[Path] = []
    for path in expanded(names):
        there = [path] if path.is_file() else sorted(path.parent.glob(path.name)) if path.name else []
        if not there:
            raise RecipeError(f"there is no shard '{path}'", "paths are relative to the folder that edgepack runs in")
        found += there
    return tuple(found)


def expanded(names: str) -> list[Path]:
    """Return the paths that a name with braces stands for: {000..012} numbers, {a,b} texts. Raises RecipeError if they
    are too many.
    """
    pieces = _BRACES.split(names)  # every second one stood in braces
    choices = [_choices(piece, i % 2) for i, piece in enumerate(pieces)]
    if (count := prod(map(len, choices))) > _MOST:
        raise RecipeError(f"{names!r} names {count} shards", f"at most {_MOST} are possible")
    return [Path("".join(each)) for each in product(*choices)]


def _choices(piece: str, braced: int) -> list[str]:
    if not braced:
        return [piece]
    if not (found := _RANGE.fullmatch(piece)):
        return piece.split(",")
    first, last = int(found[1]), int(found[2])
    if not first <= last < first + _MOST:
        raise RecipeError(
            f"the range {{{piece}}} names {max(0, last - first + 1)} shards", f"from 1 to {_MOST} are possible"
        )
    return [str(number).zfill(len(found[1])) for number in range(first, last + 1)]


def index(shard: Path, sha: str, loading: Loading) -> Index:
    """Return where the samples of a shard lie, as found now or earlier. Raises RecipeError for a damaged shard."""

    def fill(folder: Path) -> None:
        made = _indexed(shard)
        content = {"samples": made.samples, "twice": made.twice, "others": made.others}
        (folder / "index.json").write_text(json.dumps(content))

    folder = loading.kept("shard", {"shard": sha, "version": _VERSION}, fill)
    found = json.loads((folder / "index.json").read_text())
    samples = {
        key: {ending: (start, size) for ending, (start, size) in members.items()}
        for key, members in found["samples"].items()
    }
    return Index(samples=samples, twice=found["twice"], others=found["others"])


def _indexed(shard: Path) -> Index:
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    twice, others = [], 0
    for member in _members(shard):
        match = _NAME.fullmatch(member.name)
        if not match or not member.isreg() or member.issparse() or _META.match(member.name):
            others += 1
            continue
        files = samples.setdefault(match[1], {})
        if files.setdefault(match[2].lower(), (member.offset_data, member.size)) != (member.offset_data, member.size):
            twice.append(member.name)
    if not samples:
        raise RecipeError(f"{shown(shard)} has no samples", "names are a key and an ending: 17.jpg and 17.cls")
    return Index(samples=samples, twice=twice, others=others)


def _members(shard: Path) -> Iterator[tarfile.TarInfo]:
    """Yield every member. Raises RecipeError if the shard is cut off or damaged, naming the member before that."""
    last = ""
    try:
        with shard.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in _headers(archive):
                yield member
                last = member.name
            file.seek(archive.offset)
            end, rest = file.read(len(_END)), file.read(tarfile.RECORDSIZE)
    except tarfile.TarError as error:
        raise _damaged(shard, last, str(error)) from error
    except OSError as error:
        raise RecipeError(f"cannot read {shown(shard)}: {error.strerror or error}") from error
    except (ValueError, OverflowError) as error:  # numbers in headers
        raise _damaged(shard, last, str(error)) from error
    if end != _END:
        raise _damaged(shard, last, "it is cut off" if _END.startswith(end) else "the next header is damaged")
    if any(rest):
        raise _damaged(shard, last, "another archive follows in the same file")


def _headers(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    at = 0
    while member := archive.next():
        # A negative size leads back to an earlier header, and so for ever around (CVE-2025-8194).
        if member.size < 0 or archive.offset <= at:
            raise tarfile.ReadError("the next header is damaged")
        at = archive.offset
        yield member
        archive.members.clear()  # type: ignore[attr-defined]  # which would hold all of them


def _damaged(shard: Path, last: str, why: str) -> RecipeError:
    with shard.open("rb") as file:
        begins = file.read(8)
    if packed := next((name for magic, name in _PACKED.items() if begins.startswith(magic)), ""):
        return RecipeError(
            f"{shown(shard)} is compressed ({packed})", "samples are read in any order: unpack it to .tar"
        )
    why = "it is cut off" if why in _CUT_OFF else why
    where = f" after {shown(last)}" if last else ""
    return RecipeError(f"the shard {shown(shard)} cannot be read{where}: {why}", _AGAIN)
