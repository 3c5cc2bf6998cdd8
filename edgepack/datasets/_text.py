"""What data sets of texts share: the tokenizer, what a document must be, splits that share none, and the inputs."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from edgepack import tokenizer
from edgepack.config import Frozen
from edgepack.datasets import EXAMPLES, Data, Signature, Split, TensorSpec
from edgepack.datasets._splits import drawn, enough, missing, possible, unreadable
from edgepack.errors import RecipeError
from edgepack.provenance import versions
from edgepack.store import digest
from edgepack.units import Share

if TYPE_CHECKING:
    from torch import Tensor

LONGEST = 1_000_000  # characters, or bytes of a file: a longer one is no single document
_PARTS = ("test", "validation", "train")  # a document that stands in two stays in the first of these


def _known_encoding(name: str) -> str:
    try:
        "".encode(name)
    except (LookupError, UnicodeError):
        raise ValueError(f"there is no text encoding {name!r}: for example utf-8, latin-1, cp1252") from None
    return name


Encoding = Annotated[str, AfterValidator(_known_encoding)]


class Settings(Frozen):
    """What every data set of texts can be told."""

    tokenizer: str = Field(description="a folder with tokenizer.json, all-MiniLM-L6-v2, or a name of the hub")
    max_length: int = Field(default=128, ge=1, description="tokens of a text that the model is given, its own included")
    validation: Share = Field(default=0.15, description="share of each class, where no file holds this split")
    test: Share = Field(default=0.15, description="share of each class, where no file holds this split")

    @model_validator(mode="after")
    def _possible(self) -> "Settings":
        possible(self.validation, self.test, "documents")
        return self

    @property
    def shares(self) -> dict[str, float]:
        return {"validation": self.validation, "test": self.test}


@dataclass(frozen=True, kw_only=True)
class Document:
    """One text with its label, and where it stands: "news/sport/1.txt" or "news.csv:17"."""

    text: str
    label: str
    place: str


Documents = Mapping[str, Sequence[Document]]  # of each part that is there; the others are drawn from train


def describe(config: Settings, labels: Iterable[str]) -> Signature:
    """Inputs of int64; raises RecipeError when the tokenizer will not do."""
    inputs = tuple(TensorSpec(name=name, shape=(config.max_length,), dtype="int64") for name in tokenizer.INPUTS)
    preprocessing = tokenizer.load(config.tokenizer, config.max_length).preprocessing()
    return Signature(inputs=inputs, labels=tuple(labels), preprocessing=preprocessing)


def fingerprint(config: Settings, files: Mapping[str, str], **settings: Any) -> str:
    """Of the files' hashes by name, the tokenizer as it is fixed, and what decides on splits."""
    # The tokenizer is known by what it is, not by where it lies.
    ids = digest(tokenizer.load(config.tokenizer, config.max_length).json().decode())
    made_by = versions("tokenizers")
    return digest({"files": files, "tokenizer": ids, "shares": config.shares, "versions": made_by, **settings})


def attachments(config: Settings) -> dict[str, bytes]:
    """The tokenizer, for the app."""
    return {tokenizer.FILE: tokenizer.load(config.tokenizer, config.max_length).json()}


def load(config: Settings, documents: Documents, labels: Sequence[str]) -> Data:
    """The splits, of which no two share a text. Raises RecipeError naming the documents that will not do."""
    import torch

    refuse(documents)
    kept = _different(documents)
    parts = _drawn(config, kept, labels)
    fixed = tokenizer.load(config.tokenizer, config.max_length)
    encoded = {part: tokenizer.encode(fixed.tokenizer, [each.text for each in parts[part]]) for part in _PARTS}

    def split(part: str) -> Split:
        inputs = (torch.from_numpy(encoded[part].ids), torch.from_numpy(encoded[part].mask))
        targets = torch.tensor([labels.index(each.label) for each in parts[part]])
        return Split(inputs=inputs, targets=targets, prepare=_prepared)

    count, cut = sum(len(each) for each in parts.values()), sum(each.cut for each in encoded.values())
    return Data(
        train=split("train"),
        validation=split("validation"),
        test=split("test"),
        examples=tuple(each.text for each in parts["test"][:EXAMPLES]),
        notes=tuple(_notes(sum(map(len, documents.values())), count, cut, config.max_length)),
    )


def decoded(file: Path, encoding: str) -> str:
    """Raises UnicodeError when the file is of another encoding."""
    try:
        return file.read_bytes().decode(encoding).removeprefix("\ufeff")  # a byte order mark is no text
    except OSError as error:
        raise RecipeError(f"cannot read {file}: {error.strerror}") from error


def undecodable(error: UnicodeError, encoding: str) -> str:
    at = (
        f"byte 0x{error.object[error.start]:02x} at position {error.start}"
        if isinstance(error, UnicodeDecodeError)
        else error
    )
    return f"it is not {encoding} ({at})"


def _prepared(inputs: "tuple[Tensor, ...]") -> "tuple[Tensor, ...]":
    return tuple(tensor.long() for tensor in inputs)  # kept small: four bytes a token, one of its mask


def _notes(given: int, kept: int, cut: int, length: int) -> Iterable[str]:
    if given > kept:
        yield f"{given - kept} of {given} documents are copies of others: one of each is kept"
    if cut:
        yield f"{cut} of {kept} documents have more than {length} tokens: the rest of them is cut off"


def refuse(documents: Documents) -> None:
    """Raises RecipeError naming those that are empty or far too long."""
    problems = []
    for each in (each for part in documents.values() for each in part):
        if not each.text.strip():
            problems.append(f"{each.place}: it is empty")
        elif len(each.text) > LONGEST:
            problems.append(f"{each.place}: it has {len(each.text)} characters, more than {LONGEST}")
    if problems:
        raise unreadable(problems, "document", "cannot be used", "mend or remove them")


def _different(documents: Documents) -> dict[str, list[Document]]:
    """One copy of each text, so that none that is trained on is in the test split. Spaces make no difference."""
    seen: dict[str, Document] = {}
    kept: dict[str, list[Document]] = {}
    contradictions = []
    for part in (part for part in _PARTS if part in documents):
        kept[part] = []
        for each in documents[part]:
            first = seen.setdefault(" ".join(each.text.split()), each)
            if first is each:
                kept[part].append(each)
            elif first.label != each.label:
                contradictions.append(
                    f"{each.place}: {each.label!r}, but the same text in {first.place} {first.label!r}"
                )
    if contradictions:
        raise unreadable(contradictions, "document", "has a copy with another label", "keep the one that is right")
    return kept


def _drawn(config: Settings, documents: Documents, labels: Sequence[str]) -> dict[str, list[Document]]:
    """Every part shuffled, what is missing drawn from train: what needs only some samples takes the first ones."""
    shares = missing(documents, config.shares)
    counts = Counter(each.label for each in documents["train"])
    enough({label: counts[label] for label in labels}, shares, "different document")
    parts: dict[str, list[Document]] = {}
    for part, members in documents.items():
        if not members:
            raise RecipeError(f"the {part} split has no document of its own: each stands in another split too")
        chosen = drawn([labels.index(each.label) for each in members], shares if part == "train" else {})
        # With nothing to be drawn from it, all of a part comes back under the name of train.
        parts |= {part if name == "train" else name: [members[i] for i in where] for name, where in chosen.items()}
    return parts
