"""Every way a build can end badly, with its exit code.

EdgepackError
├── RecipeError    2   a bad recipe, device file or usage: every mistake at once
├── StageError     5   a stage or an export failed; what was done before it stays
├── SelftestError  5   an exported file answers otherwise than when it was built
├── DeviceError    4   device or infrastructure: no space, no runtime, not reachable
│   ├── AbsentError    there is no such device here: what needs none can still be done
│   └── RefusedError   a runtime cannot run a file, or not on what it is given
├── AnswerError    1   a file answers otherwise on the device than it does here
└── VerifyError    1   a bundle is not what its manifest says

A budget that failed (1) or could not be decided (3) is a verdict of a build, not an error.
"""

from collections.abc import Iterable, Sequence
from enum import IntEnum


def listed(names: Sequence[str], most: int = 4) -> str:
    """
    >>> listed(["conv1", "conv2", "fc"], 2)
    'conv1, conv2 and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


class ExitCode(IntEnum):
    """Exit codes for CI. It may retry INCONCLUSIVE and DEVICE, never BUDGET."""

    OK = 0
    BUDGET = 1
    USAGE = 2
    INCONCLUSIVE = 3
    DEVICE = 4
    STAGE = 5
    BUG = 70
    INTERRUPTED = 130


_DECISIVE = (
    ExitCode.INTERRUPTED,
    ExitCode.BUG,
    ExitCode.USAGE,
    ExitCode.STAGE,
    ExitCode.BUDGET,
    ExitCode.DEVICE,
    ExitCode.INCONCLUSIVE,
)


def most_decisive(codes: Iterable[int]) -> ExitCode:
    """Return the exit code that stands for all: a definite failure outranks one that a retry may fix.

    >>> most_decisive([0, 3, 1]).name
    'BUDGET'
    """
    found = set(codes)
    return next((code for code in _DECISIVE if code in found), ExitCode.OK)


class EdgepackError(Exception):
    """A failure that a user can act on: `message` says what happened, `hint` what to do."""

    code = ExitCode.BUG

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class RecipeError(EdgepackError):
    code = ExitCode.USAGE


class StageError(EdgepackError):
    code = ExitCode.STAGE


class SelftestError(EdgepackError):
    code = ExitCode.STAGE


class DeviceError(EdgepackError):
    code = ExitCode.DEVICE


class AbsentError(DeviceError):
    pass


class RefusedError(DeviceError):
    pass


class AnswerError(EdgepackError):
    code = ExitCode.BUDGET


class VerifyError(EdgepackError):
    code = ExitCode.BUDGET


def install(extra: str) -> str:
    """Return the command that installs the packages of an extra."""
    return f"pip install 'edgepack[{extra}]'"


def not_installed(package: str, extra: str) -> str:
    """
    >>> print(not_installed("wandb", "wandb"))
    the package wandb is not installed: pip install 'edgepack[wandb]'
    """
    return f"the package {package} is not installed: {install(extra)}"


def reason(error: BaseException) -> str:
    """Return the type and the first line of an error."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}".rstrip(": ")
