"""What becomes of builds that are interrupted or killed at random moments, in every phase from start to exit.

    python benchmarks/interrupts.py [--moments 200] [--folder FOLDER]      writes benchmarks/interrupts.md

A tiny recipe is built again and again, and stopped by SIGINT, SIGTERM or SIGKILL. After each stop the exit code, the
processes, the store and dist/ are looked at; then the build is started again, and stopped again in what is left of it,
until one comes to its end: its bundle must be, byte for byte, that of a build which nobody disturbed. Some builds are
fresh processes, and stopped while they import too; most are forks of a process that has built once and so has imported
everything. With --folder the results are kept there, and a campaign that was broken off goes on.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import SimpleQueue
from tempfile import mkdtemp
from threading import Thread
from typing import Any, NoReturn
from uuid import uuid4

from soundness import sha256, unsound_dist, unsound_store, whole

from edgepack.__main__ import main as command_line
from edgepack.config.device import load_device
from edgepack.config.recipe_reading import load_recipe
from edgepack.core import provenance
from edgepack.records.build import Build
from edgepack.workflows.build.pipeline import build
from edgepack.workflows.build.store import Store

_FILES = {
    "nets.py": """\
from torch import nn


def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
""",
    "devices/untimed.yaml": """\
edgepack: 1
name: this computer, untimed
runner: estimate
controls: {threads: 1}
quantization: {channel_multiple: 8}
""",
    "recipes/net.yaml": """\
