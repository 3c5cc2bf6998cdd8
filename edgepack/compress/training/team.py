"""Several processes that train one model: each computes a part of every batch, and gradients are summed.

    team = Team(rank=0, size=2)                 # torch.distributed is initialized
    lost = team.sum_gradients(trained, lost)    # after backward: of the whole batch, the same in every process
    logits = team.gather(logits_of_my_rows)

All processes run the same stage, from the same seed, so what they compute is the same but for these sums. What depends
on a clock, such as a latency, is found out by the first process alone: `team.from_first`. Torch's own wrapper for this,
DistributedDataParallel, takes no exported program and sums no gradients of parameters outside of the model.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.data.splits import Parts, Split

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Team:
    """The processes of one training, of which this is number `rank`, from 0. A team of one exchanges nothing."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def parts(self, accumulate: int) -> Parts:
        """Return the parts of every batch that are this process's, one after the other."""
        first = self.rank * accumulate
        return Parts(of=self.size * accumulate, mine=tuple(range(first, first + accumulate)))

    def rows(self, split: Split) -> Split:
        """Return this process's part of a split; `gather` puts the outputs together again."""
        if self.size == 1:
            return split
        import torch

        return split.chosen(torch.arange(len(split)).tensor_split(self.size)[self.rank])

    def gather(self, mine: "Tensor") -> "Tensor":
        """Return the rows [n, ...] of all processes, in their order; only `n` may differ."""
        if self.size == 1:
            return mine
        import torch

        counts = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        torch.distributed.all_gather(counts, torch.tensor([len(mine)]))
        most = max(int(count) for count in counts)
        padded = mine.new_zeros(most, *mine.shape[1:])
        padded[: len(mine)] = mine
        found = [torch.empty_like(padded) for _ in range(self.size)]
        torch.distributed.all_gather(found, padded)
        return torch.cat([each[: int(count)] for each, count in zip(found, counts, strict=True)])

    def sum_gradients(self, parameters: "Sequence[nn.Parameter]", lost: "Tensor") -> "Tensor":
        """Sum the gradients of all processes in place, and return the sum of their losses.

        A parameter that got a gradient in no process keeps none, as an optimizer passes over it then.
        """
        if self.size == 1:
            return lost
        import torch

        have = torch.tensor([each.grad is not None for each in parameters], dtype=torch.float32)
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
        flat = torch.cat(
            [
                lost.detach().reshape(1).float(),
                have.to(lost.device),
                *(each.reshape(-1).float() for each in gradients),
            ]
        ).detach()
        torch.distributed.all_reduce(flat)
        total, had, rest = flat[0], flat[1 : 1 + len(parameters)].tolist(), flat[1 + len(parameters) :]
        sums = rest.split([each.numel() for each in parameters])
        for each, gradient, some, summed in zip(parameters, gradients, had, sums, strict=True):
            if some:
                each.grad = gradient.copy_(summed.view(each.shape))
        return total

    def broadcast(self, tensors: "Iterable[Tensor]") -> None:
        """Give every process the first one's values, in place."""
        if self.size == 1:
            return
        import torch

        by_type: dict[torch.dtype, list[Tensor]] = {}
        for each in tensors:
            by_type.setdefault(each.dtype, []).append(each.detach())
        for same in by_type.values():
            flat = torch.cat([each.reshape(-1) for each in same])
            torch.distributed.broadcast(flat, 0)
            for each, values in zip(same, flat.split([each.numel() for each in same]), strict=True):
                each.copy_(values.view(each.shape))

    def from_first(self, find: Callable[[], float]) -> float:
        """Return what the first process finds, in every process; the others do not look."""
        if self.size == 1:
            return find()
        import torch

        found = torch.tensor([find() if self.leads else 0.0], dtype=torch.float64)
        torch.distributed.broadcast(found, 0)
        return float(found)

    def agree(self, mine: bool) -> bool:
        """Return whether it is so in every process."""
        if self.size == 1:
            return mine
        import torch

        found = torch.tensor(int(mine))
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MIN)
        return bool(found)

    def draw_apart(self, seed: int) -> None:
        """Let dropout and the like draw other numbers than in the first process, which draws on as if it were alone."""
        if not self.leads:
            import torch

            torch.manual_seed(seed + self.rank)

    def same_random_numbers(self) -> None:
        """Let every process draw on as the first one does, after a training."""
        if self.size > 1:
            import torch

            state = torch.get_rng_state()
            self.broadcast([state])
            torch.set_rng_state(state)
