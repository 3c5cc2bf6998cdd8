"""A training as it stands after some steps, and how it is saved and restored."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field

import torch
from torch import nn

from edgepack.compress.training import checkpoints
from edgepack.compress.training.checkpoints import Checkpoint
from edgepack.compress.training.evaluation import EpochResult
from edgepack.compress.training.optimization import Average
from edgepack.core.errors import StageError
from edgepack.core.frozen import Json
from edgepack.data.contract import Task
from edgepack.records.training import Epoch

_UNTRAINED = EpochResult(epoch=0, score=0.0, loss=0.0)


@dataclass
class Losses:
    """What an epoch's batches gave so far: sum of losses times samples, their number, and the seconds they took."""

    total: float | torch.Tensor = 0.0
    samples: int = 0
    seconds: float = 0.0
    rate: float = 0.0
    last: torch.Tensor | None = None

    def add(self, loss: torch.Tensor, samples: int, rate: float, seconds: float) -> None:
        self.last = loss.detach()  # read only when it is shown: a GPU would have to be waited for
        self.total = self.total + self.last * samples
        self.samples, self.seconds, self.rate = self.samples + samples, self.seconds + seconds, rate

    def mean(self) -> float:
        return float(self.total) / max(1, self.samples)

    def speed(self) -> float:
        """Return samples per second."""
        return round(self.samples / self.seconds, 2) if self.seconds else 0.0

    def facts(self) -> Json:
        return {"total": float(self.total), "samples": self.samples, "seconds": self.seconds, "rate": self.rate}


@dataclass
class State:
    """A training as it stands. `kept` are the weights of `fitted`, the epoch to return; `best` has the best score."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    beside: list[nn.Parameter]  # trained with the module, and no part of it
    checkpoint: Checkpoint
    task: Task
    average: Average | None = None
    scaler: torch.amp.GradScaler | None = None
    step: int = 0
    best: EpochResult = _UNTRAINED
    fitted: EpochResult = _UNTRAINED
    kept: dict[str, torch.Tensor] = field(default_factory=dict)
    kept_at: int = 0  # step of the module whose weights these are
    epochs: list[Epoch] = field(default_factory=list)
    losses: Losses = field(default_factory=Losses)

    def begin(self, validated: Callable[[], EpochResult]) -> None:
        """Go on from the checkpoint; without one begin, with the model as it is."""
        if found := self.checkpoint.load():
            self._restore(*found)
        else:
            self.best = self.fitted = validated()
            if not math.isfinite(self.best.score):
                message = f"before training, {self.task.metric} and loss on the validation split are not finite"
                raise StageError(message, "check the model's outputs: layers without norms may let them grow")
            self.kept = _weights(self.module)
            self.epochs.append(Epoch(epoch=0, score=self.best.score, validation_loss=_finite(self.best.loss)))

    def advance(self) -> None:
        """Note a step that was taken."""
        self.step += 1
        if self.average:
            self.average.update(self.step)

    def averaged(self) -> AbstractContextManager[None]:
        """Give the module the weights to score and to keep while the block runs."""
        return self.average.applied() if self.average else nullcontext()

    def stale(self, patience: int | None) -> bool:
        """Return whether as many epochs ended without a better score."""
        return patience is not None and self.epochs[-1].epoch - self.best.epoch >= patience

    def take(self, now: EpochResult, samples: int) -> None:
        """Note an epoch, and keep its weights unless an earlier one was better by more than chance."""
        self.epochs.append(
            Epoch(
                epoch=now.epoch,
                score=now.score,
                validation_loss=_finite(now.loss),
                loss=_finite(self.losses.mean()),
                learning_rate=self.losses.rate,
                samples_per_second=self.losses.speed(),
            )
        )
        self.losses = Losses()
        self.best = max(self.best, now, key=lambda each: self.task.better(each.score))
        if self._as_good(now, samples):
            self.fitted, self.kept, self.kept_at = now, _weights(self.module), -1 if self.average else self.step

    def _as_good(self, now: EpochResult, samples: int) -> bool:
        """Return whether it may be below the best by chance alone: by up to two standard errors of a share of
        `samples`; of a score that is no share of samples the error is not known.

        After L. Breiman et al., Classification and Regression Trees, 1984, section 3.4.3, which uses one.
        """
        share = (self.best.score * samples + 1) / (samples + 2)  # never 0 or 1
        error = 2 * math.sqrt(share * (1 - share) / samples) if self.task.counts_samples else 0.0
        return self.task.better(now.score) >= self.task.better(self.best.score) - error

    def now(self) -> Json:
        """Return what a progress event tells of the training."""
        last = self.losses.last
        return {
            "loss": None if last is None else _finite(float(last)),
            "learning_rate": self.losses.rate,
            "score": self.epochs[-1].score,
            "metric": self.task.metric,
            "samples_per_second": self.losses.speed(),
        }

    def save(self) -> None:
        of_optimizer, others = checkpoints.of_optimizer(self.optimizer)
        of_random, random = checkpoints.random_state()
        tensors = {f"module/{name}": tensor for name, tensor in self.module.state_dict().items()}
        if self.kept_at != self.step:  # else they are those of the module
            tensors |= {f"kept/{name}": tensor for name, tensor in self.kept.items()}
        tensors |= {f"beside/{place}": parameter for place, parameter in enumerate(self.beside)}
        tensors |= {f"average/{name}": tensor for name, tensor in (self.average.values if self.average else {}).items()}
        results = {"best": asdict(self.best), "fitted": asdict(self.fitted)}
        facts = {"step": self.step, "kept_at": self.kept_at, "optimizer": others, "random": random, **results}
        facts |= {"scaler": self.scaler.state_dict() if self.scaler else {}}
        facts |= {"epochs": [each.model_dump() for each in self.epochs], "losses": self.losses.facts()}
        self.checkpoint.save({**tensors, **of_optimizer, **of_random}, facts)

    def _restore(self, tensors: dict[str, torch.Tensor], facts: Json) -> None:
        self.step = self.schedule.last_epoch = facts["step"]
        self.best, self.fitted = EpochResult(**facts["best"]), EpochResult(**facts["fitted"])
        self.module.load_state_dict(checkpoints.part("module", tensors))
        self.kept, self.kept_at = checkpoints.part("kept", tensors) or _weights(self.module), facts["kept_at"]
        self.epochs = [Epoch.model_validate(each) for each in facts["epochs"]]
        self.losses = Losses(**facts["losses"])
        if self.scaler and facts["scaler"]:
            self.scaler.load_state_dict(facts["scaler"])
        with torch.no_grad():
            for place, value in checkpoints.part("beside", tensors).items():
                self.beside[int(place)].copy_(value)
        if self.average:
            for name, value in checkpoints.part("average", tensors).items():
                self.average.values[name].copy_(value)  # where the model is
        checkpoints.restore_optimizer(self.optimizer, checkpoints.part("optimizer", tensors), facts["optimizer"])
        for group, base, rate in zip(
            self.optimizer.param_groups, self.schedule.base_lrs, self.schedule.lr_lambdas, strict=True
        ):
            group["lr"] = base * rate(self.step)
        checkpoints.restore_random_state(tensors, facts["random"])


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
