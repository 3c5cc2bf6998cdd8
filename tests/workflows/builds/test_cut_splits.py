"""A recipe that cuts a split: what runs again, and what every report says of it."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from builds import rendered
from factories import artifact, at_work, build, built, device, measurement, recipe, recipe_file

from edgepack.config.device import load_device
from edgepack.config.recipe import Recipe
from edgepack.config.recipe_reading import load_recipe
from edgepack.core.files import digest
from edgepack.deliver.bundle.assemble import contents
from edgepack.workflows.build.bundling import bundle_parts
from edgepack.workflows.build.measurements import measurements
from edgepack.workflows.build.outcomes import EvaluationOutcome, describe
from edgepack.workflows.build.planning.planner import plan
from edgepack.workflows.build.planning.step import Step, StepId
from edgepack.workflows.build.steps import outputs
from edgepack.workflows.build.store import Store
from edgepack.workflows.build.workspace import load_data


def _cut(**samples: int) -> Recipe:
    return recipe(data={"digits": {"size": 32}, **{part: {"samples": count} for part, count in samples.items()}})


def test_a_cut_of_the_test_split_runs_what_looks_at_it_again_and_one_of_training_all() -> None:
    store, board = Store(Path("store")), device("board", controls={"threads": 1})
    built(recipe(), board, store)
    again = {each.name: each.reason for each in plan(_cut(test=100), board, store).steps if not each.cached}
    assert {*again} == {"reference outputs", *(name for name in again if name.startswith("evaluate "))}
    assert again["reference outputs"] == "a split is cut differently" and len(again) == 5
    assert not any(each.cached for each in plan(_cut(train=100), board, store).steps[:6])
    assert not any(each.cached for each in plan(_cut(validation=100), board, store).steps[:6])


def test_every_process_of_a_build_gets_the_same_samples() -> None:
    """Those that train beside the first one load the data themselves."""
    one, other = (load_data(_cut(train=50, test=20), Store(Path("store"))) for _ in range(2))
    assert [len(split) for split in (one.train, one.validation, one.test)] == [50, 270, 20]
    assert torch.equal(one.train.inputs[0], other.train.inputs[0])


def test_a_recipe_in_a_bundle_is_cut_as_it_was() -> None:
    made = _cut(test=100, train=200)
    plain = made.plain()
    assert plain["data"] == {"digits": made.data.plain(), "train": {"samples": 200}, "test": {"samples": 100}}
    assert load_recipe(recipe_file("again", **plain)).cuts == made.cuts
    assert recipe(overrides=["data.test.samples=50"]).cuts.samples == {"test": 50}


def test_reports_card_and_manifest_tell_how_many_samples_figures_are_of(monkeypatch: pytest.MonkeyPatch) -> None:
    made, here, store = _cut(test=100), load_device("host"), Store(Path("store"))
    work = at_work(made, here, store)
    step = Step(id=StepId("outputs", "model"), key=digest("outputs"), ingredients={"parent": ""})
    monkeypatch.setattr(work, "candidate_of", lambda key: step)
    monkeypatch.setattr(work, "candidate", lambda step: SimpleNamespace(module=None))
    monkeypatch.setattr(
        "edgepack.compress.training.evaluation.predicted",
        lambda module, split: [((torch.zeros(len(split), 10),), SimpleNamespace(inputs=(), targets=split.targets))],
    )
    entry = store.make(step.kind, step.key, {}, lambda folder: outputs.do(work, step, folder).stored())
    assert describe(step, entry, "accuracy").endswith(" of 100 of 450 test samples")
    monkeypatch.setattr(work, "entry", lambda id: entry)
    shipped = build(artifacts=())
    files = contents(shipped, made, here, bundle_parts(shipped, here, work))
    assert b"It is of 100 of the 450 samples of that split." in files["MODEL_CARD.md"]
    assert b'"test": {\n   "of": 450,\n   "used": 100\n  }' in files["manifest.json"]
    assert b"100 of 450" in files["sbom.cdx.json"]


def test_figures_of_a_cut_split_say_so_and_are_not_compared_with_others() -> None:
    store = Store(Path("store"))
    whole, cut = ({"data": "digits"}, {"data": "digits", "cut": {"test samples": 100}})
    found = []
    for made in (whole, cut):
        outcome = EvaluationOutcome(scores={"accuracy": 0.9}, rows=100, of=450 if made is cut else 0)
        step = Step(id=StepId("evaluation", "model", "onnx"), key=digest(made), ingredients=made)
        entry = store.make(step.kind, step.key, made, lambda folder, given=outcome: given.stored())  # type: ignore[misc]
        found.append(measurements(build(artifacts=(artifact(),)), step, entry)[0])
    assert found[0].environment["data"] != found[1].environment["data"]
    assert (found[0].detail, found[1].detail) == ({"rows": 100}, {"rows": 100, "of": 450})


@pytest.mark.parametrize("report", ["markdown", "html"])
def test_reports_tell_it(report: str) -> None:
    told = "ccuracy and parity are of 5,000 of 50,000 test samples"
    detail = {"rows": 5000, "of": 50_000}
    assert told in rendered(report, build(measurements=(measurement("accuracy", 0.9, detail=detail),)))
    assert told not in rendered(report, build(measurements=(measurement("accuracy", 0.9, detail={"rows": 5000}),)))
