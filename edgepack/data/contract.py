"""Define what a data set and a task must and may provide, and what a data set may use while it loads."""

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from edgepack.core.errors import StageError
from edgepack.core.files import digest
from edgepack.core.frozen import Frozen, Json
from edgepack.core.metrics import Metric, number
from edgepack.core.signature import Signature, TensorSpec
from edgepack.core.signature.shown import Shown, beginnings
from edgepack.core.units import SHARE
from edgepack.data.splits import Data

if TYPE_CHECKING:
    import numpy
    from torch import Tensor

    Array = numpy.typing.NDArray[Any]
    Arrays = tuple[Array, ...]

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
        """Return inputs [n, *shape] with the types of `describe`, and targets [n, ...] as the task wants them: for a
        classification int64 [n], the indices of labels.

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


class Meter(Protocol):
    """Scores of outputs that come a batch at a time. A torchmetrics Metric with a dict as result is one."""

    def update(self, outputs: "tuple[Tensor, ...]", targets: "Tensor") -> None:
        """Take the outputs of some samples, on the CPU."""

    def compute(self) -> Mapping[str, Any]:
        """Return each of the task's metrics: a number, or a tensor of one."""


class Task(ABC):
    """What the outputs of a model mean, for one data set: how it is trained, scored and compared.

    Outputs are a tuple of tensors [n, ...] in the order of `outputs`, and targets a tensor [n, ...] as `problem`
    accepts it. Losses take what a model gives in training; the meter, and all methods that take arrays, what a file
    gives (`postprocess`), as far as it is kept (`condensed`). Arrays are numpy's, and no torch is needed: a bundle is
    tested where there is none.
    """

    mixes: tuple[str, ...] = ()  # of mixup and cutmix, those after which the loss is a share of both samples' losses
    counts_samples: bool = False  # whether the first metric is a share of samples, whose error by chance is known
    chance: float | None = None  # score of a model that guesses, if that is known
    # Whether rounding changes the numbers of a file's outputs little, so that those of two files are compared one by
    # one: not so for a list of objects, in which two change places. Such files are held to their agreement alone.
    steady: bool = True
    # What a bundle's card and examples make of the outputs for an app. Of the first two the only output holds one logit
    # a label, of which one label is shown, or those above the `threshold` of the settings; of the third, one number a
    # label. Else they show the outputs as they are.
    reading: Literal["label", "tags", "values", "shapes"] = "shapes"

    def __init__(self, config: Any, signature: Signature, metrics: Mapping[str, Metric]) -> None:
        self.config, self.signature, self.metrics = config, signature, metrics
        self.signature = signature.model_copy(update={"outputs": tuple(self.outputs())})
        self.file_signature = signature.model_copy(update={"outputs": tuple(self.file_outputs())})

    @property
    def metric(self) -> str:
        """Return the name of the metric that selects, the first."""
        return next(iter(self.metrics))

    def better(self, score: float) -> float:
        """Return the score as a number of which higher ones are better."""
        return score if self.metrics[self.metric].higher else -score

    def shown(self, score: float) -> str:
        """Return the score of the first metric for people.

        >>> from edgepack.config.plugins import choose
        >>> signature = Signature(inputs=(), labels=("cat", "dog"))
        >>> choose("tasks", "image_classification").module.task(None, signature).shown(0.9876)
        '98.8 %'
        """
        return self.metrics[self.metric].quantity.format(score)

    def change(self, before: float, after: float) -> str:
        """Return how the score of the first metric changed, for people.

        >>> from edgepack.config.plugins import choose
        >>> signature = Signature(inputs=(), labels=("cat", "dog"))
        >>> choose("tasks", "image_classification").module.task(None, signature).change(0.9, 0.88)
        '-2.0 points'
        """
        if self.metrics[self.metric].quantity is SHARE:
            return f"{100 * (after - before):+z.1f} points"
        return f"{after - before:+z.3g}"

    def scores(self, meter: Meter) -> dict[str, float]:
        """Return each metric that a meter found. Raises StageError if it lacks one, or if one is no finite number."""
        found: Any = meter.compute()
        if not isinstance(found, Mapping):
            message = f"compute() of the task's meter gives {type(found).__name__}"
            raise StageError(message, f"return a mapping of {', '.join(self.metrics)} to numbers")
        if lacking := [name for name in self.metrics if name not in found]:
            message = f"compute() of the task's meter gives {', '.join(map(str, found)) or 'nothing'}, not {lacking[0]}"
            raise StageError(message, "let it return every metric of the task")
        return {name: number(name, found[name]) for name in self.metrics}

    @abstractmethod
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Return names and shapes of the outputs, without the batch dimension. Without torch."""

    def file_outputs(self) -> tuple[TensorSpec, ...]:
        """Return names and shapes of what a file gives, as `outputs` does: those of `postprocess`."""
        return self.outputs()

    def postprocess(self, outputs: "tuple[Tensor, ...]") -> "tuple[Tensor, ...]":
        """Return what a file gives, from what the model gives in training; by default the same.

        An exported file computes it in fp32 after the model, so it is made of operators that all exporters can write,
        with shapes that only depend on the number of samples.
        """
        return outputs

    @property
    def has_postprocess(self) -> bool:
        return type(self).postprocess is not Task.postprocess

    def condensed(self, outputs: "Arrays", inputs: "Arrays") -> "Arrays":
        """Return what is kept of a file's outputs, to be scored and compared; by default all of them.

        A task whose outputs are too large to keep those of all samples keeps what decides, in the order of
        `condensed_outputs`.
        """
        return outputs

    def condensed_outputs(self) -> tuple[TensorSpec, ...]:
        """Return names and shapes of what is kept, as `outputs` does."""
        return self.file_outputs()

    @property
    def condenses(self) -> bool:
        return type(self).condensed is not Task.condensed

    def problem(self, targets: "Tensor") -> str:
        """Return what is wrong with targets of samples, in words, or ""."""
        return ""

    @abstractmethod
    def loss(self, outputs: "tuple[Tensor, ...]", targets: "Tensor") -> "Tensor":
        """Return the loss that training minimizes, a mean over samples."""

    def distill(self, outputs: "tuple[Tensor, ...]", teacher: "tuple[Tensor, ...]", temperature: float) -> "Tensor":
        """Return how far a student is from its teacher, a mean over samples: by default the mean squared difference of
        their outputs, which have no temperature.
        """
        from torch.nn import functional

        pairs = zip(outputs, teacher, strict=True)
        return sum((functional.mse_loss(*pair) for pair in pairs), outputs[0].new_zeros(()))

    @abstractmethod
    def meter(self) -> Meter:
        """Return a meter of all metrics, which has seen no sample."""

    @abstractmethod
    def agreement(self, outputs: "Arrays", reference: "Arrays") -> "Array":
        """Return for each sample, from 0 to 1, how far two sets of outputs mean the same to an app, [n]."""

    def told(self, outputs: "Arrays") -> list[str]:
        """Return in a few words what an app would show of each sample: by default the first numbers of each output."""
        return beginnings([spec.name for spec in self.condensed_outputs()], outputs)

    def drawn(self, outputs: "Arrays") -> list[Shown]:
        """Return what an app would show of each sample, as a report draws it."""
        return [Shown(words=words) for words in self.told(outputs)]

    def truth(self, targets: "Array") -> list[Shown]:
        """Return what would be right to show of each sample."""
        return [Shown() for _ in targets]

    def attachments(self) -> dict[str, bytes]:
        """Return files by name that an app needs to read outputs, such as anchors: they ship in io/."""
        return {}

    def examples(self) -> dict[str, bytes]:
        """Return files by name that show how an app reads outputs, where that takes more than a line."""
        return {}

    @property
    def has_classes(self) -> bool:
        """Return whether a split that is cut keeps each class's share."""
        return type(self).classes is not Task.classes

    def classes(self, targets: "Tensor") -> "Tensor | None":
        """Return the class of each sample, int64 [n], by which splits are cut and classes weighed; None: no such."""
        return None

    # smoothed(outputs, targets, amount) returns the loss with a share `amount` of each label spread evenly over all
    # labels. None: the task knows no such loss, and `label_smoothing` cannot be used.
    smoothed: "Callable[[tuple[Tensor, ...], Tensor, float], Tensor] | None" = None

    # weighted(outputs, targets, weights, amount) returns the loss in which each sample counts by the weight of its
    # class, `weights` [classes], smoothed if `amount` is above 0. None: `class_weights` cannot be used.
    weighted: "Callable[[tuple[Tensor, ...], Tensor, Tensor, float], Tensor] | None" = None


