"""What several tests of a file need is made once."""

from collections.abc import Callable
from functools import cache, wraps
from inspect import signature
from typing import ParamSpec, TypeVar

Given = ParamSpec("Given")
Made = TypeVar("Made")


def cached(make: Callable[Given, Made]) -> Callable[Given, Made]:
    """As functools.cache, for which an argument that is left out is another call than its default spelled out."""
    arguments, kept = signature(make), cache(make)

    @wraps(make)
    def made(*args: Given.args, **kwargs: Given.kwargs) -> Made:
        given = arguments.bind(*args, **kwargs)
        given.apply_defaults()
        return kept(*given.args, **given.kwargs)

    return made
