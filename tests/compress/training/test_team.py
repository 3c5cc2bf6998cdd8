"""Trainings in parts and in several processes."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from factories import python
from torch import nn
from torch_factories import accuracy, candidate, context, data
from torch_factories import tiny_models as tiny_models

from edgepack.compress.contract import Training
from edgepack.compress.training import numerics
from edgepack.compress.training.loop import fit
from edgepack.compress.training.team import Team
from edgepack.config.compute import Hardware
from edgepack.core.errors import StageError
from edgepack.data.splits import Parts, Split

PARTS = [Team(rank, 2).parts(2) for rank in range(2)]  # two processes, each computes a batch in two parts


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    with numerics.deterministic(0, 1):
        yield


def _read(split: Split, parts: Parts = Parts()) -> list[tuple[torch.Tensor, torch.Tensor]]:  # noqa: B008
    return [(batch.indices, batch.inputs[0]) for batch in split.batches(16, seed=3, skip=1, parts=parts)]


class Noisy:
    """Samples that are changed at random."""

    augmented, held = True, False

    def __len__(self) -> int:
        return 50

    def read(self, indices: torch.Tensor, seeds: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        assert seeds is not None
        return (torch.stack([indices.float(), (seeds % 1000).float()], 1),)


def _in_memory() -> Split:
    def augment(inputs: tuple[torch.Tensor, ...], random: torch.Generator) -> tuple[torch.Tensor, ...]:
        return (inputs[0] + torch.rand(inputs[0].shape, generator=random),)

    return Split(inputs=(torch.arange(50.0)[:, None],), targets=torch.zeros(50, dtype=torch.int64), augment=augment)


@pytest.mark.parametrize(
    "split", [_in_memory(), Split(targets=torch.zeros(50, dtype=torch.int64), samples=Noisy())], ids=["held", "read"]
)
def test_processes_get_the_same_samples_as_one_does(split: Split) -> None:
    """In the order of the whole batch, and changed by the same random numbers. The last batch of two is left out."""
    whole = _read(split)[: split.count(16, PARTS[0]) - 1]
    pieces = [_read(split, parts) for parts in PARTS]
    assert [len(each) for each in pieces] == [4, 4] and len(whole) == 2
    for number, (indices, inputs) in enumerate(whole):
        found = [piece for part in pieces for piece in part[2 * number : 2 * number + 2]]
        assert torch.equal(torch.cat([each for each, _ in found]), indices)
        assert torch.equal(torch.cat([each for _, each in found]), inputs)


def _trained(kind: Any = "mlp", hardware: Hardware = Hardware(), **changes: Any) -> nn.Module:  # noqa: B008
    module = candidate(kind).module
    settings = Training(**{"epochs": 2, "learning_rate": 1e-2, "batch_size": 32, **changes})
    fit(module, context(data=data(train=100), hardware=hardware), settings, doing="learning")
    return module


def test_a_batch_in_parts_has_the_same_gradient() -> None:
    """But for rounding, in a net without batch norm; the last batch, of four samples, too."""
    whole, parts = _trained(hardware=Hardware()), _trained(hardware=Hardware(accumulate=2))
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_a_batch_in_parts_trains_batch_norm_too() -> None:
    assert accuracy(_trained("residual", Hardware(accumulate=4), epochs=6)) > 0.9


def test_a_batch_that_cannot_be_cut_is_an_error() -> None:
    with pytest.raises(StageError, match=r"a batch of 32 cannot be cut into 32 parts") as error:
        _trained(hardware=Hardware(accumulate=32))
    assert "batch_size of 64" in error.value.hint


class Hungry(nn.Module):  # type: ignore[misc]
    """A net on a GPU with room for so many samples: torch raises the same error where there is no GPU."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.net, self.room = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), room

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and len(x) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        logits: torch.Tensor = self.net(x)
        return logits


@pytest.mark.parametrize(
    ("room", "accumulate", "hint"),
    [
        (9, 1, "use batch_size: 8, which fits, or --set compute.accumulate=4: "),
        (5, 2, "use batch_size: 8, which fits, or --set compute.accumulate=8: "),
        (1, 1, "use a smaller model"),
    ],
)
def test_out_of_memory_says_which_batch_would_fit(room: int, accumulate: int, hint: str) -> None:
    settings, here = Training(epochs=1, batch_size=32), context(hardware=Hardware(accumulate=accumulate))
    with pytest.raises(StageError, match=r"a batch of 32 does not fit into the memory") as error:
        fit(Hungry(room), here, settings, doing="learning")
    assert error.value.hint.startswith(hint)


def test_a_batch_in_parts_fits() -> None:
    fit(Hungry(8), context(hardware=Hardware(accumulate=4)), Training(epochs=1, batch_size=32), doing="learning")


TOGETHER = """
import json, subprocess, sys
import torch
from edgepack.compress.training.team import Team
from edgepack.workflows.build.steps.followers import joined

place, rank = sys.argv[1], int(sys.argv[2])
other = subprocess.Popen([sys.executable, "-c", sys.argv[3], place, "1", ""]) if rank == 0 else None
with joined(place, Team(rank, 2), on_gpu=False) as team:
    weights = [torch.nn.Parameter(torch.zeros(2, 2)) for _ in range(3)]
    weights[0].grad = torch.full((2, 2), 1.0 + rank)
    weights[1].grad = torch.ones(2, 2) if rank else None
    lost = team.sum_gradients(weights, torch.tensor(0.5 + rank))
    rows = team.gather(torch.arange(3 + rank)[:, None] + 10 * rank)
    buffers = [torch.full((3,), 7.0 + rank), torch.tensor(rank)]
    team.broadcast(buffers)
    torch.manual_seed(rank)
    team.same_random_numbers()
    found = {
        "lost": float(lost),
        "gradients": [None if each.grad is None else each.grad.flatten().tolist() for each in weights],
        "rows": rows.flatten().tolist(),
        "buffers": [each.tolist() for each in buffers],
        "first": team.from_first(lambda: 0.1 + rank),
        "drawn": torch.rand(1).item(),
    }
    gathered = [None, None]
    torch.distributed.all_gather_object(gathered, found)
if other:
    assert other.wait() == 0
    print(json.dumps(gathered))
"""


def test_two_processes_exchange_what_they_found(tmp_path: Any) -> None:
    """Two real ones, by gloo."""
    ran = python(TOGETHER, str(tmp_path / "rendezvous"), "0", TOGETHER)
    one, other = json.loads(ran.out.strip().splitlines()[-1])
    assert one == other
    assert one["lost"] == 2.0
    assert one["gradients"] == [[3.0] * 4, [1.0] * 4, None]
    assert one["rows"] == [0, 1, 2, 10, 11, 12, 13]
    assert one["buffers"] == [[7.0] * 3, 0] and one["first"] == 0.1
