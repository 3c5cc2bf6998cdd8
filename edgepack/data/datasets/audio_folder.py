"""Your own sounds: one folder per class, in one folder or in train, validation and test.

words/yes/1.wav words/no/1.wav   or   words/train/yes/1.wav words/validation/yes/2.wav words/test/yes/3.wav
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from edgepack.core.files import digest, digests
from edgepack.core.provenance import versions
from edgepack.core.signature import Signature, TensorSpec
from edgepack.core.units import Share
from edgepack.data.contract import Loading
from edgepack.data.folders import Kind, Listing, listed, shown
from edgepack.data.partition import enough, missing, possible
from edgepack.data.pictures.collection import Skip, check_bad
from edgepack.data.sounds import choosing, front_end
from edgepack.data.sounds.decoding import ENDINGS, decoded, needed, reads
from edgepack.data.sounds.front_end import LogMel
from edgepack.data.splits import PARTS, Data, Split

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from edgepack.data.sounds.choosing import Heard
    from edgepack.data.sounds.decoding import Sound

KEEPS = True
_VERSION = 2  # bump when the same files would give other splits or samples
_SHIFT = 0.1  # of the length of a sound
_FULL = 32768  # of int16
_SOUNDS = Kind(
    noun="sound",
    example="yes/1.wav",
    known=", ".join(ending.removeprefix(".") for ending in ENDINGS),
    accepts=reads,
    advice=needed,
)


class Config(LogMel):
    folder: str = Field(
        description="folder with one subfolder per class, or with train, validation and test that have those"
    )
    rate: int = Field(default=16_000, ge=1000, le=192_000, description="samples of a second that the model takes")
    seconds: float = Field(default=1.0, gt=0, le=60, description="what the model hears of a sound: its beginning")
    resample: bool = Field(default=False, description="convert sounds of another rate, instead of refusing them")
    front_end: Literal["in_file", "beside"] = Field(
        default="in_file",
        description="in_file: the model takes raw sound, and makes features of it; beside: it takes features, which "
        "the app makes as io/log_mel.py in the bundle does",
    )
    augment: bool = Field(default=True, description="shift training sounds by up to a tenth of their length")
    bad_samples: Literal["fail"] | Skip = Field(
        default="fail", description="fail if a sound cannot be used, or {skip: 20}: leave out as many at most"
    )
    validation: Share = Field(default=0.15, description="fraction of each class for this split, unless it is given")
    test: Share = Field(default=0.15, description="fraction of each class for this split, unless it is given")

    @model_validator(mode="after")
    def _possible(self) -> "Config":
        possible(self.validation, self.test, "sounds")
        self.check(self.rate, self.samples_heard)
        return self

    @property
    def shares(self) -> dict[str, float]:
        return {"validation": self.validation, "test": self.test}

    @property
    def samples_heard(self) -> int:
        return round(self.seconds * self.rate)

    @property
    def margin(self) -> int:
        """Return how many samples more are kept at either end, for shifts."""
        return round(_SHIFT * self.samples_heard) if self.augment else 0

    @property
    def shape(self) -> tuple[int, ...]:
        if self.front_end == "in_file":
            return (self.samples_heard,)
        return front_end.shape(self.samples_heard, self.samples(self.rate))


def describe(config: Config) -> Signature:
    """Raises RecipeError for all problems of the folders; the sounds themselves are opened by `load`."""
    steps = {
        "kind": "sound",
        "rate": config.rate,
        "channels": "their mean",
        "length": {"samples": config.samples_heard, "longer": "cut at the end", "shorter": "filled with zeros"},
        "scale": {"from": [-_FULL, _FULL - 1], "to": [-1, 1 - 1 / _FULL]},
        front_end.KEY: {"made": _MADE[config.front_end], **config.samples(config.rate)},
    }
    sound = TensorSpec(name="input", shape=config.shape)
    return Signature(inputs=(sound,), labels=tuple(_listed(config).parts["train"]), preprocessing=steps)


_MADE = {"in_file": "by the model", "beside": f"before the model, as {front_end.FILE} does"}


def notes(config: Config) -> tuple[str, ...]:
    """Return what is left out of the folders."""
    return _listed(config).notes


def attachments(config: Config) -> dict[str, bytes]:
    """Return the code that makes features, where the app has to make them."""
    return {front_end.FILE: front_end.source()} if config.front_end == "beside" else {}


def fingerprint(config: Config) -> str:
    """Return a digest of names and contents of all files; the folder's path and times do not matter."""
    root = Path(config.folder)
    files = {file.relative_to(root).as_posix(): file for _, _, file in _each(_listed(config))}
    made_by = versions("numpy", *(("scipy",) if config.resample else ()))
    settings = config.model_dump(mode="json", exclude={"folder"})
    found = digests(files, of=str(root.resolve()))
    return digest({"files": found, "config": settings, "versions": made_by, "version": _VERSION})


