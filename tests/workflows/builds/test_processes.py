"""Stages whose trainings run in two processes, in earnest."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy
import pytest
from factories import recipe
from PIL import Image

from edgepack.config.device import load_device
from edgepack.core.errors import DeviceError
from edgepack.core.events import Event, StepProgress
from edgepack.workflows.build.planning.step import StepId
from edgepack.workflows.build.runner import run_step
from edgepack.workflows.build.steps import followers
from edgepack.workflows.build.store import Entry, Store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores"),
]
RECIPE: dict[str, Any] = {
    "model": {"torchvision": "resnet18", "width": "12.5 %"},
    "data": {"digits": {"size": 16, "augment": True}},
    "device": "host",
    "stages": [{"train": {"epochs": 5, "learning_rate": 3e-3}}, {"quantize": {"epochs": 1}}],
    "export": ["onnx"],
    "budgets": {},
}


def _step(name: str, store: str, processes: int, emit: Any = lambda event: None) -> Entry:
    what = recipe(overrides=[f"compute.processes={processes}"], **RECIPE)
    id = StepId("candidate", name)
    return run_step(what, load_device("host"), id, Store(store), dry_run=False, emit=emit)


def _trained(store: str, processes: int) -> Entry:
    _step("model", store, processes)
    return _step("train", store, processes)


def test_two_processes_train_as_well_as_one_and_the_same_weights_again() -> None:
    one, two, again = _trained("one", 1), _trained("two", 2), _trained("again", 2)
    assert two.files == again.files and two.files != one.files
    assert two.ingredients["training"] == {"processes": 2}
    # Of 359 samples; benchmarks/training.md has the figures of a longer training.
    assert two.outcome["accuracy"] > one.outcome["accuracy"] - 0.05
    assert _step("quantize", "two", 2).outcome["accuracy"] > two.outcome["accuracy"] - 0.05


def test_each_process_may_read_with_others() -> None:
    """Pictures that are decoded each time, in a process of their own for each of the two."""
    random = numpy.random.default_rng(0)
    for number in range(60):
        folder = Path("pictures", ("dark", "light")[number % 2])
        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 128, (20, 20, 3), dtype=numpy.uint8) + 127 * (number % 2)
        Image.fromarray(pixels.astype(numpy.uint8)).save(folder / f"{number}.png")
    data = {"image_folder": {"folder": "pictures", "size": 16, "cache": "none"}}
    stages = [{"train": {"epochs": 1, "batch_size": 8}}]
    for name in ("model", "train"):
        what = recipe(
            overrides=["compute.processes=2", "compute.workers=1"], **{**RECIPE, "data": data, "stages": stages}
        )
        run_step(what, load_device("host"), StepId("candidate", name), Store("reading"), dry_run=False)


def test_a_process_that_is_killed_ends_the_stage_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Any] = []
    ready = followers._Follower.wait_until_ready

    def noted(self: Any) -> None:
        ready(self)
        begun.append(self.process)

    def kill(event: Event) -> None:
        if isinstance(event, StepProgress) and event.doing == "training on the labels" and begun[0].poll() is None:
            os.kill(begun[0].pid, signal.SIGKILL)

    monkeypatch.setattr(followers._Follower, "wait_until_ready", noted)
    _step("model", "killed", 2)
    with pytest.raises(DeviceError, match=r"a process that trains failed: it ended with code -9") as error:
        _step("train", "killed", 2, kill)
    assert "compute.processes=1" in error.value.hint
