"""Builds that lie in dist/ and its history, judged again."""

from pathlib import Path
from typing import Any

from factories import build, measurement

from edgepack.config.budget_reading import read_budgets
from edgepack.config.budgets import Budget
from edgepack.config.document import Document
from edgepack.judge import gate
from edgepack.judge.history import append
from edgepack.records.build import Build
from edgepack.workflows.baselines import baseline
from edgepack.workflows.rejudge import rejudge


def recorded(folder: str = "dist/tiny", budgets: Any = None, **more: Any) -> Path:
    """A build.json that a build of these budgets left."""
    built = {"model": {"torchvision": "resnet18", "width": "100 %"}, "data": {"digits": {"size": 32}}}
    said = {"name": "tiny", "task": "image_classification", **built, "device": "board", "export": [{"onnx": {}}]}
    known = (measurement(), measurement(value=40e6, artifact="teacher (onnx)"), measurement("latency.p50", 1.5))
    facts = {"measurements": known, "bundle": "", "bundle_sha256": "", **more}
    path = Path(folder, "build.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    build(recipe={**said, "budgets": budgets or {"size": "600 kB"}}, **facts).save(path)
    return path


def reasons(*overrides: str, **more: Any) -> str:
    """What the verdicts of dist/tiny say, judged again."""
    again = rejudge(Path("dist/tiny/build.json"), overrides=overrides, **more)
    return "; ".join(each.reason for each in again.verdicts)


def held(**more: Any) -> Path:
    """A build as it is recorded once relative budgets were judged: its latency is worse by half than last time."""
    timed = measurement("latency.p50", 1.0, low=0.9, high=1.0, sha256="b" * 64)
    append(Path("dist/history.jsonl"), Build.read(recorded("old", measurements=(measurement(), timed))))
    relative = {"relative": {"baseline": "last", "size": "2 %", "latency.p50": "5 %"}}
    path = recorded(budgets=relative, started_at=1.7e9 + 60, **more)
    judged = gate.judge_build(
        Build.read(path), limits(relative), (), baseline("last", "tiny", "board", PAST, 1.7e9 + 60)
    )
    judged.save(path)
    append(PAST, judged)
    return path


PAST = Path("dist/history.jsonl")


def limits(budgets: Any) -> tuple[Budget, ...]:
    document = Document(file="recipe.yaml", data={"budgets": budgets}, lines={})
    found = read_budgets(document, budgets, ["onnx"], recorded=budgets["relative"]["baseline"])
    document.raise_problems()
    return found
