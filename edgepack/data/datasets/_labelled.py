"""Share code of data sets whose samples, pictures or texts, lie inside larger files, such as tables and archives."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import Field, model_validator

from edgepack.core.errors import RecipeError
from edgepack.core.frozen import Json
from edgepack.core.signature import Signature
from edgepack.core.signature.labels import flaw, problem
from edgepack.data.contract import Loading
from edgepack.data.partition import enough, missing, same_classes
from edgepack.data.pictures import collection
from edgepack.data.pictures.encoded import Encoded, Inside
from edgepack.data.splits import Data
from edgepack.data.texts import corpus
from edgepack.data.texts.targets import ordered

_SHARED = {"validation", "test", "bad_samples"}
_OF_PICTURES = {*collection.Settings.model_fields} - _SHARED
_OF_TEXTS = {*corpus.Settings.model_fields} - _SHARED
_SIGNED = re.compile(r"[+-]\d+")  # such a text is a number, as -1 is for samples without a label


class Settings(collection.Settings, corpus.Settings):
    """Settings of pictures and of texts, of which one kind is used: texts if `text` says where they are."""

    image: str | None = None
    text: str | None = None
    tokenizer: str = Field(
        default="",
        description="for texts: a folder with tokenizer.json, all-MiniLM-L6-v2, or a model name on the hub",
    )
    labels: tuple[str, ...] | None = Field(default=None, description="names of the labels 0, 1, ...")

    @model_validator(mode="after")
    def _of_one_kind(self) -> "Settings":
        if self.image is not None and self.text is not None:
            raise ValueError("samples are pictures or texts: give image or text")
        if bool(self.tokenizer) != self.has_texts:
            raise ValueError("a tokenizer is for texts: give text too" if self.tokenizer else "texts need a tokenizer")
        others, fields = _OF_PICTURES if self.has_texts else _OF_TEXTS, type(self).model_fields
        # The recipe in a bundle has every setting; those of the other kind are then as they are by default.
        if odd := sorted(name for name in others if getattr(self, name) != fields[name].default):
            raise ValueError(f"{odd[0]} is no setting of {self.noun}s")
        if self.labels is not None and (why := problem(self.labels)):
            raise ValueError(why)
        return self

    @property
    def has_texts(self) -> bool:
        return self.text is not None

    @property
    def noun(self) -> str:
        return "document" if self.has_texts else "picture"


def name_of(value: object, names: Sequence[str] | None) -> str:
    """Return the label that a value stands for: one of the names, by number or as text. Raises ValueError.

    >>> name_of(1, ["cat", "dog"]), name_of("1", ["cat", "dog"]), name_of("dog", ["cat", "dog"]), name_of(7, None)
    ('dog', 'dog', 'dog', '7')
    """
    if value is None or value == "":
        raise ValueError("it has no label")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(
            f"its label is {value!r}, of the type {type(value).__name__}: labels are texts or whole numbers"
        )
    text = str(value).strip()
    if names is not None and text in names and isinstance(value, str):
        return text
    if isinstance(value, int) or _SIGNED.fullmatch(text) or (names is not None and text.isdecimal()):
        return _numbered(int(value), names)
    if names is not None:
        raise ValueError(f"its label is {text!r}, which is none of {', '.join(names)}")
    if why := flaw(text):
        raise ValueError(f"{text!r} is not a valid label: {why}")
    return text


def _numbered(number: int, names: Sequence[str] | None) -> str:
    if number < 0:
        raise ValueError(f"its label is {number}, which marks samples without one")
    if names is None:
        return str(number)
    if number >= len(names):
        raise ValueError(f"its label is {number}, but the labels are 0 to {len(names) - 1}")
    return names[number]


@dataclass
class Found:
    """The samples of each split with their labels, and what is wrong with others."""

    samples: dict[str, list[tuple[Inside, str]]]
    problems: list[str]
    names: Sequence[str] | None  # of all labels in their order, if that is known

    @property
    def labels(self) -> list[str]:
        return [*self.names] if self.names is not None else ordered({label for _, label in self.samples["train"]})

    def add(self, part: str, sample: Inside, value: object, names: Sequence[str] | None) -> None:
        """Add a sample with the value of its label, of which `names` may be known; or note its problem."""
        try:
            self.samples[part].append((sample, name_of(value, names)))
        except ValueError as error:
            self.problems.append(f"{sample}: {error}")

    def facts(self) -> Json:
        """Return what `check_facts` and `labels_of` need, as JSON."""
        counts = {part: Counter(label for _, label in samples) for part, samples in self.samples.items()}
        return {"labels": self.labels, "counts": counts, "problems": self.problems}


def check_facts(config: Settings, facts: Json, where: str) -> list[str]:
    """Return the labels. Raises RecipeError for samples, classes and splits that cannot be used."""
    labels: list[str] = facts["labels"]
    counts: dict[str, dict[str, int]] = facts["counts"]
    collection.check_bad(facts["problems"], config.bad_samples, config.noun)
    for part, found in counts.items():
        if not found:
            raise RecipeError(f"the {part} split of {where} has no {config.noun}s", "name another, or leave it out")
    if len(labels) < 2:
        raise RecipeError(f"{where} has one label only, {labels[0]!r}: a classifier needs at least two classes")
    _check_names(labels, counts["train"], where)
    for part, found in counts.items():
        same_classes(f"of {where}", part, labels, found)
    enough({label: counts["train"].get(label, 0) for label in labels}, missing(counts, config.shares), config.noun)
    return labels


def _check_names(names: Sequence[str], train: Mapping[str, int], where: str) -> None:
    """Raises RecipeError unless the training samples have just the labels that are named."""
    if unused := [name for name in names if name not in train]:
        message = f"the train split of {where} has no sample of {unused[0]!r}, which the names of its labels list"
        raise RecipeError(message, "add samples of this class, or remove its name")
    if unnamed := sorted({*train} - {*names}):
        message = f"the train split of {where} has the class {unnamed[0]!r}, which the names of its labels lack"
        raise RecipeError(message, "do its files list the same names? give all of them: labels: [...]")


def describe(config: Settings, labels: Iterable[str]) -> Signature:
    return corpus.describe(config, labels) if config.has_texts else collection.describe(config, labels)


def fingerprint(config: Settings, files: Mapping[str, Sequence[str]], **settings: object) -> str:
    """Return a digest of the hashes of each split's files, and of how they are read."""
    read = {"label names": config.labels, "parts": files, **settings}
    if config.has_texts:
        return corpus.fingerprint(config, {}, **read, **config.model_dump(mode="json", include={"bad_samples"}))
    own = {*type(config).model_fields} - {*collection.Settings.model_fields}
    return collection.fingerprint(config, {}, own, **read)


