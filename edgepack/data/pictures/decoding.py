"""Pictures from files: which endings can be read here, and each picture upright, resized and cut."""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.core.errors import EdgepackError, RecipeError
from edgepack.core.provenance import threads
from edgepack.data.folders import NOT_FETCHED, POINTERS
from edgepack.data.partition import unreadable
from edgepack.data.pictures.encoded import Encoded, opened, place

if TYPE_CHECKING:
    import numpy
    from PIL import Image

    Bytes = numpy.typing.NDArray[numpy.uint8]

ENDINGS = (
    *(".apng", ".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm"),
    *(".tga", ".tif", ".tiff", ".webp"),
)
NUMBERS = "P"  # the mode of a Frame that takes numbers as they are
_OBJECT = re.compile(r" <\S+ object at 0x[0-9a-f]+>")  # in Pillow's words for a picture inside of a file
_AT_ONCE = 4096  # pictures that wait for a thread
_CHANGED = "pictures must stay as they are while a build runs: build again"
_HEIF = "pillow_heif"  # a package that lets Pillow read them
# Requirements of other formats.
_NEEDED = {".avif": "a Pillow with AVIF", ".heic": "the package pillow-heif", ".heif": "the package pillow-heif"}


@dataclass(frozen=True, kw_only=True)
class Frame:
    """How to cut a picture: resize its shorter side to `shorter_side`, then take a square of `side` from the middle; or
    resize the `whole` of it to that square, whatever its shape was.

    `mode` is RGB, L (grey), or P: the numbers that are stored, such as the classes of a mask, never interpolated.
    """

    mode: str
    shorter_side: int
    side: int
    whole: bool = False

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
    """What was found in a picture. `content` is equal for pictures with equal pixels; `numbers` are those in a mask."""

    size: tuple[int, int]  # width and height in pixels, upright
    content: str
    transparent: bool
    several: bool  # frames or pages; this is the first
    numbers: tuple[int, ...] = ()


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


def all_decoded(
    files: Mapping[Encoded, str],
    frame: Frame,
    keep: "Callable[[int, Bytes], None] | None" = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Decoded | str]:
    """Decode files given with the hash of their content; each content is decoded once. Return what was found in each,
    by its hash, or why it cannot be read.

    `keep` gets the pixels of each content, [channels, side, side], by its row in the result, from several threads;
    `progress` is told how many contents are done. Raises RecipeError where the system does not give a file: that says
    nothing about its content.
    """
    add_heif(files)
    one = {content: file for file, content in files.items()}
    found: dict[str, Decoded | str] = {}

    def looked_at(row: int, file: Encoded) -> Decoded | str:
        try:
            picture = _opened(file, frame.mode)
            cut = _cut(picture.upright, frame) if keep else None
            found = picture.described()
        except Exception as error:  # each decoder fails in its own way
            return _why(file, error)
        if keep and cut is not None:
            keep(row, cut)
        return found

    waiting = iter(enumerate(one.items()))
    with ThreadPoolExecutor(threads()) as pool:
        while some := [*islice(waiting, _AT_ONCE)]:
            results = pool.map(lambda each: looked_at(each[0], each[1][1]), some)
            found.update((content, result) for (_, (content, _)), result in zip(some, results, strict=True))
            progress(len(found), len(one))
    return found


def libraries(names: Iterable[str]) -> tuple[str, ...]:
    """Return the packages that decode files with these names."""
    heif = any(name.lower().endswith((".heic", ".heif")) for name in names)
    return ("pillow", "pillow-heif") if heif else ("pillow",)


def add_heif(files: Iterable[Encoded]) -> None:
    """Let Pillow read these files, if some are in its format."""
    if len(libraries(file.name for file in files)) > 1:
        import_module(_HEIF).register_heif_opener()


def pixels(file: Encoded, frame: Frame) -> "Bytes":
    """Return the pixels of a picture in the frame, [channels, side, side]. Raises RecipeError if it cannot be read."""
    try:
        return _cut(_opened(file, frame.mode).upright, frame)
    except Exception as error:
        raise unreadable([f"{place(file)}: {_why(file, error)}"], "picture", "cannot be read", _CHANGED) from error


