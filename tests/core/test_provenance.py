"""Where a build came from: the commit, and where in its repository the folder lies that files are named from."""

import subprocess
from pathlib import Path

import pytest
from factories import PROJECT, python

from edgepack.core.provenance import git_state


def _git(*arguments: str) -> None:
    named = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *named, *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(monkeypatch: pytest.MonkeyPatch) -> Path:
    """With one commit of a file in recipes/, and one in a folder two below."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    Path("repository/ml/models/recipes").mkdir(parents=True)
    monkeypatch.chdir("repository")
    Path("ml/models/recipes/a.yaml").write_text("a")
    _git("init")
    _git("add", "ml")
    _git("commit", "-m", "first")
    return Path.cwd()


@pytest.mark.parametrize(("folder", "prefix"), [(".", ""), ("ml/models", "ml/models/")])
def test_where_files_are_named_from_is_kept(
    repository: Path, monkeypatch: pytest.MonkeyPatch, folder: str, prefix: str
) -> None:
    monkeypatch.chdir(folder)
    recipes = repository / "ml/models/recipes"
    state = git_state(recipes)
    assert (state["prefix"], state["dirty"], len(state["commit"])) == (prefix, False, 40)
    (recipes / "a.yaml").write_text("b")
    assert git_state(recipes)["dirty"]


def test_outside_of_a_repository_there_is_nothing_to_tell() -> None:
    assert git_state(Path("/")) == {}


def test_the_tests_can_be_run_as_on_another_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """EDGEPACK_TEST_CPU_FEATURES comes to this (see conftest.py): what plans and what runs files are told the same."""
    monkeypatch.setenv("CPU_FEATURES_ADDED", "avx2 amx_bf16 amx_int8")
    code = (
        "from edgepack.core import provenance; from edgepack.measure.worker import system\n"
        "found = provenance.cpu_features()\n"
        "assert {*system.probe()['features'].split()} == found\n"
        "print(provenance.int8_saturates(found), 'amx_bf16' in found, 'amx_int8' in provenance.summary())"
    )
    ran = python(code, path=[PROJECT / "tests/support/cpu_features"])
    assert ran.out == "False True True\n", ran.err
