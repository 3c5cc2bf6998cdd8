"""What ExecuTorch can hand a model to, where it is installed, and files that cannot run where they are built."""

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from factories import at_work, budget, build, built, edgepack, published, recipe, recipe_file
from forked_workers import run_here
from torch_factories import How, Kind, context, data, logits, made
from torch_factories import tiny_models as tiny_models

from edgepack.config import plugins, schema
from edgepack.config.device import load_device
from edgepack.deliver import wording
from edgepack.export.contract import write
from edgepack.export.formats import executorch
from edgepack.export.formats.executorch.contract import backend_of
from edgepack.judge.gate import judge
from edgepack.measure import evaluate
from edgepack.workflows.build.measurements import measurements
from edgepack.workflows.build.outcomes import describe
from edgepack.workflows.build.planning.planner import plan
from edgepack.workflows.build.store import Store
from edgepack.workflows.build.workspace import Workspace

WHY = "executorch on this computer has no VulkanBackend"


def _written(backend: str, path: Path, how: How = "quantized", kind: Kind = "residual") -> bytes:
    write(made(how, kind), plugins.choose("exporters", {"executorch": {"backend": backend}}), path)
    return path.read_bytes()


def _delegates_of(content: bytes) -> list[str]:
    from executorch.exir._serialize._program import deserialize_pte_binary

    [method] = deserialize_pte_binary(content).program.execution_plan
    return [delegate.id for delegate in method.delegates]


@pytest.mark.slow
def test_a_core_ml_file_is_the_same_each_time(tmp_path: Path) -> None:
    once, again = (_written("coreml", tmp_path / name, "eager", "mlp") for name in ("once", "again"))
    assert once == again
    assert {*_delegates_of(once)} == {"CoreMLBackend"}
    assert b'"identifier": "edgepack_' in once
    assert b"conversion_date" not in once


@pytest.mark.slow
def test_a_vulkan_file_is_the_same_each_time(tmp_path: Path) -> None:
    once, again = (_written("vulkan", tmp_path / name) for name in ("once", "again"))
    assert once == again
    assert {*_delegates_of(once)} == {"VulkanBackend"}


def test_a_portable_file_delegates_nothing_and_runs(tmp_path: Path) -> None:
    file = tmp_path / "model.pte"
    assert _delegates_of(_written("portable", file)) == []
    answers = evaluate.outputs(
        run_here,
        file=file,
        runtime="executorch",
        split=data().test.first(8),
        folder=tmp_path,
    )
    agreed = evaluate.parity(context().task, answers, (logits(made("quantized").module).numpy()[:8],))
    assert agreed.agreement == 1


def test_a_backend_that_is_not_installed_is_a_mistake_at_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executorch, "find_spec", lambda name: None if name == "coremltools" else find_spec(name))
    recipe_file(export=[{"executorch": {"backend": "coreml"}}])
    ran = edgepack("check", "tiny")
    assert ran.code == 2
    assert "at export[0].executorch" in ran.err
    assert "not available here: it needs the package coremltools: pip install coremltools" in ran.err


@pytest.mark.parametrize("backend", plugins.names("backends"))
def test_whether_a_backend_is_installed_is_told_without_importing_it(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert executorch.unavailable(executorch.Config(backend=backend)) == ""
    monkeypatch.setattr(executorch, "find_spec", lambda name: None)
    assert "pip install executorch" in executorch.unavailable(executorch.Config(backend=backend))


def test_another_package_brings_a_backend_with_what_differs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an installed package would publish it; all that it leaves out is as the contract says."""
    source = ["NEEDS = 'QnnBackend'", "QUANTIZER = 'qnn'", "SOURCE = 'exir'"]
    Path("hexagon.py").write_text("\n".join(source))
    monkeypatch.syspath_prepend(Path.cwd())
    published(monkeypatch, "backends", "hexagon", "hexagon")
    chosen = plugins.choose("exporters", {"executorch": {"backend": "hexagon"}})
    assert executorch.unavailable(executorch.Config(backend="hexagon")) == ""
    assert executorch.needs(executorch.Config(backend="hexagon")) == "QnnBackend"
    assert chosen.module.quantizer(chosen.config) == "qnn"
    module = plugins.load("backends", "hexagon")
    assert (module.PACKAGE, module.partitioners(), module.payload_parts) == ("", [], None)
    assert (
        "hexagon"
        in schema.recipe()["properties"]["export"]["items"]["anyOf"][1]["properties"]["executorch"]["properties"][
            "backend"
        ]["enum"]
    )


def test_what_a_file_hands_to_a_backend_is_read_by_that_one() -> None:
    found = {name: backend_of(name) for name in ("XnnpackBackend", "CoreMLBackend", "QnnBackend", "")}
    assert {name: each and each.__name__.rpartition(".")[2] for name, each in found.items()} == {
        "XnnpackBackend": "xnnpack",
        "CoreMLBackend": "coreml",
        "QnnBackend": None,
        "": None,
    }


def test_a_runtime_tells_what_it_has() -> None:
    job = {"mode": "delegates", "runtime": "executorch", "file": ""}
    assert "XnnpackBackend" in run_here(job)["delegates"]


@pytest.fixture
def work() -> Workspace:
    what = recipe(export=[{"executorch": {"backend": "vulkan"}}, "onnx"])
    where, store = load_device("host"), Store("store")
    return at_work(what, where, store)


def test_a_file_that_the_runtime_cannot_run_is_told_and_asked_for_once(
    work: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def ran(job: dict[str, Any]) -> dict[str, Any]:
        asked.append(job)
        return {"delegates": ["XnnpackBackend"]}

    monkeypatch.setattr(work.session, "run", ran)
    assert [work.why_not_run(format) for format in ("executorch", "executorch", "onnx")] == [WHY, WHY, ""]
    assert [job["mode"] for job in asked] == ["delegates"]
    work._delegates["executorch"] = ["VulkanBackend"]
    assert work.why_not_run("executorch") == ""


def test_what_was_not_run_is_not_measured_for_that_reason(work: Workspace) -> None:
    budgets = [budget("accuracy", "90 %"), budget("parity.runtimes", "90 %")]
    verdicts = judge(budgets, ["executorch", "onnx"], [], {"executorch": WHY})
    assert [(each.artifact, each.outcome, each.reason) for each in verdicts] == [
        ("executorch", "not_measured", f"not run here: {WHY}"),
        ("onnx", "not_measured", "accuracy of onnx was not measured"),
        ("onnx", "not_measured", f"executorch was not run here: {WHY}"),
    ]
    shown = build(not_run={"onnx": WHY}, verdicts=verdicts)
    assert f"not run here ({WHY})" in next(wording.gains(shown))


def test_a_plan_with_files_that_were_not_run_is_up_to_date() -> None:
    what, where, store = recipe(export=[{"executorch": {"backend": "vulkan"}}]), load_device("host"), Store("store")
    built(what, where, store)
    timing = plan(what, where, store).steps[-1]
    assert timing.entry is not None
    shutil.rmtree(timing.entry.path)
    store.make("timing", timing.key, timing.ingredients, lambda folder: {"not_run": WHY})
    again = plan(what, where, store)
    assert again.up_to_date
    [*_, step] = again.steps
    assert step.entry is not None
    assert (describe(step, step.entry, "accuracy"), measurements(build(), step, step.entry)) == (
        f"not run here: {WHY}",
        (),
    )
