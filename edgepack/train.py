"""The one training loop: used by train, distill, prune's recovery and QAT.

    fit(module, context, settings, doing="recovering", distillation=Distillation.of(context.teacher))

AdamW with warm-up and a cosine, gradients clipped. Kept is the last epoch, unless an earlier one was better on the
validation split by more than chance: of many epochs one is always lucky there. It runs on the CPU, through accelerate,
and gives the same weights on the same processor type and number of threads.
"""

import hashlib
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol
from weakref import ref

import numpy
import torch
from torch import nn

from edgepack import taps
from edgepack.datasets import Batch, Split
from edgepack.errors import StageError
from edgepack.events import Emit, StepProgress
from edgepack.features import Inside
from edgepack.provenance import BF16, cpu_features
from edgepack.stages import Context, Precision
from edgepack.surgery import keeps_zeros
from edgepack.tasks import Task

if TYPE_CHECKING:
    from edgepack.candidate import Candidate

_WARM_UP = 0.05  # share of all steps
_CLIP = 1.0  # largest norm of the gradient
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_REMEMBERED = 0.05  # share of batch norm's statistics older than an epoch, above which they are taken anew
_EVALUATION_BATCH = 256


class Settings(Protocol):
    """The part of a stage's configuration that training reads (see stages.Training)."""

    @property
    def epochs(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def precision(self) -> Precision: ...


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """A teacher to learn from besides the labels. Source: see tasks' `distill`."""

    teacher: nn.Module
    temperature: float = 4.0
    alpha: float = 0.9  # weight of the teacher; the labels have the rest
    inside: Mapping[str, float] = field(default_factory=dict)  # weights of what else is compared (see features.py)

    @classmethod
    def of(cls, teacher: "Candidate | None") -> "Distillation | None":
        """What recovery learns by: the build's teacher, where there is one."""
        return cls(teacher=teacher.module) if teacher else None


@dataclass(frozen=True, kw_only=True)
class Numerics:
    """How tensors are laid out and multiplied while training: by `numerics`, never by a timing or the processor."""

    channels_last: bool
    bfloat16: bool

    @property
    def name(self) -> str:
        return "+".join(["channels_last"] * self.channels_last + ["bf16"] * self.bfloat16) or "default"


def numerics(module: nn.Module, precision: Precision = "fp32") -> Numerics:
    """How `module` is trained on a CPU. Raises StageError where the recipe asks for what cannot be.

    A rule of the model alone, so that two builds of one recipe compute the same. Figures: benchmarks/numerics.md.
    channels_last is never slower for convolutions and up to twice as fast for depthwise ones. With AVX-512 BF16 alone
    bf16 loses everywhere, and with AMX trainings of narrow nets have ended in NaN: a recipe has to ask for it.
    """
    program = isinstance(module, torch.fx.GraphModule)
    if precision == "bf16":
        check_bf16()
        if program:
            raise StageError("an exported program is trained in fp32 only", "use precision: fp32")
    convolutions = any(isinstance(layer, nn.Conv2d) for layer in module.modules())
    return Numerics(channels_last=convolutions or program, bfloat16=precision == "bf16")


def check_bf16() -> None:
    """Raises StageError where the processor would imitate it, which is slow."""
    if not cpu_features() & BF16:
        raise StageError(
            f"this processor does not multiply bf16: it has none of {', '.join(sorted(BF16))}", "use precision: fp32"
        )


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """An epoch: its number, its score on the validation split, and the loss there."""

    epoch: int
    score: float
    loss: float


@taps.used_only()
def fit(
    module: nn.Module,
    context: Context,
    settings: Settings,
    *,
    doing: str,
    distillation: Distillation | None = None,
    snapshot: Callable[[nn.Module], nn.Module] = lambda module: module,
    each_epoch: Callable[[int], None] = lambda epoch: None,
) -> Fitted:
    """Train `module` in place and leave it with the weights of the epoch that is kept, before the first included.

    `snapshot` makes the model that is scored from the one that is trained, where they differ (QAT); `each_epoch` is
    called before each epoch with its number from 0.
    """
    if settings.epochs:
        check_trainable(module)
    accelerator = _accelerator()
    how = numerics(module, settings.precision)
    _lay_out(module.to(accelerator.device), torch.channels_last if how.channels_last else torch.preserve_format)
    loss = _Loss(module, context, distillation, accelerator.device, how)
    trained = [each for each in (*module.parameters(), *loss.parameters()) if each.requires_grad]
    if not trained:  # all is frozen, and no epoch asked for
        loss.close()
        _lay_out(module.to("cpu"), torch.contiguous_format)
        return judged(snapshot(module), context)
    optimizer = accelerator.prepare(torch.optim.AdamW(trained, lr=settings.learning_rate))
    per_epoch = math.ceil(len(context.data.train) / settings.batch_size)
    steps = settings.epochs * per_epoch
    held = _hold_zeros(module)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer.optimizer, lambda step: _rate(step, steps))
    best = fitted = judged(snapshot(module), context)
    kept = _weights(module)
    progress = _Progress(context.emit, doing, steps)
    for epoch in range(settings.epochs):
        each_epoch(epoch)
        _train_mode(module, True)
        for batch in context.data.train.batches(settings.batch_size, seed=_epoch_seed(context.seed, epoch)):
            optimizer.zero_grad(set_to_none=True)
            accelerator.backward(loss(module, batch))
            accelerator.clip_grad_norm_(trained, _CLIP)
            optimizer.step()
            schedule.step()
            progress.advance()
        if _lags(module, per_epoch):
            refresh_batch_norm(module, context.data.train)
        now = replace(judged(snapshot(module), context), epoch=epoch + 1)
        if not math.isfinite(now.loss):
            raise StageError(
                f"training came apart in epoch {epoch + 1}: the loss on the validation split is {now.loss}",
                f"use {'precision: fp32, or ' * how.bfloat16}a learning_rate below {settings.learning_rate:g}",
            )
        best = max(best, now, key=lambda each: each.score)
        if _as_good(now, best, len(context.data.validation)):
            fitted, kept = now, _weights(module)
    loss.close()
    for hook in held:
        hook.remove()
    module.load_state_dict(kept)
    _lay_out(module.to("cpu"), torch.contiguous_format)
    _train_mode(module, False)
    return fitted


