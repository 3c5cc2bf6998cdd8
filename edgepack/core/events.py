"""Define the events that the library emits. It never prints; the CLI decides how events look."""

from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something happened at step `step` of `steps` (counted from 1)."""

    step: int = 0
    steps: int = 0
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class BuildStarted(Event):
    recipe: str
    device: str


@dataclass(frozen=True, kw_only=True)
class StepStarted(Event):
    why: str  # why the step has to run


@dataclass(frozen=True, kw_only=True)
class StepProgress(Event):
    """`done` of `total` units of work; `seconds_left` is None while nothing is known yet.

    Of a training also the loss of the last batch, its learning rate, the last score on the validation split, and the
    speed.
    """

    doing: str
    done: int
    total: int
    seconds_left: float | None = None
    loss: float | None = None
    learning_rate: float | None = None
    score: float | None = None
    metric: str = ""  # of the score
    samples_per_second: float | None = None


@dataclass(frozen=True, kw_only=True)
class StepFinished(Event):
    seconds: float
    result: str


@dataclass(frozen=True, kw_only=True)
class StepCached(Event):
    key: str
    result: str


@dataclass(frozen=True, kw_only=True)
class StepFailed(Event):
    message: str


@dataclass(frozen=True, kw_only=True)
class Note(Event):
    """Information that needs no action, such as a skipped layer or waiting for a lock."""

    text: str


@dataclass(frozen=True, kw_only=True)
class BuildFinished(Event):
    """The build ended, with or without success; `error` says what stopped it before its verdict."""

    recipe: str
    exit_code: int
    dist: str
    error: str = ""


def placed(emit: "Emit", step: int, steps: int, name: str) -> "Emit":
    """Return an `emit` that adds the step and its number to each event."""
    return lambda event: emit(replace(event, step=step, steps=steps, name=name))


Emit = Callable[[Event], None]
