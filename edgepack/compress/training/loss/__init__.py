"""Define what training minimises: the task loss, a teacher, its features."""

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import ref

import numpy
import torch
from torch import nn
from torch.nn import functional

from edgepack.compress.contract import Context, Training
from edgepack.compress.training.evaluation import Outputs, Progress, predict, train_mode
from edgepack.compress.training.loss.feature_matching import FeatureLoss
from edgepack.compress.training.numerics import Numerics
from edgepack.core.errors import StageError
from edgepack.data.contract import Task
from edgepack.data.splits import Batch, Split
from edgepack.models.outputs import tensors

if TYPE_CHECKING:
    from edgepack.models.candidate import Candidate


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """A teacher to learn from besides the labels. Source: see tasks' `distill`."""

    teacher: nn.Module
    temperature: float = 4.0
    alpha: float = 0.9  # weight of the teacher; the labels have the rest
    inside: Mapping[str, float] = field(default_factory=dict)  # see feature_matching.py

    @classmethod
    def of(cls, teacher: "Candidate | None") -> "Distillation | None":
        """Return the distillation for recovery: from the build's teacher, if there is one."""
        return cls(teacher=teacher.module) if teacher else None


_KEPT = 512_000_000  # bytes of a teacher's outputs that are kept for all epochs; more are computed as they are needed
_ANSWERED: "dict[str, tuple[ref[Split], Outputs]]" = {}  # keyed by a hash of the teacher


def _answers(teacher: nn.Module, split: Split, context: Context) -> Outputs | None:
    """Return the teacher's outputs, computed once for all trainings with it or a copy of it; None if they are large."""
    if sum(math.prod(spec.shape) for spec in context.task.signature.outputs) * len(split) * 4 > _KEPT:
        return None
    weights = digest_of(teacher)
    known = _ANSWERED.get(weights)
    # All processes of a team compute them, or none: one that was started for this stage knows none of earlier ones.
    if not context.team.agree(known is not None and known[0]() is split):
        mine = context.team.rows(split)
        progress = Progress(context.emit, "running the teacher", math.ceil(len(mine) / mine.at_once))
        found = tuple(map(context.team.gather, predict(teacher, mine, progress.advance)))
        known = _ANSWERED[weights] = ref(split), found
    assert known is not None
    return known[1]


