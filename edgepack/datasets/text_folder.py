"""Your own texts: one folder a class, one file a document, split here or already in train, validation and test.

news/sport/1.txt news/tech/1.txt   or   news/train/sport/1.txt news/validation/sport/2.txt news/test/sport/3.txt
"""

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from edgepack.datasets import Data, Signature, _text
from edgepack.datasets._digests import digests
from edgepack.datasets._splits import Files, Kind, enough, listed, missing, unreadable
from edgepack.datasets._text import LONGEST, Document, Encoding, Settings, attachments, decoded, undecodable

__all__ = ["Config", "attachments", "describe", "fingerprint", "load"]

_ENDINGS = (".txt", "")
_DOCUMENTS = Kind(
    noun="document",
    example="sport/1.txt",
    known="files named .txt or without an ending",
    accepts=lambda file: file.suffix.lower() in _ENDINGS,
)


class Config(Settings):
    folder: str = Field(description="holds a folder for each class, or train, validation and test with those in them")
    encoding: Encoding = Field(default="utf-8", description="of the files")


def describe(config: Config) -> Signature:
    """Raises RecipeError for what is wrong with folders, sizes and tokenizer; the files are opened when loaded."""
    found = _listed(config)
    return _text.describe(config, found["train"])


def fingerprint(config: Config) -> str:
    """Of the names and contents of all files; where the folder is and when it was written do not matter."""
    root = Path(config.folder)
    files = {file.relative_to(root).as_posix(): file for _, _, file in _each(_listed(config))}
    return _text.fingerprint(config, digests(files, of=str(root.resolve())), encoding=config.encoding)


def load(config: Config) -> Data:
    found = _listed(config)
    documents: dict[str, list[Document]] = {part: [] for part in found}
    problems = []
    for part, label, file in _each(found):
        try:
            documents[part].append(Document(text=decoded(file, config.encoding), label=label, place=str(file)))
        except UnicodeError as error:
            problems.append(f"{file}: {undecodable(error, config.encoding)}")
    if problems:
        advice = "convert them, or name their encoding: for example encoding: latin-1"
        raise unreadable(problems, "document", "cannot be read", advice)
    return _text.load(config, documents, [*found["train"]])


def _each(found: dict[str, Files]) -> Iterator[tuple[str, str, Path]]:
    """Part, label and file of every document."""
    for part, classes in found.items():
        for label, files in classes.items():
            yield from ((part, label, file) for file in files)


def _listed(config: Config) -> dict[str, Files]:
    found = listed(Path(config.folder), _DOCUMENTS)
    counts = {name: len(files) for name, files in found["train"].items()}
    enough(counts, missing(found, config.shares), "document")
    sizes = ((file, file.stat().st_size) for _, _, file in _each(found))
    if problems := [f"{file}: {_odd(size)}" for file, size in sizes if not 0 < size <= LONGEST]:
        raise unreadable(problems, "document", "cannot be used", "mend or remove them")
    return found


def _odd(size: int) -> str:
    return f"it has {size} bytes, more than {LONGEST}" if size else "it is empty"
