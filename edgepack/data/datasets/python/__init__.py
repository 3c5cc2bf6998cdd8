"""Your own data: your function returns its splits, `data: {python: {function: "shop.data:load", ...}}`.

def load(**args):
    return {"train": (inputs, targets), "validation": (inputs, targets), "test": (inputs, targets)}

Inputs are numpy arrays or tensors [n, *shape]; targets are the numbers of their labels [n], or floats as the task wants
them: for a regression and for several labels a sample [n, labels]. Instead of such a pair a split
may be a map-style torch Dataset, whose samples are read as they are needed; or return `edgepack.Data`, whose splits may
also hold bytes to `prepare` and `augment`.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from edgepack.config.user_code.references import Files, Reference, libraries, named, resolve, sources
from edgepack.core.errors import RecipeError, StageError, listed
from edgepack.core.files import digest, digests, file_digest
from edgepack.core.frozen import Frozen
from edgepack.core.signature import Signature, TensorSpec
from edgepack.core.signature.labels import problem
from edgepack.data.contract import Loading
from edgepack.data.datasets.python.map_style import MapStyle, is_map_style, looked_through
from edgepack.data.splits import PARTS, Data, Split

if TYPE_CHECKING:
    from torch import Tensor

FOREIGN = KEEPS = True

_BATCH = 256  # samples


class Config(Frozen):
    function: Reference = Field(description='"module:function"; the current folder is searched first')
    shape: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = Field(
        description="shape of one sample, for example [1, 28, 28]"
    )
    labels: tuple[str, ...] = Field(
        default=(), description="names of targets 0, 1, ...; or of the numbers of each target, if these are floats"
    )
    dtype: Literal["float32", "int64", "int32", "uint8"] = "float32"
    args: dict[str, Any] = Field(default={}, description="arguments of the function")
    files: Files = Field(
        default=(),
        description='what it reads, for example ["data/*.npz", "shop/*.py"]: when they change, so does the data',
    )
    preprocessing: dict[str, Any] = Field(default={}, description="how an app makes the inputs, written to the bundle")

    @field_validator("labels")
    @classmethod
    def _usable(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if why := problem(labels):
            raise ValueError(why)
        return labels

    @field_validator("args", "preprocessing")
    @classmethod
    def _plain(cls, values: dict[str, Any]) -> dict[str, Any]:
        for key, value in values.items():
            if odd := next(_odd(value), None):
                raise ValueError(f"{key} holds a {odd}: write it as text, in quotes")
        return values


def describe(config: Config) -> Signature:
    """Return what the recipe states: no user code runs yet."""
    sample = TensorSpec(name="input", shape=config.shape, dtype=config.dtype)
    return Signature(inputs=(sample,), labels=config.labels, preprocessing=config.preprocessing)


def fingerprint(config: Config) -> str:
    """Return a digest of the function's module and imports, its arguments, and the files named in the recipe."""
    found = digests(named(config.files), of=f"{Path.cwd()} {config.function}")
    code = [file_digest(file) for file in sources(config.function)]
    settings = config.model_dump(mode="json")
    return digest({"config": settings, "code": code, "files": found, "versions": libraries(config.function)})


def files(config: Config) -> tuple[Path, ...]:
    return (*sources(config.function), *named(config.files).values())


def load(config: Config, loading: Loading | None = None) -> Data:
    """Return the checked result of the function. Raises RecipeError naming a split that is not as described."""
    given = _parts(config.function, _called(config))
    splits, contents = {}, {}
    for part in PARTS:
        if is_map_style(given[part]):
            samples = MapStyle(given[part], part, augmented=part == "train")
            targets, contents[part] = looked_through(samples, config.shape, config.dtype, loading or Loading())
            splits[part] = _checked(part, Split(samples=samples, targets=targets), config)
        else:
            splits[part] = _as_described(part, _checked(part, _split(part, given[part]), config), config)
            contents[part] = [*map(_content, zip(*splits[part].inputs, strict=True))]
    notes = (*_lacking(splits, config.labels), *_shared(contents), *_unnoticed(config, splits))
    return Data(train=_shuffled(splits["train"]), validation=splits["validation"], test=splits["test"], notes=notes)


def _called(config: Config) -> object:
    function = resolve(config.function)
    try:
        return function(**config.args)
    except (Exception, SystemExit) as error:
        logging.getLogger(__name__).exception("%s failed", config.function)
        raise StageError(
            f"{config.function} failed: {type(error).__name__}: {error}", "see build.log for the traceback"
        ) from error


def _parts(function: str, given: object) -> dict[str, Any]:
    if isinstance(given, Data):
        return {part: getattr(given, part) for part in PARTS}
    if isinstance(given, dict) and {*given} == {*PARTS}:
        return given
    got = f"a dict with {', '.join(map(repr, given)) or 'nothing'}" if isinstance(given, dict) else type(given).__name__
    raise RecipeError(
        f"{function} returned {got}", "return edgepack.Data, or a dict with 'train', 'validation' and 'test'"
    )