def _lay_out(module: nn.Module, order: torch.memory_format) -> None:
    """The order in memory of tensors of four dimensions; `Module.to` would ask it of those with five as well."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.to(memory_format=order)
            if tensor.grad is not None:
                tensor.grad.data = tensor.grad.data.to(memory_format=order)


def check_trainable(module: nn.Module) -> None:
    """Raises StageError where all that could be learned is frozen."""
    every = [*module.parameters()]
    if every and not any(each.requires_grad for each in every):
        raise StageError(
            f"there is nothing to train: all {len(every)} parameters are frozen (requires_grad is False)",
            "let the function that makes the model unfreeze some: parameter.requires_grad_(True)",
        )
    if not every:
        raise StageError("there is nothing to train: the model has no parameters", "leave the stages that train out")


def _as_good(now: Fitted, best: Fitted, samples: int) -> bool:
    """Whether chance alone may set it below the best: by up to two standard errors of a share of so many samples.

    After L. Breiman et al., Classification and Regression Trees, 1984, section 3.4.3, who take one.
    """
    share = (best.score * samples + 1) / (samples + 2)  # of few samples none is certain
    return now.score >= best.score - 2 * math.sqrt(share * (1 - share) / samples)


def _hold_zeros(module: nn.Module) -> list[Any]:
    """Weights that pruning made zero stay so, by hooks on their gradients."""
    masks = [(layer.weight, layer.weight.detach() != 0) for layer in module.modules() if keeps_zeros(layer)]
    return [weight.register_hook(lambda gradient, kept=kept: gradient * kept) for weight, kept in masks]


def evaluate(module: nn.Module, split: Split, task: Task) -> float:
    """The task's score of a torch module on a split."""
    return task.score(predict(module, split).numpy(), split.targets.numpy())


def predict(module: nn.Module, split: Split, told: Callable[[], None] = lambda: None) -> torch.Tensor:
    """The logits, [n, classes], in order; `told` is called after every batch."""
    _train_mode(module, False)
    logits = []
    with torch.no_grad():
        for batch in split.batches(1 if measures_ranges(module) else _EVALUATION_BATCH):
            logits.append(module(*batch.inputs).float())
            told()
    return torch.cat(logits)


@contextmanager
def deterministic(seed: int, threads: int) -> Iterator[None]:
    """The same numbers every time: one seed, one number of threads, no operator whose result depends on timing."""
    torch.manual_seed(seed)
    numpy.random.seed(seed % 2**32)  # of these two draw functions and models of users
    random.seed(seed)
    torch.set_num_threads(threads)
    torch.utils.deterministic.fill_uninitialized_memory = False
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


_ANSWERED: "dict[str, tuple[ref[Split], torch.Tensor]]" = {}  # by the teacher's weights


def measures_ranges(module: nn.Module) -> bool:
    """Whether int8 activations get the range of all that comes with them: on the device that is one sample."""
    nodes = module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ()
    return any("choose_qparams" in str(node.target) for node in nodes)


def _answers(teacher: nn.Module, split: Split, emit: Emit) -> torch.Tensor:
    """The teacher's logits, computed once for all the trainings that it, or a copy of it, teaches in."""
    weights = _digest(teacher)
    known = _ANSWERED.get(weights)
    if known is None or known[0]() is not split:
        progress = _Progress(emit, "asking the teacher", math.ceil(len(split) / _EVALUATION_BATCH))
        known = _ANSWERED[weights] = ref(split), predict(teacher, split, progress.advance)
    return known[1]


