"""A folder of pictures of three classes, each noise around a colour of its own."""

from pathlib import Path
from typing import Any
from zlib import crc32

import numpy
import torch
from PIL import Image

from edgepack.data.datasets.image_folder import Config
from edgepack.data.pictures.decoding import pixels
from edgepack.data.splits import Data, Split

COLORS = {"ant": (250, 10, 10), "bee": (10, 250, 10), "cow": (10, 10, 250)}


def write_picture(
    file: str | Path, color: tuple[int, int, int] = COLORS["ant"], size: tuple[int, int] = (40, 30)
) -> None:
    """Noise around one colour, written by the ending of the file's name."""
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = numpy.random.default_rng(crc32(str(path).encode())).integers(-10, 10, (size[1], size[0], 3))
    Image.fromarray((numpy.array(color) + noise).clip(0, 255).astype(numpy.uint8)).save(path)


def write_folder(root: str, count: int = 10, classes: tuple[str, ...] = ("ant", "bee", "cow")) -> str:
    for name in classes:
        for i in range(count):
            write_picture(Path(root, name, f"{i}.{'jpg' if i % 2 else 'png'}"), COLORS[name], (30 + i, 40))
    return root


def configured(folder: str = "pets", **settings: Any) -> Config:
    return Config(folder=folder, **{"size": 16, **settings})


def read_pixels(file: str, **settings: Any) -> Any:
    """What is stored of a picture that is not augmented."""
    return pixels(Path(file), configured(augment=False, **settings).frame).transpose(1, 2, 0)


def stored(split: Split) -> torch.Tensor:
    """Every picture as it is kept, in order."""
    assert split.samples is not None
    return split.samples.read(torch.arange(len(split)), None)[0]


def check_colors(data: Data) -> None:
    """Every target is that of its picture's colour."""
    for split in (data.train, data.validation, data.test):
        means = split.head(len(split))[0].mean((2, 3))
        assert torch.equal(means.argmax(1), split.targets)
