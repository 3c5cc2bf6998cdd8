"""A model that a user's own function gives."""

import shutil
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
from factories import recipe
from safetensors.torch import save_model
from torch import nn
from torch_factories import SIGNATURE, reloaded

from edgepack.config import plugins
from edgepack.config.device import load_device
from edgepack.config.user_code import installed
from edgepack.core.errors import RecipeError, StageError
from edgepack.models.candidate import Candidate
from edgepack.models.sources import python
from edgepack.workflows.build.planning.planner import plan
from edgepack.workflows.build.store import Store

NETS = """
from torch import nn

def make(width=8, depths=(1,)):
    layers = [nn.Conv2d(1, width, 3), nn.ReLU()]
    for _ in range(sum(depths)):
        layers += [nn.Conv2d(width, width, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))
"""


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test has its own module of this name in its own folder."""
    monkeypatch.syspath_prepend(str(Path.cwd()))


def nets(source: str = NETS) -> None:
    Path("nets.py").write_text(dedent(source))


def build(reference: str = "nets:make", **settings: Any) -> nn.Module:
    return python.build(python.Config.model_validate({"python": reference, **settings}), SIGNATURE).eval()


def test_a_function_gives_the_model_with_its_arguments() -> None:
    nets()
    module: Any = build(args={"width": 6, "depths": (1, 2)})
    assert module(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    assert [module[0].out_channels, len(module)] == [6, 2 + 3 * 2 + 3]


def test_a_saved_candidate_calls_the_function_again(tmp_path: Path) -> None:
    nets()
    model = {"python": "nets:make", "args": {"width": 6, "depths": (2,)}}
    before = Candidate.start(plugins.choose("models", model), SIGNATURE)
    after = reloaded(before, tmp_path / "saved")
    picture = torch.rand(2, 1, 8, 8)
    assert torch.equal(after.module(picture), before.module(picture))


def test_a_saved_candidate_whose_module_is_gone_says_so(tmp_path: Path) -> None:
    nets()
    before = Candidate.start(plugins.choose("models", {"python": "nets:make"}), SIGNATURE)
    Path("nets.py").unlink()
    del sys.modules["nets"]  # as in another process
    with pytest.raises(StageError, match="a saved model cannot be built again: there is no module 'nets'"):
        reloaded(before, tmp_path / "saved")


def test_a_saved_candidate_whose_function_changed_says_so(tmp_path: Path) -> None:
    nets()
    before = Candidate.start(plugins.choose("models", {"python": "nets:make"}), SIGNATURE)
    nets(NETS.replace("width=8", "width=9"))
    del sys.modules["nets"]
    with pytest.raises(StageError, match="is of another model"):
        reloaded(before, tmp_path / "saved")


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt", "weights.pth"])
def test_a_checkpoint_fills_in_the_weights(name: str) -> None:
    nets()
    before = build()
    save_model(before, name) if name.endswith("safetensors") else torch.save(before.state_dict(), name)
    picture = torch.rand(2, 1, 8, 8)
    assert torch.equal(build(checkpoint=name)(picture), before(picture))
    assert python.trained(python.Config(python="nets:make", checkpoint=name), SIGNATURE)
    assert not python.trained(python.Config(python="nets:make"), SIGNATURE)


def test_a_model_that_a_function_keeps_is_not_changed_under_its_hands() -> None:
    nets(NETS + "kept = make()\ndef give():\n    return kept\n")
    one, two = build("nets:give"), build("nets:give")
    with torch.no_grad():
        next(one.parameters()).zero_()
    assert next(two.parameters()).abs().sum() > 0


@pytest.mark.parametrize(
    ("source", "args", "why"),
    [
        ("def make(): return 3", {}, "'nets:make' gives int, not a torch.nn.Module"),
        ("def make(): return [][1]", {}, "'nets:make', called with (), failed: IndexError: list index out of range"),
        (NETS, {"widht": 3}, "called with (widht=3), failed: TypeError: make() got an unexpected keyword argument"),
        (NETS.replace("(1, width", "(3, width"), {}, "cannot take this data, a tensor of shape [2, 1, 8, 8]: Runtime"),
        (NETS.replace("width, 3))", "width, 5))"), {}, "gives a tensor of shape [2, 5] for a tensor of shape [2, 1, 8"),
        (
            "from torch import nn\nclass Net(nn.Module):\n    def forward(self, x): return {'logits': x}\nmake = Net",
            {},
            "the model of 'nets:make' gives dict for a tensor of shape [2, 1, 8, 8], not logits [2, 3]",
        ),
    ],
    ids=["no module", "fails", "wrong argument", "wrong channels", "wrong classes", "no logits"],
)
def test_a_function_that_gives_no_classifier_of_this_data_is_told(source: str, args: dict[str, Any], why: str) -> None:
    nets(source)
    with pytest.raises(StageError) as failure:
        build(args=args)
    assert why in failure.value.message
    assert failure.value.hint


def test_a_module_that_does_not_load_is_a_mistake_of_the_recipe() -> None:
    nets("import no_such_package\ndef make(): pass")
    with pytest.raises(RecipeError, match="'nets:make' does not load: ModuleNotFoundError"):
        build()


def test_another_source_is_another_model() -> None:
    def first_key() -> str:
        what = recipe(model={"python": "nets:make"}, stages=["train"])
        return plan(what, load_device("host"), Store("store")).steps[0].key

    nets()
    one = first_key()
    assert first_key() == one
    nets(NETS.replace("nn.ReLU()", "nn.ReLU6()"))
    assert first_key() != one


def test_the_function_is_not_run_until_the_model_is_built() -> None:
    nets(NETS + "from pathlib import Path\nPath('ran').touch()\n")
    what = recipe(model={"python": "nets:make"}, stages=["train"])
    plan(what, load_device("host"), Store("store"))
    assert not Path("ran").exists()
    build()
    assert Path("ran").exists()


def test_files_that_the_function_reads_are_part_of_the_key() -> None:
    def first_key(*files: str) -> str:
        what = recipe(model={"python": "nets:make", "files": list(files)}, stages=["train"])
        return plan(what, load_device("host"), Store("store")).steps[0].key

    nets()
    for name in ("a.npz", "b.npz"):
        Path(name).write_text("1")
    keys = [first_key(), first_key("a.npz"), first_key("*.npz")]
    Path("b.npz").write_text("2")
    keys.append(first_key("*.npz"))
    assert len({*keys}) == 4 and first_key("a.npz") == keys[1]
    Path("a.npz").unlink()
    with pytest.raises(RecipeError, match=r"no file matches 'a.npz'"):
        first_key("a.npz")


@pytest.mark.parametrize("where", ["model", "student"])
def test_the_versions_of_what_its_code_imports_are_part_of_the_key(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nets("import own_lib\n" + NETS)
    monkeypatch.syspath_prepend(str(Path("site-packages").resolve()))

    def key(version: str) -> str:
        for cached in (installed.version_of, installed._owner, installed._infos, installed._content):
            cached.cache_clear()
        info = Path(f"site-packages/own_lib-{version}.dist-info")
        info.mkdir(parents=True)
        Path("site-packages/own_lib.py").touch()
        (info / "RECORD").write_text("own_lib.py,,\n")
        mine = {"python": "nets:make"}
        stages: list[Any] = ["train", {"distill": {"student": mine}}] if where == "student" else ["train"]
        models: dict[str, Any] = {} if where == "student" else {"model": mine}
        found = plan(recipe(stages=stages, **models), load_device("host"), Store("store")).steps[len(stages)].key
        shutil.rmtree(info)
        return found

    one, two = key("1.0"), key("2.0")
    assert one == key("1.0") != two
