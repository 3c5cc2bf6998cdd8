"""Handle Ctrl-C, SIGTERM and SIGHUP: one of them ends whatever runs.

Python makes a KeyboardInterrupt of a signal, at whatever line the main thread happens to be. Libraries swallow it there
(a bare `except:`, a callback, a `__del__`), or make another error of it. So that one came is remembered: `check` raises
it again at the boundaries of a build's steps, `behind` tells whether it is the reason of another error, and a thread
raises it again until somebody who ends the work has said `heard`. A command that has not ended some seconds later is
ended: a store and a dist folder are sound whenever that happens.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from edgepack.core.errors import ExitCode

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_AGAIN = 2.0  # seconds between two attempts to raise it
_PATIENCE = 10.0  # seconds that a command has to stop by itself, and as long again to clean up
_BOUNCE = 0.5  # seconds in which a second signal is a duplicate: a terminal and a wrapper of the command both send it


@dataclass
class _Watch:
    """State of the signals of one command, or of one build started from the library."""

    ends: bool  # whether this process may be ended here
    came: float = 0.0  # when the first signal came; 0 before
    heard: float = 0.0  # when the code that stops the work learned of it
    again: bool = False  # whether the next signal was sent by this thread
    deferred: int = 0
    written: int = -1  # pipe that tells the thread of a signal
    lock: threading.Lock = field(default_factory=threading.Lock)  # held while our own signal may be on its way

    def strike(self, number: int, frame: Any) -> None:
        """Handle a signal."""
        now, ours, self.again = time.monotonic(), self.again, False
        if not self.came:  # also if the thread's own one came with it: Python calls the handler once for both
            self.came = now
            with suppress(OSError):
                os.write(self.written, bytes([number]))
        elif not ours and self.ends and now - self.came > _BOUNCE:
            end()  # a second signal means: stop at once
        if not self.deferred and not self.heard:
            raise KeyboardInterrupt

    def stand_by(self, read: int) -> None:
        """Wait for a signal, raise it again until it is heard, and end the process at last. Runs in the thread."""
        with os.fdopen(read, "rb", buffering=0) as pipe:
            while (number := pipe.read(1)) and number[0] not in SIGNALS:
                pass  # a signal that is not handled here
            came = time.monotonic()
            while number and (self.ends or not self.heard) and time.monotonic() < max(came, self.heard) + _PATIENCE:
                time.sleep(_AGAIN)
                with self.lock:
                    if not self.heard:
                        self.again = True
                        signal.pthread_kill(threading.main_thread().ident or 0, number[0])
            if number and self.ends:
                end()

    def start(self) -> None:
        """Start the thread. It is never joined: it ends with the process, or when `written` is closed."""
        read, self.written = os.pipe()
        os.set_blocking(self.written, False)
        threading.Thread(target=self.stand_by, args=(read,), name="interrupts", daemon=True).start()


_now = _Watch(ends=False)  # not installed yet: Python's own handler is in place


def install() -> None:
    """Handle signals from now on as a command does. An ignored signal, as under nohup, stays ignored."""
    global _now
    if _now.ends:
        return
    _now = _Watch(ends=True)
    _now.start()
    signal.set_wakeup_fd(_now.written, warn_on_full_buffer=False)  # also while the main thread is inside a library
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _now.strike)


def _before_fork() -> None:
    """Block signals, so that a child never gets one while it still has its parent's handlers."""
    _masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS))


def _after_fork() -> None:
    if _masks:
        signal.pthread_sigmask(signal.SIG_SETMASK, _masks.pop())


def _in_child() -> None:
    """Restore default handlers in a forked process, such as a user's pool: it must not signal its parent's thread."""
    global _now
    watch, _now = _now, _Watch(ends=False)
    if watch.ends:
        signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        if signal.getsignal(number) == watch.strike:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    _after_fork()


_masks: list[set[signal.Signals | int]] = []  # signal masks of the forking thread
os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_child)


def close() -> None:
    """Ignore signals from now on: the command is over and its exit code is final."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def heeded() -> Iterator[None]:
    """Handle Ctrl-C as `install` does while another program runs a build; that program is never ended here.

    Does nothing outside the main thread, or if the program has its own handler.
    """
    global _now
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    before, _now = _now, _Watch(ends=False)
    _now.start()
    signal.signal(signal.SIGINT, _now.strike)
    watch, unheard = _now, False
    try:
        yield
        unheard = bool(watch.came) and not watch.heard  # a signal that came while nothing could be raised
    finally:
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        with watch.lock:
            watch.heard = time.monotonic()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.close(watch.written)
        _now = before
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    if unheard:
        raise KeyboardInterrupt


def asked() -> bool:
    """Return whether a signal has come."""
    return bool(_now.came)


def check() -> None:
    """Raise KeyboardInterrupt if a library swallowed one."""
    if _now.came and not _now.heard and not _now.deferred:
        raise KeyboardInterrupt


def heard() -> None:
    """Note that the work is being stopped: nothing is raised from here on, so that cleaning up is not interrupted."""
    _now.heard = time.monotonic()


@contextmanager
def deferred() -> Iterator[None]:
    """Run a block without interruption: a signal is remembered and raises nothing."""
    watch = _now
    watch.deferred += 1
    try:
        yield
    finally:
        watch.deferred -= 1


def behind(error: BaseException | None) -> bool:
    """Return whether a signal caused an error, even if a library turned it into another one."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, KeyboardInterrupt):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return asked()


def end() -> NoReturn:
    """End this process and all its child processes now."""
    _kill(_descendants("self"))
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(ExitCode.INTERRUPTED)


def kill_tree(pid: int) -> None:
    """Kill a child process that was not waited for yet, and all that it started."""
    _kill([*_descendants(str(pid)), pid])


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _descendants(pid: str) -> Iterator[int]:
    for file in Path("/proc", pid, "task").glob("*/children"):
        with suppress(OSError):
            for child in file.read_text().split():
                yield from _descendants(child)
                yield int(child)
