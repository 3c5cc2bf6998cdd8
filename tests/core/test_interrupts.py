"""Ctrl-C, SIGTERM and SIGHUP: each ends a command with 130 within seconds, whatever a library makes of it."""

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest
from factories import Ran, python

from edgepack.core.errors import ExitCode, StageError
from edgepack.core.files import digest
from edgepack.core.process import interrupts
from edgepack.workflows.build.store import Store

KEY = digest("a step")
SAID = "interrupted; finished steps are cached, run the same command to continue"
# `edgepack check`, with other work in its place; PATIENCE and AGAIN are short.
COMMAND = """
import ctypes, hashlib, os, signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
signal.signal(signal.SIGHUP, signal.{hangup})  # nohup ignores it
from edgepack.core.process import interrupts
interrupts._AGAIN, interrupts._PATIENCE = {again}, {patience}
import edgepack.config.recipe_reading
from edgepack.core.errors import StageError

def strike():
    os.kill(os.getpid(), signal.{name})

def work(*arguments, **options):
{work}
    return arguments

edgepack.config.recipe_reading.load_recipe = work
from edgepack.__main__ import main
main()
"""


def command(work: str, name: str = "SIGINT", hangup: str = "SIG_DFL", again: float = 0.2, patience: float = 1.0) -> Ran:
    code = COMMAND.format(work=indent(work, "    "), name=name, hangup=hangup, again=again, patience=patience)
    return python(code, "check", "quickstart")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_a_command(name: str) -> None:
    ran = command("strike()", name)
    assert (ran.code, ran.out, ran.err.strip()) == (ExitCode.INTERRUPTED, "", SAID)


SWALLOWED = {
    "in a bare except": """
try:
    strike()
except BaseException:
    pass
sys.exit(0)
""",
    "in a callback": """
class Loud:
    def __del__(self):
        strike()
loud = Loud()
del loud
raise StageError("the step failed, for want of what was interrupted")
""",
    "as another error": """
try:
    strike()
except BaseException as error:
    raise RuntimeError("the exporter failed") from error
""",
    "as an error of an error": """
try:
    try:
        strike()
    except BaseException:
        raise RuntimeError("the exporter failed")
except RuntimeError as error:
    raise StageError("export failed") from error
""",
    "as an exit": """
try:
    strike()
except BaseException:
    sys.exit(1)
""",
}


@pytest.mark.parametrize("work", SWALLOWED.values(), ids=SWALLOWED)
def test_a_signal_that_a_library_swallows_ends_the_command_all_the_same(work: str) -> None:
    ran = command(work, again=60, patience=60)
    assert ran.code == ExitCode.INTERRUPTED
    assert ran.err.strip().endswith(SAID)


def test_a_signal_that_is_swallowed_is_raised_again() -> None:
    ran = command("try:\n    strike()\nexcept BaseException:\n    time.sleep(100)", patience=60)
    assert ran.code == ExitCode.INTERRUPTED
    assert ran.err.strip() == SAID


FOREVER = """
while True:
    try:
        time.sleep(1)
    except BaseException:
        pass
"""
DEAF = {
    "what catches everything": f"strike_later()\n{FOREVER}",
    "a library": "strike_later()\nhashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)",
}
LATER = """
import threading
strike_later = threading.Timer(0.2, strike).start
child = subprocess.Popen(["sleep", "100"])
print(child.pid, flush=True)
"""


@pytest.mark.parametrize("work", DEAF.values(), ids=DEAF)
def test_what_heeds_no_signal_is_ended_with_its_processes(work: str) -> None:
    ran = command(LATER + work)
    assert ran.code == ExitCode.INTERRUPTED
    assert _gone(int(ran.out))


def test_a_second_signal_ends_a_command_at_once() -> None:
    ran = command(f"{LATER}strike_later()\nthreading.Timer(1.5, strike).start()\n{FOREVER}", again=60, patience=60)
    assert ran.code == ExitCode.INTERRUPTED
    assert _gone(int(ran.out))


def _gone(pid: int) -> bool:
    """Whether a process that was killed ends: that may take it a moment."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":  # dead, and nobody has asked after it
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("module", ["edgepack.cli.main", "click", "edgepack.config.recipe", "pydantic"])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_while_modules_are_imported(module: str, name: str) -> None:
    """As they are looked for; the first two before the command line is there to answer."""
    code = f"""
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)