def attachments(config: Settings) -> dict[str, bytes]:
    return corpus.attachments(config) if config.has_texts else {}


def load(config: Settings, found: Found, ids: Mapping[Encoded, str], notes: Sequence[str], loading: Loading) -> Data:
    """Return the splits; `ids` are equal for pictures that are known to be equal. Raises RecipeError naming samples."""
    labels = found.labels
    if not config.has_texts:
        parts = {part: _classes(samples, labels) for part, samples in found.samples.items()}
        return collection.load(config, parts, ids, notes, loading, found.problems)
    problems = [*found.problems]
    documents = {part: [*_documents(samples, problems)] for part, samples in found.samples.items()}
    collection.check_bad(problems, config.bad_samples, config.noun)
    data = corpus.load(config, documents, labels)
    left = [f"{len(problems)} documents cannot be read, and are left out, such as {problems[0]}"] if problems else []
    return replace(data, notes=(*notes, *left, *data.notes))


def _documents(samples: Sequence[tuple[Inside, str]], problems: list[str]) -> Iterator[corpus.Document]:
    for each, label in samples:
        try:
            yield corpus.Document(text=each.read().decode("utf-8-sig"), label=label, place=str(each))
        except UnicodeError as error:
            problems.append(f"{each}: {corpus.undecodable(error, 'utf-8')}")
        except ValueError as error:
            problems.append(f"{each}: {error}")


def _classes(samples: Sequence[tuple[Inside, str]], labels: Sequence[str]) -> dict[str, list[Encoded]]:
    classes: dict[str, list[Encoded]] = {label: [] for label in labels}
    for each, label in samples:
        classes[label].append(each)
    return classes
