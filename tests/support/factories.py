"""Small values with defaults, so that a test names only what it is about."""

import contextlib
import hashlib
import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from edgepack.cli import main
from edgepack.config import plugins
from edgepack.config.budgets import Budget
from edgepack.config.device import Controls, Device, load_device
from edgepack.config.recipe import Recipe, resolve
from edgepack.config.recipe_reading import load_recipe
from edgepack.core.files import digest
from edgepack.core.metrics import METRICS, quantity_of
from edgepack.deliver.bundle import pack
from edgepack.judge.gate import judge
from edgepack.measure import processes
from edgepack.measure.session import DeviceSession, known
from edgepack.measure.timing.figures import Timed
from edgepack.records.artifact import Artifact
from edgepack.records.build import Build, StageRecord
from edgepack.records.measurement import Measurement
from edgepack.records.verdict import Verdict
from edgepack.workflows.build.outcomes import TimingOutcome
from edgepack.workflows.build.planning.memory import remember
from edgepack.workflows.build.planning.planner import Planner
from edgepack.workflows.build.planning.step import Plan, Step
from edgepack.workflows.build.runner import Runner
from edgepack.workflows.build.store import Entry, Store
from edgepack.workflows.build.workspace import Workspace

PROJECT = Path(__file__).parents[2]
SHA = hashlib.sha256(b"").hexdigest()

RECIPE: dict[str, Any] = {
    "edgepack": 1,
    "task": "image_classification",
    "model": {"torchvision": "resnet18"},
    "data": {"digits": {"size": 32}},
    "device": "host",
    "seed": 0,
    "stages": [
        {"train": {"epochs": 6}},
        {"distill": {"student": {"torchvision": "resnet18", "width": "50 %"}, "epochs": 12}},
        {"prune": {"ratio": "50 %", "recover": {"epochs": 2}}},
        {"factorize": {"energy": "95 %"}},
        {"quantize": {"epochs": 3}},
    ],
    "export": ["executorch", "onnx"],
    "budgets": {"size": "600 kB", "latency.p50": "2 ms", "accuracy": {"min": "95 %", "max_drop": "1 %"}},
}


def recipe_text(**parts: Any) -> str:
    """A recipe as YAML, one line a top-level key in the order of RECIPE; a part that is None is left out."""
    whole = {**RECIPE, **parts}
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in whole.items() if value is not None)


def recipe_file(stem: str = "tiny", **parts: Any) -> Path:
    """A recipe in recipes/ of the current folder."""
    path = Path("recipes", f"{stem}.yaml")
    path.write_text(recipe_text(**parts))
    return path


def recipe(*, overrides: Sequence[str] = (), **parts: Any) -> Recipe:
    return load_recipe(recipe_file(**parts), overrides=overrides)


def device(name: str = "board", **parts: Any) -> Device:
    """A device profile in devices/ of the current folder, loaded."""
    whole = {"edgepack": 1, "name": f"the {name}", "runner": "host", **parts}
    path = Path("devices", f"{name}.yaml")
    path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in whole.items()))
    return load_device(path)


def budget(
    metric: str = "size", limit: object = "600 kB", bound: str = "", place: str = "recipes/tiny.yaml:9", **more: Any
) -> Budget:
    """A budget, its limit as a recipe writes it."""
    bound = bound or METRICS[metric].bounds_of(bool(more.get("against")))[0]
    return Budget(metric=metric, bound=bound, limit=quantity_of(metric, bound).parse(limit), place=place, **more)


def measurement(metric: str = "size", value: float = 500e3, artifact: str = "onnx", **more: Any) -> Measurement:
    facts = {"low": value, "high": value, "sha256": SHA, "evidence": "measured", "taken_at": 1.7e9, **more}
    return Measurement(metric=metric, value=value, artifact=artifact, **facts)


def verdict(metric: str = "size", value: float | None = 500e3, limit: object = "600 kB", **more: Any) -> Verdict:
    """The gate's verdict on one measurement; without a value, on none."""
    known = [] if value is None else [measurement(metric, value, **more)]
    (found,) = judge([budget(metric, limit)], ["onnx"], known)
    return found


def artifact(format: str = "onnx", subject: str = "model", **more: Any) -> Artifact:
    runtime = {"onnx": "onnxruntime"}.get(format, format)
    facts = {"file": f"{subject}.{format}", "bytes": 500_000, "sha256": SHA, **more}
    return Artifact(format=format, runtime=runtime, subject=subject, **facts)


def record(stage: str = "train", **more: Any) -> StageRecord:
    facts = {"key": SHA, "parameters": 1000, "macs": 5000, "bytes": 4000, "accuracy": 0.98, "seconds": 1.5, **more}
    return StageRecord(stage=stage, **facts)


