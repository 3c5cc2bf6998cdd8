"""Define what a data set and a task must and may provide, and what a data set may use while it loads."""

import tempfile
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgepack.core.files import digest
from edgepack.core.frozen import Frozen, Json
from edgepack.core.signature import Signature
from edgepack.data.splits import Data

if TYPE_CHECKING:
    from torch import Tensor


Fill = Callable[[Path], None]


@cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="edgepack-data-")  # removed when this process ends


def _kept_for_now(name: str, made_of: Json, fill: Fill) -> Path:
    folder = Path(_temporary().name, digest([name, made_of]))
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=_temporary().name) as new:
            fill(Path(new))
            Path(new).rename(folder)
            Path(new).mkdir()
    return folder


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How a data set reports progress, and keeps what took long.

    `progress(doing, done, total)` tells people how far it is. `kept(name, made_of, fill)` returns a folder that `fill`
    has written: now, or in an earlier build in which `made_of`, all that its content depends on, was the same. The
    disk has `room` bytes for it. Without a store, such a folder lasts as long as the process. `workers` is the number
    of processes that read samples, and `processes` of those that train and load the same data.
    """

    progress: Callable[[str, int, int], None] = lambda doing, done, total: None
    kept: Callable[[str, Json, Fill], Path] = _kept_for_now
    room: int = 0
    workers: int = 0
    processes: int = 1


class Dataset(Protocol):
    """Samples with their labels, in three splits. Lives in data/datasets/.

    What has no default below must be defined; what has one may be left out. A whole data set:

        "Noise in three brightnesses."

        from edgepack.core.frozen import Frozen
        from edgepack.core.signature import Signature, TensorSpec
        from edgepack.data.splits import Data, Split


        class Config(Frozen):
            side: int = 8


        def describe(config):
            image = TensorSpec(name="input", shape=(1, config.side, config.side))
            return Signature(inputs=(image,), labels=("dark", "grey", "light"))


        def fingerprint(config):
            return f"side {config.side}"


        def load(config):
            import torch

            def split(seed, count):
                generator = torch.Generator().manual_seed(seed)
                targets = torch.arange(count) % 3
                noise = torch.rand(count, 1, config.side, config.side, generator=generator)
                return Split(inputs=(noise + targets.view(-1, 1, 1, 1),), targets=targets)

            return Data(train=split(0, 300), validation=split(1, 60), test=split(2, 60))
    """

    Config: type[Frozen]  # settings allowed in a recipe

    VERSION: int = 1  # bump when the same fingerprint would give other samples, such as after a change of `load`
    LICENCE: str = "not stated"  # of the samples: the bundle ships some
    FOREIGN: bool = False  # whether a user's own code makes the samples: the files it reads are recorded
    KEEPS: bool = False  # whether `load` takes a second argument, a Loading

    @abstractmethod
    def describe(self, config: Any) -> Signature:
        """Return inputs and labels without loading a sample. Without torch."""

    @abstractmethod
    def fingerprint(self, config: Any) -> str:
        """Return what the samples are made of: settings, and the content of files. All steps run again when the
        fingerprint, VERSION or the name of the data set changes; no other change of samples is noticed. Without torch.
        """

    @abstractmethod
    def load(self, config: Any) -> Data:
        """Return inputs [n, *shape] with the types of `describe`, and int64 targets [n], the indices of labels.

        Inputs that may not fit into the memory are Samples, see data/splits.py.
        """

    def files(self, config: Any) -> tuple[Path, ...]:
        """Return the files that the fingerprint covers, if the data is FOREIGN."""
        return ()

    def notes(self, config: Any) -> tuple[str, ...]:
        """Return remarks on the data for people, shown by `check`."""
        return ()

    def attachments(self, config: Any) -> dict[str, bytes]:
        """Return files by name that an app needs to make inputs, such as a tokenizer: they ship in io/."""
        return {}


class Task(Protocol):
    """What the outputs of a model mean: how it is trained and scored. Lives in data/tasks/.

    Logits and targets have the shapes [n, classes] and [n]. What has no default below must be defined. A whole task:

        "One sample, one label, and only errors of the first class count."

        METRIC = "accuracy"


        def loss(logits, targets):
            return logits.logsumexp(1).mean() - logits.gather(1, targets[:, None]).mean()


        def distill(logits, teacher, temperature):
            return ((logits - teacher) / temperature).square().mean()


        def score(logits, targets):
            return float(((decide(logits) == 0) == (targets == 0)).mean())


        def decide(logits):
            return logits.argmax(axis=1)
    """

    METRIC: str  # name of the score in warnings; budgets and reports call every score accuracy
    VERSION: int = 1  # bump when the same logits would give another loss or score

    @abstractmethod
    def loss(self, logits: "Tensor", targets: "Tensor") -> "Tensor":
        """Return the loss that training minimizes."""

    @abstractmethod
    def distill(self, logits: "Tensor", teacher: "Tensor", temperature: float) -> "Tensor":
        """Return how far a student is from its teacher."""

    @abstractmethod
    def score(self, logits: Any, targets: Any) -> float:
        """Return a score from 0 to 1, higher is better. Takes numpy arrays."""

    @abstractmethod
    def decide(self, logits: Any) -> Any:
        """Return what an app would show, one integer per sample, shape [n]; two runtimes agree on a sample if these are
        equal. Takes numpy arrays.
        """

    # smoothed(logits, targets, amount) returns the loss with a share `amount` of each label spread evenly over all
    # labels. None: the task knows no such loss, and `label_smoothing` cannot be used.
    smoothed: "Callable[[Tensor, Tensor, float], Tensor] | None" = None

    # weighted(logits, targets, weights, amount) returns the loss in which each sample counts by the weight of its
    # class, `weights` [classes], smoothed if `amount` is above 0. None: `class_weights` cannot be used.
    weighted: "Callable[[Tensor, Tensor, Tensor, float], Tensor] | None" = None

    def incompatibility(self, signature: Signature) -> str:
        """Return why the data does not fit this task, or "". Without torch."""
        return ""
