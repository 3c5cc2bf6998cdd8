"""What a figure is held against on a page: each goal, what was found, and whether that is enough."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Goal:
    text: str
    figure: str
    met: bool

    def __str__(self) -> str:
        return f"| {self.text} | {self.figure} | {'met' if self.met else '**not met**'} |"


def table(goals: Iterable[Goal]) -> list[str]:
    return ["| goal | figure | |", "|---|---|---|", *map(str, goals)]
