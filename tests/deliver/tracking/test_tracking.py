"""Trackers work beside a build: what goes wrong with them is told, and ends nothing."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from factories import build, record

from edgepack.config.plugins import Choice
from edgepack.core.events import Event, Note, StepProgress
from edgepack.core.frozen import Frozen
from edgepack.deliver import tracking
from edgepack.deliver.tracking import Tracking
from edgepack.records.training import Epoch, TrainingRecord

_LONG = 120.0  # seconds: no test waits as long unless it fails

KEEPS = """
    "Lines in a file."
    import json
    from edgepack.core.frozen import Frozen as Config

    class Kept:
        where = "kept.jsonl"

        def log(self, points):
            self.tell([[point.curve, point.step] for point in points])

        def end(self, summary):
            self.tell(summary.status)

        def tell(self, what):
            with open(self.where, "a") as file:
                file.write(json.dumps(what) + "\\n")

    def start(config, build):
        print("a library prints what it likes")
        return Kept()
    """


class _Build:
    """A build with one tracker, which another package publishes; it takes what the tracker tells."""

    def __init__(self, source: str, name: str = "mine") -> None:
        site = Path("site").absolute()
        info = site / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (site / f"tracker_{name}.py").write_text(dedent(source))
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[edgepack.trackers]\n{name} = tracker_{name}\n")
        sys.path.insert(0, str(site))
        self.said: list[str] = []
        self.events: list[Event] = []
        self.tracking = Tracking((Choice(kind="trackers", name=name, config=Frozen()),), self._emit)

    def _emit(self, event: Event) -> None:
        if isinstance(event, Note):
            self.said.append(f"{event.name}: {event.text}")
        self.events.append(event)

    def run(self, **ending: Any) -> None:
        """All that a build tells: a training, its stage, the end."""
        self.tracking.start(build(exit_code=None), 3)
        for done in (1, 9):
            self.tracking.emit(StepProgress(name="train", doing="training", done=done, total=9, loss=0.5))
        trainings = (TrainingRecord(doing="training", kept=0, epochs=(Epoch(epoch=0, score=0.1),)),)
        result = build(ledger=(record(trainings=trainings),), **ending)
        self.tracking.log_stages(result)
        self.tracking.end(result, Path())


def _kept() -> list[Any]:
    lines = [json.loads(line) for line in Path("kept.jsonl").read_text().splitlines()]
    return [each for line in lines for each in (line if isinstance(line, list) else [line])]


def test_a_tracker_is_told_the_course_the_stages_and_the_end_in_this_order() -> None:
    made = _Build(KEEPS)
    made.run()
    assert _kept() == [
        ["train/training/steps", 1],
        ["train/training/steps", 9],
        ["train/training/epochs", 0],
        ["stages", 0],
        "finished",
    ]
    assert made.said == ["mine: logging to kept.jsonl"]
    assert sum(isinstance(each, StepProgress) for each in made.events) == 2  # passed on


def test_of_a_build_that_is_killed_what_was_logged_stays_and_the_run_is_ended() -> None:
    made = _Build(KEEPS)
    made.tracking.start(build(exit_code=None), 3)
    made.tracking.emit(StepProgress(name="train", doing="training", done=1, total=9, loss=0.5))
    (process,) = made.tracking._processes
    process._input.close()  # as the system does
    process._process.wait()
    assert _kept() == [["train/training/steps", 1], "killed"]


@pytest.mark.parametrize(
    ("right", "wrong", "told"),
    [
        ("return Kept()", "raise OSError('no server')", "warning: the build goes on without it: OSError: no server"),
        ("return Kept()", "import os; os._exit(3)", "warning: the build goes on without it: it ended with code 3"),
        ("self.tell([", "raise OSError('no answer'); ([", "warning: some points are lost: OSError: no answer"),
        ("self.tell(summary", "exit(summary", "warning: its run may be incomplete: SystemExit: finished"),
        (
            '"Lines',
            "syntax error",
            "warning: the build goes on without it: RecipeError: the tracker 'mine' does not load",
        ),
    ],
)
def test_a_tracker_that_fails_is_a_warning_told_once(right: str, wrong: str, told: str) -> None:
    made = _Build(KEEPS.replace(right, wrong))
    made.run()
    (warning,) = (text for text in made.said if "warning" in text)
    assert warning.startswith(f"mine: {told}")


HELPS = """
    import os, signal, subprocess, time
    from edgepack.core.frozen import Frozen as Config

    class Kept:
        where = "nowhere"

        def log(self, points):
            pass

        def end(self, summary):
            time.sleep(600)

    def start(config, build):
        helper = subprocess.Popen(["sleep", "600"], start_new_session=True)
        with open("begun", "w") as file:
            file.write(str(helper.pid))
        os.rename("begun", "helper")
        return Kept()
    """


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("return Kept()", "time.sleep(600)"),
        ("return Kept()", "return Kept()"),  # it hangs at the end
        ("helper = ", "signal.signal(signal.SIGTERM, signal.SIG_IGN); helper = "),
    ],
)
def test_a_tracker_that_hangs_is_ended_with_what_it_started(
    right: str, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_START", "_PATIENCE"):
        monkeypatch.setattr(tracking, name, 0.0)
    made = _Build(HELPS.replace(right, wrong))
    made.tracking.start(build(exit_code=None), 3)
    _until(Path("helper").exists)
    (process,) = made.tracking._processes
    made.tracking.end(build(), Path())
    assert made.said[-1] == "mine: warning: it did not store all of the run in time, and was stopped"
    assert not process.running
    _until(lambda: not _lives(int(Path("helper").read_text())))


def test_when_the_build_is_gone_a_tracker_that_hangs_ends_with_what_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepack.deliver.tracking.process._ALONE", 0.0)
    made = _Build(HELPS.replace("return Kept()", "time.sleep(600)"))
    monkeypatch.setattr(tracking, "_START", 0.0)
    made.tracking.start(build(exit_code=None), 3)
    _until(Path("helper").exists)
    (process,) = made.tracking._processes
    process._input.close()  # as the system does
    assert process._process.wait(timeout=_LONG) == 130
    _until(lambda: not _lives(int(Path("helper").read_text())))


def test_a_tracker_that_is_stopped_while_it_logs_marks_its_run_as_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "_PATIENCE", 0.0)
    monkeypatch.setattr(tracking, "_LAST", _LONG)
    made = _Build(KEEPS.replace("self.tell([[", "import time; open('logs', 'w'); time.sleep(600); self.tell([["))
    made.tracking.start(build(exit_code=None), 3)
    made.tracking.emit(StepProgress(name="train", doing="training", done=1, total=9, loss=0.5))
    _until(Path("logs").exists)
    made.tracking.end(build(), Path())
    assert _kept() == ["killed"]


def _until(true: Callable[[], bool]) -> None:
    """Wait for a condition, which takes long on a busy machine only."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < _LONG
        time.sleep(0.01)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_what_python_prints_when_it_starts_is_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("early").mkdir()
    Path("early/sitecustomize.py").write_text("print('a file of the start-up prints')\n")
    monkeypatch.setenv("PYTHONPATH", str(Path("early").absolute()))
    made = _Build(KEEPS)
    made.run()
    assert made.said == ["mine: logging to kept.jsonl"]


