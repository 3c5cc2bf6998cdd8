"""Whether this computer has nothing else to do: timings that were taken beside other programs say nothing."""

import sys
import time
from pathlib import Path

_SECONDS = 3.0  # time to observe
_MOST = 0.1  # share of all cores; the load average would still include the benchmark before


def checked(busy: bool) -> str:
    """Return the load by other programs just before the start, for the page. Exits if it is high, unless the computer
    may be `busy`.
    """
    share = _share()
    text = f"{share:.0%} busy with other things at the start"
    if share <= _MOST:
        return text
    if not busy:
        sys.exit(
            f"this computer is {text}: wait until nothing else runs, or add --busy to take the figures all the same"
        )
    return f"**{text}**, and the figures are not those of an idle computer"


def _share() -> float:
    """Return the share of all cores' time that is used. Time that a hypervisor gives to others counts too."""
    before = _ticks()
    time.sleep(_SECONDS)
    idle, whole = (after - earlier for after, earlier in zip(_ticks(), before, strict=True))
    return 1 - idle / whole if whole else 0.0


def _ticks() -> tuple[int, int]:
    """Return idle and total ticks of all cores so far."""
    user, nice, system, idle, waiting, *others = map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9])
    return idle + waiting, user + nice + system + idle + waiting + sum(others)
