"""Samples are read by other processes, and are the same as if this one had read them."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from picture_factories import configured, write_folder

from edgepack.core.errors import DeviceError, RecipeError
from edgepack.data import loading
from edgepack.data.datasets.image_folder import load
from edgepack.data.splits import Batch, Split


class Numbers:
    """Two numbers a sample: its own, and one by its seed. `act` is called with each index."""

    augmented, held = True, False

    def __init__(self, count: int = 40, act: Any = lambda index: None) -> None:
        self.count, self.act = count, act

    def __len__(self) -> int:
        return self.count

    def read(self, indices: torch.Tensor, seeds: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        for index in indices.tolist():
            self.act(index)
        drawn = torch.zeros_like(indices) if seeds is None else seeds
        return (torch.stack([indices, drawn], 1),)


def _split(samples: Any, workers: int = 0) -> Split:
    return Split(samples=samples, targets=torch.arange(len(samples)) % 3, workers=workers)


def _same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a.targets, b.targets)
        and torch.equal(a.indices, b.indices)
        and all(map(torch.equal, a.inputs, b.inputs))
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_processes_reads_the_same(workers: int) -> None:
    for seed in (None, 5):
        alone = [*_split(Numbers()).batches(7, seed=seed)]
        assert _same([*_split(Numbers(), workers).batches(7, seed=seed)], alone)
        assert torch.cat([batch.indices for batch in alone]).sort().values.tolist() == [*range(40)]


def test_samples_are_read_in_other_processes() -> None:
    readings = _split(Numbers(act=lambda index: _fail(str(os.getpid()))), workers=1).batches(10)
    with pytest.raises(RecipeError) as caught:
        list(readings)
    assert int(caught.value.message) != os.getpid() and caught.value.hint == "the advice"


def _fail(message: str) -> None:
    if torch.utils.data.get_worker_info():
        raise RecipeError(message, "the advice")


class Growing(Numbers):
    """Each sample has as many numbers as its index, but the first one, which tells how much room to make."""

    def read(self, indices: torch.Tensor, seeds: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        return (torch.ones(len(indices), 1 + int(indices[0])), indices.double())


def test_batches_that_are_kept_stay_as_they_were() -> None:
    batches = [*_split(Numbers(), workers=1).batches(4)]
    assert torch.cat([batch.inputs[0] for batch in batches])[:, 0].tolist() == [*range(40)]


def test_batches_larger_than_the_room_made_for_them_are_handed_over_too() -> None:
    batches = [*_split(Growing(), workers=2).batches(4)]
    assert [tuple(batch.inputs[0].shape) for batch in batches] == [(4, 1 + first) for first in range(0, 40, 4)]
    assert torch.cat([batch.inputs[1] for batch in batches]).tolist() == [*range(40)]


def test_a_sample_changes_in_the_same_way_in_whatever_batch() -> None:
    def seeds(size: int, workers: int) -> dict[int, int]:
        batches = _split(Numbers(), workers).batches(size, seed=3)
        return {index: seed for batch in batches for index, seed in batch.inputs[0].tolist()}

    assert seeds(4, 0) == seeds(20, 2)
    assert len({*seeds(4, 0).values()}) == 40


def test_the_random_numbers_of_the_model_are_not_used_up() -> None:
    """Dropout must not depend on who reads."""
    before = torch.get_rng_state()
    assert len([*_split(Numbers(), 2).batches(7, seed=1)]) == 6
    assert torch.equal(torch.get_rng_state(), before)


def test_a_process_that_was_killed_is_told() -> None:
    def killed(index: int) -> None:
        if index == 25 and torch.utils.data.get_worker_info():
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises((DeviceError, RuntimeError)) as caught:
        list(_split(Numbers(act=killed), 1).batches(10))
    found = loading.killed(caught.value) or caught.value  # torch may tell while the batches before are used
    assert isinstance(found, DeviceError) and "compute.workers" in found.hint
    assert found.message.startswith("a process that read samples was killed")


def test_without_room_to_hand_batches_over_this_process_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    def here(index: int) -> None:
        assert torch.utils.data.get_worker_info() is None

    monkeypatch.setattr(loading, "_room", lambda: 10 * 16 * 3)  # three batches, and one process needs four
    assert len([*_split(Numbers(act=here), 2).batches(10)]) == 4
    monkeypatch.setattr(loading, "_room", lambda: 10 * 16 * 4)
    with pytest.raises(AssertionError):
        list(_split(Numbers(act=here), 2).batches(10))


def test_samples_are_read_with_one_thread_everywhere() -> None:
    """Torch rounds a sum by the number of its threads."""
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        list(_split(Numbers(act=lambda index: seen.append(torch.get_num_threads()))).batches(10))
        assert {*seen} == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_what_is_handed_to_a_process_is_no_part_of_a_whole_order() -> None:
    class Watched(Numbers):
        def read(self, indices: torch.Tensor, seeds: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
            assert len(indices) == 1 or indices.untyped_storage().nbytes() == indices.nbytes
            return super().read(indices, seeds)

    assert len([*_split(Watched(), 1).batches(10, seed=1)]) == 4


def test_a_process_that_was_killed_is_told_wherever_torch_tells() -> None:
    """Its handler raises at whatever line of the training runs."""
    found = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
    assert isinstance(loading.killed(found), DeviceError)
    assert loading.killed(RuntimeError("shape")) is loading.killed(ValueError("DataLoader worker")) is None


@pytest.mark.parametrize("cache", ["disk", "none"])
def test_pictures_are_the_same_wherever_they_are_kept(cache: str) -> None:
    write_folder("pets")
    held, kept = load(configured(cache="memory")), load(configured(cache=cache)).read_by(2)
    for part, seed in (("train", 1), ("train", None), ("validation", None), ("test", None)):
        one, other = ([*getattr(data, part).batches(4, seed=seed)] for data in (held, kept))
        assert _same(one, other)


def test_a_picture_that_changed_meanwhile_is_told() -> None:
    write_folder("pets")
    data = load(configured(cache="none")).read_by(1)
    for file in Path("pets").rglob("*.png"):
        file.write_text("no picture")
    with pytest.raises(RecipeError, match=r"one picture cannot be read:\n  pets/.*png: "):
        list(data.train.batches(4))
    for file in Path("pets").rglob("*.jpg"):
        file.unlink()
    with pytest.raises(RecipeError, match=r"cannot read pets/.*jpg: No such file|picture cannot be read"):
        list(data.test.batches(1))
