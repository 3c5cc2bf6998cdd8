"""Decoded pictures are kept where there is room for them, and what was kept is used again."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from picture_factories import check_colors, configured, stored, write_folder

from edgepack.core.errors import RecipeError
from edgepack.core.process import memory
from edgepack.data.contract import Loading
from edgepack.data.datasets.image_folder import load
from edgepack.data.pictures import decoding, keeping
from edgepack.data.pictures.samples import InFiles, InMemory, OnDisk, Pictures
from edgepack.data.splits import Split
from edgepack.workflows.build.store import Store


@pytest.fixture
def pets() -> str:
    return write_folder("pets")


def test_equal_pictures_are_held_once(pets: str) -> None:
    shutil.copy("pets/ant/1.jpg", "pets/ant/copy.jpg")
    data = load(configured(cache="memory"))
    held = {id(_pixels(split)) for split in (data.train, data.validation, data.test)}
    assert len(held) == 1 and _pixels(data.train).pixels.shape == (30, 3, 18, 18)


def _pixels(split: Split) -> Any:
    assert isinstance(split.samples, Pictures)
    return split.samples.pixels


def test_memory_that_is_not_there_is_refused_where_it_is_asked_for(pets: str, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 30 * 3 * 18 * 18
    monkeypatch.setattr(memory, "allowed", lambda: needed - 1)
    with pytest.raises(RecipeError, match=r"need 29.2 kB of memory, and this process may use 29.2 kB") as caught:
        load(configured(cache="memory"))
    assert "cache: disk" in caught.value.hint


@pytest.mark.parametrize(
    ("allowed", "room", "kept"),
    [(4, 0, InMemory), (3.9, 2, OnDisk), (3.9, 1.9, InFiles)],
)
def test_pictures_are_kept_where_there_is_room(
    allowed: float, room: float, kept: type, pets: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As multiples of what they need."""
    needed = 30 * 3 * 18 * 18
    monkeypatch.setattr(memory, "allowed", lambda: int(allowed * needed))
    data = load(configured(), Loading(room=int(room * needed)))
    assert isinstance(_pixels(data.train), kept)
    check_colors(data)


@pytest.mark.parametrize("cache", ["disk", "none"])
def test_a_later_build_decodes_nothing_again(cache: str, pets: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loading = Loading(kept=Store("store").keep)
    first = load(configured(cache=cache), loading)
    monkeypatch.setattr(decoding, "all_decoded", None)
    monkeypatch.setattr(keeping, "all_decoded", None)
    again = load(configured(cache=cache), loading)
    assert torch.equal(stored(again.train), stored(first.train))
    [entry] = Store("store").entries()
    assert entry.kind == "data" and (entry.bytes > 30 * 3 * 18 * 18) == (cache == "disk")


def test_what_was_kept_and_is_damaged_is_made_again(pets: str) -> None:
    loading = Loading(kept=Store("store").keep)
    first = stored(load(configured(cache="disk"), loading).train)
    [pixels] = Path("store").rglob("pixels")
    pixels.write_bytes(pixels.read_bytes()[:-1])
    assert torch.equal(stored(load(configured(cache="disk"), loading).train), first)


def test_a_full_disk_is_no_flaw_of_a_picture_and_nothing_is_kept(pets: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loading = Loading(kept=Store("store").keep)

    def full(*arguments: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space left"):
            load(configured(cache="disk", bad_samples={"skip": 30}), loading)
    assert Store("store").entries() == ()
    assert len(load(configured(cache="disk"), loading).train) == 18


def test_pixels_can_be_read_after_the_store_was_cleaned(pets: str) -> None:
    data = load(configured(cache="disk"), Loading(kept=Store("store").keep)).read_by(2)
    first = stored(data.train)
    shutil.rmtree("store")
    assert torch.equal(stored(data.train), first)
    assert len([*data.train.batches(4, seed=1)]) == 5


def test_progress_of_decoding_is_told(pets: str) -> None:
    told: list[tuple[str, int, int]] = []
    load(configured(), Loading(progress=lambda *each: told.append(each)))
    assert told[-1] == ("decoding pictures", 30, 30)
