"""A user's map-style data set, as torch's DataLoader takes it: a pair of input and target for each index.

Its random changes come from the global generators of torch, numpy and Python, which are seeded for each sample.
"""

import hashlib
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import index as index_of
from typing import TYPE_CHECKING, Any, Protocol

from edgepack.core.errors import RecipeError, reason
from edgepack.data import loading
from edgepack.data.loading import draws

if TYPE_CHECKING:
    from torch import Tensor

    from edgepack.data.contract import Loading

_BATCH = 64  # samples that a process looks at together
_PAIR = "it must be a pair: an array or tensor, and the number of its label or an array or tensor of floats"


class Indexed(Protocol):
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Any: ...


def is_map_style(given: object) -> bool:
    """Return whether this may be such a data set: not a pair of arrays, nor one array."""
    lists = isinstance(given, tuple | list | dict | str) or hasattr(given, "__array__")
    return not lists and hasattr(given, "__len__") and hasattr(given, "__getitem__")


@dataclass(frozen=True)
class MapStyle:
    """The inputs of a data set, as tensors of one shape; `augmented` if it is the one to train on."""

    dataset: Indexed
    part: str
    augmented: bool
    held: bool = field(default=False, init=False)

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, indices: "Tensor", seeds: "Tensor | None") -> "tuple[Tensor, ...]":
        import torch

        return (torch.stack([self.sample(*each)[0] for each in _numbered(indices, seeds)]),)

    def sample(self, index: int, seed: int) -> "tuple[Tensor, Tensor]":
        """Return an input and its target. Raises RecipeError naming a sample that cannot be read."""
        import torch

        with draws.seeded(seed):
            found = self._given(index)
            try:
                given, target = found
                tensor, known = torch.as_tensor(given), _target(target)
            except (TypeError, ValueError, RuntimeError) as error:
                message = f"sample {index} of the split '{self.part}' cannot be read: {reason(error)}"
                raise RecipeError(message, _PAIR) from error
        return tensor.float() if tensor.is_floating_point() else tensor, known

    def _given(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except Exception as error:
            message = f"sample {index} of the split '{self.part}' cannot be read: {reason(error)}"
            line = traceback.extract_tb(error.__traceback__)[-1]
            raise RecipeError(message, f"it was raised at {line.filename}:{line.lineno}") from error


@dataclass(frozen=True)
class _Looked:
    """Reads samples to learn their target, and a hash of their content, without keeping them."""

    samples: MapStyle
    shape: tuple[int, ...]
    dtype: str
    target: str  # type and shape of the first sample's target
    augmented: bool = field(default=False, init=False)
    held: bool = field(default=False, init=False)

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, indices: "Tensor", seeds: "Tensor | None") -> "tuple[Tensor, ...]":
        import torch

        targets, contents = [], []
        for index, seed in _numbered(indices, seeds):
            tensor, target = self.samples.sample(index, seed)
            if wrong := self._wrong(tensor, target):
                raise RecipeError(f"sample {index} of the split '{self.samples.part}' is wrong: {wrong}")
            targets.append(target)
            content = hashlib.blake2b(tensor.contiguous().view(-1).view(torch.uint8).numpy().data, digest_size=16)
            contents.append(torch.frombuffer(bytearray(content.digest()), dtype=torch.uint8))
        return torch.stack(targets), torch.stack(contents)

    def _wrong(self, tensor: "Tensor", target: "Tensor") -> str:
        wanted = f"{self.dtype} of shape {list(self.shape)}"
        if _kind(tensor) != wanted:
            return f"it is {_kind(tensor)}, but the recipe says {wanted}"
        if _kind(target) != self.target:
            return f"its target is {_kind(target)}, but that of sample 0 is {self.target}"
        return "" if not tensor.is_floating_point() or bool(tensor.isfinite().all()) else "it has NaN or Inf"


def looked_through(
    samples: MapStyle, shape: tuple[int, ...], dtype: str, loading_: "Loading"
) -> "tuple[Tensor, list[bytes]]":
    """Read every sample once, and return the targets, [n, ...], and a hash of the content of each.

    Raises RecipeError naming a sample that cannot be read, or is not of this shape and type.
    """
    import torch

    if not len(samples):
        return torch.empty(0, dtype=torch.int64), []
    plan = torch.arange(len(samples)).split(_BATCH)
    targets, contents = [], []
    looked = _Looked(samples, shape, dtype, _kind(samples.sample(0, 0)[1]))
    for some, hashes in loading.batches(looked, plan, None, loading_.workers):
        targets.append(some)
        contents += [row.numpy().tobytes() for row in hashes]
        loading_.progress(f"looking through the {samples.part} split", len(contents), len(samples))
    return torch.cat(targets), contents


def _kind(tensor: "Tensor") -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {list(tensor.shape)}"


def _target(given: Any) -> "Tensor":
    """Return the number of a label as int64, or floats as float32. Raises TypeError for anything else."""
    import torch

    if isinstance(given, str) or not (found := torch.as_tensor(given)).is_floating_point():
        return torch.tensor(index_of(given))
    return found.float()


def _numbered(indices: "Tensor", seeds: "Tensor | None") -> Iterator[tuple[int, int]]:
    """Yield each index with a seed: its own for samples that are not to change from pass to pass."""
    fixed = draws.of_samples(0, indices) if seeds is None else seeds
    return zip(indices.tolist(), fixed.tolist(), strict=True)
