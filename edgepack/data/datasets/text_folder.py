"""Your own texts: one folder per class, one file per document, in one folder or in train, validation and test.

news/sport/1.txt news/tech/1.txt   or   news/train/sport/1.txt news/validation/sport/2.txt news/test/sport/3.txt
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field

from edgepack.core.files import digests
from edgepack.core.signature import Signature
from edgepack.data.folders import Files, Kind, Listing, counted, listed, shown
from edgepack.data.partition import enough, missing, unreadable
from edgepack.data.splits import Data
from edgepack.data.texts import corpus
from edgepack.data.texts.corpus import LONGEST, Document, Encoding, Settings, attachments, decoded, undecodable

__all__ = ["Config", "attachments", "describe", "fingerprint", "load", "notes"]

_VERSION = 2  # bump when the same files would give other texts
_ENDINGS = (".txt", "")
_DOCUMENTS = Kind(
    noun="document",
    example="sport/1.txt",
    known="files named .txt or without an ending",
    accepts=lambda ending: ending in _ENDINGS,
)


class Config(Settings):
    folder: str = Field(
        description="folder with one subfolder per class, or with train, validation and test that have those"
    )
    encoding: Encoding = Field(default="utf-8", description="encoding of files without a byte order mark")
    encoding_errors: Literal["strict", "replace"] = Field(
        default="strict",
        description="bytes of another encoding: an error (strict), or replaced by U+FFFD with a note (replace)",
    )


def describe(config: Config) -> Signature:
    """Raises RecipeError for problems of folders, sizes and tokenizer; the files are opened by `load`."""
    return corpus.describe(config, _listed(config).parts["train"])


def notes(config: Config) -> tuple[str, ...]:
    """Return what is left out of the folders."""
    return _listed(config).notes


def fingerprint(config: Config) -> str:
    """Return a digest of names and contents of all files; the folder's path and times do not matter."""
    root = Path(config.folder)
    files = {file.relative_to(root).as_posix(): file for _, _, file in _each(_listed(config).parts)}
    read = {"encoding": config.encoding, "errors": config.encoding_errors, "version": _VERSION}
    return corpus.fingerprint(config, digests(files, of=str(root.resolve())), **read)


def load(config: Config) -> Data:
    listing = _listed(config)
    documents: dict[str, list[Document]] = {part: [] for part in listing.parts}
    odd = {}
    for part, label, file in _each(listing.parts):
        try:
            text = decoded(file, config.encoding)
        except UnicodeError as error:
            odd[file] = undecodable(error, config.encoding)
            text = decoded(file, config.encoding, "replace")
        documents[part].append(Document(text=text, label=label, place=shown(file)))
    if odd and config.encoding_errors == "strict":
        raise unreadable([f"{shown(file)}: {why}" for file, why in odd.items()], "document", "cannot be read", _MIXED)
    data = corpus.load(config, documents, [*listing.parts["train"]])
    return replace(data, notes=(*listing.notes, *_replaced(odd, config), *data.notes))


_MIXED = "convert them, set their encoding (for example encoding: latin-1), or set encoding_errors: replace"


def _replaced(odd: Mapping[Path, str], config: Config) -> Iterator[str]:
    if odd:
        reason = f"not {config.encoding}, such as {shown(next(iter(odd)))}"
        yield f"{counted(len(odd), 'document')} {reason}: unreadable bytes are replaced by U+FFFD"


def _each(found: dict[str, Files]) -> Iterator[tuple[str, str, Path]]:
    """Yield part, label and file of every document."""
    for part, classes in found.items():
        for label, files in classes.items():
            yield from ((part, label, file) for file in files)


def _listed(config: Config) -> Listing:
    listing = listed(Path(config.folder), _DOCUMENTS)
    found = listing.parts
    counts = {name: len(files) for name, files in found["train"].items()}
    enough(counts, missing(found, config.shares), "document")
    sizes = ((file, file.stat().st_size) for _, _, file in _each(found))
    if problems := [f"{shown(file)}: {_odd(size)}" for file, size in sizes if not 0 < size <= LONGEST]:
        raise unreadable(problems, "document", "cannot be used", "fix or remove them")
    return listing


def _odd(size: int) -> str:
    return f"it has {size} bytes, more than {LONGEST}" if size else "it is empty"
