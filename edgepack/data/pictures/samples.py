"""Pictures as samples: where their pixels are, and which part of each a model is shown."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from edgepack.core.errors import DeviceError
from edgepack.data.pictures import decoding
from edgepack.data.pictures.decoding import Frame
from edgepack.data.pictures.encoded import Inside

if TYPE_CHECKING:
    import numpy
    from torch import Tensor

    from edgepack.data.pictures.decoding import Bytes

    Places = numpy.typing.NDArray[numpy.int32]


class Moving(Protocol):
    """Changes pictures [n, channels, height, width] at random, each by its own seed of `seeds`, [n]."""

    def __call__(self, pictures: "Tensor", *, seeds: "Tensor") -> "Tensor": ...


class Pixels(Protocol):
    """Pictures by row, all of one shape."""

    def take(self, rows: Sequence[int]) -> "Bytes":
        """Return pixels [len(rows), channels, side, side]."""


@dataclass(frozen=True)
class InMemory:
    """Pixels that are held: uint8 [pictures, channels, side, side]."""

    pixels: "Bytes"

    def take(self, rows: Sequence[int]) -> "Bytes":
        return self.pixels[list(rows)]


@dataclass(frozen=True)
class OnDisk:
    """Pixels in one file, picture after picture.

    They are read, not mapped: a mapped file counts as memory of this process for as long as the system keeps it. The
    file stays open, so that it can be read even if the store is cleaned meanwhile.
    """

    file: BinaryIO
    shape: tuple[int, int, int]

    def take(self, rows: Sequence[int]) -> "Bytes":
        import numpy

        found = numpy.empty((len(rows), *self.shape), numpy.uint8)
        for picture, row in zip(found, rows, strict=True):
            content = picture.data.cast("B")
            if os.preadv(self.file.fileno(), [content], row * picture.nbytes) != picture.nbytes:
                raise DeviceError(f"{self.file.name} is shorter than it was", "build again")
        return found


@dataclass(frozen=True)
class InFiles:
    """Pictures that are decoded each time: paths as text, which take less memory, or what is inside a file."""

    files: Sequence[str | Inside]
    frame: Frame

    def take(self, rows: Sequence[int]) -> "Bytes":
        import numpy

        files = [Path(each) if isinstance(each, str) else each for each in map(self.files.__getitem__, rows)]
        decoding.add_heif(files)
        return numpy.stack([decoding.pixels(file, self.frame) for file in files])


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """The pictures of a split: `rows` of `pixels`.

    Training pictures are whole; `moving` changes them at random by their seeds. Those of the other splits are cut to
    `size` at `starts`, left and top: they are what they would be if they had been cut to this size at once.
    """

    pixels: Pixels
    rows: "Places"
    size: int
    moving: "Moving | None" = None
    starts: "Places | None" = None  # [n, 2]

    @property
    def augmented(self) -> bool:
        return self.moving is not None

    @property
    def held(self) -> bool:
        return isinstance(self.pixels, InMemory)

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, indices: "Tensor", seeds: "Tensor | None") -> "tuple[Tensor, ...]":
        import torch

        at = indices.numpy()
        found = self.pixels.take(self.rows[at].tolist())
        if self.starts is not None:
            found = self._cut(found, self.starts[at])
        pictures = torch.from_numpy(found)
        return (self.moving(pictures, seeds=seeds) if self.moving and seeds is not None else pictures,)

    def _cut(self, pictures: "Bytes", starts: "Places") -> "Bytes":
        import numpy

        side = self.size
        return numpy.stack(
            [
                picture[:, top : top + side, left : left + side]
                for picture, (left, top) in zip(pictures, starts.tolist(), strict=True)
            ]
        )
