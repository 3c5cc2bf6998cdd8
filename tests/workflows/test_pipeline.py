"""A whole build of a tiny recipe, through the command line: once for all tests, each of which works on its own copy."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from factories import edgepack

from edgepack.config.device import load_device
from edgepack.config.recipe_reading import load_recipe
from edgepack.core.errors import RefusedError, StageError
from edgepack.core.events import BuildFinished, BuildStarted, Event
from edgepack.deliver.bundle import verify
from edgepack.judge.history import read
from edgepack.measure import evaluate
from edgepack.measure.timing.protocol import Run
from edgepack.records.build import Build
from edgepack.workflows.build import pipeline
from edgepack.workflows.build.planning.planner import plan
from edgepack.workflows.build.store import Store

RECIPE = """\
edgepack: 1
task: image_classification
model: {python: "nets:make", args: {channels: 64}}
data: {digits: {size: 8}}
device: desk
stages:
  - train:     {epochs: 1, learning_rate: 5e-3, batch_size: 32}
  - distill:   {student: {python: "nets:make", args: {channels: 48}}, epochs: 1, learning_rate: 5e-3, batch_size: 32}
  - prune:     {ratio: 50 %, steps: 1, recover: {epochs: 1}}
  - factorize: {energy: 60 %, recover: {epochs: 1}}
  - quantize:  {epochs: 1}
export: [executorch, onnx]
budgets:
  size: 1 MB
  latency.p50: 10 s
  memory.peak: 1 GB
  accuracy: {min: 1 %}
  parity: {min: 50 %}
"""
NETS = """\
from collections import OrderedDict

from torch import nn


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + x)


def make(channels):
    layers = {
        "stem": nn.Conv2d(1, channels, 3, padding=1, bias=False),
        "norm": nn.BatchNorm2d(channels),
        "relu": nn.ReLU(),
        "block": Residual(channels),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flat": nn.Flatten(),
        "head": nn.Linear(channels, 10),
    }
    return nn.Sequential(OrderedDict(layers))
"""
DEVICE = """\
edgepack: 1
name: a desk
runner: host
controls: {threads: 1}
quantization: {channel_multiple: 4}
"""
NO_TORCH = """\
import os, runpy, sys
from importlib.machinery import PathFinder


class NoTorch:
    @staticmethod
    def find_spec(name, path=None, target=None):
        spec = PathFinder.find_spec(name, path) if name == "torch" else None
        if spec:
            spec.loader = NoTorch
        return spec

    @staticmethod
    def create_module(spec):
        raise ImportError("torch was imported")

    @staticmethod
    def exec_module(module): ...


sys.meta_path.insert(0, NoTorch)
for folder in {*os.environ["PYTHONPATH"].split(os.pathsep)[1:]}:
    if os.path.exists(other := os.path.join(folder, "sitecustomize.py")):
        runpy.run_path(other)
