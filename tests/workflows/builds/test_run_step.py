"""A step that another process does, from the recipe, the device, the step's id and the store alone."""

from pathlib import Path

import pytest
from factories import python, recipe_file
from short_timings import SHORTENED
from tiny_project import STEPS, Project, Ran
from tiny_project import first as first

from edgepack.config.device import load_device
from edgepack.config.recipe_reading import load_recipe
from edgepack.core.errors import DeviceError, RecipeError
from edgepack.workflows.build.pipeline import build
from edgepack.workflows.build.planning.planner import plan
from edgepack.workflows.build.planning.step import StepId
from edgepack.workflows.build.runner import run_step
from edgepack.workflows.build.steps import dry_run as dry_runs
from edgepack.workflows.build.store import Store

# A process for each step, of one that has done nothing but import libraries, which takes longer than most steps.
ELSEWHERE = f"""
import gc, os, sys
import torch, torchao, onnx, executorch.exir, sklearn.datasets, torch.onnx, onnxscript.rewriter, torch._dynamo
import executorch.backends.xnnpack.partition.xnnpack_partitioner, torchao.quantization.pt2e.quantize_pt2e
from edgepack.core.process.libraries import torchvision
torchvision()
from edgepack import Store, load_device, load_recipe
from edgepack.workflows.build.planning.step import StepId
from edgepack.workflows.build.runner import run_step
{SHORTENED}
gc.freeze()  # what was imported is nobody's garbage
leader = sys.argv[1]
for step in sys.argv[1:]:
    if not (child := os.fork()):
        recipe = load_recipe("tiny")
        run_step(recipe, load_device(recipe.device), StepId.parse(step), Store(), dry_run=step == leader)
        sys.stderr.flush()
        os._exit(0)
    if code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        sys.exit(f"{{step}} ended with {{code}}")
"""


@pytest.mark.slow
@pytest.mark.usefixtures("short_timings")
def test_every_step_in_a_process_of_its_own_gives_the_same_bundle(
    first: tuple[Project, Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project.at(tmp_path / "elsewhere")
    monkeypatch.chdir(project.folder)
    recipe = load_recipe("tiny")
    device = load_device(recipe.device)
    steps = plan(recipe, device, Store()).steps
    assert [step.name for step in steps] == STEPS
    ran = python(ELSEWHERE, *(str(step.id) for step in steps))
    assert ran.code == 0, ran.err
    assert [step.name for step in plan(recipe, device, Store()).steps if step.entry is None] == []
    assert build(recipe, device, Store(), dist="dist").exit_code == 0
    assert project.bundle() == first[0].bundle()  # of one process, and with timings of its own, which are in no bundle


def test_a_step_whose_parents_are_not_done_says_so_and_one_that_is_none_too() -> None:
    recipe = load_recipe(recipe_file())
    device, store = load_device("host"), Store("store")
    with pytest.raises(DeviceError, match="export onnx cannot run: model is not in the store") as failure:
        run_step(recipe, device, StepId("artifact", "model", "onnx"), store)
    assert failure.value.hint == "run candidate/model first"
    with pytest.raises(RecipeError, match="tiny has no step candidate/unknown"):
        run_step(recipe, device, StepId("candidate", "unknown"), store)


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_candidate_is_tried_before_it_is_made_unless_that_was_done(
    dry_run: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []
    monkeypatch.setattr(dry_runs, "check", lambda work: tried.append(work.recipe.name))
    model, data = {"torchvision": "resnet18", "width": "10 %"}, {"digits": {"size": 8}}
    recipe = load_recipe(recipe_file(model=model, data=data, device="host"))
    entry = run_step(recipe, load_device("host"), StepId("candidate", "model"), Store("store"), dry_run=dry_run)
    assert (tried, entry.kind) == ([recipe.name] * dry_run, "candidate")


@pytest.mark.parametrize("text", ["prune", "stage/prune", "candidate/", ""])
def test_what_names_no_step_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a step: write it as KIND/SUBJECT"):
        StepId.parse(text)