def build(**more: Any) -> Build:
    """A finished build of one file with a budget met and its teacher to compare with."""
    facts: dict[str, Any] = {
        "recipe": {"name": "tiny", "device": "board"},
        "device": {"id": "board", "name": "the board"},
        "exit_code": 0,
        "started_at": 1.7e9,
        "finished_at": 1.7e9 + 5,
        "ledger": (record("model", bytes=40_000, accuracy=0.1), record("train", notes=("kept epoch 5 of 6",))),
        "artifacts": (artifact(), artifact(subject="teacher", bytes=40_000_000)),
        "measurements": (measurement(), measurement(value=40e6, artifact="teacher (onnx)")),
        "verdicts": (verdict(),),
        "provenance": {
            "versions": {"edgepack": "0.1.0"},
            "git": {},
            "environment": {"cpu": "a processor", "cores": 2, "system": "Linux", "python": "3.11"},
        },
        "bundle": "tiny.zip",
        "bundle_sha256": SHA,
    }
    return Build(schema="edgepack.build/1", **{**facts, **more})


def answers(count: int = 7, p50_ms: float = 1.0) -> list[dict[str, Any]]:
    """What `count` worker processes say whose every inference takes the same time."""
    return [{"samples_ns": [p50_ms * 1e6] * 64, "load_ms": 5.0, "first_ms": 3.0} for _ in range(count)]


def published(monkeypatch: pytest.MonkeyPatch, kind: str, name: str, module: str) -> None:
    """As if an installed package published this module as the plugin `name`."""
    installed, point = plugins._installed, EntryPoint(name=name, value=module, group=f"edgepack.{kind}")
    monkeypatch.setattr(
        plugins, "_installed", lambda asked: installed(asked) | ({name: point} if asked == kind else {})
    )


def entry(store: Store, key: str = digest("a step"), kind: str = "candidate", **files: str) -> Entry:
    """An entry with these files (`weights="..."` becomes weights.bin)."""

    def fill(folder: Path) -> dict[str, Any]:
        for name, content in (files or {"weights": "some weights"}).items():
            (folder / f"{name}.bin").write_text(content)
        return {"accuracy": 0.98}

    return store.make(kind, key, {"plugin": "train"}, fill)


def at_work(what: Recipe, where: Device, store: Store) -> Workspace:
    """As a build begins: the device reached, nothing done."""
    session = DeviceSession(where, store.devices, lambda facts: True)
    resolved = resolve(what, session.device, session.facts)
    return Runner(resolved, session, store, Planner(resolved, store, facts=session.facts)).work


def built(
    what: Recipe, where: Device, store: Store, *, timings: Callable[[str], list[dict[str, Any]]] | None = None
) -> Plan:
    """The store filled as a build would fill it, without doing any of the work; gives the plan that was followed."""
    steps, facts = [], known(where, store.devices)
    resolved = resolve(what, where, facts)
    for step in Planner(resolved, store, facts=facts).steps():
        steps.append(step)
        if not step.cached:
            taken = (timings or (lambda _: answers()))(step.id.format)
            store.make(step.kind, step.key, step.ingredients, lambda folder, s=step, t=taken: _outcome(s, folder, t))  # type: ignore[misc]
    plan = Plan(recipe=resolved, steps=tuple(steps))
    remember(plan, store)
    return plan


def _outcome(step: Step, folder: Path, taken: list[dict[str, Any]]) -> dict[str, Any]:
    if step.kind == "artifact":
        path = folder / f"{step.id.subject}.bin"
        path.write_text(step.key)  # another key, another file
        runtime = step.plugin.module.RUNTIME
        return Artifact.of(path, format=step.id.format, runtime=runtime, subject=step.id.subject).model_dump()
    if step.kind == "timing":
        return timed(taken).stored()
    return {"evaluation": {"scores": {"accuracy": 0.98}, "rows": 100}}.get(step.kind, {"accuracy": 0.98})


def timed(taken: list[dict[str, Any]]) -> TimingOutcome:
    """Of a file that these processes timed, and of a teacher's that took as long."""
    memory = [{"peak_bytes": 1_000_000}] * 3
    return TimingOutcome(model=Timed(answers=taken, memory=memory), teacher=Timed(answers=taken))


def run_here(job: dict[str, Any], controls: Controls | None = None) -> dict[str, Any]:
    """One job, by itself; on one thread unless controls are given."""
    with contextlib.closing(processes.Host(controls or Controls(threads=1))) as here:
        return here.run(job)