"""
pytestmark = pytest.mark.slow
LIMIT = 600.0  # seconds after which a command is ended
STAGES = ["model", "train", "distill", "prune", "factorize", "quantize"]
FILES = ["executorch", "onnx", "teacher (executorch)", "teacher (onnx)"]
STEPS = [
    *STAGES,
    *(f"export {file}" for file in FILES),
    "reference outputs",
    *(f"evaluate {file}" for file in FILES),
    *(f"time {file}" for file in FILES[:2]),
]


@dataclass(frozen=True, kw_only=True)
class Project:
    """A folder with the tiny recipe, and `edgepack` run in it."""

    folder: Path

    @classmethod
    def at(cls, folder: Path) -> "Project":
        for name, text in {"recipes/tiny.yaml": RECIPE, "nets.py": NETS, "devices/desk.yaml": DEVICE}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        return cls(folder=folder)

    @property
    def store(self) -> Path:
        return self.folder / ".edgepack/store"

    @property
    def dist(self) -> Path:
        return self.folder / "dist/tiny"

    def result(self) -> Build:
        return Build.read(self.dist / "build.json")

    def bundle(self) -> bytes:
        return (self.dist / "tiny.zip").read_bytes()

    @contextmanager
    def started(self, *arguments: str, **environment: str) -> "Iterator[subprocess.Popen[str]]":
        """A process that ends with the test, however that ends, or after LIMIT: nobody waits for it longer."""
        with self._start(*arguments, **environment) as process:
            late = threading.Timer(LIMIT, process.kill)
            late.start()
            try:
                yield process
            finally:
                late.cancel()
                process.kill()

    def _start(self, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        kept = {name: value for name, value in os.environ.items() if not name.startswith("EDGEPACK_")}
        return subprocess.Popen(
            [sys.executable, "-m", "edgepack", *arguments],
            cwd=self.folder,
            env={**kept, "EDGEPACK_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def run(self, *arguments: str) -> "Ran":
        """In this process, which has imported most of it already."""
        with chdir(self.folder):
            ran = edgepack(*arguments)
        return Ran(code=ran.code, out=ran.out, err=ran.err)

    def run_alone(self, *arguments: str, **environment: str) -> "Ran":
        """In a process of its own, as a user does."""
        with self.started(*arguments, **environment) as process:
            out, err = process.communicate()
        return Ran(code=process.returncode, out=out, err=err)

    def build(self, *arguments: str) -> "Ran":
        return self.run("build", "tiny", "--json", *arguments)

    def build_alone(self, *arguments: str, **environment: str) -> "Ran":
        return self.run_alone("build", "tiny", "--json", *arguments, **environment)

    def stop(self, event: str, step: str, with_: signal.Signals, *arguments: str) -> "Ran":
        """Build, and send a signal as soon as this event of this step is told."""
        with self.started("build", "tiny", "--json", *arguments) as process:
            assert process.stdout and process.stderr
            seen = ""
            for line in process.stdout:
                seen += line
                told = json.loads(line)
                if (told["event"], told["name"]) == (event, step):
                    process.send_signal(with_)
                    break
            else:
                pytest.fail(f"the build ended before {event} of {step}: {process.stderr.read()}")
            out, err = process.communicate()
        return Ran(code=process.returncode, out=seen + out, err=err)


@dataclass(frozen=True, kw_only=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    def steps(self, event: str) -> list[str]:
        return [told["name"] for told in self.events if told["event"] == event]


@pytest.fixture(scope="session")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Ran]:
    """The one undisturbed build; not to be changed."""
    project = Project.at(tmp_path_factory.mktemp("first"))
    return project, project.build_alone()


@pytest.fixture
def project(first: tuple[Project, Ran], tmp_path: Path) -> Project:
    """A copy of the project that was built."""
    return Project(folder=Path(shutil.copytree(first[0].folder, tmp_path / "project")))


@pytest.fixture
def no_torch(tmp_path: Path) -> dict[str, str]:
    """An environment in which importing torch fails, though it is found where it is installed."""
    (tmp_path / "poison").mkdir()
    (tmp_path / "poison/sitecustomize.py").write_text(NO_TORCH)
    return {"PYTHONPATH": os.pathsep.join([str(tmp_path / "poison"), os.environ.get("PYTHONPATH", "")])}


def sound(store: Path) -> bool:
    """Every entry that can be seen is whole, and nothing half-written is left."""
    found = Store(store).entries()
    whole = all(Store(store).get(entry.kind, entry.key) for entry in found)
    return whole and len(found) == len(list(store.glob("entries/*/*"))) and not list(store.glob("tmp/*"))


def test_a_build_does_every_step_and_tells_of_it(first: tuple[Project, Ran]) -> None:
    _, ran = first
    assert (ran.code, ran.err) == (0, "")
    assert (ran.events[0]["event"], ran.events[-1]["event"]) == ("BuildStarted", "BuildFinished")
    assert ran.steps("StepStarted") == ran.steps("StepFinished") == STEPS
    for told in ran.events[1:-1]:
        assert (told["steps"], told["step"]) == (len(STEPS), STEPS.index(told["name"]) + 1)
    progress = [told for told in ran.events if told["event"] == "StepProgress"]
    assert {told["name"] for told in progress} >= {"train", "distill", "prune", "factorize", "quantize", "time onnx"}
    assert all(told["total"] >= told["done"] >= 0 for told in progress)


def test_the_result_holds_everything_a_report_needs(first: tuple[Project, Ran]) -> None:
    project, _ = first
    result = project.result()
    assert (result.exit_code, result.error) == (0, "")
    assert [record.stage for record in result.ledger] == STAGES
    sizes = [record.bytes for record in result.ledger[1:]]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 5
    assert all(record.notes for record in result.ledger[1:])
    assert [artifact.label for artifact in result.artifacts] == FILES
    metrics = {"size", "accuracy", "latency.p50", "latency.p90", "latency.load", "latency.first"}
    found = {file: {each.metric for each in result.measurements if each.artifact == file} for file in FILES}
    assert all(found[file] >= metrics for file in FILES)
    assert all("memory.peak" in found[artifact.label] for artifact in result.shipped())
    assert "parity" in found["executorch"] and found["onnx"] >= {"parity", "parity.runtimes"}
    assert [verdict.outcome for verdict in result.verdicts] == ["pass"] * 10


def test_the_files_are_there_and_whole(first: tuple[Project, Ran]) -> None:
    project, _ = first
    names = {path.name for path in project.dist.iterdir()}
    assert names >= {"build.json", "report.html", "report.md", "report.sarif", "junit.xml", "tiny.zip", "bundle"}
    assert not {name for name in names if name.startswith(".")}
    for bundle in ("dist/tiny/tiny.zip", "dist/tiny/bundle"):
        ran = project.run("verify", bundle)
        assert ran.code == 0 and "tiny for desk" in ran.out
    ran = project.run("selftest", "dist/tiny/tiny.zip")
    assert (ran.code, ran.out.splitlines()[-1]) == (0, "OK: 6 outputs match those recorded at build time")
    assert sound(project.store)
    roles = {each.path: each.role for each in verify(project.dist / "bundle").files}
    listed = {"BUILDING.md", "selected_operators.yaml", "required_operators_and_types.config"}
    assert {path for path, role in roles.items() if role == "build"} == {f"runtime/{name}" for name in listed}
    assert str(project.folder).encode() not in project.bundle()
    told = verify(project.dist / "tiny.zip")
    assert (told.runtimes["executorch"].entry.method, told.runtimes["onnxruntime"].entry.method) == ("forward", None)
    assert {"MODEL_CARD.md", "sbom.cdx.json", "licences/README.md", "examples/executorch/Load.kt"} <= {*roles}


def test_what_is_in_the_files_is_explained(first: tuple[Project, Ran], no_torch: dict[str, str]) -> None:
    project, _ = first
    assert [artifact.contents is not None for artifact in project.result().artifacts] == [True, True, False, False]
    ran = project.run_alone("explain", "--size", "tiny", **no_torch)
    assert ran.code == 0 and "delegated to XnnpackBackend" in ran.out and "block.conv2" in ran.out


def test_a_bundle_that_changed_is_noticed(project: Project) -> None:
    (project.dist / "bundle/models/tiny.onnx").write_bytes(b"another")
    ran = project.run("verify", "dist/tiny/bundle")
    assert ran.code == 1 and "changed: models/tiny.onnx" in ran.err


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """A folder that another build is at work in."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def test_two_builds_into_one_folder_take_turns(project: Project) -> None:
    with ExitStack() as other:
        other.enter_context(held(project.dist))
        with project.started("build", "tiny", "--json") as process:
            assert process.stdout
            told = [json.loads(process.stdout.readline()) for _ in range(2)]
            assert [each["event"] for each in told] == ["BuildStarted", "Note"]
            assert told[1]["text"].endswith("dist/tiny") and "waiting for another build" in told[1]["text"]
            assert (project.dist / "tiny.zip").exists()
            other.close()
            out, _ = process.communicate()
    assert process.returncode == 0 and '"BuildFinished"' in out


