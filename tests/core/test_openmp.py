"""Threads of torch sleep while they wait, unless the user has said otherwise; what is timed runs as in an app."""

import os
import sys
from pathlib import Path

import pytest
from factories import PROJECT, python, run_here

from edgepack.core.process import openmp
from edgepack.measure import processes

POLICY = "OMP_WAIT_POLICY"
# What a command finds as it begins its work, before torch is loaded.
COMMAND = f"""
import os, sys, edgepack.config.recipe_reading
def work(*arguments, **options):
    assert "torch" not in sys.modules
    print(os.environ.get({POLICY!r}))
    raise KeyboardInterrupt
edgepack.config.recipe_reading.load_recipe = work
from edgepack.__main__ import main
main()
"""


@pytest.mark.parametrize(
    ("variable", "value", "found"),
    [
        ("", "", "PASSIVE"),
        (POLICY, "active", "active"),
        ("GOMP_SPINCOUNT", "1000", "None"),
        ("KMP_BLOCKTIME", "5", "None"),
    ],
)
def test_a_command_has_threads_sleep_unless_the_user_says_otherwise(
    variable: str, value: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(POLICY, raising=False)
    if variable:
        monkeypatch.setenv(variable, value)
    assert python(COMMAND, "check", "quickstart").out == f"{found}\n"


def test_a_build_from_a_program_has_it_set_before_torch_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(POLICY, raising=False)
    code = f"""
import os, sys
from edgepack import build; from edgepack.workflows.build import pipeline
def instead(*arguments):
    print({POLICY!r} in os.environ, "torch" in sys.modules)
    return
assert {POLICY!r} not in os.environ  # an import changes nothing
pipeline._build = instead
build(None, None, None, dist="dist")
"""
    assert python(code).out == "True False\n"


def test_openmp_of_this_torch_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_DISPLAY_ENV", "true")
    code = "from edgepack.core.process import openmp; openmp.wait_asleep(); import torch"
    monkeypatch.delenv(POLICY, raising=False)
    assert f"{POLICY} = 'PASSIVE'" in python(code).err


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if torch were not loaded, and nothing set."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(openmp, "_set_here", False)
    monkeypatch.setenv(POLICY, "")  # so that it is put back
    monkeypatch.delenv(POLICY)


@pytest.mark.parametrize("user", [None, "ACTIVE"])
def test_what_is_timed_runs_with_what_the_user_has_set(
    user: str | None, forgotten: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if user:
        monkeypatch.setenv(POLICY, user)
    openmp.wait_asleep()
    worker = tmp_path / "worker.py"
    worker.write_text(
        f"import sys; sys.path.insert(0, {str(PROJECT)!r})\n"
        "import json, os\n"
        "from edgepack.measure.worker.job import _awaited\n"
        "_awaited(json.loads(sys.argv[1])['wait'])\n"
        f"print(json.dumps({{{POLICY!r}: os.environ.get({POLICY!r})}}))\n"
    )
    monkeypatch.setattr(processes, "_WORKER", [str(worker)])
    assert run_here({"runtime": "x"}) == {POLICY: user}


def test_once_torch_is_loaded_nothing_is_set(forgotten: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", sys)
    openmp.wait_asleep()
    assert POLICY not in os.environ
