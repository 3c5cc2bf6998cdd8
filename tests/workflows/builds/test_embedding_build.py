"""A net that gives embeddings, from recipe to bundle."""

from pathlib import Path

import pytest
from tiny_project import RECIPE, Project

TASK, BUDGET = "task: image_classification", "accuracy: {min: 1 %}"


@pytest.mark.usefixtures("short_timings")
def test_a_net_with_embeddings_is_built_and_tests_itself(tmp_path: Path) -> None:
    project = Project.at(tmp_path / "project")
    assert TASK in RECIPE and BUDGET in RECIPE
    recipe = RECIPE.replace(TASK, "task: {embedding: {size: 10}}").replace(
        BUDGET, "recall_at_1: {min: 40 %, max_drop: 50 %}\n  recall_at_5: {min: 60 %}"
    )
    (project.folder / "recipes/tiny.yaml").write_text(recipe)
    ran = project.run("build", "tiny")
    assert ran.code == 0, ran.out + ran.err
    measured = {(each.artifact, each.metric): each.value or 0 for each in project.result().measurements}
    for file in ("executorch", "onnx"):
        assert measured[file, "recall_at_1"] <= measured[file, "recall_at_5"]
    tested = project.run("selftest", "dist/tiny/tiny.zip")
    assert tested.code == 0, tested.err
    assert "of length" in tested.out
    assert tested.out.splitlines()[-1].startswith("OK: ")