def digest_of(module: nn.Module) -> str:
    """Return the hash of its structure, as printed, and its weights."""
    known = hashlib.sha256(str(module).encode())
    for name, tensor in module.state_dict().items():
        known.update(name.encode())
        known.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return known.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """Mixes each sample of a batch with another one: what is learned is a share of both labels.

    mixup     inputs are added up, in shares of L and 1 - L
    cutmix    a rectangle of one picture is pasted into the other, of a share 1 - L of its area

    L is drawn for each batch from a beta distribution, of these two parameters; 0 turns one off, and of two one is
    drawn. Sources: H. Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018, arXiv 1710.09412; S. Yun et
    al., CutMix, ICCV 2019, arXiv 1905.04899.
    """

    mixup: float
    cutmix: float

    def __bool__(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    def check(self, inputs: tuple[torch.Tensor, ...], task: Task) -> None:
        """Raises StageError for inputs that cannot be mixed, or a task whose loss is then no share of two."""
        for name in ("mixup", "cutmix"):
            if getattr(self, name) and name not in task.mixes:
                raise StageError(f"this task's samples cannot be mixed by {name}", f"remove {name}")
        if self and not all(each.is_floating_point() for each in inputs):
            raise StageError("numbers of tokens cannot be mixed", "remove mixup and cutmix, which are for pictures")
        if self.cutmix and not all(each.dim() == 4 for each in inputs):
            raise StageError("cutmix is for pictures, and an input is none", "use mixup")

    def mixed(
        self, inputs: tuple[torch.Tensor, ...], seed: int
    ) -> tuple[tuple[torch.Tensor, ...], torch.Tensor, float]:
        """Return mixed inputs, which sample of the batch each was mixed with, and the share of its own label."""
        random = numpy.random.RandomState(seed % 2**32)
        count, device = len(inputs[0]), inputs[0].device
        cut = self.cutmix > 0 and (self.mixup == 0 or random.rand() < 0.5)
        alpha = self.cutmix if cut else self.mixup
        share = float(random.beta(alpha, alpha))
        others = torch.from_numpy(random.permutation(count)).to(device)
        if not cut:
            return tuple(share * each + (1 - share) * each[others] for each in inputs), others, share
        height, width = inputs[0].shape[2:]
        top, bottom = _span(height, share, random)
        left, right = _span(width, share, random)
        pasted = []
        for each in inputs:
            whole = each.clone()
            whole[:, :, top:bottom, left:right] = each[others][:, :, top:bottom, left:right]
            pasted.append(whole)
        return tuple(pasted), others, 1 - (bottom - top) * (right - left) / (height * width)


def _span(size: int, share: float, random: numpy.random.RandomState) -> tuple[int, int]:
    """Return the ends of the rectangle along one side; its middle is anywhere, and what is outside is lost."""
    middle, half = random.randint(size), round(size * math.sqrt(1 - share)) // 2
    return max(0, middle - half), min(size, middle + half)


class LabelLoss:
    """The task's loss on labels, as the settings of a training ask for it. Raises StageError if the task has none."""

    def __init__(self, task: Task, settings: Training, targets: torch.Tensor) -> None:
        self.task, self.smoothing, self.balanced = task, settings.label_smoothing, settings.class_weights == "balanced"
        if self.smoothing and task.smoothed is None:
            raise StageError("this task has no label smoothing", "remove label_smoothing")
        if self.balanced and task.weighted is None:
            raise StageError("this task has no class weights", "remove class_weights")
        classes = task.classes(targets) if self.balanced else None
        self.counts = torch.empty(0) if classes is None else torch.bincount(classes)

    def __call__(self, outputs: torch.Tensor | Outputs, targets: torch.Tensor) -> torch.Tensor:
        given = tensors(outputs)
        if self.balanced and self.task.weighted:
            weights = balanced(self.counts, len(self.task.signature.labels)).to(given[0].device)
            return self.task.weighted(given, targets, weights, self.smoothing)
        if self.smoothing and self.task.smoothed:
            return self.task.smoothed(given, targets, self.smoothing)
        return self.task.loss(given, targets)


def balanced(counts: torch.Tensor, classes: int) -> torch.Tensor:
    """Return the weight of each class, [classes], from its number of samples; one without any weighs 1.

    As scikit-learn's `class_weight="balanced"`: samples weigh 1 on average. Source: G. King and L. Zeng, Logistic
    Regression in Rare Events Data, Political Analysis 2001.
    """
    weights = counts.sum() / (counts.count_nonzero() * counts.clamp(min=1))
    return functional.pad(weights.where(counts > 0, 1.0), (0, classes - len(counts)), value=1.0)


class Loss:
    """The loss on labels and on a teacher if there is one; its outputs are computed once if samples never change."""

    def __init__(
        self,
        module: nn.Module,
        context: Context,
        settings: Training,
        distillation: Distillation | None,
        device: torch.device,
        how: Numerics,
    ) -> None:
        """Prepare for a module that is still on the CPU, and move the teacher to the device."""
        self.context, self.distillation, self.device, self.how = context, distillation, device, how
        data = context.data.train
        self.on_labels = LabelLoss(context.task, settings, data.targets)
        self.mixing = Mixing(mixup=settings.mixup, cutmix=settings.cutmix)
        if self.mixing:
            self.mixing.check(data.head(1), context.task)
        self.inside: FeatureLoss | None = None
        if distillation and any(distillation.inside.values()):
            self.inside = FeatureLoss(distillation.inside, distillation.teacher, module, data.head(2))
            self.inside.to(device)
        self.known: Outputs | None = None
        if distillation:
            distillation.teacher.to(device)
        if distillation and not (self.inside or self.mixing or context.data.augmented):
            self.known = _answers(distillation.teacher, data, context)

    def __call__(self, module: nn.Module, batch: Batch, seed: int) -> torch.Tensor:
        """Return the loss of a batch; `seed` decides what it is mixed with."""
        inputs, targets = tuple(self._place(tensor) for tensor in batch.inputs), batch.targets.to(self.device)
        others, share = targets, 1.0
        if self.mixing:
            inputs, partners, share = self.mixing.mixed(inputs, seed)
            others = targets[partners]
        with torch.autocast(self.device.type, self.how.mixed, enabled=self.how.mixed is not None):
            given = module(*inputs)
        outputs = tuple(each.float() for each in tensors(given))
        loss = self.on_labels(outputs, targets)
        if self.mixing:
            loss = share * loss + (1 - share) * self.on_labels(outputs, others)
        if self.distillation is None:
            return loss
        soft = self.context.task.distill(outputs, self._teacher(batch, inputs), self.distillation.temperature)
        taught = self.distillation.alpha * soft + (1 - self.distillation.alpha) * loss
        return taught + self.inside.loss() if self.inside else taught

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that are trained besides the model, and discarded afterwards."""
        return self.inside.parameters() if self.inside else iter(())

    def close(self) -> None:
        """Remove what was set on the models, and bring the teacher back to the CPU."""
        if self.inside:
            self.inside.close()
        if self.distillation:
            self.distillation.teacher.to("cpu")

    def _teacher(self, batch: Batch, inputs: tuple[torch.Tensor, ...]) -> Outputs:
        assert self.distillation is not None
        if self.known is not None:
            return tuple(each[batch.indices].to(self.device) for each in self.known)
        teacher = self.distillation.teacher
        train_mode(teacher, False)
        with torch.no_grad():
            return tensors(teacher(*inputs))

    def _place(self, tensor: torch.Tensor) -> torch.Tensor:
        layout = torch.channels_last if self.how.channels_last and tensor.dim() == 4 else torch.preserve_format
        return tensor.to(self.device, memory_format=layout)