@dataclass(frozen=True)
class _Opened:
    """A picture, upright and in the wanted colours, and the first of several frames or pages."""

    upright: "Image.Image"
    transparent: bool
    several: bool

    def described(self) -> Decoded:
        content = hashlib.sha256(f"{self.upright.mode} {self.upright.size}".encode())
        content.update(self.upright.tobytes())
        return Decoded(
            size=self.upright.size,
            content=content.hexdigest(),
            transparent=self.transparent,
            several=self.several,
            numbers=_numbers(self.upright) if self.upright.mode == NUMBERS else (),
        )


def _opened(file: Encoded, mode: str) -> _Opened:
    from PIL import Image, ImageOps

    with opened(file) as content, Image.open(content) as picture:
        if picture.mode.startswith(("I", "F")):
            raise ValueError(f"it has more than 8 bits a channel (mode {picture.mode})")
        # A photo in MPO format is one picture, with smaller versions of itself.
        several = getattr(picture, "is_animated", False) and picture.format != "MPO"
        upright = ImageOps.exif_transpose(picture)
        transparent = _is_transparent(upright)
        upright.info.pop("transparency", None)  # else Pillow would keep it or warn of it
        return _Opened(_as_numbers(upright) if mode == NUMBERS else upright.convert(mode), transparent, several)


def _as_numbers(picture: "Image.Image") -> "Image.Image":
    """Return the stored numbers, not the colours that they stand for. Raises ValueError if a pixel has several."""
    import numpy
    from PIL import Image

    if len(picture.getbands()) > 1:
        raise ValueError(
            f"it has colours (mode {picture.mode}): a mask has one number for each pixel, that of its class"
        )
    found = Image.fromarray(numpy.array(picture).astype(numpy.uint8))
    found.putpalette([])
    return found


def _numbers(picture: "Image.Image") -> tuple[int, ...]:
    return tuple(number for number, count in enumerate(picture.histogram()) if count)


def _cut(picture: "Image.Image", frame: Frame) -> "Bytes":
    """Return the pixels of a picture, resized, of the frame's square in its middle, or of the whole picture."""
    import numpy
    from PIL import Image

    box = (0, 0, *picture.size) if frame.whole else _middle(picture.size, frame)
    resampling = Image.Resampling.NEAREST if frame.mode == NUMBERS else Image.Resampling.BILINEAR
    cut = picture.resize((frame.side, frame.side), resampling, box=box)
    return numpy.array(cut).reshape(frame.side, frame.side, -1).transpose(2, 0, 1)


def _middle(picture: tuple[int, int], frame: Frame) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of the frame's square in pixels of the original, so that a long, thin picture
    is not enlarged first.
    """
    size = frame.scaled(picture)
    per_pixel = [length / scaled for length, scaled in zip(picture, size, strict=True)]
    left, top, right, bottom = ((frame.start(size)[i] + end) * per_pixel[i] for end in (0, frame.side) for i in (0, 1))
    return left, top, right, bottom


def _why(file: Encoded, error: Exception) -> str:
    """Return why a picture cannot be decoded. Raises errors that are not about its content."""
    if isinstance(error, MemoryError | EdgepackError):
        raise error
    if isinstance(error, OSError) and error.errno:
        raise RecipeError(f"cannot read {place(file)}: {error.strerror}") from error
    return NOT_FETCHED if _is_pointer(file) else _OBJECT.sub("", str(error))


def _is_transparent(picture: "Image.Image") -> bool:
    """Return whether any pixel is transparent, not only whether the file may have such pixels."""
    if picture.mode not in ("RGBA", "LA", "PA") and "transparency" not in picture.info:
        return False
    lowest, _ = picture.convert("RGBA").getchannel("A").getextrema()
    return lowest != 255


def _is_pointer(file: Encoded) -> bool:
    if not isinstance(file, Path):
        return False
    beginnings = tuple(each.encode() for each in POINTERS)
    with file.open("rb") as content:
        return content.read(max(map(len, beginnings))).startswith(beginnings)
