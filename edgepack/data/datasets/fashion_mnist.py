"""Fashion-MNIST, 70,000 grey pictures of 28 x 28 in 10 classes of clothing, from its four IDX files.

They are taken from the folder that a recipe names, from Debian's package dataset-fashion-mnist, from what an earlier
build downloaded, or downloaded now.
Source: H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST: a Novel Image Dataset, arXiv 1708.07747.
"""

import gzip
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pydantic import Field

from edgepack.core.errors import DeviceError, RecipeError
from edgepack.core.files import DOWNLOADS, digest
from edgepack.core.frozen import Frozen
from edgepack.core.signature import Signature, TensorSpec
from edgepack.data.partition import drawn
from edgepack.data.pictures.moving import moved
from edgepack.data.splits import Data, Split

if TYPE_CHECKING:
    import numpy
    from torch import Generator, Tensor

    Bytes = numpy.typing.NDArray[numpy.uint8]

LICENCE = "MIT"
_LABELS = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_SIDE = 28
_SHIFT = 2  # pixels
_SPLITS = {"validation": 0.1}  # from the training files; the test files are the test split
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
# Bytes and CRC-32 of each file's content, as published; a gzip file ends with these two.
_FILES = {
    "train-images-idx3-ubyte": (47_040_016, 3_035_799_336),
    "train-labels-idx1-ubyte": (60_008, 1_947_878_999),
    "t10k-images-idx3-ubyte": (7_840_016, 1_737_482_417),
    "t10k-labels-idx1-ubyte": (10_008, 2_148_805_663),
}


class Config(Frozen):
    folder: str | None = Field(
        default=None, description="folder of the four IDX files, .gz or not; default: searched for, or downloaded"
    )
    size: int = Field(default=_SIDE, ge=_SIDE, le=224, description="side of the picture in pixels, scaled bilinearly")
    augment: bool = Field(default=False, description="mirror training pictures and shift them by up to 2 pixels")
    samples: int | None = Field(
        default=None, ge=20, description="number of training pictures, the same for every class; default: all"
    )


def describe(config: Config) -> Signature:
    """Raises RecipeError if the folder named in the recipe does not contain the files."""
    if config.folder is not None and _in(Path(config.folder)) is None:
        message = f"the folder {config.folder!r} does not hold the four files of Fashion-MNIST"
        raise RecipeError(message, f"it needs {', '.join(_FILES)}, each plain or as .gz")
    steps: dict[str, Any] = {"color": "grey, light clothes on black", "scale": {"from": [0, 255], "to": [0, 1]}}
    if config.size != _SIDE:
        to, source = [config.size, config.size], [_SIDE, _SIDE]
        steps["resize"] = {"to": to, "from": source, "interpolation": "bilinear"}
    picture = TensorSpec(name="input", shape=(1, config.size, config.size))
    return Signature(inputs=(picture,), labels=_LABELS, preprocessing=steps)


def fingerprint(config: Config) -> str:
    """Return a digest that depends on neither the location nor the packing of the files, and needs no download."""
    found = _found(config)
    content = {name: _content(path) for name, path in found.items()} if found else _FILES
    return digest({"content": content, "splits": _SPLITS, **config.model_dump(exclude={"folder"})})


def load(config: Config) -> Data:
    """Split the training files with a fixed seed and equal shares of every class; test files are the test split."""
    import torch

    files = _found(config) or _downloaded()
    pictures, targets = _read(files["train-images-idx3-ubyte"], files["train-labels-idx1-ubyte"])
    parts = drawn(targets.tolist(), _SPLITS)
    if config.samples is not None:
        parts["train"] = _fewer(parts["train"], targets, config.samples)
    test = _read(files["t10k-images-idx3-ubyte"], files["t10k-labels-idx1-ubyte"])

    def split(pictures: "Bytes", targets: "Bytes", *, train: bool = False) -> Split:
        return Split(
            inputs=(torch.from_numpy(pictures)[:, None],),
            targets=torch.from_numpy(targets).long(),
            prepare=lambda inputs: (_prepared(inputs[0], config.size),),
            augment=_augmented if train and config.augment else None,
        )

    return Data(
        train=split(pictures[parts["train"]], targets[parts["train"]], train=True),
        validation=split(pictures[parts["validation"]], targets[parts["validation"]]),
        test=split(*test),
    )


def _prepared(pictures: "Tensor", size: int) -> "Tensor":
    from torch.nn.functional import interpolate

    scaled = pictures / 255
    if size == _SIDE:
        return scaled
    resized: Tensor = interpolate(scaled, size=size, mode="bilinear", align_corners=False)
    return resized


def _augmented(inputs: "tuple[Tensor, ...]", random: "Generator") -> "tuple[Tensor, ...]":
    from torch.nn.functional import pad

    return (moved(pad(inputs[0], [_SHIFT] * 4), _SIDE, random),)


def _fewer(part: Any, targets: "Bytes", samples: int) -> Any:
    """Return the first samples of `part`, equally many of every class, in their order."""
    import numpy

    if samples > len(part):
        raise RecipeError(f"samples is {samples}, but there are only {len(part)} training pictures", "leave it out")
    wanted = [samples // 10 + (label < samples % 10) for label in range(10)]
    kept = [numpy.flatnonzero(targets[part] == label)[:count] for label, count in enumerate(wanted)]
    return part[numpy.sort(numpy.concatenate(kept))]


def _found(config: Config) -> dict[str, Path] | None:
    """Return the four files, or None if they must be downloaded."""
    if config.folder is not None:
        return _in(Path(config.folder))
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
    if pictures.shape[1:] != (_SIDE, _SIDE):
        raise _damaged(images, f"its pictures are {' x '.join(map(str, pictures.shape[1:]))}, not 28 x 28")
    if len(pictures) != len(targets):
        raise _damaged(labels, f"it has {len(targets)} labels for {len(pictures)} pictures")
    missing = [name for i, name in enumerate(_LABELS) if (targets == i).sum() < 2]
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