class Striking:
    def find_spec(self, wanted, path=None, target=None):
        if wanted == {module!r}:
            os.kill(os.getpid(), signal.{name})

sys.meta_path.insert(0, Striking())
from edgepack.__main__ import main
main()
"""
    ran = python(code, "check", "quickstart")
    assert ran.code == ExitCode.INTERRUPTED
    assert "Traceback" not in ran.err


def test_the_end_of_a_forked_process_is_no_signal_to_its_parent() -> None:
    """A pool of the user's ends its workers by SIGTERM."""
    ran = command("""
import multiprocessing
child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
child.start()
child.terminate()
child.join()
time.sleep(0.6)
raise StageError(f"the child ended with {child.exitcode}")
""")
    assert ran.code == ExitCode.STAGE and "the child ended with -15" in ran.err


def test_a_signal_inside_a_long_call_of_a_library_is_remembered() -> None:
    """It comes together with the thread's own, and Python makes one call of the two."""
    ran = command(
        """
import threading
threading.Timer(0.1, strike).start()
try:
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 3_000_000)
    time.sleep(1)
except BaseException:
    pass
print(interrupts.asked())
sys.exit(0)
""",
        patience=5.0,
    )
    assert (ran.code, ran.out.strip()) == (ExitCode.INTERRUPTED, "True")


def test_a_signal_at_the_very_end_of_a_build_is_told_to_the_program(plain_handler: None) -> None:
    with pytest.raises(KeyboardInterrupt), interrupts.heeded(), interrupts.deferred():
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_that_is_ignored_stays_so() -> None:
    """As under nohup."""
    ran = command("strike()\nsys.exit('went on')", "SIGHUP", hangup="SIG_IGN", again=60, patience=60)
    assert ran.code == ExitCode.BUG
    assert "went on" in ran.err


def test_a_signal_after_the_verdict_changes_nothing() -> None:
    code = """
import atexit, os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
atexit.register(lambda: [os.kill(os.getpid(), each) for each in (signal.SIGINT, signal.SIGTERM)])
from edgepack.__main__ import main
main()
"""
    ran = python(code, "--version")
    assert (ran.code, ran.err) == (0, "")


def _swallow() -> None:
    with suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


@pytest.fixture
def plain_handler() -> Any:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_nothing_is_stored_that_was_made_around_a_swallowed_signal(own_place: Path, plain_handler: None) -> None:
    store = Store(own_place / "store")

    def fill(folder: Path) -> dict[str, Any]:
        _swallow()
        return {"accuracy": 0.98}

    with pytest.raises(KeyboardInterrupt), interrupts.heeded():
        store.make("candidate", KEY, {}, fill)
    assert store.get("candidate", KEY) is None
    assert [*(store.root / "tmp").iterdir()] == []
    assert not interrupts.asked()
    interrupts.check()  # what was of that build is forgotten
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_is_deferred_is_done_whole(plain_handler: None) -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), interrupts.heeded():
        with interrupts.deferred():
            signal.raise_signal(signal.SIGINT)
            interrupts.check()
            done.append("all of it")
        interrupts.check()
    assert done == ["all of it"]


def test_once_it_is_heard_nothing_is_raised_any_more(plain_handler: None) -> None:
    with interrupts.heeded():
        _swallow()
        interrupts.heard()
        interrupts.check()
        signal.raise_signal(signal.SIGINT)
        assert interrupts.behind(StageError("the step failed"))


def test_a_program_with_a_handler_of_its_own_keeps_it() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        with interrupts.heeded():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [signal.SIGINT]


def test_a_build_in_another_thread_leaves_signals_alone(plain_handler: None) -> None:
    seen: list[Any] = []

    def work() -> None:
        with interrupts.heeded():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


def test_an_error_tells_whether_a_signal_is_behind_it() -> None:
    assert interrupts.behind(KeyboardInterrupt())
    assert not interrupts.behind(ValueError("a value"))
    assert not interrupts.behind(None)
    circular = ValueError("a value")
    circular.__context__ = other = ValueError("another")
    other.__context__ = circular
    assert not interrupts.behind(circular)
