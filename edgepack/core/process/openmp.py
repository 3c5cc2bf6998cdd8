"""OpenMP, which runs torch's loops on several threads: those that wait for others sleep, instead of spinning.

Threads that spin take the time of the thread that they wait for, as soon as something else runs on one of the cores: a
training beside one busy process took 3 to 6 times as long. benchmarks/busy.md has the figures.
"""

import os
import sys
from collections.abc import Mapping

_POLICY = "OMP_WAIT_POLICY"
_OF_USERS = (_POLICY, "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # if one of these is set, the user's choice is kept
_set_here = False


def wait_asleep() -> None:
    """Make waiting threads sleep. OpenMP reads this when torch is loaded; later it has no effect."""
    global _set_here
    if "torch" not in sys.modules and not any(name in os.environ for name in _OF_USERS):
        os.environ[_POLICY] = "PASSIVE"
        _set_here = True


def of_the_user(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without that setting: timed processes run as those of an app do."""
    return {name: value for name, value in environment.items() if not (_set_here and name == _POLICY)}
