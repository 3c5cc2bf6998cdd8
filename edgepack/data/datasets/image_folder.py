"""Your own pictures: one folder per class, in one folder or in train, validation and test.

pets/cat/1.jpg pets/dog/1.jpg   or   pets/train/cat/1.jpg pets/validation/cat/2.jpg pets/test/cat/3.jpg
"""

from pathlib import Path

from pydantic import Field

from edgepack.core.files import digests
from edgepack.core.files.unchanged import remembered
from edgepack.core.frozen import Json
from edgepack.core.provenance import versions
from edgepack.core.signature import Signature
from edgepack.data.contract import Loading
from edgepack.data.folders import Kind, Listing, listed
from edgepack.data.partition import enough, missing
from edgepack.data.pictures import collection
from edgepack.data.pictures.collection import Settings
from edgepack.data.pictures.decoding import ENDINGS, needed, reads
from edgepack.data.pictures.encoded import Encoded
from edgepack.data.splits import Data

KEEPS = True
_PICTURES = Kind(
    noun="picture",
    example="cat/1.jpg",
    known=", ".join(ending.removeprefix(".") for ending in ENDINGS),
    accepts=reads,
    advice=needed,
)


class Config(Settings):
    folder: str = Field(
        description="folder with one subfolder per class, or with train, validation and test that have those"
    )


def describe(config: Config) -> Signature:
    """Raises RecipeError for all problems of the folders; the pictures themselves are opened by `load`."""
    return collection.describe(config, _contents(config)["labels"])


def notes(config: Config) -> tuple[str, ...]:
    """Return what is left out of the folders."""
    return tuple(_contents(config)["notes"])


def fingerprint(config: Config) -> str:
    """Return a digest of names and contents of all pictures; the folder's path and times do not matter."""

    def find() -> str:
        return collection.fingerprint(config, _digests(config, _listed(config)), {"folder"})

    return remembered(Path(config.folder), ["fingerprint", *_made_of(config)], find)


def load(config: Config, loading: Loading | None = None) -> Data:
    listing = _listed(config)
    shas: dict[Encoded, str] = {Path(config.folder, name): sha for name, sha in _digests(config, listing).items()}
    return collection.load(config, listing.parts, shas, listing.notes, loading or Loading())


def _contents(config: Config) -> Json:
    """Return the labels, and what is left out."""

    def find() -> Json:
        listing = _listed(config)
        return {"labels": [*listing.parts["train"]], "notes": [*listing.notes]}

    return remembered(Path(config.folder), ["contents", *_made_of(config)], find)


def _made_of(config: Config) -> tuple[object, ...]:
    """Return what is found in a folder depends on besides its files."""
    return (
        config.model_dump(mode="json"),
        versions("edgepack", "pillow", "pillow-heif", "torchvision"),
        collection.VERSION,
    )


def _digests(config: Config, listing: Listing) -> dict[str, str]:
    """Return the sha256 of every picture by its name relative to the folder."""
    root = Path(config.folder)
    files = (file for classes in listing.parts.values() for files in classes.values() for file in files)
    start = len(str(root / "x")) - 1
    return digests({str(file)[start:]: file for file in files}, of=str(root.resolve()))


def _listed(config: Config) -> Listing:
    """Return the pictures by split and class, sorted. Raises RecipeError for the first problem."""
    listing = listed(Path(config.folder), _PICTURES)
    counts = {name: len(pictures) for name, pictures in listing.parts["train"].items()}
    enough(counts, missing(listing.parts, config.shares), "picture")
    return listing
