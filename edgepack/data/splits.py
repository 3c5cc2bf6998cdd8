"""Define batches and splits, for training and for evaluation of exported files.

A split holds its inputs as tensors, or as Samples, which are read as they are needed, by other processes if it is told
to. Either way the same seed gives the same batches.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from edgepack.core.errors import RecipeError
from edgepack.core.signature import Signature
from edgepack.data import loading
from edgepack.data.loading import Chosen, Samples
from edgepack.data.partition import fewer

if TYPE_CHECKING:
    from torch import Generator, Tensor

    Prepare = Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]
    Augment = Callable[[tuple[Tensor, ...], Generator], tuple[Tensor, ...]]


_LEAST = 2  # samples in a part of a batch
_MOST = 256  # samples that are run at once
_LARGEST = 32_000_000  # bytes of their inputs: layers may need tens of times as many
EXAMPLES = 3  # samples of the test split in a bundle, for its self-test


class Targets(Protocol):
    """What a task knows of targets: see contract.py."""

    signature: Signature

    def problem(self, targets: "Tensor") -> str: ...

    def classes(self, targets: "Tensor") -> "Tensor | None": ...


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Inputs of shape [n, ...], targets of shape [n, ...], and the position of each sample in the split."""

    inputs: "tuple[Tensor, ...]"
    targets: "Tensor"
    indices: "Tensor"


@dataclass(frozen=True)
class Parts:
    """Every batch of a training is cut into so many parts, of which one process takes those numbered `mine`."""

    of: int = 1
    mine: tuple[int, ...] = (0,)

    def taken(self, batch: "Tensor") -> "tuple[Tensor, ...]":
        """Return the parts of a tensor's rows."""
        if self.of == 1:
            return (batch,)
        every = batch.tensor_split(self.of)
        return tuple(every[number] for number in self.mine)


_WHOLE = Parts()


@dataclass(frozen=True, kw_only=True)
class Split:
    """One part of a data set: targets [n, ...], and either inputs [n, ...] in memory or `samples` that are read.

    Inputs may be stored smaller than a model takes them, for example as bytes: `prepare` converts them, a batch at a
    time. Before that, `augment` changes inputs in memory at random, in shuffled passes only. Both get inputs
    [batch, ...] and must not change them in place. Samples change themselves; they are read by as many processes as
    there are `workers`, or by this one. If `labelled`, reading a sample gives its target too, after the inputs, as
    masks are cut as their pictures are; `targets` then only say which class a sample counts for, and are 0 without any.
    Of samples whose outputs are large, only `most` are run at once.
    """

    inputs: "tuple[Tensor, ...]" = ()
    targets: "Tensor"
    samples: Samples | None = None
    prepare: "Prepare | None" = None
    augment: "Augment | None" = None
    workers: int = 0
    labelled: bool = False
    most: int = _MOST

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def augmented(self) -> bool:
        """Return whether shuffled passes change samples at random."""
        return self.augment is not None or (self.samples is not None and self.samples.augmented)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Return the number of samples of each input."""
        return tuple(map(len, self.inputs)) if self.samples is None else (len(self.samples),)

    @property
    def at_once(self) -> int:
        """Return how many samples to run in a batch where it may be of any size."""
        sample = sum(int(each.nbytes) for each in self.head(1))
        return max(1, min(_MOST, self.most, _LARGEST // max(1, sample)))

    def count(self, size: int, parts: Parts = _WHOLE) -> int:
        """Return the number of batches of a shuffled pass."""
        whole, rest = divmod(len(self), size)
        return whole + (rest >= _LEAST * parts.of)

    def batches(self, size: int, *, seed: int | None = None, skip: int = 0, parts: Parts = _WHOLE) -> Iterator[Batch]:
        """Yield batches in order, or shuffled and augmented by `seed`: the same seed gives the same samples, whatever
        the number of workers. The first `skip` batches are left out. Of each batch its `parts` are yielded one after
        the other: together those of all processes are the same samples as without parts.

        A last batch whose parts would be of one sample is left out of shuffled passes: batch norm needs two.
        """
        import torch

        random = None if seed is None else torch.Generator().manual_seed(seed)
        order = torch.arange(len(self)) if random is None else torch.randperm(len(self), generator=random)
        plan = [indices for indices in order.split(size) if random is None or len(indices) >= _LEAST * parts.of]
        if self.samples is None:
            for indices in plan[:skip]:  # the numbers that they draw come before those of later batches
                self._taken(indices, random)
        plan = plan[skip:]
        pieces = [piece for indices in plan for piece in parts.taken(indices)]
        read = self._read(plan, pieces, parts, seed, random)
        for indices, found in zip(pieces, read, strict=True):
            inputs, targets = (found[:-1], found[-1]) if self.labelled else (found, self.targets[indices])
            prepared = self.prepare(inputs) if self.prepare else inputs
            # The next batch is read into shared memory that this one may be in.
            *owned, targets = (each.clone() if each.is_shared() else each for each in (*prepared, targets))
            yield Batch(inputs=tuple(owned), targets=targets, indices=indices)

    def truths(self) -> "Iterator[Tensor]":
        """Yield the targets in order, some samples at a time."""
        if not self.labelled:
            yield from self.targets.split(self.at_once)
            return
        for batch in self.batches(self.at_once):
            yield batch.targets

    def chosen(self, rows: "Sequence[int] | Tensor") -> "Split":
        """Return a split with only these samples, in this order."""
        import torch

        at = torch.as_tensor(rows, dtype=torch.int64)
        inputs = tuple(tensor[at] for tensor in self.inputs)
        samples = None if self.samples is None else Chosen(self.samples, at)
        return replace(self, inputs=inputs, samples=samples, targets=self.targets[at])

    def first(self, count: int) -> "Split":
        """Return a split with only the first samples."""
        if self.samples is not None:
            return self.chosen(range(min(count, len(self))))
        return replace(self, inputs=tuple(tensor[:count] for tensor in self.inputs), targets=self.targets[:count])

    def head(self, count: int) -> "tuple[Tensor, ...]":
        """Return the first samples as a model takes them."""
        return next(self.first(count).batches(count)).inputs

    def _read(
        self,
        plan: "Sequence[Tensor]",
        pieces: "Sequence[Tensor]",
        parts: Parts,
        seed: int | None,
        random: "Generator | None",
    ) -> "Iterable[tuple[Tensor, ...]]":
        if self.samples is not None:
            return loading.batches(self.samples, pieces, seed, self.workers)
        # A whole batch draws its random numbers at once, so that they do not depend on the parts.
        whole = (self._taken(indices, random) for indices in plan)
        return (piece for inputs in whole for piece in zip(*map(parts.taken, inputs), strict=True))

    def _taken(self, indices: "Tensor", random: "Generator | None") -> "tuple[Tensor, ...]":
        taken = tuple(tensor[indices] for tensor in self.inputs)
        return self.augment(taken, random) if self.augment and random is not None else taken


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The data that stages get: `validation` for selection, `train` for calibration."""

    train: Split
    validation: Split

    @property
    def augmented(self) -> bool:
        """Return whether training samples are changed at random each time."""
        return self.train.augmented


