"""Where the pixels of decoded pictures are kept: in memory, on disk, or nowhere.

memory    decoded when data is loaded, held as bytes
disk      decoded once and stored, resized, in one file; read from there
none      decoded once to see what they are, and again each time that a sample is used

All three give the same samples.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgepack.core.errors import RecipeError
from edgepack.core.files import digest
from edgepack.core.process import memory
from edgepack.core.provenance import versions
from edgepack.core.units import SIZE
from edgepack.data.contract import Loading
from edgepack.data.pictures.decoding import Decoded, Frame, all_decoded, libraries
from edgepack.data.pictures.encoded import Encoded
from edgepack.data.pictures.samples import InFiles, InMemory, OnDisk, Pixels

if TYPE_CHECKING:
    from edgepack.data.pictures.decoding import Bytes

Cache = Literal["auto", "memory", "disk", "none"]

VERSION = 1  # bump when the same files and frame would give other pixels, or when what is stored has another form
_STORED, _FOUND = "pixels", "pictures.json"


def pixels(
    files: Mapping[Encoded, str], frame: Frame, cache: Cache, loading: Loading
) -> tuple[Pixels, dict[str, Decoded | str]]:
    """Return the pixels of each content, row by row, and what was found in each, by its hash in the order of rows, or
    why it cannot be read.

    `files` are given with the hash of their content. Raises RecipeError if a recipe asks for memory that is not there.
    """
    one = {sha: str(file) if isinstance(file, Path) else file for file, sha in files.items()}
    progress = partial(loading.progress, "decoding pictures")
    shape = (len(frame.mode), frame.side, frame.side)
    cache = _chosen(cache, len(one) * prod(shape), loading)
    if cache == "memory":
        import numpy

        held = numpy.empty((len(one), *shape), dtype=numpy.uint8)
        return InMemory(held), all_decoded(files, frame, held.__setitem__, progress)

    def fill(folder: Path) -> None:
        if cache == "disk":
            with (folder / _STORED).open("wb") as file:
                read = all_decoded(files, frame, partial(_write, file.fileno()), progress)
        else:
            read = all_decoded(files, frame, None, progress)
        found = [(sha, each if isinstance(each, str) else astuple(each)) for sha, each in read.items()]
        (folder / _FOUND).write_text(json.dumps(found))

    made_of = {
        "pictures": digest([*one]),
        "kept": [frame.mode, frame.shorter_side, frame.side, frame.whole] if cache == "disk" else [frame.mode],
        "versions": versions(*libraries(file.name for file in files)),
        "version": VERSION,
    }
    folder = loading.kept("pictures", made_of, fill)
    read = {
        sha: each if isinstance(each, str) else _decoded(*each)
        for sha, each in json.loads((folder / _FOUND).read_text())
    }
    return OnDisk((folder / _STORED).open("rb"), shape) if cache == "disk" else InFiles([*one.values()], frame), read


def _decoded(
    size: tuple[int, int], content: str, transparent: bool, several: bool, numbers: Sequence[int] = ()
) -> Decoded:
    return Decoded(
        size=(size[0], size[1]), content=content, transparent=transparent, several=several, numbers=tuple(numbers)
    )


def _chosen(cache: Cache, needed: int, loading: Loading) -> Cache:
    """Return where to keep this many bytes: in memory if they take a quarter of it at most, else on disk if they take
    half of its free room at most.
    """
    allowed = memory.allowed() // loading.processes
    if cache == "memory" and needed > allowed:
        raise RecipeError(
            f"the pictures need {SIZE.format(needed)} of memory, and this process may use {SIZE.format(allowed)}",
            "use cache: disk, or cache: none, or a smaller size",
        )
    if cache != "auto":
        return cache
    return "memory" if needed <= allowed / 4 else "disk" if needed <= loading.room / 2 else "none"


def _write(file: int, row: int, picture: "Bytes") -> None:
    content = picture.tobytes()
    if os.pwrite(file, content, row * len(content)) != len(content):
        raise OSError(28, "No space left on device")
