"""Stages whose trainings run in two processes, in earnest."""

import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
from factories import recipe
from PIL import Image
from short_timings import short_timings as short_timings

from edgepack.compress.training import checkpoints
from edgepack.config.device import load_device
from edgepack.core.errors import DeviceError
from edgepack.core.events import Event, Note, StepProgress
from edgepack.workflows.build.pipeline import build
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
    "stages": [{"train": {"epochs": 5, "learning_rate": 3e-3}}],
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


def _pictures() -> None:
    random = numpy.random.default_rng(0)
    for number in range(60):
        folder = Path("pictures", ("dark", "light")[number % 2])
        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 128, (20, 20, 3), dtype=numpy.uint8) + 127 * (number % 2)
        Image.fromarray(pixels.astype(numpy.uint8)).save(folder / f"{number}.png")


LOUD = """
from torch import nn


class Loud(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3))
        self.head = nn.Linear(16, 2)

    def forward(self, x):
        if self.training:
            print("y" * 20_000)
        return self.head(self.body(x).mean((2, 3)))
"""


def test_a_teacher_serves_several_stages_whose_processes_read_with_others() -> None:
    """In one build: pictures are decoded each time, in a process of its own for each of the two, and the model prints
    more than fits into a pipe.
    """
    _pictures()
    Path("loud.py").write_text(LOUD)
    data = {"image_folder": {"folder": "pictures", "size": 16, "cache": "none", "augment": False}}
    stages = [
        {"train": {"epochs": 3, "batch_size": 8, "learning_rate": 1e-2}},
        {"prune": {"ratio": "50 %", "steps": 1, "recover": {"epochs": 1, "batch_size": 8}}},
        {"quantize": {"epochs": 1, "batch_size": 8}},
    ]
    parts = {**RECIPE, "data": data, "stages": stages, "model": {"python": "loud:Loud"}}
    what = recipe(overrides=["compute.processes=2", "compute.workers=1"], **parts)
    built = build(what, load_device("host"), Store("loud"), dist=Path("dist"))
    assert built.exit_code == 0
    assert [stage.score for stage in built.ledger[1:]] == [1.0, 1.0, 1.0]


def test_two_processes_train_as_well_as_one_and_go_on_together_where_they_were_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the checkpoint of the first one, to the same weights as if they had not been stopped."""
    monkeypatch.setattr(checkpoints, "_SHARE", float("inf"))  # of these short epochs each is saved
    notes: list[str] = []

    def stop(event: Event) -> None:
        if isinstance(event, StepProgress) and event.doing == "training on the labels" and event.done > 20:
            raise KeyboardInterrupt

    one, two = _trained("one", 1), _trained("two", 2)
    assert two.files != one.files and two.ingredients["training"] == {"processes": 2}
    # Of 359 samples; benchmarks/training.md has the figures of a longer training.
    assert two.outcome["score"] > one.outcome["score"] - 0.05
    _step("model", "stopped", 2)
    with pytest.raises(KeyboardInterrupt):
        _step("train", "stopped", 2, stop)
    again = _step("train", "stopped", 2, lambda event: notes.extend([event.text] if isinstance(event, Note) else []))
    assert any("goes on after step" in note for note in notes)
    assert again.files == two.files


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


def test_connections_are_broken_where_the_end_of_a_process_is_not_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with NCCL, which waits on: the process that failed is a stand-in, and what breaks connections only says so."""
    broken = threading.Event()
    monkeypatch.setattr(followers, "_GLANCE", 0.0)
    monkeypatch.setattr(followers, "_GRACE", 0.0)
    monkeypatch.setattr("torch.distributed.distributed_c10d._abort_process_group", broken.set)
    for code, expected in ((1, True), (None, False), (0, False)):
        broken.clear()
        other: Any = SimpleNamespace(process=SimpleNamespace(poll=lambda code=code: code))
        with followers._watched([other]):
            assert broken.wait(60 if expected else 0.2) is expected
