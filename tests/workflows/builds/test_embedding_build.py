"""Models that give embeddings, from recipe to bundle."""

import json
from pathlib import Path

import factories
import pytest
import text_factories as make
from tiny_project import RECIPE, Project
from tiny_project import without_dry_run as without_dry_run

from edgepack.core.process.libraries import transformers

SENTENCES = """\
edgepack: 1
name: tiny
task: embedding
model: {huggingface: encoder}
data: {text_folder: {folder: news, tokenizer: words, max_length: 12}}
device: desk
stages:
  - distill:  {layers: 1, epochs: 1}
  - prune:    {heads: 50 %, ffn: 50 %, recover: {epochs: 1}}
  - quantize: {mode: ptq}
export: [executorch, onnx]
budgets:
  size: 1 MB
  recall_at_1: {min: 10 %}
  parity: {min: 90 %}
  parity.runtimes: {min: 90 %}
"""
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


@pytest.mark.usefixtures("short_timings", "without_dry_run")
def test_an_encoder_with_embeddings_of_texts_is_built_and_tests_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project.at(tmp_path / "project")
    (project.folder / "recipes/tiny.yaml").write_text(SENTENCES)
    monkeypatch.chdir(project.folder)
    factories.texts(count=30)
    factories.tokenizer()
    settings = transformers().BertConfig(**{**make._BERT, "vocab_size": len(factories.WORDS) + 4})
    transformers().BertModel(settings).save_pretrained("encoder")
    ran = project.run("build", "tiny")
    assert ran.code == 0, ran.out + ran.err
    shape = json.loads((project.dist / "bundle/io/signature.json").read_text())["outputs"]
    assert [(each["name"], each["shape"]) for each in shape] == [("embedding", [1, 32])]
    tested = project.run("selftest", "dist/tiny/tiny.zip")
    assert tested.code == 0, tested.err
    assert "of length 1" in tested.out