def _split(part: str, given: Any) -> Split:
    """Return the function's result as tensors: arrays share memory, floats become float32, other targets int64."""
    import torch

    if isinstance(given, Split):
        inputs = tuple(torch.as_tensor(tensor) for tensor in given.inputs)
        return replace(given, inputs=inputs, targets=_typed(part, torch.as_tensor(given.targets)))
    try:
        inputs, targets = given
        samples = torch.as_tensor(inputs)
        samples = samples.float() if samples.is_floating_point() else samples
        return Split(inputs=(samples,), targets=_typed(part, torch.as_tensor(targets)))
    except (TypeError, ValueError, RuntimeError) as error:
        raise _wrong(part, f"expected a pair of arrays, inputs and targets: {error}") from error


def _typed(part: str, targets: "Tensor") -> "Tensor":
    if targets.is_complex() or not targets.dim():
        kind = str(targets.dtype).removeprefix("torch.")
        raise _wrong(
            part, f"targets are {kind} of shape {list(targets.shape)}, expected real numbers of shape [n, ...]"
        )
    return targets.float() if targets.is_floating_point() else targets.long()


def _checked(part: str, split: Split, config: Config) -> Split:
    if (lengths := {*split.lengths}) != {len(split)}:
        raise _wrong(part, f"it has {len(split)} targets for {' and '.join(map(str, sorted(lengths)))} inputs")
    if len(split) < (2 if part == "train" else 1):
        raise _wrong(part, "it is empty" if not len(split) else "one sample is not enough to train on")
    low, high = int(split.targets.min()), int(split.targets.max())
    if _are_labels(split, config.labels) and (low < 0 or high >= len(config.labels)):
        raise _wrong(
            part, f"targets go from {low} to {high}, but {len(config.labels)} labels are 0 to {len(config.labels) - 1}"
        )
    return split


def _are_labels(split: Split, labels: Sequence[str]) -> bool:
    """Return whether targets are numbers of labels, one a sample."""
    return bool(labels) and not split.targets.is_floating_point() and split.targets.dim() == 1


def _as_described(part: str, split: Split, config: Config) -> Split:
    for batch in split.batches(_BATCH):
        _check_inputs(part, batch.inputs, config)
    return split


def _check_inputs(part: str, inputs: "tuple[Tensor, ...]", config: Config) -> None:
    if len(inputs) != 1:
        raise _wrong(part, f"it has {len(inputs)} inputs, expected one")
    shape, dtype = tuple(inputs[0].shape[1:]), str(inputs[0].dtype).removeprefix("torch.")
    if shape != config.shape:
        raise _wrong(part, f"a sample has the shape {list(shape)}, but the recipe says {list(config.shape)}")
    if dtype != config.dtype:
        raise _wrong(part, f"inputs are {dtype}, but the recipe says {config.dtype}")
    if inputs[0].is_floating_point() and not bool(inputs[0].isfinite().all()):
        raise _wrong(part, "some inputs are NaN or Inf")


def _wrong(part: str, problem: str) -> RecipeError:
    return RecipeError(
        f"the split '{part}' of the data is wrong: {problem}", "fix the function, or the data section of the recipe"
    )


def _unnoticed(config: Config, splits: Mapping[str, Split]) -> Iterator[str]:
    if not config.files and any(split.samples is not None for split in splits.values()):
        what = f"files that data sets of {config.function} read in other processes"
        yield f"{what} are not noticed when they change: name them in `files`"


def _lacking(splits: Mapping[str, Split], labels: Sequence[str]) -> Iterator[str]:
    for part, split in splits.items():
        if not _are_labels(split, labels):
            continue
        there = {*split.targets.unique().tolist()}
        if absent := [repr(label) for target, label in enumerate(labels) if target not in there]:
            yield f"the {part} split has no sample of {listed(absent)}"


def _shared(contents: Mapping[str, Sequence[bytes]]) -> Iterator[str]:
    """Yield warnings about equal stored samples in two splits. None is removed: the function decides on its splits."""
    for part, other in (("test", "train"), ("test", "validation"), ("validation", "train")):
        known = {*contents[other]}
        if count := sum(each in known for each in contents[part]):
            yield f"{count} of {len(contents[part])} {part} samples are also in {other}: {part} scores are too high"


def _content(sample: "tuple[Tensor, ...]") -> bytes:
    import torch

    found = hashlib.blake2b(digest_size=16)
    for tensor in sample:
        found.update(tensor.reshape(-1).contiguous().view(torch.uint8).numpy())
    return found.digest()


def _shuffled(split: Split) -> Split:
    """Return the split in a fixed random order: files are often sorted by class, and some steps take the first."""
    import torch

    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    return split.chosen(order)


def _odd(value: object) -> Iterator[str]:
    """Yield types that YAML may hold but the recipe in a bundle could not give back the same, such as a date."""
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        for item in value:
            yield from _odd(item)
    elif not isinstance(value, str | int | float | bool | None):
        yield type(value).__name__