edgepack: 1
task: image_classification
model: {python: "nets:make"}
data: {digits: {size: 8}}
device: untimed
stages: [train: {epochs: 2}, prune: {ratio: 50 %, steps: 1}, quantize: {epochs: 1}]
export: [onnx, executorch]
budgets: {size: 10 MB}
""",
}
_START, _END = "start", "verdict, bundle, reports"  # the phases before the first step, and after the last
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
_CODES = {signal.SIGINT: 130, signal.SIGTERM: 130, signal.SIGKILL: -9}
_LIMIT = 15.0  # seconds within which a build must end after a signal
_PAST = Path("dist/history.jsonl")  # written only when a build is over
_TWICE = 0.1  # share of stops with two signals, one right after the other
_FRESH = 0.12  # share of builds that are fresh processes
_FLOOR = 0.5  # seconds added to each phase's duration when a phase is chosen
_COMMAND = ["edgepack", "build", "net", "--json", "--store", "store"]
_ERRORS = "errors.log"
_PAGE = Path(__file__).with_suffix(".md")


@dataclass(kw_only=True)
class Stop:
    """One signal, and all problems found after it."""

    chain: int
    phase: str
    sent: str
    fresh: bool
    code: int
    seconds: float
    late: bool = False  # its exit code was settled before the signal came
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Undisturbed:
    """Uninterrupted builds: their bundle, and the duration of each phase, in order, in a fresh process and a fork."""

    sha256: str
    phases: dict[bool, dict[str, float]]

    @property
    def names(self) -> list[str]:
        return list(self.phases[True])


class Run:
    """A build in the current folder, its events, and its processes."""

    def __init__(self, *, fresh: bool) -> None:
        self.token, self.events = uuid4().hex, [("", "", time.monotonic())]
        read, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._become(write, fresh)
        os.close(write)
        self.queue: SimpleQueue[tuple[str, str] | None] = SimpleQueue()  # None at the end
        Thread(target=self._listen, args=(read,), daemon=True).start()

    def _become(self, write: int, fresh: bool) -> NoReturn:
        """Become the command in the new process, with events on `write`."""
        try:
            os.dup2(write, 1)
            os.dup2(os.open(_ERRORS, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), 2)
            for each, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
                signal.signal(each, handler)
            os.environ["EDGEPACK_CAMPAIGN"] = self.token
            if fresh:
                os.execv(sys.executable, [sys.executable, "-m", *_COMMAND])  # noqa: S606
            sys.argv = _COMMAND
            sys.stdout, sys.stderr = (os.fdopen(each, "w") for each in (1, 2))
            command_line()
        except SystemExit as end:
            os._exit(int(end.code or 0))
        finally:
            os._exit(99)  # neither campaign nor clean-up code may run in this process

    def _listen(self, read: int) -> None:
        """Note when each event came, whether or not anybody waits for it."""
        try:
            with os.fdopen(read) as lines:
                for line in lines:
                    if not line.endswith("\n"):
                        break  # it was killed while writing a line
                    event = json.loads(line)
                    self.events.append((event["event"], event["name"], time.monotonic()))
                    self.queue.put((event["event"], event["name"]))
        finally:
            self.queue.put(None)

    def tell(self) -> Iterator[tuple[str, str]]:
        """Yield each event and its step, as they come."""
        while (event := self.queue.get()) is not None:
            yield event
        self.queue.put(None)  # for later callers

    def until(self, phase: str, last: str) -> None:
        """Wait for a phase to begin, or for the end of the process."""
        wanted = (("StepFinished", last), ("StepCached", last)) if phase == _END else (("StepStarted", phase),)
        if phase != _START:
            next((event for event in self.tell() if event in wanted), None)

    def end(self) -> int:
        for _ in self.tell():
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def names(self, event: str) -> list[str]:
        return [name for kind, name, _ in self.events if kind == event]

    def strays(self) -> list[int]:
        """Return its remaining processes, after a moment."""
        end = time.monotonic() + 3
        while (left := self._own()) and time.monotonic() < end:
            time.sleep(0.1)
        return left

    def _own(self) -> list[int]:
        return [int(each.parent.name) for each in Path("/proc").glob("[0-9]*/environ") if self._is_mine(each)]

    def _is_mine(self, environment: Path) -> bool:
        try:
            return self.token.encode() in environment.read_bytes()
        except OSError:
            return False


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--moments", type=int, default=200)
    arguments.add_argument("--folder", type=Path, help="where to work, and to go on")
    arguments.add_argument("--seed", type=int, default=0)
    asked = arguments.parse_args()
    # One thread: a fork of a process that has run OpenMP threads would wait for them for ever.
    os.environ.update(OMP_NUM_THREADS="1", EDGEPACK_THREADS="1")
    folder = (asked.folder or Path(mkdtemp(prefix="edgepack-interrupts-"))).resolve()
    for name, text in _FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    known = Path("stops.jsonl")
    stops = [Stop(**json.loads(line)) for line in known.read_text().splitlines()] if known.exists() else []
    undisturbed = _undisturbed()
    while len(stops) < asked.moments:
        chain = stops[-1].chain + 1 if stops else 0
        found = _chain(chain, undisturbed, random.Random(asked.seed * 1_000_003 + chain))  # noqa: S311
        stops += found
        with known.open("a") as file:
            file.writelines(json.dumps(asdict(stop)) + "\n" for stop in found)
        wrong = sum(len(stop.wrong) for stop in stops)
        print(f"{len(stops)} stops, {wrong} things wrong", file=sys.stderr, flush=True)
    _PAGE.write_text(_page(stops, undisturbed))


def _undisturbed() -> Undisturbed:
    """Build once here, so that all is imported and compiled, then once in a fresh process, and once in a fork."""
    recipe = load_recipe("net")
    build(recipe, load_device(recipe.device), Store("store"), dist="dist")
    phases = {}
    for fresh in (True, False):
        for folder in ("store", "dist"):
            shutil.rmtree(folder)
        phases[fresh] = _phases(Run(fresh=fresh))
    return Undisturbed(sha256=sha256(), phases=phases)


def _phases(run: Run) -> dict[str, float]:
    if code := run.end():
        sys.exit(f"a build that nobody disturbs ends with {code}: {Path(_ERRORS).read_text()}")
    moments = {_START: run.events[0][2]} | {name: at for event, name, at in run.events if event == "StepStarted"}
    moments[_END] = next(at for event, _, at in reversed(run.events) if event == "StepFinished")
    ends = [*list(moments.values())[1:], time.monotonic()]
    return {name: end - at for (name, at), end in zip(moments.items(), ends, strict=True)}


def _chain(number: int, undisturbed: Undisturbed, random: random.Random) -> list[Stop]:
    """Stop one build again and again, each time where the one before left it, until nothing is left to do."""
    shutil.rmtree("store")
    if random.random() < 0.5:  # otherwise the bundle of an earlier build stays
        shutil.rmtree("dist")
    stops: list[Stop] = []
    left = undisturbed.names
    while len(left) > 1:
        fresh = random.random() < _FRESH
        weights = [undisturbed.phases[fresh][phase] + _FLOOR for phase in left]
        phase = min(random.choices(left, weights, k=2), key=left.index)  # early ones leave more to stop again
        stop, finished = _stop(number, phase, fresh, undisturbed, random)
        stops.append(stop)
        if again := finished - {*left}:
            stop.wrong.append(f"done before, and done again: {', '.join(sorted(again))}")
        left = [phase for phase in left if phase not in finished]
        if stop.phase == _END:
            break
    stops[-1].wrong += _finished(undisturbed)
    return stops


def _stop(
    number: int, phase: str, fresh: bool, undisturbed: Undisturbed, random: random.Random
) -> tuple[Stop, set[str]]:
    how = random.choice(_SIGNALS)
    twice = random.random() < _TWICE and how != signal.SIGKILL
    before = _history_size()
    run = Run(fresh=fresh)
    run.until(phase, undisturbed.names[-2])
    time.sleep(random.random() * undisturbed.phases[fresh][phase])
    over = os.waitid(os.P_PID, run.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None  # faster than measured
    # The exit code was settled before the signal came: otherwise a signal must end it with 130.
    settled = over or _history_size() != before
    sent = time.monotonic()
    for _ in range(1 + twice):
        os.kill(run.pid, how)
        time.sleep(0.7 * twice)
    code = run.end()
    stop = Stop(
        chain=number,
        phase=phase,
        sent=f"{how.name}{', twice' * twice}",
        fresh=fresh,
        code=code,
        seconds=round(time.monotonic() - sent, 2),
    )
    stop.late = code == 0 and settled
    if code != _CODES[how] and not stop.late and not (phase == _START and code == -how):
        stop.wrong.append(f"exit code {code}")
    if stop.seconds > _LIMIT:
        stop.wrong.append("it did not end in time")
    if strays := run.strays():
        stop.wrong.append(f"processes left: {len(strays)}")
    stop.wrong += [*unsound_store(), *unsound_dist(undisturbed.sha256)]
    return stop, {*run.names("StepFinished")}


def _history_size() -> int:
    """Return the size of the history of finished builds."""
    return _PAST.stat().st_size if _PAST.exists() else 0


def _finished(undisturbed: Undisturbed) -> Iterator[str]:
    """Yield what is wrong after the build has finished."""
    if code := Run(fresh=False).end():
        yield f"the build that went on ended with {code}"
        return
    if sha256() != undisturbed.sha256 or not whole():
        yield "its bundle differs"
    if (Build.read(Path("dist/net/build.json"))).exit_code != 0:
        yield "its build.json does not say 0"
    left = [*Path("store/tmp").iterdir(), *Path("dist/net").glob(".*"), *Path("store").glob("*/.*.tmp")]
    if left:
        yield f"left behind: {', '.join(str(each) for each in left)}"


def _page(stops: list[Stop], undisturbed: Undisturbed) -> str:
    names = [how.name for how in _SIGNALS]
    wrong = [f"- {stop.phase}, {stop.sent}: {each}" for stop in stops for each in stop.wrong]
    rows = [_row(phase, [stop for stop in stops if stop.phase == phase], names) for phase in undisturbed.names]
    asked = sorted(stop.seconds for stop in stops if not stop.sent.startswith("SIGKILL"))
    return _TEXT.format(
        stops=len(stops),
        builds=len({stop.chain for stop in stops}),
        fresh=sum(stop.fresh for stop in stops),
        wrong="\n".join([f"Wrong: {len(wrong) or 'nothing'}.", *wrong]),
        names=" | ".join(names),
        rows="\n".join([*rows, _row("all", stops, names)]),
        asked=len(asked),
        half=asked[len(asked) // 2],
        last=asked[-1],
        environment=provenance.summary("torch", "torchao", "executorch", "onnxruntime"),
    )


_TEXT = """\
# Builds that are interrupted or killed at random moments

