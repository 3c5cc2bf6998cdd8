"""OpenMP, which runs torch's loops on several threads: those that wait for others sleep, instead of spinning.

Threads that spin take the time of the thread that they wait for, as soon as something else runs on one of the cores: a
training beside one busy process took 3 to 6 times as long. benchmarks/busy.md has the figures.
"""

import os
import sys
from collections.abc import Mapping

_POLICY = "OMP_WAIT_POLICY"
_OF_USERS = (_POLICY, "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # whoever has set one of these knows better
_set_here = False


def wait_asleep() -> None:
    """Have threads sleep while they wait. OpenMP reads it as torch loads it, so later it would change nothing."""
    global _set_here
    if "torch" not in sys.modules and not any(name in os.environ for name in _OF_USERS):
        os.environ[_POLICY] = "PASSIVE"
        _set_here = True


def of_the_user(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without that: processes that are timed run as those of an app do."""
    return {name: value for name, value in environment.items() if not (_set_here and name == _POLICY)}
