"""What a build does beside its steps: it times models that a stage only tries, and doubts weights that know nothing."""

from typing import Any

import pytest

from edgepack.device import load_device
from edgepack.events import Event
from edgepack.plan import Planner
from edgepack.recipe import load_recipe
from edgepack.store import Store
from edgepack.work import Work


@pytest.fixture
def work() -> Work:
    recipe, device, store = load_recipe("quickstart"), load_device("host"), Store("store")
    return Work(recipe, device, store, Planner(recipe, device, store))


@pytest.mark.parametrize(("trained", "score", "doubted"), [(True, 0.1, True), (True, 0.2, False), (False, 0.1, False)])
def test_weights_that_come_trained_and_know_nothing_are_doubted(
    work: Work, trained: bool, score: float, doubted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Event] = []
    work.emit = told.append
    monkeypatch.setattr(work.recipe.model.module, "trained", lambda config, signature: trained)
    work._doubt_chance(score)
    assert ["no more than chance with 10 classes" in str(event) for event in told] == [True] * doubted


def test_a_latency_is_that_of_the_exported_file_on_the_device(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def ran(job: dict[str, Any]) -> dict[str, Any]:
        asked.append(job)
        return {"samples_ns": [2e6], "load_ms": 1, "first_ms": 1}

    monkeypatch.setattr(work, "_run", ran)
    monkeypatch.setattr(work.recipe.exporters[0].module, "export", lambda candidate, config, path: path.touch())
    assert work._latency(work._untrained()) == 2.0
    assert [(job["runtime"], job["mode"]) for job in asked] == [("executorch", "time")] * 3