class TaskPlugin(Protocol):
    """Makes a Task for a data set. Lives in data/tasks/.

    What has no default below must be defined. A whole task:

        "One sample, one label, and only errors of the first class count."

        from edgepack.core.frozen import Frozen
        from edgepack.core.metrics import score
        from edgepack.core.signature import TensorSpec
        from edgepack.data import contract
        from edgepack.data.tasks._meters import Mean


        class Config(Frozen):
            sharpness: float = 1.0


        def metrics(config):
            return {"darkness": score("fraction of test samples for which it is known whether they are dark")}


        def task(config, signature):
            return Brightness(config, signature, metrics(config))


        class Brightness(contract.Task):
            def outputs(self):
                return (TensorSpec(name="dark", shape=(len(self.signature.labels),)),)

            def problem(self, targets):
                return "" if targets.dim() == 1 else "targets are not one label a sample"

            def loss(self, outputs, targets):
                sharp = outputs[0] * self.config.sharpness
                return sharp.logsumexp(1).mean() - sharp.gather(1, targets[:, None]).mean()

            def distill(self, outputs, teacher, temperature):
                return ((outputs[0] - teacher[0]) / temperature).square().mean()

            def meter(self):
                return Mean({"darkness": lambda outputs, targets: (outputs[0].argmax(1) == 0) == (targets == 0)})

            def agreement(self, outputs, reference):
                return (outputs[0].argmax(axis=1) == reference[0].argmax(axis=1)).astype("float64")

            def told(self, outputs):
                return ["dark" if label == 0 else "light" for label in outputs[0].argmax(axis=1)]
    """

    Config: type[Frozen]  # settings allowed in a recipe

    VERSION: int = 1  # bump when the same outputs would give another loss, score, agreement or file
    GENERATES: bool = False  # whether files write text token by token, and how fast is measured

    @abstractmethod
    def metrics(self, config: Any) -> Mapping[str, Metric]:
        """Return the metrics by name; the first selects among models. Without torch."""

    @abstractmethod
    def task(self, config: Any, signature: Signature) -> Task:
        """Return the task for this data. Without torch."""

    def suited(self, config: Any, embedding_width: int | None) -> Any:
        """Return the settings with those left open chosen for the model, which may give embeddings without a head."""
        return config

    def incompatibility(self, config: Any, signature: Signature) -> str:
        """Return why the data does not fit this task, or "". Without torch."""
        return ""

    def files(self, config: Any) -> tuple[Path, ...]:
        """Return the files of a user's own code: all steps run again when they change."""
        return ()

    def installed(self, config: Any) -> dict[str, str]:
        """Return versions of the packages that a user's own code imports."""
        return {}
