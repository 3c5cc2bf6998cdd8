"""Collect notes on a model while it is built, for the ledger."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_told: ContextVar[list[str] | None] = ContextVar("told", default=None)


def note(text: str) -> None:
    """Add a note; ignored outside of `collected`, for example when a saved candidate is loaded."""
    told = _told.get()
    if told is not None and text not in told:
        told.append(text)


@contextmanager
def collected() -> Iterator[list[str]]:
    """Collect the notes that are added inside."""
    told: list[str] = []
    token = _told.set(told)
    try:
        yield told
    finally:
        _told.reset(token)
