"""Share code of text data sets: tokenizer, document checks, splits without overlap, model inputs."""

import codecs
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from edgepack.core.errors import RecipeError
from edgepack.core.files import digest
from edgepack.core.frozen import Frozen
from edgepack.core.provenance import versions
from edgepack.core.signature import Signature, TensorSpec
from edgepack.core.units import Share
from edgepack.data.folders import NOT_FETCHED, POINTERS
from edgepack.data.partition import ONCE, copied, drawn, enough, missing, possible, unreadable, whereabouts
from edgepack.data.splits import EXAMPLES, Data, Split
from edgepack.data.texts import tokenizer
from edgepack.data.texts.targets import Target, as_tensor

if TYPE_CHECKING:
    from torch import Tensor

LONGEST = 1_000_000  # characters, or bytes of a file: longer ones are hardly a single document
# The longer marks first: the mark of UTF-32 begins like that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8",
}
_PARTS = ("test", "validation", "train")  # a document in two parts stays in the first of these


def _known_encoding(name: str) -> str:
    try:
        "".encode(name)
    except (LookupError, UnicodeError):
        raise ValueError(f"unknown text encoding {name!r}: use for example utf-8, latin-1 or cp1252") from None
    return name


Encoding = Annotated[str, AfterValidator(_known_encoding)]


class Settings(Frozen):
    """Settings of every text data set."""

    tokenizer: str = Field(
        description="a folder with tokenizer.json, all-MiniLM-L6-v2, or a model name on the Hugging Face hub"
    )
    max_length: int = Field(default=128, ge=1, description="tokens per text, special tokens included")
    windows: int = Field(
        default=1,
        ge=1,
        le=100,
        description="train on up to this many parts of a long text, each of max_length; evaluation uses the first part",
    )
    validation: Share = Field(
        default=0.15, description="fraction of each class for this split, if it has no file of its own"
    )
    test: Share = Field(default=0.15, description="fraction of each class for this split, if it has no file of its own")

    @model_validator(mode="after")
    def _possible(self) -> "Settings":
        possible(self.validation, self.test, "documents")
        return self

    @property
    def shares(self) -> dict[str, float]:
        return {"validation": self.validation, "test": self.test}


@dataclass(frozen=True, kw_only=True)
class Document:
    """One text with its label and its place: "news/sport/1.txt" or "news.csv:17".

    One that is of no class has a `target`, numbers or tags, and no label.
    """

    text: str
    label: str
    place: str
    target: Target | None = None

    @property
    def right(self) -> Target:
        return self.label if self.target is None else self.target


Documents = Mapping[str, Sequence[Document]]  # by part; missing parts are drawn from train
Lost = dict[tuple[str, str], list[str]]  # why documents were dropped, by part and label


def describe(config: Settings, labels: Iterable[str]) -> Signature:
    """Return int64 inputs, labels and preprocessing. Raises RecipeError if the tokenizer cannot be used."""
    inputs = tuple(TensorSpec(name=name, shape=(config.max_length,), dtype="int64") for name in tokenizer.INPUTS)
    preprocessing = tokenizer.load(config.tokenizer, config.max_length).preprocessing()
    return Signature(inputs=inputs, labels=tuple(labels), preprocessing=preprocessing)


def fingerprint(config: Settings, files: Mapping[str, str], **settings: Any) -> str:
    """Return a digest of the files' hashes, the fixed tokenizer, and the settings of the splits."""
    # The tokenizer counts by its content, not by its path.
    ids = digest(tokenizer.load(config.tokenizer, config.max_length).json().decode())
    made_by = versions("tokenizers")
    drawn_by = {"shares": config.shares, "windows": config.windows}
    return digest({"files": files, "tokenizer": ids, "versions": made_by, **drawn_by, **settings})


def attachments(config: Settings) -> dict[str, bytes]:
    """Return the tokenizer, for the app."""
    return {tokenizer.FILE: tokenizer.load(config.tokenizer, config.max_length).json()}


def load(config: Settings, documents: Documents, labels: Sequence[str]) -> Data:
    """Return splits that share no text and no tokenized input.

    Raises RecipeError naming the documents that cannot be used.
    """
    import torch

    refuse(documents)
    classes = labels if all(each.target is None for each in documents["train"]) else [""]
    parts = _drawn(config, documents, classes)
    fixed = tokenizer.load(config.tokenizer, config.max_length)
    windows = {"train": config.windows}
    encoded = {
        part: tokenizer.encode(fixed.tokenizer, [each.text for each in parts[part]], windows=windows.get(part, 1))
        for part in _PARTS
    }
    of_rows = {part: [parts[part][row] for row in encoded[part].texts] for part in _PARTS}
    own = _own(encoded, {part: [classes.index(each.label) for each in of_rows[part]] for part in _PARTS}, classes)

    def split(part: str) -> Split:
        rows = torch.tensor(own[part])
        inputs = (torch.from_numpy(encoded[part].ids)[rows], torch.from_numpy(encoded[part].mask)[rows])
        targets = as_tensor([each.right for each in of_rows[part]], labels)
        return Split(inputs=inputs, targets=targets[rows], prepare=_prepared)

    return Data(
        train=split("train"),
        validation=split("validation"),
        test=split("test"),
        examples=tuple(each.text for each in parts["test"][:EXAMPLES]),
        notes=tuple(_notes(documents, parts, encoded, own)),
    )