def test_a_build_stopped_while_it_waits_leaves_the_other_ones_bundle(project: Project) -> None:
    with held(project.dist):
        ran = project.stop("Note", "build", signal.SIGINT)
    assert ran.code == 130
    assert verify(project.dist / "bundle") and (project.dist / "tiny.zip").exists()


def test_the_python_examples_in_the_bundle_answer_as_its_selftest(first: tuple[Project, Ran]) -> None:
    bundle = first[0].dist / "bundle"
    cases = json.loads((bundle / "selftest/cases.json").read_bytes())["cases"]
    for runtime, format in (("onnxruntime", "onnx"), ("executorch", "executorch")):
        command = [sys.executable, "-B", str(bundle / f"examples/{runtime}/load.py")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
        assert done.returncode == 0, done.stderr
        answers = [logits.index(max(logits)) for logits in (case["expected"][format] for case in cases)]
        found = [line for line in done.stdout.splitlines() if "case-" in line]
        assert found == [f"{answer}: case-{i}-input.bin" for i, answer in enumerate(answers)]
    assert verify(bundle)


def test_the_ledger_is_explained(first: tuple[Project, Ran], no_torch: dict[str, str]) -> None:
    ran = first[0].run_alone("explain", "tiny", **no_torch)
    assert ran.code == 0
    for words in ("prune: block.conv1: 48 -> 24 channels", "split at rank", "kept epoch", "every budget met"):
        assert words in ran.out


def test_a_second_build_runs_nothing_and_needs_no_torch(project: Project, no_torch: dict[str, str]) -> None:
    before = project.bundle()
    ran = project.build_alone(**no_torch)
    assert (ran.code, ran.err) == (0, "")
    assert ran.steps("StepCached") == STEPS
    assert project.bundle() == before
    assert {record.reused for record in project.result().ledger} == {True}


@pytest.mark.parametrize("change", ["budgets.size=1kB", "budgets.accuracy.min=99.9 %", "budgets.latency.p50=1 us"])
def test_a_budget_that_is_missed_ends_with_1_and_runs_nothing(
    project: Project, no_torch: dict[str, str], change: str
) -> None:
    ran = project.build_alone("--set", change, **no_torch)
    assert (ran.code, ran.steps("StepStarted")) == (1, [])
    result = project.result()
    metric = change.split("=")[0].removeprefix("budgets.").removesuffix(".min")
    assert [verdict.outcome for verdict in result.verdicts if verdict.metric == metric] == ["fail", "fail"]
    assert result.exit_code == 1 and result.bundle  # the files are there to look into


def test_every_build_that_was_judged_is_in_the_history_and_can_be_judged_again(
    project: Project, no_torch: dict[str, str]
) -> None:
    past = project.folder / "dist/history.jsonl"
    relative = "--set=budgets.relative={size: 2 %, latency.p50: 900 %, accuracy: 0 %}"
    codes = [
        project.build_alone(relative, **no_torch).code,
        project.build_alone("--set=budgets.size=1 kB", **no_torch).code,
    ]
    ended = project.build(
        "--set", "stages.prune={target: {params: 10}, steps: 1}", "--set", "stages.train.epochs=10000"
    )
    assert ended.code == 5  # and is not judged
    lines, damaged = read(past)
    assert (codes, [line.exit_code for line in lines], damaged) == ([0, 1], [0, 0, 1], 0)
    assert len({line.figures for line in lines}) == 1
    assert project.run("gate", "tiny").code == 5
    assert project.build_alone(relative, **no_torch).code == 0
    ran = project.run_alone("gate", "tiny", **no_torch)
    assert ran.code == 0
    assert "relative.latency.p50" in ran.out
    assert "size.deploy" in project.run_alone("compare", "tiny", "tiny", **no_torch).out


def test_people_see_where_a_budget_is_missed_and_by_how_much(project: Project) -> None:
    ran = project.run("build", "tiny", "--set", "budgets.size=1kB")
    assert ran.code == 1
    assert "at most 1 kB" in ran.out and "over by" in ran.out and "dist/tiny" in ran.out


def test_only_what_comes_after_a_change_runs(project: Project, no_torch: dict[str, str]) -> None:
    ran = project.run_alone("plan", "tiny", "--set", "stages.quantize.epochs=2", **no_torch)
    runs = [line.strip().split("  ")[0] for line in ran.out.splitlines() if "run:" in line]
    later = ["quantize", "export executorch", "export onnx", "reference outputs"]
    assert runs == [*later, "evaluate executorch", "evaluate onnx", "time executorch", "time onnx"]
    assert "epochs 1 -> 2" in ran.out


def test_events_are_told_in_order(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.folder)
    events: list[Event] = []
    recipe = load_recipe("tiny")
    pipeline.build(recipe, load_device(recipe.device), Store(), dist="elsewhere", emit=events.append)
    assert isinstance(events[0], BuildStarted) and isinstance(events[-1], BuildFinished)
    assert (events[0].device, events[-1].dist) == ("a desk", "elsewhere/tiny")
    assert [event.name for event in events[1:-1]] == STEPS


MOMENTS = [  # and how many candidates and files build.json tells of by then
    ("StepProgress", "quantize", 5, 0),
    ("StepStarted", "export onnx", 6, 1),
    ("StepCached", "time onnx", 6, 4),  # the bundle is being written
]


def test_a_build_killed_again_and_again_gives_the_same_bundle(first: tuple[Project, Ran], tmp_path: Path) -> None:
    """Only the timings of the undisturbed build are shared: they are found if the files are the same, to the byte."""
    undisturbed, _ = first
    project = Project.at(tmp_path / "another folder")
    shutil.copytree(undisturbed.store / "entries/timing", project.store / "entries/timing")
    for event, step, candidates, files in MOMENTS:
        assert project.stop(event, step, signal.SIGKILL).code == -signal.SIGKILL
        told = project.result()
        assert (len(told.ledger), len(told.artifacts), told.exit_code) == (candidates, files, None)
    ran = project.build_alone()
    assert ran.code == 0
    assert ran.steps("StepStarted") == []
    assert project.bundle() == undisturbed.bundle()
    assert [file.sha256 for file in project.result().artifacts] == [
        file.sha256 for file in undisturbed.result().artifacts
    ]
    assert project.run("cache", "gc").code == 0
    assert sound(project.store)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_ends_with_130_and_leaves_a_sound_store(project: Project, how: signal.Signals) -> None:
    before = {path.name for path in project.store.glob("entries/*/*")}
    ran = project.stop("StepProgress", "prune", how, "--set", "stages.prune.steps=2")
    assert ran.code == 130
    assert "interrupted" in ran.err and "Traceback" not in ran.err
    assert ran.steps("StepCached") == STAGES[:3]
    assert sound(project.store)
    assert {path.name for path in project.store.glob("entries/*/*")} == before
    result = project.result()
    assert (result.exit_code, [record.stage for record in result.ledger]) == (130, STAGES[:3])


def _scripted(project: Project, script: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """`edgepack build tiny`, with a library changed first, and without the dry run."""
    start = (
        "import os, signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from unittest import mock\nfrom edgepack.workflows.build.runner import Runner\n"
        "mock.patch.object(Runner, '_dry_run', lambda self: None).start()\n"
    )
    end = f"from edgepack.cli.main import main\nsys.argv = {['edgepack', 'build', 'tiny', *arguments]!r}\nmain()\n"
    environment = {**os.environ, "EDGEPACK_THREADS": "1"}
    command = [sys.executable, "-c", start + script + end]
    return subprocess.run(command, cwd=project.folder, env=environment, capture_output=True, text=True, timeout=LIMIT)


@pytest.mark.parametrize(
    ("how", "instead"),
    [("SIGINT", "pass"), ("SIGTERM", "raise RuntimeError('the library failed') from error"), ("SIGINT", "sys.exit(0)")],
)
def test_an_interrupt_that_a_library_swallows_ends_a_build_too(project: Project, instead: str, how: str) -> None:
    before = {path.name for path in project.store.glob("entries/*/*")}
    script = (
        "from edgepack.compress.stages import prune\n"
        "real = prune.run\n"
        "def run(candidate, config, context):\n"
        "    made = real(candidate, config, context)\n"
        "    try:\n"
        f"        os.kill(os.getpid(), signal.{how})\n"
        "    except BaseException as error:\n"
        f"        {instead}\n"
        "    return made\n"
        "prune.run = run\n"
    )
    ran = _scripted(project, script, "--set", "stages.prune.ratio=60 %")
    assert ran.returncode == 130, ran.stderr
    assert ran.stderr.strip().endswith("run the same command to continue") and "failed" not in ran.stderr
    result = project.result()
    assert (result.exit_code, result.error) == (130, "interrupted")
    assert [record.stage for record in result.ledger] == STAGES[:3]
    assert not (project.dist / "tiny.zip").exists()
    assert {path.name for path in project.store.glob("entries/*/*")} == before
    assert sound(project.store)


def test_an_interrupt_as_a_build_is_added_to_the_history_leaves_both_or_neither(project: Project) -> None:
    builds = len(read(project.folder / "dist/history.jsonl")[0])
    script = (
        "from edgepack.judge import history\n"
        "real = history.append\n"
        "history.append = lambda *of: [real(*of), os.kill(os.getpid(), signal.SIGINT)]\n"
    )
    ran = _scripted(project, script)
    assert ran.returncode == 130, ran.stderr
    assert len(read(project.folder / "dist/history.jsonl")[0]) == builds + 1
    assert project.result().exit_code == 0 and verify(project.dist / "tiny.zip")


def test_a_build_clears_away_what_one_that_was_killed_left(project: Project) -> None:
    file, folder = project.dist / ".build.json.123.tmp", project.dist / ".bundle.x1y2/new"
    file.touch()
    folder.mkdir(parents=True)
    assert project.build().code == 0
    assert not file.exists() and not folder.exists()


def test_ctrl_c_reaches_who_builds_from_a_program(project: Project) -> None:
    """Also where a stage swallows it; and the program goes on."""
    script = (
        "from edgepack import Store, build, load_device, load_recipe\n"
        "from edgepack.compress.stages import prune\n"
        "def run(candidate, config, context):\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    except BaseException:\n"
        "        return candidate\n"
        "prune.run = run\n"
        "recipe = load_recipe('tiny', overrides=['stages.prune.ratio=60 %'])\n"
        "try:\n"
        "    build(recipe, load_device(recipe.device), Store('.edgepack/store'), dist='dist')\n"
        "except KeyboardInterrupt:\n"
        "    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
        "    os._exit(17)\n"
    )
    assert _scripted(project, script).returncode == 17
    assert project.result().exit_code == 130


def test_a_stage_that_fails_ends_with_5_says_which_and_keeps_what_was_done(project: Project) -> None:
    ran = project.build("--set", "stages.prune.ratio=1 %")
    assert ran.code == 5
    for words in ("prune", "nothing was removed", "larger ratio"):
        assert words in ran.err
    assert "Traceback" not in ran.err
    assert (ran.steps("StepCached"), ran.steps("StepFailed")) == (["model", "train", "distill"], ["prune"])
    result = project.result()
    assert (result.exit_code, [record.stage for record in result.ledger]) == (5, ["model", "train", "distill"])
    assert "nothing was removed" in result.error
    assert "nothing was removed" in (project.dist / "report.md").read_text()  # the reports are of this build
    explained = project.run("explain", "tiny").out
    assert "did not finish" in explained and "nothing was removed" in explained
    assert sound(project.store)
    assert project.build("--set", "stages.prune.ratio=1 %").code == 5  # a failure is never stored


def test_a_file_that_is_refused_keeps_no_other_from_being_evaluated(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = evaluate.outputs

    def refused(run: Run, *, runtime: str, **rest: Any) -> Any:
        if runtime == "executorch":
            raise RefusedError("executorch failed: it does not load", "run `edgepack doctor`")
        return outputs(run, runtime=runtime, **rest)

    monkeypatch.setattr(evaluate, "outputs", refused)
    with pytest.raises(StageError, match=r"evaluate executorch: .*does not load; the first operator that fails is '"):
        evaluated_again(project, monkeypatch)
    result = project.result()
    assert result.exit_code == 5
    assert {each.artifact for each in result.measurements if each.metric == "accuracy"} == {"onnx", "teacher (onnx)"}
    assert not (project.dist / "tiny.zip").exists()


@pytest.mark.parametrize("subject", ["model", "teacher"])
def test_a_file_far_from_the_torch_model_fails_the_build_whatever_the_budgets_ask(
    project: Project, subject: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = evaluate.outputs

    def wrong(run: Run, *, file: Path, **rest: Any) -> Any:
        found = outputs(run, file=file, **rest)
        return -found if file.name == f"{subject}.onnx" else found

    monkeypatch.setattr(evaluate, "outputs", wrong)
    with pytest.raises(StageError, match=r"the onnx file .*than the torch model .*: the file is broken"):
        evaluated_again(project, monkeypatch)
    assert project.result().exit_code == 5


def evaluated_again(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.folder)
    monkeypatch.setenv("EDGEPACK_THREADS", "1")
    shutil.rmtree(project.store / "entries/evaluation")
    pipeline.build(load_recipe("tiny"), load_device("desk"), Store(".edgepack/store"), dist="dist")


def test_what_cannot_work_fails_before_anything_is_trained(project: Project) -> None:
    ran = project.build("--set", "stages.train.epochs=10000", "--set", "stages.prune={target: {params: 10}, steps: 1}")
    assert ran.code == 5
    assert "prune, dry run before any training: pruning cannot reach 10 parameters" in ran.err
    assert (ran.steps("StepCached"), ran.steps("StepFailed")) == (["model"], ["train"])


def test_a_stage_that_calls_exit_has_failed_and_its_traceback_is_in_the_log(project: Project) -> None:
    script = (
        "from edgepack.compress.stages import prune\n"
        "def run(candidate, config, context): sys.exit(0)\nprune.run = run\n"
    )
    ran = _scripted(project, script, "--set", "stages.prune.ratio=60 %")
    assert ran.returncode == 5, ran.stderr
    assert "prune failed: SystemExit" in ran.stderr and "Traceback" not in ran.stderr
    assert ", in run\n" in (project.dist / "build.log").read_text()
    assert not (project.dist / "tiny.zip").exists()


@pytest.mark.parametrize("option", ["--dist", "--store"])
def test_a_folder_that_cannot_be_written_ends_with_4(project: Project, option: str) -> None:
    (project.folder / "in the way").write_text("")
    ran = project.build(option, "in the way")
    assert ran.code == 4
    assert "in the way" in ran.err and "Traceback" not in ran.err
    assert len(ran.err.splitlines()) == 2  # what happened, and what to do


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_ends_with_4(project: Project) -> None:
    (project.folder / "locked").mkdir(mode=0o500)
    ran = project.build("--dist", "locked")
    assert ran.code == 4 and "permission" in ran.err.lower()


def damage(project: Project, kind: str, file: str, **ingredients: str) -> None:
    """Flip one byte in the middle of a stored file."""
    for entry in Store(project.store).entries():
        if entry.kind == kind and all(entry.ingredients.get(key) == value for key, value in ingredients.items()):
            path = entry.path / file
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
            return
    raise AssertionError(f"no {kind} with {ingredients}")


def test_damage_in_the_store_is_noticed_and_made_good(project: Project) -> None:
    """A file of the bundle, and what it was made from, and what that was made from."""
    before = project.bundle()
    damage(project, "artifact", "model.onnx", subject="model", plugin="onnx")
    damage(project, "outputs", "logits.npy")
    damage(project, "candidate", "program.pt2", plugin="quantize")
    damage(project, "candidate", "weights.safetensors", plugin="factorize")
    ran = project.build()
    assert (ran.code, ran.err) == (0, "")
    assert project.bundle() == before
    assert sound(project.store)


def test_measurements_are_taken_again_when_asked_for(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only as a plan: timing everything takes a while."""
    monkeypatch.chdir(project.folder)
    recipe = load_recipe("tiny")
    made = plan(recipe, load_device(recipe.device), Store(), remeasure=True)
    assert [step.name for step in made.steps if not step.cached] == STEPS[-6:]


def test_the_library_can_be_used_as_its_documentation_says(project: Project) -> None:
    """Its public names are functions, though modules have some of the same names."""
    script = (
        "from edgepack import Store, build, load_device, load_recipe\n"
        "from edgepack.workflows.build.planning.planner import plan\n"
        "recipe = load_recipe('recipes/tiny.yaml')\n"
        "device = load_device(recipe.device)\n"
        "assert plan(recipe, device, Store()).up_to_date\n"
        "assert build(recipe, device, Store('.edgepack/store'), dist='dist').exit_code == 0\n"
    )
    environment = {**os.environ, "EDGEPACK_THREADS": "1"}
    command = [sys.executable, "-c", script]
    ran = subprocess.run(command, cwd=project.folder, env=environment, capture_output=True, text=True, timeout=LIMIT)
    assert (ran.returncode, ran.stderr) == (0, "")