{stops} moments in {builds} builds of a tiny recipe. {fresh} of the processes that were stopped were fresh ones, the
others forks of one that has imported everything. After each: the exit code is 130 (after SIGKILL that of the signal,
and so before Python has started), no process is left, every entry of the store is whole and no lock is held, and dist/
has no bundle that its build.json does not stand for. Then the build goes on: no step that was done is done again, and
at its end the bundle is byte for byte that of an undisturbed build, with nothing left behind in the store or dist/.

{wrong}

| phase | {names} | of these two in a row | after the verdict | slowest end | wrong |
|---|---|---|---|---|---|---|---|
{rows}

Of {asked} that were asked to end, half had ended after {half:.1f} s, and the last after {last:.1f} s.

Command: `python benchmarks/interrupts.py --moments {stops}`

Every build ran on one thread. Environment: {environment}
"""


def _row(phase: str, stops: list[Stop], names: list[str]) -> str:
    counts = [sum(stop.sent.startswith(name) for stop in stops) for name in names]
    slowest = max((stop.seconds for stop in stops), default=0.0)
    more: list[Any] = [sum("twice" in stop.sent for stop in stops), sum(stop.late for stop in stops)]
    return (
        f"| {phase} | {' | '.join(map(str, counts + more))} | {slowest:.1f} s | {sum(bool(s.wrong) for s in stops)} |"
    )


if __name__ == "__main__":
    main()
