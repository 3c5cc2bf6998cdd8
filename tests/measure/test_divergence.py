"""A file that answers otherwise than torch tells at which operator that begins."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import at_work, budget, build, device, measurement
from torch import nn
from torch_factories import How, context, data, learned, made
from torch_factories import tiny_models as tiny_models

from edgepack.config import plugins
from edgepack.config.recipe_reading import load_recipe
from edgepack.core.files import digest
from edgepack.deliver import wording
from edgepack.deliver.reports import junit
from edgepack.judge.gate import judge
from edgepack.measure import divergence, evaluate
from edgepack.measure.worker import job
from edgepack.models.candidate import Candidate
from edgepack.workflows.build import pipeline
from edgepack.workflows.build.planning.step import Step, StepId
from edgepack.workflows.build.steps import divergence as step
from edgepack.workflows.build.store import Store

ONNX = plugins.choose("exporters", "onnx")


def find(how: How) -> tuple[str, list[tuple[int, int]]]:
    progress: list[tuple[int, int]] = []
    samples = divergence.rows(data().test, [3, 4, 5, 6, 7])
    said = divergence.find(
        made(how),
        ONNX,
        lambda asked: job.run({**asked, "threads": 1}),  # in this process: a fresh one for each piece takes seconds
        samples,
        lambda done, total: progress.append((done, total)),
    )
    return said, progress


def spoil(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """An exporter that turns the sign of one tensor: no longer the model that it was given."""
    export = ONNX.module.export

    def broken(candidate: Candidate, config: Any, path: Path) -> None:
        module = copy.deepcopy(candidate.module)
        for each, tensor in (*module.named_parameters(), *module.named_buffers()):
            if each == name:
                with torch.no_grad():
                    tensor.neg_()
        export(replace(candidate, module=module), config, path)

    monkeypatch.setattr(ONNX.module, "export", broken)


@pytest.mark.parametrize(
    ("how", "tensor", "layer"),
    [
        ("eager", "blocks.0.conv2.weight", "blocks.0.conv2"),  # beside it runs a branch that is right
        pytest.param("quantized", "_frozen_param3", "blocks.1.conv1", marks=pytest.mark.slow),
    ],
)
def test_the_layer_that_an_exporter_spoils_is_named(
    how: How, tensor: str, layer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, tensor)
    said, progress = find(how)
    assert said.startswith(f"the first operator that differs is 'aten.conv2d.default' at '{layer}', ")
    assert "torch_factories.py:" in said
    assert "its output differs by 2" in said
    assert 3 <= len(progress) <= 9
    assert all(done < total for done, total in progress)


def test_what_is_overwritten_in_place_is_looked_at_behind_that(tmp_path: Path) -> None:
    """A ReLU of this kind changes what the layer before it gave: no file gives that, and the layer is still named."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)).eval()
    samples = divergence.rows(data().test, range(5))
    graph = replace(made("eager", "mlp"), module=net).program().module(check_guards=False)
    values, cuts = divergence._watched(graph, samples)
    assert [str(node.target).split(".")[1] for node in cuts] == ["flatten", "relu_", "linear"]
    search = divergence._Search(
        made("eager", "mlp"), ONNX, lambda job: job, samples, lambda done, total: None, tmp_path, graph, values, cuts
    )
    assert [search.culprit(node).name for node in cuts] == ["flatten", "linear", "linear_1"]


def test_ranges_that_each_inference_measures_are_those_of_one_sample() -> None:
    from edgepack.compress.stages import quantize

    dynamic = quantize.run(learned("mlp"), quantize.Config(mode="ptq", activations="dynamic"), context())
    samples = divergence.rows(data().test, [0, 1])
    samples.inputs[0][1] *= 20  # beside it the other one would have a coarse step
    values, cuts = divergence._watched(dynamic.module, samples)
    alone = torch.cat([dynamic.module(row) for row in samples.inputs[0].split(1)])
    assert (values[cuts[-1]] == alone.detach().numpy()).all()
    assert (alone != dynamic.module(samples.inputs[0])).any()


