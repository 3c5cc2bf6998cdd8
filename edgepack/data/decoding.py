"""Pictures from files: which endings can be read here, and each picture upright, resized and cut."""

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.core.provenance import threads
from edgepack.data.folders import NOT_FETCHED, POINTERS, shown
from edgepack.data.partition import unreadable

if TYPE_CHECKING:
    import numpy
    from PIL import Image

    Bytes = numpy.typing.NDArray[numpy.uint8]

ENDINGS = (
    *(".apng", ".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm"),
    *(".tga", ".tif", ".tiff", ".webp"),
)
_HEIF = "pillow_heif"  # a package that lets Pillow read them
# Requirements of other formats.
_NEEDED = {".avif": "a Pillow with AVIF", ".heic": "the package pillow-heif", ".heif": "the package pillow-heif"}


@dataclass(frozen=True, kw_only=True)
class Frame:
    """How to cut a picture: resize its shorter side to `shorter_side`, then take a square of `side` from the middle."""

    mode: str  # RGB or L
    shorter_side: int
    side: int

    def start(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return where the square begins in a resized picture of this size."""
        width, height = ((length - self.side) // 2 for length in size)
        return width, height

    def scaled(self, size: tuple[int, int]) -> tuple[int, int]:
        scale = self.shorter_side / min(size)
        width, height = (max(self.shorter_side, round(length * scale)) for length in size)
        return width, height


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """A decoded picture. `content` is equal for pictures with equal pixels."""

    size: tuple[int, int]  # width and height after resizing, before cutting
    content: str
    transparent: bool
    several: bool  # frames or pages; this is the first


def reads(ending: str) -> bool:
    """Return whether files with this ending, in lower case, can be read here. Looks for libraries only if needed."""
    return ending in ENDINGS or (ending in _NEEDED and _is_there(ending))


def needed(ending: str) -> str:
    """Return what is needed to read files with this ending, or ""."""
    return f"needs {_NEEDED[ending]}" if ending in _NEEDED else ""


@cache
def _is_there(ending: str) -> bool:
    if ending != ".avif":
        return find_spec(_HEIF) is not None
    from PIL import features

    return bool(features.check("avif"))


def all_decoded(files: Mapping[Path, str], frame: Frame, stored: "Bytes") -> dict[str, Decoded]:
    """Decode files given with the hash of their content; each content is decoded once.

    Writes pixels into `stored` [contents, channels, side, side], in the order of the result. Raises RecipeError naming
    the files that cannot be read.
    """
    _add_heif(files)
    one = {content: file for file, content in files.items()}
    with ThreadPoolExecutor(threads()) as pool:
        results = pool.map(lambda file, row: _attempt(file, frame, row), one.values(), stored)
        found = dict(zip(one, results, strict=True))
    if unread := [f"{shown(file)}: {why}" for file, sha in files.items() if isinstance(why := found[sha], str)]:
        raise unreadable(unread, "picture", "cannot be read", "fix, convert or remove them")
    return {content: each for content, each in found.items() if isinstance(each, Decoded)}


def libraries(names: Iterable[str]) -> tuple[str, ...]:
    """Return the packages that decode files with these names."""
    heif = any(name.lower().endswith((".heic", ".heif")) for name in names)
    return ("pillow", "pillow-heif") if heif else ("pillow",)


def _add_heif(files: Iterable[Path]) -> None:
    if len(libraries(file.name for file in files)) > 1:
        import_module(_HEIF).register_heif_opener()


def _attempt(file: Path, frame: Frame, row: "Bytes") -> "Decoded | str":
    """Decode a picture into the row; returns the picture, or why it cannot be read."""
    try:
        picture, pixels = decoded(file, frame)
        row[:] = pixels
        return picture
    except Exception as error:  # each decoder fails in its own way
        return NOT_FETCHED if _is_pointer(file) else str(error)


def decoded(file: Path, frame: Frame) -> "tuple[Decoded, Bytes]":
    """Return an upright picture in the wanted colours, resized, its middle square as pixels [channels, side, side]."""
    import numpy
    from PIL import Image, ImageOps

    with Image.open(file) as opened:
        if opened.mode.startswith(("I", "F")):
            raise ValueError(f"it has more than 8 bits a channel (mode {opened.mode})")
        # A photo in MPO format is one picture, with smaller versions of itself.
        several = getattr(opened, "is_animated", False) and opened.format != "MPO"
        upright = ImageOps.exif_transpose(opened)
        transparent = _is_transparent(upright)
        upright.info.pop("transparency", None)  # else Pillow would keep it or warn of it
        picture = upright.convert(frame.mode)
    size = frame.scaled(picture.size)
    # The crop is given in pixels of the original, so that a long, thin picture is not enlarged first.
    per_pixel = [length / scaled for length, scaled in zip(picture.size, size, strict=True)]
    left, top, right, bottom = ((frame.start(size)[i] + end) * per_pixel[i] for end in (0, frame.side) for i in (0, 1))
    cut = picture.resize((frame.side, frame.side), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
    pixels = numpy.array(cut).reshape(frame.side, frame.side, -1)
    found = Decoded(size=size, content=_content(picture), transparent=transparent, several=several)
    return found, pixels.transpose(2, 0, 1)


def _is_transparent(picture: "Image.Image") -> bool:
    """Return whether any pixel is transparent, not only whether the file may have such pixels."""
    if picture.mode not in ("RGBA", "LA", "PA") and "transparency" not in picture.info:
        return False
    lowest, _ = picture.convert("RGBA").getchannel("A").getextrema()
    return lowest != 255


def _content(picture: "Image.Image") -> str:
    sha = hashlib.sha256(f"{picture.mode} {picture.size}".encode())
    sha.update(picture.tobytes())
    return sha.hexdigest()


def _is_pointer(file: Path) -> bool:
    beginnings = tuple(each.encode() for each in POINTERS)
    with file.open("rb") as content:
        return content.read(max(map(len, beginnings))).startswith(beginnings)
