"""A language model from scratch, from text to a bundle: distilled in two steps, pruned and int8."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from factories import answers
from tiny_project import DEVICE, Project
from tiny_project import without_dry_run as without_dry_run

from edgepack.measure.timing import protocol

pytestmark = pytest.mark.slow

RECIPE = """\
edgepack: 1
task: language_modelling
model: {gpt2: {width: 32, layers: 3, heads: 4}}
data: {corpus: {texts: texts.txt, vocabulary: 300, window: 16}}
device: desk
stages:
  - train:    {epochs: 2, learning_rate: 1e-2, batch_size: 16}
  - distill:  {compression: 4, progressive: 1, epochs: 2, learning_rate: 1e-2, batch_size: 16}
  - prune:    {layers: 1, ratio: 25 %, steps: 1, recover: {epochs: 1, learning_rate: 1e-2}}
  - quantize: {mode: ptq}
export: [executorch, onnx]
budgets: {perplexity: {max: 200, max_rise: 100 %}, parity: {min: 95 %}, parity.runtimes: {min: 95 %}}
"""
LOW_BITS = """\
edgepack: 1
task: language_modelling
model: {gpt2: {width: 32, layers: 1, heads: 4}}
data: {corpus: {texts: texts.txt, vocabulary: 300, window: 16}}
device: desk
stages:
  - train:    {epochs: 2, learning_rate: 1e-2, batch_size: 16}
  - quantize: {mode: best, weights: int4, tables: 4, epochs: 1}
export: [executorch, onnx]
budgets: {perplexity: {max: 200, max_rise: 20 %}, parity: {min: 90 %}, parity.runtimes: {min: 90 %}}
"""
VERBS, NOUNS = ("lifts", "paints", "sells", "hides", "draws"), ("boat", "house", "river", "stone", "tree", "cart")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forked_workers: None) -> Project:
    """A project whose files are not timed."""
    monkeypatch.setattr(protocol, "time_alternately", lambda *given: (answers(), answers()))
    monkeypatch.setattr(protocol, "peaks", lambda *given: [{"peak_bytes": 1_000_000}] * 3)
    folder = tmp_path / "shop"
    for name, text in {"recipes/tiny.yaml": RECIPE, "devices/desk.yaml": DEVICE}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    texts = (
        " ".join(f"The {NOUNS[(n + k) % 6]} {VERBS[(n * k) % 5]} a {NOUNS[(n * 2 + k) % 6]} {n}." for k in range(8))
        for n in range(40)
    )
    (folder / "texts.txt").write_text("\n\n".join(texts))
    return Project(folder=folder)


def test_from_text_to_a_bundle(project: Project, without_dry_run: None) -> None:
    ran = project.build()
    assert ran.code == 0, ran.err
    made = project.result()
    scores = {each.stage: each.score for each in made.ledger}
    assert scores["model"] > 200 > scores["train"] and made.metric == "perplexity"
    sizes = {each.stage: each.parameters for each in made.ledger}
    assert sizes["train"] > 4 * sizes["distill"] > 4 * sizes["prune"]
    assert "assistant 1" in " ".join(note for each in made.ledger for note in each.notes)
    assert {"perplexity", "perplexity.max_rise"} <= {each.budget for each in made.verdicts}
    assert {each.metric for each in made.measurements} >= {"perplexity", "bits_per_byte", "parity"}
    tested = project.run("selftest", "dist/tiny/tiny.zip")
    assert (tested.code, tested.out.splitlines()[-1]) == (0, "OK: 12 outputs match those recorded at build time")
    signature = json.loads((project.dist / "bundle/io/signature.json").read_text())
    assert signature["preprocessing"]["kind"] == "tokens" and (project.dist / "bundle/io/tokenizer.json").exists()
    cases = json.loads((project.dist / "bundle/selftest/cases.json").read_text())["cases"]
    for name in ("executorch", "onnxruntime"):
        example = project.dist / f"bundle/examples/{name}/generate.py"
        written = subprocess.run([sys.executable, example, "The boat"], capture_output=True, text=True, check=True)
        assert written.stdout.startswith("The boat") and len(written.stdout) > 10
    assert {*cases[0]["generated"]} == {"executorch", "onnx"}
    config = json.loads((project.dist / "bundle/runtime/genai_config.json").read_text())
    assert config["model"]["decoder"]["filename"] == "tiny.onnx" and config["model"]["context_length"] == 16
    card = (project.dist / "bundle/MODEL_CARD.md").read_text()
    assert "| perplexity |" in card
    assert "accuracy" not in card + (project.dist / "report.html").read_text()


def test_int4_weights_and_tables_of_4_bits_from_text_to_a_bundle(project: Project) -> None:
    (project.folder / "recipes/tiny.yaml").write_text(LOW_BITS)
    ran = project.build()
    assert ran.code == 0, ran.err
    made = project.result()
    before, after = made.ledger[-2:]
    assert after.bytes < before.bytes / 4
    assert any(note.startswith("kept ") for note in after.notes)
    shown = project.run("explain", "--size", "tiny")
    assert shown.code == 0 and shown.out.count("int4") > 10 and "MatMulNBits" in shown.out
    tested = project.run("selftest", "dist/tiny/tiny.zip")
    assert (tested.code, tested.out.splitlines()[-1]) == (0, "OK: 12 outputs match those recorded at build time")