def test_a_file_that_answers_alike_has_no_such_operator() -> None:
    said, progress = find("quantized")
    assert said.startswith("no single operator causes it")
    assert len(progress) == 1


def test_pieces_that_cannot_be_exported_are_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(candidate: Candidate, config: Any, path: Path) -> None:
        raise ValueError("no")

    monkeypatch.setattr(ONNX.module, "export", refuses)
    assert (
        find("quantized")[0]
        == "the first operator that differs was not found: parts of the model do not run separately"
    )


def test_numbers_that_are_not_finite_differ_wholly() -> None:
    good = torch.ones(2, 3).numpy()
    assert divergence.difference(good * float("inf"), good).share == 1.0
    assert divergence.difference(good, good).share == 0.0
    assert divergence.difference(good, good * float("nan")).share == 1.0
    assert divergence.difference(good * float("nan"), good * float("nan")).share == 0.0  # nor does torch give a number


def test_samples_on_which_the_decisions_differ_are_looked_at_first() -> None:
    reference = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]).numpy()
    file = torch.tensor([[1.0, 0.0], [0.4, 0.6], [9.0, 0.0], [1.1, 0.0]]).numpy()
    assert evaluate.mismatched_rows(context().task, (file,), (reference,), 3) == [1, 2, 3]


def test_only_parity_budgets_that_failed_are_looked_into_and_every_report_tells(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def where(work: Any, id: StepId) -> str:
        asked.append(id.format)
        return f"it begins in {id.format}"

    monkeypatch.setattr(step, "where", where)
    budgets = [budget("parity", "90 %"), budget("parity.runtimes", "90 %"), budget("size", "1 kB")]
    budgets += [budget("parity.difference", "0.5"), budget("parity.cosine", "0.9")]
    figures = [
        measurement("parity", 0.5, "onnx"),
        measurement("parity", 0.95, "executorch"),
        measurement("parity.runtimes", 0.5, "onnx"),
        measurement("parity.difference", 0.7, "onnx"),
        measurement("parity.cosine", 0.7, "executorch"),
        *(measurement("size", 5e3, label) for label in ("executorch", "onnx")),
    ]
    verdicts = judge(budgets, ["executorch", "onnx"], figures)
    shipped = build().artifacts
    first = shipped[0].model_copy(update={"format": "executorch"})
    work = at_work(load_recipe("quickstart"), device(), Store("store"))
    explained = pipeline._explained(build(verdicts=verdicts, artifacts=(first, *shipped), exit_code=1), work, print)
    assert asked == ["onnx", "onnx", "executorch", "onnx", "executorch"]
    reasons = {
        (each.metric, each.artifact): each.reason
        for each in explained.verdicts
        if each.outcome == "fail" and each.reason
    }
    assert reasons == {
        ("parity", "onnx"): "it begins in onnx",
        ("parity.runtimes", "onnx"): "onnx and torch: it begins in onnx; executorch and torch: it begins in executorch",
        ("parity.difference", "onnx"): "it begins in onnx",
        ("parity.cosine", "executorch"): "it begins in executorch",
    }
    assert next(wording.doubts(explained)) == "parity of onnx failed: it begins in onnx"
    assert "it begins in onnx" in junit.render(explained)


def test_an_error_while_looking_leaves_the_verdict_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, board, store = load_recipe("quickstart"), device(), Store("store")
    work = at_work(recipe, board, store)
    id = StepId("evaluation", "model", "onnx")
    for each in (id, id.of("artifact")):
        work.done[each] = Step(id=each, key=digest("a step"), ingredients={}, choice=ONNX)
    assert step.where(work, id).startswith("the first operator that differs was not found: ")
    monkeypatch.setattr(step, "search", lambda work, id, folder: {"told": f"found in {id.label}"})
    assert step.where(work, id) == "found in onnx"
    monkeypatch.setattr(step, "search", None)
    assert step.where(work, id) == "found in onnx"  # it is kept
