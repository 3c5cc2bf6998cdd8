"""Chance: what other importances have to beat."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgepack.models.structure.dependency_groups import Score

VERSION = 1


def score() -> "Score":
    from torch_pruning.pruner.importance import RandomImportance

    found: Score = RandomImportance()
    return found