@dataclass(frozen=True, kw_only=True)
class Data(TrainingData):
    """A whole data set; `test` is for the report alone.

    `examples` are the first test samples as an app gets them, if they are texts; `notes` are remarks for people.
    `whole` has the number of samples that each split had before it was cut.
    """

    test: Split
    examples: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    whole: Mapping[str, int] = field(default_factory=dict)

    def for_stages(self) -> TrainingData:
        return TrainingData(train=self.train, validation=self.validation)

    def read_by(self, workers: int) -> "Data":
        """Return the same data, read by this many processes."""
        parts = {part: replace(getattr(self, part), workers=workers) for part in PARTS}
        return replace(self, **parts)

    def cut(self, samples: Mapping[str, int], task: Targets) -> "Data":
        """Return the data with so many samples of these splits, in the same share of every class, drawn once.

        The first samples stay where this is possible, since a bundle ships them. Raises RecipeError if there are fewer,
        or if targets are not those of the task.
        """
        parts, examples = {}, self.examples
        for part, count in samples.items():
            split: Split = getattr(self, part)
            if problem := _problem_of_targets(split, task):
                raise _wrong(part, problem)
            if count > len(split):
                message = f"data.{part}.samples is {count}, but the {part} split has {len(split)} samples"
                raise RecipeError(message, f"use fewer, or remove data.{part} to use all")
            classes = task.classes(split.targets)
            rows = fewer([0] * len(split) if classes is None else classes.tolist(), count, EXAMPLES)
            parts[part] = split.chosen(rows)
            if part == "test":
                examples = tuple(self.examples[row] for row in rows if row < len(self.examples))
        whole = {part: len(getattr(self, part)) for part in PARTS}
        # The score on the test split is told with its samples; that of others stands in no other place.
        told = (f"{samples[part]} of {whole[part]} {part} samples are used" for part in PARTS[:2] if part in parts)
        return replace(self, **parts, examples=examples, notes=(*self.notes, *told), whole=whole)

    def check(self, task: Targets) -> None:
        """Raises RecipeError if splits do not match the data set's description, or targets the task; checks all targets
        and a few inputs.
        """
        for part in PARTS:
            if problem := _problem(getattr(self, part), task):
                raise _wrong(part, problem)


PARTS = ("train", "validation", "test")


def _wrong(part: str, problem: str) -> RecipeError:
    return RecipeError(
        f"the split '{part}' of the data is wrong: {problem}",
        "fix `load` or `describe` of the data set, or use the task that its targets are for",
    )


def _problem_of_targets(split: Split, task: Targets) -> str:
    """Say why there is not one target of the task for each sample, or ""."""
    if {*split.lengths} != {len(split)} or not len(split):
        return f"it has {len(split)} targets for {' and '.join(map(str, split.lengths))} inputs"
    return task.problem(next(split.first(1).batches(1)).targets if split.labelled else split.targets)


def _problem(split: Split, task: Targets) -> str:
    if problem := _problem_of_targets(split, task):
        return problem
    given = [(list(tensor.shape[1:]), str(tensor.dtype).removeprefix("torch.")) for tensor in split.head(2)]
    wanted = [([*spec.shape], spec.dtype) for spec in task.signature.inputs]
    return "" if given == wanted else f"a sample is {_shown(given)}, described as {_shown(wanted)}"


def _shown(inputs: Sequence[tuple[list[int], str]]) -> str:
    return " and ".join(f"{dtype} of shape {shape}" for shape, dtype in inputs) or "nothing"