def _digest(module: nn.Module) -> str:
    """Of its structure, as it prints, and its weights."""
    known = hashlib.sha256(str(module).encode())
    for name, tensor in module.state_dict().items():
        known.update(name.encode())
        known.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return known.hexdigest()


class _Loss:
    """Labels, and a teacher where there is one: its logits are computed once when the data is the same every epoch."""

    def __init__(
        self,
        module: nn.Module,
        context: Context,
        distillation: Distillation | None,
        device: torch.device,
        how: Numerics,
    ) -> None:
        self.context, self.distillation, self.device, self.how = context, distillation, device, how
        self.inside: Inside | None = None
        if distillation and any(distillation.inside.values()):
            self.inside = Inside(distillation.inside, distillation.teacher, module, context.data.train.head(2))
        self.known: torch.Tensor | None = None
        if distillation and not (self.inside or context.data.augmented):
            self.known = _answers(distillation.teacher, context.data.train, context.emit)

    def __call__(self, module: nn.Module, batch: Batch) -> torch.Tensor:
        inputs = tuple(self._place(tensor) for tensor in batch.inputs)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.how.bfloat16):
            logits = module(*inputs)
        logits = logits.float()
        loss = self.context.task.loss(logits, batch.targets.to(self.device))
        if self.distillation is None:
            return loss
        soft = self.context.task.distill(logits, self._teacher(batch, inputs), self.distillation.temperature)
        taught = self.distillation.alpha * soft + (1 - self.distillation.alpha) * loss
        return taught + self.inside.loss() if self.inside else taught

    def parameters(self) -> Iterator[nn.Parameter]:
        """What is learned besides the model, and thrown away with this."""
        return self.inside.parameters() if self.inside else iter(())

    def close(self) -> None:
        if self.inside:
            self.inside.close()

    def _teacher(self, batch: Batch, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        assert self.distillation is not None
        if self.known is not None:
            return self.known[batch.indices].to(self.device)
        teacher = self.distillation.teacher.to(self.device)
        _train_mode(teacher, False)
        with torch.no_grad():
            logits: torch.Tensor = teacher(*inputs)
        return logits

    def _place(self, tensor: torch.Tensor) -> torch.Tensor:
        layout = torch.channels_last if self.how.channels_last and tensor.dim() == 4 else torch.preserve_format
        return tensor.to(self.device, memory_format=layout)


class _Progress:
    """Tells how far training is, at most a few times a second."""

    def __init__(self, emit: Emit, doing: str, total: int) -> None:
        self.emit, self.doing, self.total = emit, doing, total
        self.done, self.started, self.told = 0, time.monotonic(), 0.0

    def advance(self) -> None:
        self.done += 1
        now = time.monotonic()
        if now - self.told < 0.2 and self.done < self.total:
            return
        self.told = now
        left = (now - self.started) / self.done * (self.total - self.done)
        self.emit(StepProgress(doing=self.doing, done=self.done, total=self.total, seconds_left=left))


@cache
def _accelerator() -> Any:
    from accelerate import Accelerator

    return Accelerator(
        cpu=True, mixed_precision="no"
    )  # bf16 is the recipe's to choose, whatever the user's settings say


def _rate(step: int, steps: int) -> float:
    warm = max(1, round(steps * _WARM_UP))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def judged(module: nn.Module, context: Context) -> Fitted:
    """Its score and loss on the validation split, as of epoch 0."""
    split = context.data.validation
    logits = predict(module, split)
    loss = context.task.loss(logits, split.targets)
    return Fitted(epoch=0, score=context.task.score(logits.numpy(), split.targets.numpy()), loss=float(loss))


def _weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def _train_mode(module: nn.Module, training: bool) -> None:
    """An exported program has no train and eval modes: how it behaves was fixed when it was exported."""
    if not isinstance(module, torch.fx.GraphModule):
        module.train(training)


def eval_mode(module: nn.Module) -> nn.Module:
    _train_mode(module, False)
    return module


def _epoch_seed(seed: int, epoch: int) -> int:
    return seed * 1_000_003 + epoch


def _lags(module: nn.Module, steps: int) -> bool:
    """Whether batch norm still remembers what was before these steps: MobileNetV3's, with a momentum of 0.01, would be
    judged by statistics of untrained weights until some 300 steps are done.
    """
    momenta = [norm.momentum for norm in module.modules() if isinstance(norm, _NORMS) and norm.track_running_stats]
    return any(momentum is not None and (1 - momentum) ** steps > _REMEMBERED for momentum in momenta)


def refresh_batch_norm(module: nn.Module, data: Split, samples: int = 1024) -> None:
    """Re-estimate the statistics of batch norm, which a change of structure has made stale, on training data."""
    norms = [layer for layer in module.modules() if isinstance(layer, _NORMS)]
    module.eval()
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over all batches
        norm.train()
    with torch.no_grad():
        for batch in data.first(samples).batches(64):
            if len(batch.targets) > 1:
                module(*batch.inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    module.eval()
