"""One step of a training: a batch forward and backward, in parts if need be, and the optimizer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from edgepack.compress.training.loss import Loss
from edgepack.compress.training.team import Team
from edgepack.config.compute import Hardware
from edgepack.core.errors import StageError, listed
from edgepack.data.splits import Batch
from edgepack.models.outputs import tensors

_LISTED = 64  # samples of a batch that an error names
_APART = 1_000_000_007  # between the seeds of a batch's parts


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """What a step takes. `scaler` keeps small gradients of fp16 from vanishing; for other types it does nothing."""

    module: nn.Module
    loss: Loss
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    trained: Sequence[nn.Parameter]
    clip: float | None
    hardware: Hardware
    team: Team

    def take(self, parts: Sequence[Batch], samples: int, seed: int, *, is_first: bool = False) -> torch.Tensor:
        """Change the weights by one step, and return the mean loss of the whole batch.

        `parts` are this process's, `samples` the number of samples of the whole batch, in all processes. Raises
        StageError if the loss of the very first batch is not finite: nothing was learned yet that could have diverged.
        """
        self.optimizer.zero_grad(set_to_none=True)
        self.team.draw_apart(seed)
        first = self.team.rank * len(parts)
        losses = [self._backward(part, samples, seed + _APART * (first + i)) for i, part in enumerate(parts)]
        lost = self.team.sum_gradients(self.trained, torch.stack(losses).sum() if len(losses) > 1 else losses[0])
        if is_first and not bool(lost.isfinite()):
            raise self._not_finite(parts, lost)
        if self.clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.trained, self.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.team.broadcast(self.module.buffers())
        return lost

    def _backward(self, part: Batch, samples: int, seed: int) -> torch.Tensor:
        """Return the part's share of the loss. Raises StageError if it does not fit into the memory of a GPU."""
        try:
            lost = self.loss(self.module, part, seed)
            if len(part.targets) < samples:
                lost = lost * (len(part.targets) / samples)
            self.scaler.scale(lost).backward()
            return lost.detach()
        except torch.OutOfMemoryError:
            pass  # below, nothing holds the tensors of this attempt any more
        raise self._too_large(part)

    def _not_finite(self, parts: Sequence[Batch], lost: torch.Tensor) -> StageError:
        """Return an error that names the batch, and as its cause the first of inputs, outputs and loss that fails."""
        indices = torch.cat([part.indices for part in parts])
        what = f"the loss of the first batch is {float(lost)}"
        where = f"it has the samples {_numbers(indices)} of the train split"
        inputs = [_bad_rows(part.inputs) for part in parts]
        if any(map(len, inputs)):
            rows = torch.cat([part.indices[bad] for part, bad in zip(parts, inputs, strict=True)])
            return StageError(f"{what}: inputs are NaN or Inf in {_numbers(rows)}; {where}", "fix the data")
        device = next((each.device for each in self.trained), torch.device("cpu"))
        with torch.no_grad():
            outputs = [tensors(self.module(*(each.to(device) for each in part.inputs))) for part in parts]
        if any(len(_bad_rows(each)) for each in outputs):
            return StageError(f"{what}: so are outputs of the model; {where}", "fix the model, or use precision: fp32")
        advice = "fix the loss of the task, or the targets of these samples"
        return StageError(f"{what}, though the outputs of the model are finite; {where}", advice)

    def _too_large(self, part: Batch) -> StageError:
        size = len(part.targets)
        fits = size // 2
        while fits > 1 and not self._fits(part, fits):
            fits //= 2
        what = f"a batch of {size * self.hardware.parts} does not fit into the memory of {self._where()}"
        if fits < 2:
            return StageError(f"{what}, nor does one of 2", "use a smaller model or smaller inputs")
        accumulate = self.hardware.accumulate * -(-size // fits)
        return StageError(
            what,
            f"use batch_size: {fits * self.hardware.parts}, which fits, or --set compute.accumulate={accumulate}: each "
            "batch is then computed in so many parts",
        )

    def _fits(self, part: Batch, size: int) -> bool:
        self.optimizer.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        fewer = replace(
            part,
            inputs=tuple(each[:size] for each in part.inputs),
            targets=part.targets[:size],
            indices=part.indices[:size],
        )
        try:
            self.scaler.scale(self.loss(self.module, fewer, 0)).backward()
        except torch.OutOfMemoryError:
            return False
        return True

    def _where(self) -> str:
        return self.hardware.gpu.name if self.hardware.gpu else "this computer"


def _bad_rows(given: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the rows in which a tensor is not finite."""
    good = torch.stack([each.isfinite().reshape(len(each), -1).all(1).cpu() for each in given]).all(0)
    return (~good).nonzero().flatten()


def _numbers(indices: torch.Tensor) -> str:
    return listed([str(each) for each in indices.tolist()], most=_LISTED)


def compiled(module: nn.Module, hardware: Hardware, loss: Loss) -> nn.Module:
    """Return what is called in its place; an exported program, and a module whose features are watched, stay."""
    if not hardware.compile or loss.inside or isinstance(module, torch.fx.GraphModule):
        return module
    made: nn.Module = torch.compile(module)
    return made
