"""A test past its limit ends, fails and is named, and what it started ends with it. A plugin of pytest.

pytest-timeout raises an error in the test. What swallows that, or hangs inside a library, ends a little later with its
whole process (`faulthandler_exit_on_timeout`): xdist then names the test, and the session ends. (Without
`--max-worker-restart 0` xdist would start the test again, or wait for ever.) Here are the processes that tests start:
those of a test end as its limit is reached, all others with the process that runs the tests, however that ends.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from limits import sweeper

_MARK = "PYTEST_STARTED_BY"  # in the environment of every process that tests start
_CURRENT = "PYTEST_CURRENT_TEST"  # set by pytest: which test, and whether its set-up, call or teardown


def pytest_configure(config: pytest.Config) -> None:
    """Start a process that outlives this one: it waits for its input to end, and then ends what is left."""
    mark = f"{_MARK}={uuid4().hex}"
    sweeping = subprocess.Popen(
        [sys.executable, "-S", sweeper.__file__, mark],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,  # else who reads the output of the tests would wait for it
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the tests
        env={},  # no mark of another: one that ends sooner would end it
    )

    def end() -> None:
        sweeping.communicate()

    config.add_cleanup(end)
    os.environ[_MARK] = mark.partition("=")[2]


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> Iterator[Any]:
    """A test that waits for its process in a `with` would do so for ever: the process ends first."""
    result = yield
    raise_in_test = signal.getsignal(signal.SIGALRM)
    if callable(raise_in_test):

        def late(number: int, frame: Any) -> None:
            sweeper.sweep({f"{_MARK}={os.environ[_MARK]}", f"{_CURRENT}={os.environ.get(_CURRENT, '')}"})
            raise_in_test(number, frame)

        signal.signal(signal.SIGALRM, late)
    return result
