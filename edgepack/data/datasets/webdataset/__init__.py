"""Pictures or texts in tar files, as the library webdataset writes them: files with the same key are one sample.

shards/0.tar with 17.jpg and 17.cls, or 17.jpg and 17.json, or 17.txt and 17.cls. Nothing is unpacked: samples are read
from where they lie.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import Field, field_validator

from edgepack.core.errors import RecipeError
from edgepack.core.files import digests, made_once
from edgepack.core.frozen import Json
from edgepack.core.signature import Signature
from edgepack.core.signature.labels import doubts
from edgepack.data.contract import Loading
from edgepack.data.datasets import _labelled as labelled
from edgepack.data.datasets._labelled import Found, attachments
from edgepack.data.datasets.webdataset import shards
from edgepack.data.datasets.webdataset.shards import Index, Member
from edgepack.data.folders import counted
from edgepack.data.pictures.decoding import reads
from edgepack.data.pictures.encoded import Encoded
from edgepack.data.splits import Data

__all__ = ["Config", "attachments", "describe", "fingerprint", "load", "notes"]

KEEPS = True
_VERSION = 2  # bump when the same files would give other samples


class Config(labelled.Settings):
    shards: str = Field(
        description="tar files with the training samples, and with those of each split that has none: "
        "shards-{000..012}.tar, or shards/*.tar"
    )
    validation_shards: str | None = Field(default=None, description="tar files with the samples of this split")
    test_shards: str | None = Field(default=None, description="tar files with the samples of this split")
    image: str | None = Field(default=None, description="ending of the pictures, as jpg; default: that of any picture")
    text: str | None = Field(default=None, description="ending of the texts, as txt, if samples are texts")
    label: str = Field(
        default="cls", description="ending of the file with the label; or json, with the label in a field"
    )
    field: str = Field(default="label", description="field of the json file with the label")

    @field_validator("shards", "validation_shards", "test_shards")
    @classmethod
    def _here(cls, names: str | None) -> str | None:
        if names is not None and ("://" in names or names.startswith("pipe:")):
            raise ValueError(f"shards are files on this computer, not {names!r}: copy them here first")
        return names

    @property
    def parts(self) -> dict[str, tuple[Path, ...]]:
        """Return the shards of each split that has some. Raises RecipeError if one is not there."""
        named = {"train": self.shards, "validation": self.validation_shards, "test": self.test_shards}
        return {part: shards.named(names) for part, names in named.items() if names is not None}


def describe(config: Config) -> Signature:
    """Look shards through, if they have changed since. Raises RecipeError naming shards and keys."""
    return labelled.describe(config, labelled.check_facts(config, _facts(config), config.shards))


def notes(config: Config) -> tuple[str, ...]:
    """Return what is left out of the shards, and warnings about the labels."""
    facts = _facts(config)
    return (*facts["notes"], *doubts(facts["labels"]))


def fingerprint(config: Config) -> str:
    """Return a digest of the contents of the shards; their names do not matter."""
    parts = config.parts
    shas = _digests(parts)
    return labelled.fingerprint(
        config,
        {part: [shas[shard] for shard in each] for part, each in parts.items()},
        endings=[config.image, config.text, config.label, config.field],
        version=_VERSION,
    )


def load(config: Config, loading: Loading | None = None) -> Data:
    loading = loading or Loading()
    parts = config.parts
    shas = _digests(parts)
    found, others = _scanned(config, parts, shas, loading)
    labelled.check_facts(config, found.facts(), config.shards)
    ids: dict[Encoded, str] = {
        each: f"{shas[each.shard]} {each.start} {each.size}"
        for samples in found.samples.values()
        for each, _ in samples
        if isinstance(each, Member)
    }
    return labelled.load(config, found, ids, (*_notes(others), *doubts(found.labels)), loading)


def _facts(config: Config) -> Json:
    parts = config.parts
    shas = _digests(parts)
    made_of = {
        "shards": {part: [[str(shard), shas[shard]] for shard in each] for part, each in parts.items()},
        "endings": [config.image, config.text, config.label, config.field],
        "labels": config.labels,
        "version": _VERSION,
    }

    def make() -> Json:
        found, others = _scanned(config, parts, shas, Loading())
        return {**found.facts(), "notes": [*_notes(others)]}

    return made_once("labels", made_of, make)


def _notes(others: int) -> Iterator[str]:
    if others:
        yield f"{counted(others, 'member')} left out of the shards: links, folders, and files without key and ending"


def _scanned(
    config: Config, parts: Mapping[str, tuple[Path, ...]], shas: Mapping[Path, str], loading: Loading
) -> tuple[Found, int]:
    """Return the samples with their labels, and the number of members that are none of a sample."""
    found = Found(samples={part: [] for part in parts}, problems=[], names=config.labels)
    others, done, count = 0, 0, sum(map(len, parts.values()))
    for part, each in parts.items():
        for shard in each:
            index = shards.index(shard, shas[shard], loading)
            others += index.others
            _add(found, part, shard, index, config)
            done += 1
            loading.progress("reading the index of shards", done, count)
    return found, others


def _add(found: Found, part: str, shard: Path, index: Index, config: Config) -> None:
    found.problems += (f"{shards.place(shard, name)}: there are two files of this name" for name in index.twice)
    with shard.open("rb") as file:
        for key, members in index.samples.items():
            try:
                sample = _sample(shard, key, members, config)
                value = _value(_member(shard, key, config.label, members).within(file), config)
            except ValueError as error:
                found.problems.append(f"{shards.place(shard, key)}: {error}")
                continue
            found.add(part, sample, value, config.labels)


def _sample(shard: Path, key: str, members: Mapping[str, tuple[int, int]], config: Config) -> Member:
    asked = config.text if config.has_texts else config.image
    if asked is not None:
        return _member(shard, key, asked.lower(), members)
    pictures = [ending for ending in members if reads(f".{ending}")]
    if len(pictures) > 1:
        raise ValueError(f"it has several pictures, {' and '.join(pictures)}: name one, as image: {pictures[0]}")
    if not pictures:
        raise ValueError(f"it has no picture, only {', '.join(members)}")
    return _member(shard, key, pictures[0], members)


def _member(shard: Path, key: str, ending: str, members: Mapping[str, tuple[int, int]]) -> Member:
    if ending not in members:
        raise ValueError(f"it has no {ending} file, only {', '.join(members)}")
    start, size = members[ending]
    return Member(shard=shard, name=f"{key}.{ending}", start=start, size=size)


def _value(content: bytes, config: Config) -> object:
    """Return the value of a label. Raises ValueError saying why there is none."""
    try:
        text = content.decode()
        if config.label != "json":
            return text.strip()
        found = json.loads(text)
    except UnicodeError:
        raise ValueError(f"its {config.label} file is no UTF-8 text") from None
    except ValueError as error:
        raise ValueError(f"its json file cannot be read: {error}") from None
    if not isinstance(found, dict) or config.field not in found:
        raise ValueError(f"its json file has no field {config.field!r}")
    return found[config.field]


def _digests(parts: Mapping[str, tuple[Path, ...]]) -> dict[Path, str]:
    names = {str(shard): shard for each in parts.values() for shard in each}
    if len(names) < sum(map(len, parts.values())):
        raise RecipeError("a shard is in two splits, or named twice", "name each shard once")
    found = digests(names, of=" ".join(str(shard.absolute()) for shard in names.values()))
    return {Path(name): sha for name, sha in found.items()}
