"""A project with a tiny recipe of every stage, built once for all tests, each of which works on its own copy."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import pytest
from factories import edgepack
from filelock import FileLock
from short_timings import SHORTENED

from edgepack.cli.main import main
from edgepack.records.build import Build
from edgepack.workflows.build.runner import Runner
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
EDGEPACK = f"""\
import sys
{SHORTENED}
from edgepack.__main__ import main
sys.argv[0] = "edgepack"
main()
"""
WITHOUT_DRY_RUN = f"""\
from edgepack.workflows.build.runner import Runner
Runner._dry_run = lambda self: None
{EDGEPACK}"""
LIMIT = 1500.0  # seconds after which a command is ended: a busy machine needs twenty times as long as an idle one
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
    """A folder with the tiny recipe, and `edgepack` run in it, with short timings."""

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
        """`edgepack`, as `_python` starts it."""
        with self._python("-c", EDGEPACK, *arguments, **environment) as process:
            yield process

    @contextmanager
    def _python(self, *arguments: str, **environment: str) -> "Iterator[subprocess.Popen[str]]":
        """A process that ends with the test, however that ends, or after LIMIT: nobody waits for it longer."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("EDGEPACK_")}
        with subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.folder,
            env={**kept, "EDGEPACK_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        ) as process:
            late = threading.Timer(LIMIT, process.kill)
            late.start()
            try:
                yield process
            finally:
                late.cancel()
                process.kill()

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
        """Build without a dry run, and send a signal as soon as this event of this step is told."""
        with self._python("-c", WITHOUT_DRY_RUN, "build", "tiny", "--json", *arguments) as process:
            assert process.stdout
            seen = _stopped(process.stdout, process.pid, event, step, with_)
            out, err = process.communicate()
        return Ran(code=process.returncode, out=seen + out, err=err)

    def stop_forked(self, event: str, step: str, with_: signal.Signals) -> "Ran":
        """As `stop`, of a build in a copy of this process."""
        for name in ("torchao.quantization.pt2e.quantize_pt2e", "executorch.exir"):
            import_module(name)  # here once, not in each copy

        def read(out: IO[str], pid: int) -> str:
            return _stopped(out, pid, event, step, with_) + out.read()

        return self.run_forked(partial(_command_line, "build", "tiny", "--json"), read)

    def build_forked(self, *arguments: str) -> "Ran":
        return self.run_forked(partial(_command_line, "build", "tiny", *arguments))

    def run_forked(
        self, act: Callable[[], None], read: Callable[[IO[str], int], str] = lambda out, pid: out.read()
    ) -> "Ran":
        """`act` in a copy of this process, which has imported torch already and keeps what the test changed in it.

        It ends with the test, as one of `_python` does. `read` gets its output and its process id.
        """
        ours, its = os.pipe()
        with os.fdopen(ours) as out, TemporaryFile("w+") as messages:
            process = get_context("fork").Process(target=self._act, args=(act, its, messages))
            process.start()
            os.close(its)
            late = threading.Timer(LIMIT, process.kill)
            late.start()
            try:
                said = read(out, process.pid or 0)
                process.join()
            finally:
                late.cancel()
                process.kill()
                messages.seek(0)
                sys.stderr.write(err := messages.read())  # pytest shows it if the test fails
            assert process.exitcode is not None
            return Ran(code=process.exitcode, out=said, err=err)

    def _act(self, act: Callable[[], None], out: int, messages: IO[str]) -> None:
        os.chdir(self.folder)
        os.dup2(out, 1)
        os.dup2(messages.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        logging.getLogger().handlers.clear()  # of pytest
        signal.signal(signal.SIGINT, signal.default_int_handler)
        act()


def _command_line(*arguments: str) -> None:
    sys.argv = ["edgepack", *arguments]
    main()


def _stopped(out: IO[str], pid: int, event: str, step: str, with_: signal.Signals) -> str:
    """Read the events up to this one, and send the signal."""
    seen = ""
    for line in out:
        seen += line
        found = json.loads(line)
        if (found["event"], found["name"]) == (event, step):
            os.kill(pid, with_)
            return seen
    pytest.fail(f"the build ended before {event} of {step}: {seen}")


@dataclass(frozen=True, kw_only=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    def steps(self, event: str) -> list[str]:
        return [each["name"] for each in self.events if each["event"] == event]


@pytest.fixture(scope="session")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Ran]:
    """The one undisturbed build, which the workers of xdist share; not to be changed."""
    own = tmp_path_factory.getbasetemp()
    session = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    folder, said = session / "first build", session / "first build.json"
    with FileLock(session / "first build.lock"):
        if not said.exists():
            ran = Project.at(folder).build_alone()
            said.write_text(json.dumps(asdict(ran)))
    return Project(folder=folder), Ran(**json.loads(said.read_text()))


@pytest.fixture
def project(first: tuple[Project, Ran], tmp_path: Path, short_timings: None) -> Project:
    """A copy of the project that was built, whose timings builds in this process find too."""
    return Project(folder=Path(shutil.copytree(first[0].folder, tmp_path / "project")))


@pytest.fixture
def without_dry_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds in this process take the dry run for done."""
    monkeypatch.setattr(Runner, "_dry_run", lambda self: None)


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
