"""The four IDX files of Fashion-MNIST, 70,000 grey pictures of 28 x 28 in 10 classes of clothing.

They are taken from the folder that a recipe names, from Debian's package dataset-fashion-mnist, from what an earlier
build downloaded, or downloaded now.
Source: H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST: a Novel Image Dataset, arXiv 1708.07747.
"""

import gzip
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from edgepack.core.errors import DeviceError, RecipeError
from edgepack.core.files import DOWNLOADS

if TYPE_CHECKING:
    import numpy

    Bytes = numpy.typing.NDArray[numpy.uint8]

LICENCE = "MIT"
LABELS = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
SIDE = 28
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
# Bytes and CRC-32 of each file's content, as published; a gzip file ends with these two.
_FILES = {
    "train-images-idx3-ubyte": (47_040_016, 3_035_799_336),
    "train-labels-idx1-ubyte": (60_008, 1_947_878_999),
    "t10k-images-idx3-ubyte": (7_840_016, 1_737_482_417),
    "t10k-labels-idx1-ubyte": (10_008, 2_148_805_663),
}


def check(folder: str | None) -> None:
    """Raises RecipeError if a folder is named that does not contain the files."""
    if folder is not None and _in(Path(folder)) is None:
        message = f"the folder {folder!r} does not hold the four files of Fashion-MNIST"
        raise RecipeError(message, f"it needs {', '.join(_FILES)}, each plain or as .gz")


def content(folder: str | None) -> dict[str, tuple[int, int]]:
    """Return size and CRC-32 of each file: they depend on neither location nor packing, and need no download."""
    found = _found(folder)
    return {name: _content(path) for name, path in found.items()} if found else _FILES


def read(folder: str | None) -> "tuple[tuple[Bytes, Bytes], tuple[Bytes, Bytes]]":
    """Return pictures [n, 28, 28] and labels [n] of the training files and of the test files."""
    files = _found(folder) or _downloaded()
    train, test = (
        (files[f"{part}-images-idx3-ubyte"], files[f"{part}-labels-idx1-ubyte"]) for part in ("train", "t10k")
    )
    return _read(*train), _read(*test)


def _found(folder: str | None) -> dict[str, Path] | None:
    """Return the four files, or None if they must be downloaded."""
    if folder is not None:
        return _in(Path(folder))
    return _in(_DEBIAN) or _in(_cache())


def _in(folder: Path) -> dict[str, Path] | None:
    found = {}
    for name in _FILES:
        files = [file for file in (folder / name, folder / f"{name}.gz") if file.is_file()]
        if not files:
            return None
        found[name] = files[0]
    return found


def _cache() -> Path:
    return DOWNLOADS / "fashion-mnist"


def _downloaded() -> dict[str, Path]:
    """Download with torchvision, which checks the files; an unfinished download leaves nothing behind."""
    from edgepack.core.process.libraries import torchvision

    cache = _cache()
    cache.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=cache.parent) as folder:
        try:
            source = torchvision().datasets.FashionMNIST(folder, download=True)
        except (OSError, RuntimeError) as error:
            raise DeviceError(
                f"Fashion-MNIST is not on this machine and cannot be downloaded: {error}",
                "either connect to the network, or install Debian's package dataset-fashion-mnist, "
                "or name the folder of its four IDX files: data: {fashion_mnist: {folder: ...}}",
            ) from error
        cache.mkdir(exist_ok=True)
        for name in _FILES:
            (Path(source.raw_folder) / name).replace(cache / name)
    found = _in(cache)
    assert found is not None, "every file was saved there"
    return found


def _content(path: Path) -> tuple[int, int]:
    """Return size and CRC-32 of a file's unpacked content; the last 8 bytes of a gzip file give both."""
    content = _bytes(path)
    if path.suffix != ".gz":
        return len(content), zlib.crc32(content)
    return int.from_bytes(content[-4:], "little"), int.from_bytes(content[-8:-4], "little")


def _read(images: Path, labels: Path) -> "tuple[Bytes, Bytes]":
    """Return pictures [n, 28, 28] and labels [n]. Raises RecipeError naming a damaged file."""
    pictures, targets = _idx(images, 3), _idx(labels, 1)
    if pictures.shape[1:] != (SIDE, SIDE):
        raise _damaged(images, f"its pictures are {' x '.join(map(str, pictures.shape[1:]))}, not 28 x 28")
    if len(pictures) != len(targets):
        raise _damaged(labels, f"it has {len(targets)} labels for {len(pictures)} pictures")
    missing = [name for i, name in enumerate(LABELS) if (targets == i).sum() < 2]
    if missing or targets.max() > 9:
        problem = f"it lacks the class {missing[0]!r}" if missing else f"it has a label {targets.max()}, not 0 to 9"
        raise _damaged(labels, problem)
    return pictures, targets


def _idx(path: Path, dimensions: int) -> "Bytes":
    """Return an array of bytes in the IDX format: 0, 0, 8 (bytes), number of dimensions, each dimension, values."""
    import numpy

    try:
        content = gzip.decompress(_bytes(path)) if path.suffix == ".gz" else _bytes(path)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _damaged(path, str(error)) from error
    start = 4 + 4 * dimensions
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) < start:
        raise _damaged(path, f"it is not an IDX file of bytes with {dimensions} dimensions")
    shape = [int(size) for size in numpy.frombuffer(content, ">u4", dimensions, offset=4)]
    values = numpy.frombuffer(content, numpy.uint8, offset=start)
    if len(values) != numpy.prod(shape, dtype=object):
        raise _damaged(path, f"it announces {' x '.join(map(str, shape))} values and has {len(values)}")
    return values.reshape(shape).copy()


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _damaged(path, f"it cannot be read ({error.strerror})") from error


def _damaged(path: Path, problem: str) -> RecipeError:
    return RecipeError(f"{path} is damaged: {problem}", "download it again, or name another folder")