def test_secrets_are_left_out_of_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE_API_KEY", "a1b2c3d4")
    Path("report.md").write_text("the key a1b2c3d4 of https://me:word@host")
    made = _Build(KEEPS.replace("self.tell(summary.status)", "self.tell([f.read_text() for f in summary.files])"))
    made.run()
    assert _kept()[-1] == "the key *** of https://***@host"
    assert "a1b2c3d4" in Path("report.md").read_text()


def test_secrets_of_the_environment_are_in_no_message(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setenv("MINE_API_KEY", "a1b2c3d4")
    failing = "import os; raise OSError('refused: ' + os.environ['MINE_API_KEY'] + ' at https://me:word@host/x')"
    made = _Build(KEEPS.replace("return Kept()", failing))
    made.run()
    assert made.said == ["mine: warning: the build goes on without it: OSError: refused: *** at https://***@host/x"]
    printed = capfd.readouterr().err
    assert "OSError: refused: ***" in printed
    assert "a1b2c3d4" not in printed
    assert "word@" not in printed


def test_points_for_a_tracker_that_does_not_read_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepack.deliver.tracking.process._MOST", -1)
    made = _Build(KEEPS)
    made.run()
    assert _kept() == ["finished"]
    assert made.said[-1] == "mine: warning: it is too slow, some points are lost"


def test_without_trackers_events_pass_and_nothing_starts() -> None:
    before = {each.name for each in Path("/proc/self/fd").iterdir()}
    seen: list[Event] = []
    passing = Tracking((), seen.append)
    passing.start(build(), 3)
    passing.emit(Note(text="a note"))
    passing.log_stages(build())
    passing.end(build(), Path())
    assert seen == [Note(text="a note")]
    assert {each.name for each in Path("/proc/self/fd").iterdir()} == before
