"""What a recipe's `compute` becomes on a computer with and without GPUs, and that steps depend on it."""

from typing import Any

import pytest
from factories import device, recipe

from edgepack.config import compute
from edgepack.config.compute import Compute, Hardware, hardware
from edgepack.config.plugins import choose
from edgepack.config.recipe import resolve
from edgepack.core import provenance
from edgepack.core.errors import EdgepackError
from edgepack.core.process.gpu import Gpu
from edgepack.workflows.build.planning.keys import trains
from edgepack.workflows.build.planning.planner import Planner
from edgepack.workflows.build.store import Store

H200 = Gpu(name="NVIDIA H200", capability=(9, 0), cuda="13.0")
T4 = Gpu(name="Tesla T4", capability=(7, 5), cuda="13.0")


def _has(monkeypatch: pytest.MonkeyPatch, *gpus: Gpu) -> None:
    monkeypatch.setattr(compute, "gpus", lambda: gpus)


def test_without_a_gpu_models_are_trained_on_the_cpu_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    _has(monkeypatch)
    assert hardware(Compute()) == Hardware()
    assert hardware(Compute()).plain() == {"device": "cpu"}


@pytest.mark.parametrize(("gpu", "precision"), [(H200, "bf16"), (T4, "fp16")])
def test_a_gpu_is_used_unasked_with_its_own_precision(
    monkeypatch: pytest.MonkeyPatch, gpu: Gpu, precision: str
) -> None:
    _has(monkeypatch, gpu)
    assert hardware(Compute()).plain() == {"device": "cuda", "precision": precision}
    assert hardware(Compute(precision="fp32")).plain() == {"device": "cuda", "precision": "fp32"}
    assert hardware(Compute(device="cpu")) == Hardware()


@pytest.mark.parametrize(
    ("settings", "gpus", "message"),
    [
        ({"device": "cuda"}, (), "compute.device is cuda, but "),
        ({"processes": 2}, (H200,), "compute.processes is 2, but there are 1 GPUs"),
        ({"processes": 64}, (), "compute.processes is 64, but 2 cores may be used"),
        ({"precision": "fp16"}, (), "fp16 is for GPUs"),
    ],
)
def test_what_this_computer_cannot_do_is_an_error(
    monkeypatch: pytest.MonkeyPatch, settings: Any, gpus: tuple[Gpu, ...], message: str
) -> None:
    _has(monkeypatch, *gpus)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1})
    with pytest.raises(EdgepackError, match=message):
        hardware(Compute(**settings))


def _keys(*overrides: str) -> dict[str, str]:
    what = resolve(recipe(overrides=overrides), device())
    return {step.name: step.key for step in Planner(what, Store("store"), facts=None).candidates()}


def test_keys_hold_what_weights_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers change nothing; processes change the training, but not the model that it begins with."""
    _has(monkeypatch)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1})
    plain, together = _keys(), _keys("compute.processes=2")
    assert _keys("compute.workers=3") == plain
    assert together["model"] == plain["model"] and together["train"] != plain["train"]
    assert len({_keys(f"compute.{each}")["train"] for each in ("accumulate=2", "compile=true", "precision=bf16")}) == 3


def test_what_trains_nothing_does_not_depend_on_how_to_train() -> None:
    assert trains(choose("stages", {"quantize": {"epochs": 2}}))
    for stage in ({"quantize": {"mode": "ptq"}}, {"prune": {"ratio": "30 %", "recover": {"epochs": 0}}}):
        assert not trains(choose("stages", stage))


def test_the_key_of_a_gpu_is_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another GPU of the same architecture gives the same key, with any number of threads."""
    _has(monkeypatch, H200)
    keys = _keys()
    _has(monkeypatch, Gpu(name="NVIDIA H100", capability=(9, 0), cuda="13.0"))
    monkeypatch.setattr(provenance, "threads", lambda: 7)
    assert _keys() == keys
    for other in (T4, Gpu(name="NVIDIA H200", capability=(9, 0), cuda="12.8")):
        _has(monkeypatch, other)
        assert _keys()["model"] != keys["model"]