def load(config: Config, loading: Loading | None = None) -> Data:
    """Decode every sound, to see that it can be used and which are equal. Raises RecipeError naming those that cannot.

    All are held in memory, as int16.
    """
    listing, problems, found = _listed(config), [], []
    labels, every = [*listing.parts["train"]], [*_each(listing)]
    for done, (part, label, file) in enumerate(every):
        (loading or Loading()).progress("reading sounds", done, len(every))
        try:
            sound = _kept(decoded(file, config.rate, config.resample), config)
            found.append(choosing.heard(part, labels.index(label), file, sound))
        except ValueError as error:
            problems.append(f"{shown(file)}: {error}")
    check_bad(problems, config.bad_samples, "sound")
    left = [f"{len(problems)} of {len(every)} sounds are left out, such as {problems[0]}"] if problems else []
    parts, more = choosing.chosen(found, labels, [*listing.parts], config.shares)
    train, validation, test = (_split(parts[part], config, part) for part in PARTS)
    return Data(train=train, validation=validation, test=test, notes=(*listing.notes, *left, *more))


def _kept(sound: "Sound", config: Config) -> "Sound":
    """Return what may be heard of a sound, with silence before its beginning and after its end: int16 [samples]."""
    import numpy

    found = numpy.zeros(config.samples_heard + 2 * config.margin, numpy.int16)
    there = sound[: config.samples_heard + config.margin]
    found[config.margin : config.margin + len(there)] = there
    return found


def _split(sounds: "list[Heard]", config: Config, part: str) -> Split:
    import numpy
    import torch

    return Split(
        inputs=(torch.from_numpy(numpy.stack([each.samples for each in sounds])),),
        targets=torch.tensor([each.label for each in sounds]),
        prepare=partial(_prepared, config=config),
        augment=partial(_shifted, config=config) if config.augment and part == "train" else None,
    )


def _shifted(inputs: "tuple[Tensor, ...]", random: "Generator", config: Config) -> "tuple[Tensor, ...]":
    import torch

    starts = torch.randint(2 * config.margin + 1, (len(inputs[0]), 1), generator=random)
    return (inputs[0].gather(1, starts + torch.arange(config.samples_heard)),)


def _prepared(inputs: "tuple[Tensor, ...]", config: Config) -> "tuple[Tensor, ...]":
    import torch

    start = (inputs[0].shape[1] - config.samples_heard) // 2  # nothing, if it was shifted
    sounds = inputs[0][:, start : start + config.samples_heard].float() / _FULL
    if config.front_end == "in_file":
        return (sounds,)

    from edgepack.data.sounds.log_mel import log_mel

    return (torch.from_numpy(log_mel(sounds.numpy(), **config.samples(config.rate))),)


def _each(listing: Listing) -> Iterator[tuple[str, str, Path]]:
    """Yield part, label and file of every sound."""
    for part, classes in listing.parts.items():
        for label, files in classes.items():
            yield from ((part, label, file) for file in files)


def _listed(config: Config) -> Listing:
    listing = listed(Path(config.folder), _SOUNDS)
    counts = {name: len(files) for name, files in listing.parts["train"].items()}
    enough(counts, missing(listing.parts, config.shares), "sound")
    return listing
