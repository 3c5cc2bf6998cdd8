"""What needs no tensor imports none: help, checks and plans stay instant."""

import json
from pathlib import Path

import pytest
from factories import build, built, python, recipe_file

from edgepack.config.device import load_device
from edgepack.config.recipe_reading import load_recipe
from edgepack.judge.history import append
from edgepack.measure.worker import archive
from edgepack.workflows.build.store import Store

HEAVY = {"torch", "torchvision", "torchao", "executorch", "numpy", "sklearn", "scipy", "onnx", "onnxruntime", "pandas"}
_COMMAND = """
import json, sys
sys.argv = ["edgepack", *sys.argv[1:]]
from edgepack.cli.main import main
try:
    main()
except SystemExit as end:
    code = end.code
print(json.dumps([int(code), sorted({name.partition(".")[0] for name in sys.modules})]), file=sys.stderr)
"""


def _imported(*arguments: str) -> set[str]:
    ran = python(_COMMAND, *arguments)
    code, modules = json.loads(ran.err.splitlines()[-1])
    assert code == 0, ran.err
    return {*modules}


@pytest.mark.parametrize(
    "command",
    [
        ("--help",),
        ("--version",),
        ("build", "--help"),
        ("check", "quickstart"),
        ("plan", "quickstart"),
        ("devices",),
        ("stages",),
        ("schema", "recipe"),
        ("cache", "ls"),
        ("cache", "gc"),
    ],
    ids=" ".join,
)
def test_a_command_without_tensors_imports_no_library_of_them(command: tuple[str, ...]) -> None:
    assert not HEAVY & _imported(*command)


def test_naming_trackers_imports_none() -> None:
    recipe_file(trackers=["tensorboard", "wandb", {"mlflow": {"uri": "mlruns"}}])
    for command in ("check", "plan"):
        assert not {"tensorboard", "wandb", "mlflow", *HEAVY} & _imported(command, "tiny")


def test_help_imports_next_to_nothing() -> None:
    assert not {"pydantic", "ruamel", "rich", "jinja2"} & _imported("--help")


def test_a_plan_that_is_up_to_date_imports_no_library_of_tensors() -> None:
    recipe = load_recipe(recipe_file())
    built(recipe, load_device("host"), Store("store"))
    assert not HEAVY & _imported("plan", "tiny", "--store", "store")


def test_judging_and_comparing_import_no_library_of_tensors() -> None:
    for name in ("old", "new"):
        Path("dist", name).mkdir(parents=True)
        build().save(Path("dist", name, "build.json"))
    append(Path("dist/history.jsonl"), build())
    Path("mine.yaml").write_text("budgets: {size: 1 MB}\n")
    for command in (("gate", "old", "new"), ("gate", "old", "--recipe", "mine.yaml"), ("compare", "old", "new")):
        assert not HEAVY & _imported(*command)
    assert not HEAVY & _imported("trend")


def test_importing_the_package_or_its_public_names_is_lean() -> None:
    code = "import sys, edgepack; [getattr(edgepack, name) for name in edgepack.__all__]; print(*sys.modules)"
    ran = python(code)
    assert ran.code == 0, ran.err
    assert not HEAVY & {name.partition(".")[0] for name in ran.out.split()}


def test_the_worker_imports_only_what_a_device_has() -> None:
    """It is one file that is sent to a device: it must start without what edgepack needs. See test_worker.py too."""
    Path("worker.pyz").write_bytes(archive.packed())
    code = "import sys; sys.path.insert(0, 'worker.pyz'); from edgepack.measure.worker import job; print(*sys.modules)"
    ran = python(code)
    assert ran.code == 0, ran.err
    assert not {"pydantic", *HEAVY} & {name.partition(".")[0] for name in ran.out.split()}
