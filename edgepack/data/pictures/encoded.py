"""Where an encoded picture is: in a file of its own, or inside another one, such as an archive or a table."""

from io import BytesIO
from pathlib import Path
from typing import IO, Protocol

from edgepack.data.folders import shown


class Inside(Protocol):
    """A picture inside another file. As text it is its place, for people: "shards/0.tar: 17.jpg"."""

    @property
    def name(self) -> str:
        """Return its name, whose ending tells the format, or "" if it has none."""

    def read(self) -> bytes:
        """Return the encoded picture. Raises OSError, or ValueError if there is none."""


Encoded = Path | Inside


def opened(picture: Encoded) -> IO[bytes]:
    return picture.open("rb") if isinstance(picture, Path) else BytesIO(picture.read())


def place(picture: Encoded) -> str:
    return shown(picture) if isinstance(picture, Path) else shown(str(picture))
