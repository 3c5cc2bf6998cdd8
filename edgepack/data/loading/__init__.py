"""Samples that are read as they are needed, ahead of the training loop, in other processes.

What is read does not depend on their number: batches come in the order of the plan, and each sample is changed by its
own seed alone. They hand batches over in places of shared memory that are used again and again: new memory for each
batch takes longer than the pixels.
"""

import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgepack.core import provenance
from edgepack.core.errors import DeviceError, EdgepackError
from edgepack.data.loading import draws

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_AHEAD = 2  # batches that each process prepares
_ROWS = _AHEAD + 1  # batches of each process in shared memory
_ALIGNED = 64  # bytes, of where a tensor begins
_MOST = 8  # processes that are started unasked
_SHARED = Path("/dev", "shm")  # where batches are handed over; containers often have 64 MB of it


class Samples(Protocol):
    """Inputs that are read as they are needed, such as files of pictures, since they may be larger than the memory.

    They may be read in another process, which gets a copy of this object.
    """

    @property
    def augmented(self) -> bool:
        """Return whether `read` changes samples at random where it is given seeds."""

    @property
    def held(self) -> bool:
        """Return whether the samples are in memory, so that other processes would not read them faster."""

    def __len__(self) -> int: ...

    def read(self, indices: "Tensor", seeds: "Tensor | None") -> "tuple[Tensor, ...]":
        """Return these samples as they are stored, each input [len(indices), ...].

        With `seeds`, int64 [len(indices)], each sample is changed at random, by nothing but its own seed. Raises
        RecipeError naming a sample that cannot be read.
        """


@dataclass(frozen=True)
class Chosen:
    """Some of other samples: those at `rows`."""

    samples: Samples
    rows: "Tensor"

    @property
    def augmented(self) -> bool:
        return self.samples.augmented

    @property
    def held(self) -> bool:
        return self.samples.held

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, indices: "Tensor", seeds: "Tensor | None") -> "tuple[Tensor, ...]":
        return self.samples.read(self.rows[indices], seeds)


def automatic() -> int:
    """Return how many processes read unless a recipe says so: one for each core in use, none beside a single one."""
    cores = provenance.threads()
    return min(cores, _MOST) if cores > 1 else 0


def batches(
    samples: Samples, plan: "Sequence[Tensor]", seed: int | None, workers: int
) -> "Iterator[tuple[Tensor, ...]]":
    """Yield the inputs of each batch of the plan, which holds indices, as stored; changed at random if there is a seed.

    Tensors that are shared (`is_shared`) are overwritten once the next batch is asked for. Raises what `samples.read`
    raises, and DeviceError if a process was killed.
    """
    # Copies: to hand over a view, all that it is a view of would be copied into the shared memory.
    keys = ((indices.clone(), None if seed is None else draws.of_samples(seed, indices)) for indices in plan)
    processes, size = _possible(samples, plan, workers)
    if not processes:
        for key in keys:
            with _one_thread():
                found = samples.read(*key)
            yield found
        return
    try:
        yield from _ahead(samples, keys, processes, size)
    except RuntimeError as error:
        raise killed(error) or error from error


def killed(error: BaseException) -> DeviceError | None:
    """Return the error to raise if a process that reads was killed; torch tells at whatever line the main one is."""
    if not (isinstance(error, RuntimeError) and "DataLoader worker" in str(error)):
        return None
    return DeviceError(
        f"a process that read samples was killed: {str(error).splitlines()[0]}",
        "if the memory is full, read with fewer: --set compute.workers=1; 0 reads without other processes",
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Read as the other processes do: torch rounds sums over a picture by the number of its threads."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class _Failure:
    """An error as a process hands it over: torch would make another one of it, without its hint."""

    error: EdgepackError


@dataclass(frozen=True)
class _Placed:
    """Where a process has put the tensors of a batch: at `row` of the shared memory."""

    row: int
    tensors: "tuple[tuple[torch.Size, torch.dtype], ...]"


@dataclass
class _Reading:
    """A map-style data set whose keys are whole batches; each process has `shared` rows of its own, uint8 [rows, size].

    A process is given a key once the loop has its batch of _AHEAD keys before, and so has done with the one before
    that: one row more than batches ahead is enough.
    """

    samples: Samples
    shared: "Tensor"
    read: int = 0  # batches, by this process

    def __getitem__(self, key: "tuple[Tensor, Tensor | None]") -> "tuple[Tensor, ...] | _Placed | _Failure":
        from torch.utils.data import get_worker_info

        try:
            found = self.samples.read(*key)
        except EdgepackError as error:
            return _Failure(error)
        worker = get_worker_info()
        assert worker is not None
        row = worker.id * _ROWS + self.read % _ROWS
        self.read += 1
        places = self._places(row, [(each.shape, each.dtype) for each in found])
        if places is None:
            return found
        for place, each in zip(places, found, strict=True):
            place.copy_(each)
        return _Placed(row, tuple((each.shape, each.dtype) for each in found))

    def taken(self, found: "tuple[Tensor, ...] | _Placed | _Failure") -> "tuple[Tensor, ...]":
        """Return the tensors of a batch that a process handed over."""
        if isinstance(found, _Failure):
            raise found.error
        if isinstance(found, _Placed):
            places = self._places(found.row, found.tensors)
            assert places is not None
            return places
        return found

    def _places(self, row: int, tensors: "Sequence[tuple[torch.Size, torch.dtype]]") -> "tuple[Tensor, ...] | None":
        """Return tensors of these shapes one after the other in a row; None if it is too small for them."""
        places, start = [], 0
        for shape, dtype in tensors:
            end = start + shape.numel() * dtype.itemsize
            if end > self.shared.shape[1]:
                return None
            places.append(self.shared[row, start:end].view(dtype).view(shape))
            start = -(-end // _ALIGNED) * _ALIGNED
        return tuple(places)


def _ahead(
    samples: Samples, keys: "Iterator[tuple[Tensor, Tensor | None]]", processes: int, size: int
) -> "Iterator[tuple[Tensor, ...]]":
    import torch
    from torch.utils.data import DataLoader

    reading = _Reading(samples, torch.empty(processes * _ROWS, size, dtype=torch.uint8).share_memory_())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # more processes than cores: as asked for
        loader = DataLoader(
            reading,
            sampler=keys,
            batch_size=None,
            num_workers=processes,
            prefetch_factor=_AHEAD,
            collate_fn=_as_it_is,
            generator=torch.Generator(),  # else the seeds of its processes are drawn from the model's random numbers
        )
        return map(reading.taken, iter(loader))


def _as_it_is(found: Any) -> Any:
    return found


def _possible(samples: Samples, plan: "Sequence[Tensor]", workers: int) -> tuple[int, int]:
    """Return how many processes can read, and the bytes of a batch: none for a single batch or for what is held in
    memory, where they only cost time, and no more than have room to hand batches over.
    """
    if samples.held or workers < 1 or len(plan) < 2:
        return 0, 0
    one = samples.read(plan[0][:1], None)
    size = sum(-(-len(plan[0]) * int(tensor.nbytes) // _ALIGNED) * _ALIGNED for tensor in one)
    return min(workers, len(plan), _room() // max(1, size * _ROWS)), size


def _room() -> int:
    """Return the bytes in which processes hand batches over."""
    try:
        return int(shutil.disk_usage(_SHARED).free)
    except OSError:  # a system without such a folder has another way
        return sys.maxsize
