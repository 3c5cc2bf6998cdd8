"""Has /proc/cpuinfo tell of features that the processor does not have, in every Python with this folder on its path."""

import builtins
import io
import os
from typing import Any

_REAL = io.open
_MORE = " " + os.environ["CPU_FEATURES_ADDED"]


def _opened(file: Any, *arguments: Any, **options: Any) -> Any:
    if not isinstance(file, str | os.PathLike) or os.fspath(file) != "/proc/cpuinfo":
        return _REAL(file, *arguments, **options)
    with _REAL(file) as cpuinfo:
        lines = cpuinfo.read().split("\n")
    return io.StringIO("\n".join(line + _MORE if line.startswith(("flags", "Features")) else line for line in lines))


io.open = builtins.open = _opened