def decoded(file: Path, encoding: str, errors: str = "strict") -> str:
    """Return the text without its byte order mark; a mark overrides `encoding`.

    Raises UnicodeError when the file is of another encoding.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise RecipeError(f"cannot read {file}: {error.strerror}") from error
    marked = next((known for mark, known in _MARKS.items() if content.startswith(mark)), encoding)
    return content.decode(marked, errors).removeprefix("\ufeff")


def undecodable(error: UnicodeError, encoding: str) -> str:
    at = (
        f"byte 0x{error.object[error.start]:02x} at position {error.start}"
        if isinstance(error, UnicodeDecodeError)
        else error
    )
    return f"it is not {encoding} ({at})"


def _prepared(inputs: "tuple[Tensor, ...]") -> "tuple[Tensor, ...]":
    return tuple(tensor.long() for tensor in inputs)  # stored small: four bytes a token, one for its mask


def _own(
    encoded: Mapping[str, tokenizer.Encoded], targets: Mapping[str, Sequence[int]], labels: Sequence[str]
) -> dict[str, list[int]]:
    """Return the rows of each part that are in no earlier part: different texts may be equal after truncation."""
    before: set[bytes] = set()
    own = {}
    for part in _PARTS:
        rows = [row.tobytes() for row in encoded[part].ids]
        own[part] = [i for i, row in enumerate(rows) if row not in before]
        before.update(rows)
    taught = {targets["train"][row] for row in own["train"]}
    lacking = [label for target, label in enumerate(labels) if target not in taught]
    if lacking or not own["validation"]:
        taught_nothing = f"the class {lacking[0]!r} in training" if any(lacking) else "training"
        where = taught_nothing if lacking else "validation"
        raise RecipeError(
            f"nothing is left for {where}: after tokenizing, all its documents are also in another split",
            "use a longer max_length, or a tokenizer that knows their words",
        )
    return own


def _notes(
    documents: Documents, parts: Documents, encoded: Mapping[str, tokenizer.Encoded], own: Mapping[str, list[int]]
) -> Iterable[str]:
    given, different = (sum(map(len, each.values())) for each in (documents, parts))
    rows, used = sum(len(each.ids) for each in encoded.values()), sum(map(len, own.values()))
    cut, length = sum(each.cut for each in encoded.values()), encoded["train"].ids.shape[1]
    if given > different:
        yield f"{given - different} of {given} documents are copies of others: one of each is kept"
    if cut:
        yield f"{cut} of {different} documents have more than {length} tokens"
    if rows > used:
        yield f"{rows - used} of {rows} inputs are left out: after tokenizing, they are also in another split"


def refuse(documents: Documents) -> None:
    """Raises RecipeError naming documents that are empty, too long or only pointers to a file."""
    problems = []
    for each in (each for part in documents.values() for each in part):
        if not each.text.strip():
            problems.append(f"{each.place}: it is empty")
        elif each.text.startswith(POINTERS):
            problems.append(f"{each.place}: {NOT_FETCHED}")
        elif len(each.text) > LONGEST:
            problems.append(f"{each.place}: it has {len(each.text)} characters, more than {LONGEST}")
    if problems:
        raise unreadable(problems, "document", "cannot be used", "fix or remove them")


def _deduplicated(documents: Documents) -> tuple[dict[str, list[Document]], Lost]:
    """Return one copy of each text, so that no training text is in the test split, and what became of the other copies.
    Differences in spaces are ignored.
    """
    seen: dict[str, tuple[str, Document]] = {}
    kept: dict[str, list[Document]] = {}
    lost: Lost = {}
    contradictions = []
    for part in (part for part in _PARTS if part in documents):
        kept[part] = []
        for each in documents[part]:
            where, first = seen.setdefault(" ".join(each.text.split()), (part, each))
            if first is each:
                kept[part].append(each)
            elif first.right == each.right:
                lost.setdefault((part, each.label), []).append(copied(part, where))
            else:
                contradictions.append(
                    f"{each.place}: {each.right!r}, but the same text in {first.place} {first.right!r}"
                )
    if contradictions:
        what = "has a copy" if len(contradictions) == 1 else "have copies"
        raise unreadable(
            contradictions, "document", f"{what} with another label", "keep the one with the correct label"
        )
    return kept, lost


def _drawn(config: Settings, given: Documents, labels: Sequence[str]) -> dict[str, list[Document]]:
    """Return every part shuffled, so that the first samples are a fair choice; missing parts are drawn from train."""
    documents, lost = _deduplicated(given)
    shares = missing(documents, config.shares)
    counts = Counter(each.label for each in documents["train"])
    gone = {
        label: whereabouts(fates, len(fates) + counts[label], "document")
        for (part, label), fates in lost.items()
        if part == "train"
    }
    enough({label: counts[label] for label in labels}, shares, "different document", gone)
    parts: dict[str, list[Document]] = {}
    for part, members in documents.items():
        if not members:
            fates = [fate for (where, _), each in lost.items() if where == part for fate in each]
            reason = whereabouts(fates, len(fates), "document")
            raise RecipeError(f"the {part} split has no document that other splits lack: {reason}", ONCE)
        chosen = drawn([labels.index(each.label) for each in members], shares if part == "train" else {})
        # If nothing is drawn from it, the whole part comes back under the name train.
        parts |= {part if name == "train" else name: [members[i] for i in where] for name, where in chosen.items()}
    return parts
