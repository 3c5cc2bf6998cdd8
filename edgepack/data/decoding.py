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
_HEIF = "pillow_heif"  # a package that teaches Pillow to read them
# What has to be there for others.
_NEEDED = {".avif": "a Pillow with AVIF", ".heic": "the package pillow-heif", ".heif": "the package pillow-heif"}


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What is cut from the middle of a picture: of its shorter side resized to `shorter_side`, a square of `side`."""

    mode: str  # RGB or L
    shorter_side: int
    side: int

    def start(self, size: tuple[int, int]) -> tuple[int, int]:
        """Where the square begins in a resized picture of this size."""
        width, height = ((length - self.side) // 2 for length in size)
        return width, height

    def scaled(self, size: tuple[int, int]) -> tuple[int, int]:
        scale = self.shorter_side / min(size)
        width, height = (max(self.shorter_side, round(length * scale)) for length in size)
        return width, height


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """`content` is the same for pictures of the same pixels."""

    size: tuple[int, int]  # width and height, resized and not yet cut
    content: str
    transparent: bool
    several: bool  # frames or pages, of which this is the first


def reads(ending: str) -> bool:
    """Whether files of this ending, in lower case, can be read here. Looks for libraries only where it has to."""
    return ending in ENDINGS or (ending in _NEEDED and _is_there(ending))


def needed(ending: str) -> str:
    """What files of an ending that cannot be read here would need, or ""."""
    return f"needs {_NEEDED[ending]}" if ending in _NEEDED else ""


@cache
def _is_there(ending: str) -> bool:
    if ending != ".avif":
        return find_spec(_HEIF) is not None
    from PIL import features

    return bool(features.check("avif"))


def all_decoded(files: Mapping[Path, str], frame: Frame, stored: "Bytes") -> dict[str, Decoded]:
    """What is in files of these contents, told by their hash: each content is decoded once.

    Their pixels are written into `stored` [contents, channels, side, side], in the order of what is returned.
    Raises RecipeError that names the files which cannot be read.
    """
    _add_heif(files)
    one = {content: file for file, content in files.items()}
    with ThreadPoolExecutor(threads()) as pool:
        told = pool.map(lambda file, row: _attempt(file, frame, row), one.values(), stored)
        found = dict(zip(one, told, strict=True))
    if unread := [f"{shown(file)}: {why}" for file, sha in files.items() if isinstance(why := found[sha], str)]:
        raise unreadable(unread, "picture", "cannot be read", "fix, convert or remove them")
    return {content: each for content, each in found.items() if isinstance(each, Decoded)}


def libraries(names: Iterable[str]) -> tuple[str, ...]:
    """What decodes files of these names."""
    heif = any(name.lower().endswith((".heic", ".heif")) for name in names)
    return ("pillow", "pillow-heif") if heif else ("pillow",)


def _add_heif(files: Iterable[Path]) -> None:
    if len(libraries(file.name for file in files)) > 1:
        import_module(_HEIF).register_heif_opener()


def _attempt(file: Path, frame: Frame, row: "Bytes") -> "Decoded | str":
    """The picture, with its pixels in the row, or why it cannot be read."""
    try:
        picture, pixels = decoded(file, frame)
        row[:] = pixels
        return picture
    except Exception as error:  # each decoder fails in its own way
        return NOT_FETCHED if _is_pointer(file) else str(error)


def decoded(file: Path, frame: Frame) -> "tuple[Decoded, Bytes]":
    """Upright, in the wanted colours, its shorter side as asked, the middle square of it: [channels, side, side]."""
    import numpy
    from PIL import Image, ImageOps

    with Image.open(file) as opened:
        if opened.mode.startswith(("I", "F")):
            raise ValueError(f"it has more than 8 bits a channel (mode {opened.mode})")
        # A photo of the kind MPO is one, with smaller versions of itself.
        several = getattr(opened, "is_animated", False) and opened.format != "MPO"
        upright = ImageOps.exif_transpose(opened)
        transparent = _is_transparent(upright)
        upright.info.pop("transparency", None)  # Pillow would keep or warn of it
        picture = upright.convert(frame.mode)
    size = frame.scaled(picture.size)
    # The crop is said in pixels of the original, so that a long, thin picture is not blown up to be cut.
    per_pixel = [length / scaled for length, scaled in zip(picture.size, size, strict=True)]
    left, top, right, bottom = ((frame.start(size)[i] + end) * per_pixel[i] for end in (0, frame.side) for i in (0, 1))
    cut = picture.resize((frame.side, frame.side), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
    pixels = numpy.array(cut).reshape(frame.side, frame.side, -1)
    found = Decoded(size=size, content=_content(picture), transparent=transparent, several=several)
    return found, pixels.transpose(2, 0, 1)


def _is_transparent(picture: "Image.Image") -> bool:
    """Whether any pixel is, not only whether the file could say so."""
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
