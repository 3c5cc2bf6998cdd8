"""How much memory this process may use."""

import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")


def allowed() -> int:
    """Return the bytes that this process may use: of the machine, its control group and its own limits (ulimit)."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_of_groups(_GROUPS)]
    for limit in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        soft, _ = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY:
            limits.append(soft)
    return min(limits)


def _of_groups(root: Path, member: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """Yield the limits of the control groups that this process is in, of both versions.

    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1/memory.html.
    """
    try:
        lines = member.read_text().splitlines()
    except OSError:
        return  # a system without them
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base, file = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        group = base / path.lstrip("/")
        for folder in (group, *group.parents):
            with suppress(OSError, ValueError):  # not there, or "max"
                yield int((folder / file).read_text())
            if folder == base:
                break