def bundle_files(**models: bytes) -> dict[str, bytes]:
    """The files of a small, whole bundle: its models, a manifest and the sums."""
    named = {f"models/{name}.onnx": content for name, content in (models or {"tiny": bytes(range(64))}).items()}
    return sealed({"io/labels.txt": b"zero\none\n", "selftest/cases.json": b"{}\n", **named})


def as_zip(files: dict[str, bytes], name: str = "tiny.zip") -> Path:
    path = Path(name)
    path.write_bytes(pack(files))
    return path


def as_folder(files: dict[str, bytes], name: str = "bundle") -> Path:
    for path, content in files.items():
        target = Path(name, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return Path(name)


FORMS = pytest.mark.parametrize("form", [as_zip, as_folder], ids=["zip", "folder"])


def runtime(file: str = "models/tiny.onnx", format: str = "onnx") -> dict[str, Any]:
    """What a manifest says of one runtime."""
    return {"version": "1", "format": format, "needs": None, "entry": {"file": file, "method": None}}


def sealed(contents: Mapping[str, bytes], /, **changes: Any) -> dict[str, bytes]:
    """`contents` with a manifest, changed by `changes`, and sums that fit."""
    roles = {"models": "deploy", "io": "deploy", "licences": "deploy", "selftest": "test"}
    listed = [
        {"path": path, "bytes": len(content), "sha256": _sha(content), "role": roles.get(path.split("/")[0], "doc")}
        for path, content in sorted(contents.items())
    ]
    deployed = [[each["path"], each["sha256"]] for each in listed if each["role"] == "deploy"]
    manifest = {
        "schema": "edgepack.bundle/1",
        "name": "tiny",
        "version": None,
        "task": "image_classification",
        "device": "board",
        "licence": "MIT",
        "source": {"model": {"torchvision": "resnet18"}, "data": {"digits": {}}, "fingerprint": SHA},
        "runtimes": {},
        "deploy_only": False,
        "files": listed,
        "content_digest": digest(deployed),
        **changes,
    }
    return with_sums({**contents, "manifest.json": json.dumps(manifest).encode()})


def with_sums(files: Mapping[str, bytes]) -> dict[str, bytes]:
    rest = {path: content for path, content in files.items() if path != "SHA256SUMS"}
    sums = "".join(f"{_sha(rest[path])}  {path}\n" for path in sorted(rest))
    return {**rest, "SHA256SUMS": sums.encode()}


WORDS = (
    "the",
    "match",
    "ball",
    "goal",
    "team",
    "won",
    "stock",
    "bank",
    "market",
    "rates",
    "fell",
    "##s",
    *"0123456789",
)


def tokenizer(
    folder: str = "words", special: Sequence[str] = ("[PAD]", "[UNK]", "[CLS]", "[SEP]"), **settings: Any
) -> str:
    """A WordPiece tokenizer of a few words as transformers saves it, lower case, with what its settings say."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocabulary = {word: i for i, word in enumerate((*special, *WORDS))}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", continuing_subword_prefix=""))
    made.add_special_tokens([*special])
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    Path(folder).mkdir(parents=True, exist_ok=True)
    made.save(f"{folder}/tokenizer.json")
    if settings:
        Path(folder, "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def texts(root: str = "news", count: int = 10) -> str:
    """A folder of two classes, `count` short documents of each, no two the same."""
    for label, text in (("money", "The bank of rates fell"), ("sport", "The team won the match")):
        Path(root, label).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Path(root, label, f"{i}.txt").write_text(f"{i} {text}")
    return root


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class Ran:
    """What one run of the command line gave."""

    code: int
    out: str
    err: str


def edgepack(*arguments: str) -> Ran:
    """The command line as a user meets it, in this process: exit code and both streams."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", ["edgepack", *arguments]),
        mock.patch("edgepack.core.process.interrupts.install"),
        mock.patch("edgepack.core.process.interrupts.close"),
        mock.patch("tempfile.tempdir", str(Path.cwd())),
    ):
        try:
            main.main()
        except SystemExit as end:
            return Ran(int(end.code or 0), out.getvalue(), err.getvalue())
    raise AssertionError("main() always exits")


def python(code: str, *arguments: str, path: Sequence[Path] = ()) -> Ran:
    """A fresh Python process running `code`."""
    places = [*map(str, (*path, PROJECT)), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, env=environment)
    return Ran(done.returncode, done.stdout, done.stderr)


def transcript(file: Path) -> tuple[list[str], str]:
    """The arguments and the output that a .txt file shows after `$ edgepack`."""
    command, _, output = file.read_text(encoding="utf-8").partition("\n")
    return shlex.split(command.removeprefix("$ edgepack ")), output
